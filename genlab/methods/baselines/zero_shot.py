"""Zero-shot CLIP (Radford et al., arXiv 2103.00020): the class whose text is nearest. Nothing is trained."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from genlab.batches import FewShotBatch
from genlab.training.few_shot import FewShotMethod, Scores, TextKind


class ZeroShot(FewShotMethod):
    """Logits are cosines with the texts of the classes, times CLIP's scale.

    Args:
        backbone: ``tiny:clip``, hub id or folder, ``open_clip:ARCH/TAG``, ``openai:FILE``.
        text: ``template``, the dataset's one prompt, as in few-shot papers; ``ensemble``, the mean over its templates; ``descriptions``,
            over its templates and CuPL's sentences.
    """

    needs_checkpoint = False

    def __init__(self, backbone: str = "openai/clip-vit-base-patch16", text: TextKind = "template") -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    @property
    def protocol(self) -> dict[str, Any]:
        """Switches that could make two numbers incomparable."""
        return {"text": self.hparams.text}

    def prepare_set(self, name: str) -> Tensor:
        return self.texts(name, self.hparams.text)

    def scores(self, x: Tensor, prepared: Tensor, batch: FewShotBatch) -> Scores:
        return Scores(self.clip.scale() * x @ prepared.T)

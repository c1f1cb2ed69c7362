"""CoCoOp (Zhou et al., CVPR 2022): CoOp's context, moved by every picture through a small network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.batches import FewShotBatch
from genlab.methods.baselines.coop import LearnedPrompts
from genlab.models.prompts import NameTokens
from genlab.training.few_shot import Scores

PICTURES_AT_ONCE = 16


class MetaNet(nn.Module):
    """(B, D) unit features -> (B, W)."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, width // 16), nn.Linear(width // 16, text_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.linear1(x).relu())


class CoCoOp(LearnedPrompts):
    """Each picture has text features of its own, so that classes times pictures go through the text tower.

    Args:
        backbone: ``tiny:clip``, hub id or folder, ``open_clip:ARCH/TAG``, ``openai:FILE``.
        n_ctx: Learned tokens. Paper: 4.
        ctx_init: Words to start from; ``null``: N(0, 0.02).
        lr: Of SGD with momentum 0.9.
        weight_decay: Of SGD.
    """

    def __init__(
        self,
        backbone: str = "openai/clip-vit-base-patch16",
        n_ctx: int = 4,
        ctx_init: str | None = "a photo of a",
        lr: float = 2e-3,
        weight_decay: float = 5e-4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    def build(self) -> None:
        self.make_prompts()
        self.meta_net = MetaNet(self.clip.width, self.clip.text_width)

    def training_step(self, batch: FewShotBatch, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.conditional_logits(self.unit(batch), self.train_texts()), batch["label"])
        return self.log_losses({"loss": loss}, batch_size=len(batch["label"]))

    def conditional_logits(self, x: Tensor, names: NameTokens) -> Tensor:
        """(B, D) -> (B, C)."""
        parts = []
        for some in x.split(PICTURES_AT_ONCE):
            t = self.prompt_learner(self.clip, names, self.meta_net(some))  # (b, C, D)
            parts.append(self.clip.scale() * torch.einsum("bd,bcd->bc", some, t))
        return torch.cat(parts)

    def prepare_set(self, name: str) -> NameTokens:
        return self.names(name)

    def scores(self, x: Tensor, prepared: NameTokens, batch: FewShotBatch) -> Scores:
        return Scores(self.conditional_logits(x, prepared))

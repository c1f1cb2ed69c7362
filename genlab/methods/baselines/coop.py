"""CoOp (Zhou et al., IJCV 2022): the words around the class name are learned vectors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.batches import FewShotBatch
from genlab.errors import UserError
from genlab.models.prompts import ContextPrompts, NameTokens, Position, name_tokens
from genlab.training.few_shot import FewShotMethod, Scores

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

FIRST_LR = 1e-5  # of the first epoch


def coop_rate(epoch: int, epochs: int, lr: float) -> float:
    """Factor of the learning rate: a first epoch at 1e-5, then a cosine that would reach 0 one epoch after the end."""
    return FIRST_LR / lr if epoch == 0 else 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


class LearnedPrompts(FewShotMethod):
    """What CoOp and CoCoOp have in common: a context, SGD, and logits with CLIP's own scale."""

    prompt_learner: ContextPrompts

    def make_prompts(self, classes: int | None = None, position: Position = "end") -> None:
        """The learned context, at its start."""
        h = self.hparams
        self.prompt_learner = ContextPrompts(self.clip.text_width, h.n_ctx, classes, position)
        if h.ctx_init is not None:
            self.prompt_learner.start_from(self.clip, h.ctx_init)

    def names(self, name: str) -> NameTokens:
        """Tokens of the names of a set's classes."""
        return name_tokens(self.clip, self.data.classes(name).names)

    def prepare_texts(self) -> NameTokens:
        return self.names("train")

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, D), (C, D) -> (B, C)."""
        return self.clip.scale() * x @ t.T

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        h, epochs = self.hparams, self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise UserError("trainer.max_epochs: the learning rate follows the epochs; give their number.")
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, h.lr, momentum=0.9, weight_decay=h.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: coop_rate(epoch, epochs, h.lr))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


class CoOp(LearnedPrompts):
    """A learned context, shared by all classes or one for each.

    Args:
        backbone: ``tiny:clip``, hub id or folder, ``open_clip:ARCH/TAG``, ``openai:FILE``.
        n_ctx: Learned tokens. Paper: 16; 4 for base-to-new.
        ctx_init: Words to start from ("a photo of a" for base-to-new); left out, N(0, 0.02).
        class_specific: A context for each class (CSC); such a model cannot move to other classes.
        position: Of the context: before the name (``end``: the name stands at the end), around it, or behind it.
        lr: Of SGD with momentum 0.9.
        weight_decay: Of SGD.
    """

    def __init__(
        self,
        backbone: str = "openai/clip-vit-base-patch16",
        n_ctx: int = 16,
        ctx_init: str | None = None,
        class_specific: bool = False,
        position: Position = "end",
        lr: float = 2e-3,
        weight_decay: float = 5e-4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    def build(self) -> None:
        self.make_prompts(self.train_classes() if self.hparams.class_specific else None, self.hparams.position)

    def training_step(self, batch: FewShotBatch, batch_idx: int) -> Tensor:
        logits = self.logits(self.unit(batch), self.prompt_learner(self.clip, self.train_texts()))
        loss = F.cross_entropy(logits, batch["label"])
        return self.log_losses({"loss": loss}, batch_size=len(logits))

    def prepare_set(self, name: str) -> Any:
        return self.prompt_learner(self.clip, self.names(name))

    def scores(self, x: Tensor, prepared: Any, batch: FewShotBatch) -> Scores:
        return Scores(self.logits(x, prepared))

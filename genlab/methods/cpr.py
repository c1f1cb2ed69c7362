"""CPR: conditional prototype rectification prompt learning (Chen et al., arXiv 2404.09872, TCSVT 2025): few-shot classification with CLIP.

Every picture gets class prototypes of its own: the text features t_c of a learned prompt plus a residual r_b with which the picture
queries visual and textual prototypes (``ConditionalAdapter``). A consistency loss keeps them near text features u_c enriched by
sentences of a language model. In evaluation, prototypes are also moved towards their nearest unlabelled test pictures (``acc_nnr``).
Numbers are the official code's; its faults that leak labels or scramble pictures are switches, off by default.

D: width of the common space, C: classes, B: pictures. All features have unit length unless said.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.batches import FewShotBatch
from genlab.errors import UserError
from genlab.models.official_few_shot import read_text_weights
from genlab.models.prompts import ContextPrompts, NameTokens, name_tokens
from genlab.models.rectification import SCALE, Rectifier
from genlab.models.visual_prototypes import cache_keys, class_means
from genlab.training.few_shot import FewShotMethod, Scores

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig


class ConditionalAdapter(nn.Module):
    """CoAdapter: a picture's feature attends to prototypes, with one head. Both branches share these layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.proj, self.out = (nn.Linear(width, width) for _ in range(5))
        self.norm1 = nn.LayerNorm(width)
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=(2 / width) ** 0.5)
        nn.init.xavier_normal_(self.out.weight)

    def attention(self, x: Tensor, memory: Tensor) -> Tensor:
        """(B, D), (M, D) -> weights (B, M)."""
        return (self.query(x) @ self.key(memory).T / x.shape[-1] ** 0.5).softmax(-1)

    def branch(self, x: Tensor, memory: Tensor) -> Tensor:
        """What a picture finds among the prototypes: (B, D), (M, D) -> (B, D)."""
        return self.norm1(self.out(self.attention(x, memory) @ self.value(memory)) + self.proj(x))

    def forward(self, x: Tensor, p: Tensor, t: Tensor) -> Tensor:
        """Residual r (B, D) from visual prototypes p (M, D) and textual ones t (C, D)."""
        return self.branch(x, p) + self.branch(x, t)


def conditional_prototypes(t: Tensor, r: Tensor) -> Tensor:
    """P_bc = (t_c + r_b) / |t_c + r_b|: (C, D), (B, D) -> (B, C, D). For looking at; everything below does without."""
    return F.normalize(t + r[:, None], dim=-1)


def prototype_lengths(t: Tensor, r: Tensor) -> Tensor:
    """|t_c + r_b|: (C, D) of unit length, (B, D) -> (B, C)."""
    return (1 + 2 * r @ t.T + r.square().sum(-1, keepdim=True)).clamp_min(1e-12).sqrt()


def conditional_logits(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """100 x_b P_bc, (B, C)."""
    return SCALE * (x @ t.T + (x * r).sum(-1, keepdim=True)) / prototype_lengths(t, r)


def consistency_loss(t: Tensor, r: Tensor, u: Tensor) -> Tensor:
    """1 - mean cos(P_bc, u_c), over all classes and pictures: scalar in [0, 2]."""
    return 1 - (((t * u).sum(-1) + r @ u.T) / prototype_lengths(t, r)).mean()


@dataclass(frozen=True)
class NNR:
    """Nearest-neighbour rectification, in evaluation alone.

    Args:
        k: Neighbours among the unlabelled pictures.
        alpha: Weight of the prototype; the mean of its neighbours has the rest.
        exclude_self: A picture is not its own neighbour. The official code lets it be.
    """

    k: int = 5
    alpha: float = 0.95
    exclude_self: bool = False

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 <= self.alpha <= 1:
            raise UserError(f"model.nnr: k is {self.k}, alpha {self.alpha}; k is 1 or more, alpha from 0 to 1.")


class Prepared(NamedTuple):
    """A set's classes: text features (C, D), the memory of visual prototypes (M, D), and the bank where there is one."""

    t: Tensor
    p: Tensor
    rectifier: Rectifier | None


class CPR(FewShotMethod):
    """Learned prompt and conditional adapter on a frozen CLIP.

    Args:
        backbone: ``tiny:clip``, hub id or folder, ``open_clip:ARCH/TAG``, ``openai:FILE``. Paper: ViT-B/16 for base-to-new, RN50 for
            few-shot classification.
        n_ctx: Learned context tokens. Official code: 16.
        ctx_init: Words to start the context from; left out, N(0, 0.02), as the released code.
        lambda_align: Weight of the consistency loss. Official code: 8.
        text_weights: A ``text_weights_cupl_t.pt`` of the official repository in place of embedding the descriptions anew.
        nnr: Of the rectification measured as ``acc_nnr``: the unlabelled pictures are those of the set under test (transductive). ``null``
            leaves it out; the released code never runs it.
        new_prototypes: Visual prototypes for classes that were not trained on: ``base`` keeps those of training; ``pseudo`` takes, per
            class, the mean of the 16 test pictures nearest to its text; ``fewshot`` uses *labelled* pictures of the new classes, as the
            official code does, which the usual protocol forbids.
        official_shuffle: Average augmented views of *different* pictures into one prototype, as the official loader does by shuffling.
        lr: Of AdamW, falling to 0 on a cosine step by step.
        eps: Of AdamW. Official code: 1e-3, which damps small gradients.
        weight_decay: Of AdamW.
    """

    more_accuracies: tuple[str, ...] = ("acc_nnr",)
    from_training = ("prototypes",)
    prototypes: Tensor
    _lacks_prototypes = False

    def __init__(
        self,
        backbone: str = "openai/clip-vit-base-patch16",
        n_ctx: int = 16,
        ctx_init: str | None = None,
        lambda_align: float = 8.0,
        text_weights: str | None = None,
        nnr: NNR | None = NNR(),
        new_prototypes: Literal["base", "fewshot", "pseudo"] = "base",
        official_shuffle: bool = False,
        lr: float = 2e-3,
        eps: float = 1e-3,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.nnr = nnr
        self.more_accuracies = ("acc_nnr",) if nnr is not None else ()

    @property
    def protocol(self) -> dict[str, Any]:
        """Switches that could make two numbers incomparable."""
        return {
            "nnr": "off"
            if self.nnr is None
            else f"transductive, k={self.nnr.k}, alpha={self.nnr.alpha}, exclude_self={self.nnr.exclude_self}",
            "new_prototypes": self.hparams.new_prototypes,
            "official_shuffle": self.hparams.official_shuffle,
        }

    def build(self) -> None:
        self.prompt_learner = ContextPrompts(self.clip.text_width, self.hparams.n_ctx)
        if self.hparams.ctx_init is not None:
            self.prompt_learner.start_from(self.clip, self.hparams.ctx_init)
        self.adapter = ConditionalAdapter(self.clip.width)
        self.register_buffer("prototypes", torch.zeros(self.train_classes(), self.clip.width))

    def prepare(self) -> None:
        self.prototypes.copy_(self._visual_prototypes("train"))

    def _visual_prototypes(self, name: str) -> Tensor:
        """(C, D): class means of picture features averaged over augmented views."""
        keys = cache_keys(self.read(name), scramble=self.hparams.official_shuffle)
        return class_means(keys, self.data.labels(name), len(self.data.classes(name).names)).to(self.device)

    def enriched_texts(self, name: str) -> Tensor:
        """u (C, D): of templates and descriptions of a set's classes."""
        if self.hparams.text_weights is None:
            return self.texts(name, "descriptions")
        classes = self.data.classes(name)
        return read_text_weights(Path(self.hparams.text_weights), self.clip.width, classes.of)[classes.places].to(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Official checkpoints come without visual prototypes: those of the training pictures are computed when they are needed."""
        state = checkpoint["state_dict"]
        self._lacks_prototypes = "prototypes" not in state
        super().on_load_checkpoint({**checkpoint, "state_dict": {"prototypes": self.prototypes, **state}})

    def prepare_texts(self) -> tuple[NameTokens, Tensor]:
        return name_tokens(self.clip, self.data.classes("train").names), self.enriched_texts("train")

    def training_step(self, batch: FewShotBatch, batch_idx: int) -> Tensor:
        names, u = self.train_texts()
        x, t = self.unit(batch), self.prompt_learner(self.clip, names)
        r = self.adapter(x, self.prototypes, t)
        ce = F.cross_entropy(conditional_logits(x, t, r), batch["label"])
        consistency = consistency_loss(t, r, u)
        loss = ce + self.hparams.lambda_align * consistency
        self.log("train/residual_length", r.detach().norm(dim=-1).mean())
        return self.log_losses({"loss": loss, "ce": ce, "consistency": consistency}, batch_size=len(x))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        h = self.hparams
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, h.lr, eps=h.eps, weight_decay=h.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Evaluation

    def prepare_set(self, name: str) -> Prepared:
        t = self.prompt_learner(self.clip, name_tokens(self.clip, self.data.classes(name).names))
        bank = F.normalize(self._features[name].float(), dim=-1).to(t.device) if name in self._features else None
        rectifier = None if bank is None or self.nnr is None else Rectifier(t, bank, self.nnr.k, self.nnr.alpha)
        return Prepared(t, self._memory(name, bank), rectifier)

    def _memory(self, name: str, bank: Tensor | None) -> Tensor:
        mode = self.hparams.new_prototypes
        if self._lacks_prototypes:
            self.prepare()
            self._lacks_prototypes = False
        if mode == "base" or bank is None or name in ("val", "test", "base"):
            return self.prototypes
        if mode == "fewshot":
            if name != "new":
                raise UserError("model.new_prototypes: fewshot is for base-to-new alone; of other datasets use base or pseudo.")
            return self._visual_prototypes("new_train")
        near = (self.enriched_texts(name) @ bank.T).topk(min(16, len(bank)), 1).indices
        return bank[near].mean(1)

    def scores(self, x: Tensor, prepared: Prepared, batch: FewShotBatch) -> Scores:
        r = self.adapter(x, prepared.p, prepared.t)
        logits = conditional_logits(x, prepared.t, r)
        if prepared.rectifier is None or self.nnr is None:
            return Scores(logits)
        found = prepared.rectifier.classes(logits, x, r, batch["index"] if self.nnr.exclude_self else None)
        self._near = found.neighbours
        return Scores(logits, {"acc_nnr": found.label})

    def neighbours(self, name: str, out: Scores, row: int) -> list[int]:
        return self._near[row].tolist() if name in self._features and self.nnr is not None else []

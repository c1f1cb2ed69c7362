"""A supervised classifier of what pictures show: the judge of generated pictures, which no training loss ever sees.

Generated pictures are softer and noisier than rendered ones, and the judge must not mind: half of the training pictures are blurred, or
noisy, or both, and ``<column>_degraded`` measures how it copes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

from genlab.batches import CaptionedBatch, Evaluated, Strip
from genlab.errors import UserError
from genlab.methods.pretraining.base import Pretraining
from genlab.models.judge import Judge
from genlab.training.randomness import keyed_torch_generator
from genlab.training.schedules import warm_cosine
from genlab.weights import load_pretrained

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

TAPS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # of the blur along each axis; its deviation is one pixel


def degrade(image: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Softer and noisier pictures.

    Args:
        image: (B, 3, H, W) in [0, 1].
        strength: (B, 2): share of the blurred picture in the mix, in [0, 1], and deviation of the noise.
        noise: (B, 3, H, W), standard normal.
    """
    taps = torch.tensor(TAPS, dtype=image.dtype, device=image.device)
    padded = F.pad(image, (2, 2, 2, 2), mode="replicate").flatten(0, 1)[:, None]
    blurred = F.conv2d(F.conv2d(padded, taps.view(1, 1, 5, 1)), taps.view(1, 1, 1, 5)).view_as(image)
    soft, rough = strength.to(image)[:, :, None, None, None].unbind(1)
    return (image + soft * (blurred - image) + rough * noise.to(image)).clamp(0, 1)


def draw_degradation(
    shape: Sequence[int], seed: int, purpose: str, names: Sequence[str], noise: float, always: bool
) -> tuple[Tensor, Tensor]:
    """Strength (B, 2) and noise of ``shape`` for samples, drawn by their names; unless ``always``, each kind spares half of them."""
    strengths, noises = [], []
    for name in names:
        generator = keyed_torch_generator(seed, purpose, name)
        drawn, spared = torch.rand(2, generator=generator), torch.rand(2, generator=generator) < 0.5
        strengths.append(drawn * torch.tensor([1.0, noise]) * (1.0 if always else spared.float()))
        noises.append(torch.randn(tuple(shape[1:]), generator=generator))
    return torch.stack(strengths), torch.stack(noises)


class Classifier(Pretraining):
    """Trains a :class:`genlab.models.judge.Judge` on the label columns of captioned pictures with cross-entropy.

    Args:
        weights: Folder or ``tiny:NAME`` to start from or to evaluate; ``None`` builds it afresh for the datamodule's classes.
        channels: Width of each stage of the network.
        image_size: Pixels per side.
        noise: Largest deviation of the noise that is added to training pictures, in units of the whole range.
        subsets: Name -> column -> classes: accuracy is also measured on the samples that have them, as ``<column>_<name>``.
        lr: Peak learning rate of AdamW; it rises over ``warmup`` steps and then falls to 0 on a cosine until the last step of the trainer.
        warmup: Steps.
        weight_decay: Of AdamW.
        seed: Of the degradations.
    """

    def __init__(
        self,
        weights: str | None = None,
        channels: list[int] | None = None,
        image_size: int = 64,
        noise: float = 0.08,
        subsets: dict[str, dict[str, list[str]]] | None = None,
        lr: float = 3e-3,
        warmup: int = 100,
        weight_decay: float = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.needs_checkpoint = weights is None
        self.judge: Judge | None = None
        self.metrics: dict[str, MeanMetric] = {}

    def configure_model(self) -> None:
        if self.judge is not None:
            return
        if self.hparams.weights is not None:
            self.judge = load_pretrained(cast(Any, Judge), self.hparams.weights)
        elif self._trainer is not None and self.trainer.training:
            self._build(self._classes())

    def _build(self, classes: dict[str, list[str]]) -> None:
        self.judge = Judge(classes, tuple(self.hparams.channels or (16, 32, 64, 96, 96)), self.hparams.image_size)
        self.judge.to(memory_format=torch.channels_last)

    def _classes(self) -> dict[str, list[str]]:
        classes = getattr(self.trainer.datamodule, "classes", None)  # type: ignore[attr-defined]
        if not classes:
            raise UserError("data.labels: there is nothing to learn; name the columns, such as [shape, colour].")
        return classes

    @property
    def network(self) -> Judge:
        if self.judge is None:
            raise UserError("model.weights: there is no network yet; give weights, or a checkpoint.")
        return self.judge

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["classes"] = self.network.classes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        held = checkpoint.get("classes")
        if held is not None and self.judge is None:
            self._build(held)
        elif held is not None:
            self._same_classes(held, "the checkpoint")
        super().on_load_checkpoint(checkpoint)

    def _same_classes(self, other: dict[str, list[str]], whose: str) -> None:
        for column, values in self.network.classes.items():
            if column in other and other[column] != values:
                raise UserError(f"data.labels: {whose} has other classes of {column}: {other[column]}, the network knows {values}.")

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) in [0, 1] -> column -> logits (B, K)."""
        return self.network(image)

    def training_step(self, batch: CaptionedBatch, batch_idx: int) -> Tensor:
        image = batch["image"]
        names = [f"{self.current_epoch}/{name}/{n}" for name, n in zip(batch["id"], batch["occurrence"].tolist())]
        drawn = draw_degradation(image.shape, self.hparams.seed, "train", names, self.hparams.noise, always=False)
        logits = self(degrade(image, *drawn))
        losses = {
            name: F.cross_entropy(each.float(), batch["labels"][name], ignore_index=-1)
            for name, each in logits.items()
            if (batch["labels"][name] >= 0).any()
        }
        return self.log_losses({"loss": torch.stack([*losses.values()]).sum(), **losses}, batch_size=len(image))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings, steps = self.hparams, int(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.AdamW(self.network.parameters(), settings.lr, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, settings.warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Evaluation: accuracy of each column, on the pictures as they are and degraded, and on subsets.

    def start_evaluation(self) -> None:
        self.known = self._classes()
        self._same_classes(self.known, "the data")
        endings = ["", "_degraded", *(f"_{name}" for name in self.hparams.subsets or {})]
        self.columns = [column for column in self.network.classes if column in self.known]
        self.metrics = {f"{column}{ending}": MeanMetric().to(self.device) for column in self.columns for ending in endings}

    def finish_evaluation(self, stage: str) -> None:
        self.log_dict({f"{stage}/{name}": metric.compute() for name, metric in self.metrics.items()})

    def evaluate(self, batch: CaptionedBatch, pictures: bool) -> Evaluated:
        image, labels = batch["image"], batch["labels"]
        drawn = draw_degradation(image.shape, self.hparams.seed, "evaluation", batch["id"], self.hparams.noise, always=True)
        clean, degraded = self(image), self(degrade(image, *drawn))
        rows: list[dict[str, Any]] = [{"id": name, "label": "", "status": "ok"} for name in batch["id"]]
        confidence = torch.ones(len(rows), device=image.device)
        for column in self.columns:
            known = labels[column] >= 0
            said = clean[column].argmax(1)
            right = (said == labels[column]).float()
            self._update(column, right, known)
            self._update(f"{column}_degraded", (degraded[column].argmax(1) == labels[column]).float(), known)
            for name, select in (self.hparams.subsets or {}).items():
                self._update(f"{column}_{name}", right, known & self._in_subset(labels, select))
            confidence = confidence.minimum(clean[column].float().softmax(1).amax(1))
            for row, is_known, true, number in zip(rows, known.tolist(), labels[column].tolist(), said.tolist()):
                row[f"{column}_said"] = self.known[column][number]
                row[column] = self.known[column][true] if is_known else ""
        for row, score in zip(rows, confidence.tolist()):
            row["score"] = score  # of the column that the network is least sure of
        out: Evaluated = {"rows": rows}
        if pictures:
            out["strips"] = self._strips(image, rows)
        return out

    def _update(self, metric: str, right: Tensor, counted: Tensor) -> None:
        if counted.any():
            self.metrics[metric].update(right[counted])

    def _in_subset(self, labels: dict[str, Tensor], select: dict[str, list[str]]) -> Tensor:
        inside = torch.ones_like(next(iter(labels.values())), dtype=torch.bool)
        for column, values in select.items():
            numbers = torch.tensor([self.known[column].index(value) for value in values], device=inside.device)
            inside &= torch.isin(labels[column], numbers)
        return inside

    def _strips(self, image: Tensor, rows: list[dict[str, Any]]) -> list[Strip]:
        array = (image.permute(0, 2, 3, 1) * 255 + 0.5).byte().cpu().numpy()
        strips: list[Strip] = []
        for pixels, row in list(zip(array, rows))[:16]:
            words = [f"{row[f'{c}_said']}" + (f" (is {row[c]})" if row[c] not in ("", row[f"{c}_said"]) else "") for c in self.columns]
            strips.append({"id": row["id"], "caption": " ".join(words), "frames": pixels[None], "heat": None})
        return strips

    def export(self, folder: Path) -> None:
        """Writes ``config.json`` and ``model.safetensors``, fp16, for ``genlab.models.judge.Judge.from_pretrained``."""
        copy.deepcopy(self.network).cpu().half().save_pretrained(folder)

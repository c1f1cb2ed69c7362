"""What action classifiers on a video-text network have in common: class prompts, views, evaluation set by set, rows and metrics.

The datamodule brings clips and class names; the method says how clips and prompts become embeddings. All methods see the same of both.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from genlab import figures
from genlab.batches import ActionBatch, Evaluated, Strip
from genlab.errors import UserError
from genlab.metrics.few_shot import classification_metrics, harmonic_mean
from genlab.models.video_text import VideoText, cosine_logits, load_video_text
from genlab.training.class_rows import class_rows
from genlab.training.schedules import warm_unshifted_cosine
from genlab.training.set_classifier import SetClassifier

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

log = logging.getLogger(__name__)

CLIPS_AT_ONCE = 32  # views in one pass of an evaluation
MEAN_OF = re.compile(r"(.*)/\d+")  # sets that differ in their split alone: ucf101/1, ucf101/2 ...


@runtime_checkable
class ActionSource(Protocol):
    """A datamodule of action sets. A set is a list of clips of some classes: ``train``, ``val``, ``test``, ``base``, ``novel`` ..."""

    def eval_sets(self, stage: str) -> list[str]:
        """What ``val`` or ``test`` measures, in the order of the loaders."""

    def class_names(self, name: str) -> list[str]:
        """Of a set, by label."""

    def descriptions(self, name: str) -> tuple[list[list[str]], list[list[str]]]:
        """Spatial and temporal sentences for each class of a set."""


def spoken(name: str) -> str:
    """A class name as words: ``ApplyEyeMakeup`` and ``apply_eye_makeup`` become ``apply eye makeup``."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ")
    return " ".join(apart.split()).lower() if apart != name else name


class VideoTextMethod(SetClassifier):
    """An action classifier on a video-text network.

    Subclasses have the hyperparameters ``backbone, network, prompt_template, humanize, lr, weight_decay, warmup_epochs``, and define
    ``build``, and where they differ from the plain network ``encode_video`` and ``encode_prompts``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone: VideoText | None = None
        self._tokens: dict[tuple[str, ...], Tensor] = {}  # by prompts, as another datamodule has other classes in a set of the same name

    # For subclasses

    def build(self) -> None:
        """Makes the parts that are trained, and freezes the others."""
        raise NotImplementedError(f"{type(self).__name__} must define build.")

    def encode_video(self, video: Tensor) -> Tensor:
        """(B, T, 3, H, W), normalised -> (B, E)."""
        return self.net.encode_video(video)

    def encode_prompts(self, name: str) -> Tensor:
        """Embeddings (C, E) of the prompts of a set's classes."""
        return self.net.encode_text(self.prompt_tokens(name))

    # Network and data

    def configure_model(self) -> None:
        if self.backbone is not None:
            return
        self.backbone = load_video_text(self.hparams.backbone, self.hparams.network)
        self.build()

    @property
    def net(self) -> VideoText:
        assert self.backbone is not None, "configure_model() has not run"
        return self.backbone

    @property
    def data(self) -> ActionSource:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ActionSource):
            raise UserError("data: action classifiers need a datamodule of action sets, such as datamodules.action_video.ActionVideo.")
        size = getattr(getattr(data, "hparams", None), "image_size", self.net.image_size)
        if size != self.net.image_size:
            raise UserError(f"data.image_size: {size}, but {self.hparams.backbone} reads {self.net.image_size} pixels; make them equal.")
        return data

    @property
    def protocol(self) -> dict[str, Any]:
        """Switches that could make two numbers incomparable."""
        return {name: self.hparams[name] for name in ("backbone", "network", "prompt_template", "humanize")}

    def prompts(self, name: str) -> list[str]:
        """Of a set's classes."""
        template = self.hparams.prompt_template
        if "{}" not in template:
            raise UserError(f"model.prompt_template: {template!r} has no {{}} for the class name.")
        return [template.format(spoken(each) if self.hparams.humanize else each) for each in self.data.class_names(name)]

    def prompt_tokens(self, name: str) -> Tensor:
        """(C, L) of a set's prompts, as long as the longest."""
        prompts = tuple(self.prompts(name))
        with torch.inference_mode(False):  # training has the same prompts as the validation before it
            if prompts not in self._tokens:
                self._tokens[prompts], cut = self.net.tokenize(prompts)
                if cut:
                    log.warning("%d of %d prompts of %s are cut to %d tokens.", cut, len(prompts), name, self.net.context_length)
            self._tokens[prompts] = self._tokens[prompts].to(self.device)
        return self._tokens[prompts]

    def logits(self, video: Tensor, texts: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) uint8, and class embeddings (C, E) -> (B, C)."""
        return cosine_logits(self.encode_video(self.net.normalise(video)), texts, self.net.scale().float())

    def log_substitutes(self, batch: ActionBatch) -> None:
        """Counts clips that could not be read."""
        self.log("train/unreadable", batch["substituted"].float().sum(), on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        h = self.hparams
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, h.lr, betas=(0.9, 0.98), eps=1e-8, weight_decay=h.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs if self.trainer.max_epochs is not None and self.trainer.max_epochs > 0 else 1
        warmup = min(int(h.warmup_epochs * steps / epochs), steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_unshifted_cosine(step, warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Evaluation

    def set_names(self, name: str) -> Sequence[str]:
        return self.data.class_names(name)

    def prepare_set(self, name: str) -> Tensor:
        return self.encode_prompts(name)

    def set_metrics(self, count: int) -> nn.ModuleDict:
        metrics = classification_metrics(count)
        metrics["top5"] = MulticlassAccuracy(count, top_k=min(5, count), average="micro")
        return metrics

    def view_chances(self, batch: ActionBatch, texts: Tensor) -> Tensor:
        """Probabilities (B, C): of each view the softmax, then their mean."""
        video = batch["video"]
        parts = [self.logits(some, texts).softmax(1) for some in video.flatten(0, 1).split(CLIPS_AT_ONCE)]
        return torch.cat(parts).unflatten(0, video.shape[:2]).mean(1)

    @torch.no_grad()
    def evaluate(self, batch: ActionBatch, stage: str, name: str, pictures: bool) -> Evaluated:
        names, readable = self.data.class_names(name), batch["readable"]
        chances = self.view_chances(batch, self.prepared(name))
        known = readable & (batch["label"] >= 0)
        if stage != "predict":
            for metric in self.measures(name).values():
                metric.update(chances[known], batch["label"][known])
        rows = class_rows(batch["id"], batch["label"], readable, chances, names, stage == "predict", self.several(stage, name))
        found: Evaluated = {"rows": rows}
        if pictures:
            found["strips"] = _strips(batch, rows)
        return found

    def log_sets(self, stage: str, values: dict[str, dict[str, float]]) -> None:
        """The harmonic mean of base and novel classes; mean and deviation over the splits of a dataset."""
        if list(values) == ["base", "novel"]:
            self.log(f"{stage}/harmonic_mean", harmonic_mean(values["base"]["acc"], values["novel"]["acc"]))
        for group in dict.fromkeys(match[1] for name in values if (match := MEAN_OF.fullmatch(name))):
            own = torch.tensor([each["acc"] for name, each in values.items() if name.startswith(f"{group}/")], dtype=torch.float64)
            self.log_dict({f"{stage}/{group}/acc_mean": own.mean(), f"{stage}/{group}/acc_std": own.std(correction=0)})

    def run_files(self, rows: list[dict[str, Any]]) -> dict[str, bytes]:
        """Of a test: accuracy of each class, and which classes are taken for which, for every set."""
        files: dict[str, bytes] = {}
        for name in dict.fromkeys(str(row.get("set", "")) for row in rows):
            own = [row for row in rows if str(row.get("set", "")) == name and row["status"] == "ok" and row["label"] != ""]
            if not own:
                continue
            ending = f"_{name.replace('/', '_')}" if name else ""
            counts, right = Counter(row["label"] for row in own), Counter(row["label"] for row in own if row["called"] == row["label"])
            table = sorted(({"class": each, "accuracy": right[each] / counts[each]} for each in counts), key=lambda row: row["accuracy"])
            files[f"media/classes{ending}.png"] = figures.png(figures.bars(table if len(table) <= 40 else [*table[:20], *table[-20:]]))
            pairs = Counter((row["label"], row["called"]) for row in own if row["called"] != row["label"]).most_common(15)
            if pairs:
                confused = [{"pair": f"{a} → {b}", "share of its clips": n / counts[a]} for (a, b), n in pairs]
                files[f"media/confusions{ending}.png"] = figures.png(figures.bars(confused))
        return files


def _strips(batch: ActionBatch, rows: Sequence[dict[str, Any]]) -> list[Strip]:
    strips: list[Strip] = []
    for clip, row in list(zip(batch["video"], rows))[:8]:
        if row["status"] == "ok":
            truth = f", is {row['label']}" if row["label"] else ""
            caption = f"called {row['called']} ({row['score']:.2f}){truth}"
            frames = clip[len(clip) // 2].permute(0, 2, 3, 1).cpu().numpy()
            strips.append({"id": row["id"], "caption": caption, "frames": frames, "heat": None})
    return strips


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """L_CE: the mean cross-entropy over the batch."""
    return F.cross_entropy(logits, labels)

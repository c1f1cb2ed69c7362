"""What few-shot classifiers on a frozen CLIP have in common: features from the store, evaluation set by set, rows and metrics.

The datamodule brings pictures and class names, this the features, the method its logits; all methods see the same of all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader

from genlab.batches import ClassTexts, Evaluated, FewShotBatch, Strip
from genlab.errors import UserError
from genlab.files import cache_folder, write_bytes
from genlab.metrics.few_shot import classification_metrics, harmonic_mean
from genlab.models.clip import ClipBackbone
from genlab.models.clip_loading import load_clip
from genlab.models.prompts import class_texts, text_prototypes
from genlab.store import content_key
from genlab.training.class_rows import class_rows
from genlab.training.features import weights_key
from genlab.training.picture_features import picture_features
from genlab.training.set_classifier import SetClassifier

log = logging.getLogger(__name__)

TextKind = Literal["template", "ensemble", "descriptions"]
NAMED = 5  # files named in a message


@runtime_checkable
class FewShotSource(Protocol):
    """A datamodule of few-shot sets. A set is a list of pictures of some classes: ``train``, ``val``, ``test``, ``base``, ``new`` ..."""

    def eval_sets(self, stage: str) -> list[str]:
        """What ``val`` or ``test`` measures, in the order of the loaders."""

    def classes(self, name: str) -> ClassTexts:
        """Of a set."""

    def descriptions(self, name: str) -> list[list[str]]:
        """Sentences for each class of a set; empty lists where only templates are to be used."""

    def labels(self, name: str) -> Tensor:
        """(N,) of a set's pictures."""

    def views(self, name: str) -> int | None:
        """Augmented views of each picture that are kept; ``None`` where pictures come as pixels."""

    def feature_ids(self, name: str) -> list[str]:
        """Names the pictures of a set, all of the first view first."""

    def feature_key(self, name: str) -> dict[str, Any]:
        """All that the pixels of a set depend on."""

    def feature_loader(self, name: str, positions: Sequence[int]) -> DataLoader[Any]:
        """Pixels of what is at these positions of ``feature_ids``."""

    def use_features(self, name: str, features: Tensor, readable: Tensor) -> None:
        """From now on the set's loader reads these."""

    def picture(self, name: str, position: int) -> np.ndarray | None:
        """(H, W, 3) uint8, to look at; ``None`` where it cannot be read."""


@dataclass
class Scores:
    """What a method says of a batch.

    Args:
        logits: (B, C).
        more: Accuracy's name -> predicted classes (B,), of other ways to decide.
        notes: Further columns of the predictions, a list with an entry per picture each.
    """

    logits: Tensor
    more: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, list[Any]] = field(default_factory=dict)


class FewShotMethod(SetClassifier):
    """A classifier on features of a frozen CLIP. Subclasses have a hyperparameter ``backbone`` and define ``build`` and ``scores``."""

    more_accuracies: tuple[str, ...] = ()
    """Names of ``Scores.more``."""
    from_training: tuple[str, ...] = ()
    """Buffers and parameters whose first axis is as long as the training set has classes or pictures: a checkpoint brings its own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone: ClipBackbone | None = None
        self._features: dict[str, Tensor] = {}
        self._train_texts: Any = None
        self._weights = ""

    # For subclasses

    def build(self) -> None:
        """Makes the parts that are trained, with random numbers."""

    def prepare(self) -> None:
        """Fills what needs the training pictures' features; before a fit."""

    def prepare_texts(self) -> Any:
        """What training needs of the texts of its classes: whatever does not change in training."""

    def scores(self, x: Tensor, prepared: Any, batch: FewShotBatch) -> Scores:
        """Of unit features (B, D)."""
        raise NotImplementedError(f"{type(self).__name__} must define scores.")

    def neighbours(self, name: str, out: Scores, row: int) -> list[int]:
        """Pictures of the set that a decision rests on, to look at."""
        return []

    # Network and data

    def configure_model(self) -> None:
        if self.backbone is not None:
            return
        self.backbone = load_clip(self.hparams.backbone)
        self.freeze_part("backbone")
        self.build()

    @property
    def clip(self) -> ClipBackbone:
        assert self.backbone is not None, "configure_model() has not run"
        return self.backbone

    @property
    def data(self) -> FewShotSource:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, FewShotSource):
            raise UserError("data: few-shot methods need a datamodule of few-shot sets, such as datamodules.fewshot_images.FewShotImages.")
        size = getattr(getattr(data, "hparams", None), "image_size", self.clip.image_size)
        if size != self.clip.image_size:
            raise UserError(f"data.image_size: {size}, but {self.hparams.backbone} reads {self.clip.image_size} pixels; make them equal.")
        return data

    def train_classes(self) -> int:
        """Classes of the training set; without one, as in a prediction, a number that the checkpoint corrects."""
        data = getattr(self._trainer, "datamodule", None)
        try:
            return len(data.classes("train").names) if data is not None else 1
        except KeyError:
            return 1

    def read(self, name: str) -> Tensor:
        """Features (N, D) of a set, not normalised; (V, N, D) where it has views. Computed where the store does not have them."""
        if name in self._features:
            return self._features[name]
        data = self.data
        if not self._weights:
            self._weights = weights_key(self.clip)
        ids = data.feature_ids(name)
        features, readable = picture_features(
            self.trainer,
            name,
            ids,
            lambda positions: data.feature_loader(name, positions),
            lambda batch: self.clip.encode_image(batch["image"]),
            {"weights": self._weights, "pictures": data.feature_key(name)},
        )
        count = len(data.labels(name))
        if name.endswith("train") and not bool(readable.all()):
            bad = list(dict.fromkeys(ids[i].partition("#")[0] for i in (~readable).nonzero().flatten().tolist()))
            more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
            raise UserError(f"data.root: of the few training pictures, {', '.join(bad[:NAMED])}{more} cannot be read. Bring them again.")
        views = data.views(name)
        if views is not None:
            features, readable = features.view(views, count, -1), readable.view(views, count)
        data.use_features(name, features, readable)
        self._features[name] = features
        return features

    def texts(self, name: str, kind: TextKind = "template") -> Tensor:
        """Text features (C, D) of a set's classes, unit length; kept on the disk.

        Args:
            kind: ``template``: the dataset's one prompt; ``ensemble``: the mean over its templates; ``descriptions``: over its templates
                and what describes the class (CuPL).
        """
        data = self.data
        known = data.classes(name)
        templates = [known.template] if kind == "template" else known.templates
        texts = class_texts(known.names, templates, data.descriptions(name) if kind == "descriptions" else None)
        if not self._weights:
            self._weights = weights_key(self.clip)
        path = cache_folder() / "texts" / f"{content_key(self._weights, texts)}.safetensors"
        if not path.is_file():
            log.info("texts: embedding %d for %d classes of %s", sum(map(len, texts)), len(texts), name)
            write_bytes(path, save({"texts": text_prototypes(self.clip, texts).cpu()}))
        return load_file(path)["texts"].to(self.device)

    def unit(self, batch: FewShotBatch) -> Tensor:
        """Unit features (B, D) of a batch: those that it brings along, or the backbone's."""
        if "feature" in batch:
            return F.normalize(batch["feature"].float(), dim=-1)
        with torch.no_grad():
            return F.normalize(self.clip.encode_image(batch["image"]).float(), dim=-1)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.data.views("train") is not None:
            self.read("train")
        if self.trainer.ckpt_path is None:  # else the checkpoint has it
            self.prepare()

    # Evaluation

    def set_names(self, name: str) -> Sequence[str]:
        return self.data.classes(name).names

    def set_metrics(self, count: int) -> nn.ModuleDict:
        return classification_metrics(count, self.more_accuracies)

    def start_sets(self, stage: str) -> None:
        for name in self.data.eval_sets(stage):
            self.read(name)
        super().start_sets(stage)

    def validation_step(self, batch: FewShotBatch, batch_idx: int) -> Evaluated:
        return self.evaluate(batch, "val", self.data.eval_sets("val")[0], False)

    def train_texts(self) -> Any:
        """`prepare_texts`, once. Not in a hook: a run that is resumed within an epoch does not start one."""
        if self._train_texts is None:
            with torch.no_grad():
                self._train_texts = self.prepare_texts()
        return self._train_texts

    @torch.no_grad()
    def evaluate(self, batch: FewShotBatch, stage: str, name: str, pictures: bool) -> Evaluated:
        out, names = self.scores(self.unit(batch), self.prepared(name), batch), self.data.classes(name).names
        logits, readable, labels = out.logits.float(), batch["readable"], batch["label"]
        if stage != "predict":
            metrics = self.measures(name)
            for metric in ("acc", "acc_macro", "ece"):
                metrics[metric].update(logits[readable], labels[readable])
            for metric, called in out.more.items():
                metrics[metric].update(called[readable], labels[readable])
        rows = class_rows(batch["id"], labels, readable, logits.softmax(1), names, stage == "predict", self.several(stage, name))
        for i, ok in enumerate(readable.tolist()):
            for column, called in out.more.items():
                rows[i][column.replace("acc", "called")] = names[int(called[i])] if ok else ""
            rows[i] |= {column: values[i] for column, values in out.notes.items()}
        found: Evaluated = {"rows": rows}
        if pictures:
            found["strips"] = self._strips(batch, name, out, rows)
        return found

    def _strips(self, batch: FewShotBatch, name: str, out: Scores, rows: list[dict[str, Any]]) -> list[Strip]:
        """The first pictures, each with those its decision rests on."""
        strips: list[Strip] = []
        for i, row in enumerate(rows if name == "predict" else rows[:8]):
            near = self.neighbours(name, out, i) if row["status"] == "ok" else []
            shown = [self.data.picture(name, int(batch["index"][i])), *(self.data.picture(name, each) for each in near)]
            frames = [each for each in shown if each is not None]
            if row["status"] == "ok" and frames:
                truth = f", is {row['label']}" if row["label"] else ""
                caption = f"called {row['called']} ({row['score']:.2f}){truth}{'; then its neighbours' if near else ''}"
                strips.append({"id": row["id"], "caption": caption, "frames": np.stack(frames), "heat": None})
        return strips

    def log_sets(self, stage: str, values: dict[str, dict[str, float]]) -> None:
        """The harmonic mean of base and new classes, else the mean over the sets."""
        for key in ("acc", *self.more_accuracies):
            if list(values) == ["base", "new"]:
                self.log(f"{stage}/{key.replace('acc', 'harmonic_mean')}", harmonic_mean(values["base"][key], values["new"][key]))
            else:
                self.log(f"{stage}/{key}", sum(each[key] for each in values.values()) / len(values))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Parts that are as long as the training set become as long as the checkpoint's."""
        for name in self.from_training:
            given = checkpoint["state_dict"].get(name)
            own = self.get_parameter(name) if name in dict(self.named_parameters()) else self.get_buffer(name)
            if given is not None and given.shape[1:] == own.shape[1:]:
                own.data = own.data.new_zeros(given.shape)
        super().on_load_checkpoint(checkpoint)

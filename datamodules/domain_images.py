"""About ten pictures of a domain, and such of the same category as the plain model draws (DomainGallery, arXiv 2411.04571)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from datamodules.checks import Item
from datamodules.domain_images_index import items, preview, read_folder
from datamodules.images import Unfit, open_picture, pictures_in, unfit
from datamodules.listfiles import some
from datamodules.prompted import FewPictures
from datamodules.sampling import Draw, TrainLoader, TrainSampler
from datamodules.tinyworld import tiny_root
from genlab.batches import DomainBatch
from genlab.errors import MissingPath, UserError
from genlab.files import file_size, fingerprint
from genlab.training.randomness import keyed_rng

log = logging.getLogger(__name__)

Crop = Literal["center", "random"]


def cut(picture: Image.Image, size: int, crop: Crop, rng: np.random.Generator | None = None) -> Tensor:
    """Shorter side to ``size``, bilinearly, then a square of the middle or a random one: (3, size, size) uint8."""
    resized = vision.resize(picture, [size], InterpolationMode.BILINEAR, antialias=True)
    width, height = resized.size
    left, top = (width - size) // 2, (height - size) // 2
    if crop == "random" and rng is not None:
        left, top = int(rng.integers(0, width - size + 1)), int(rng.integers(0, height - size + 1))
    return vision.pil_to_tensor(vision.crop(resized, top, left, size, size))


class StreamDataset(Dataset[dict[str, Any]]):
    """A picture of each stream: of the domain, of the plain model ... Each stream goes through all of its pictures in a random order, then
    again.

    Args:
        streams: Name -> files; without any, the stream is left out.
        length: Samples of an epoch.
        size: Pixels per side.
        crop: Of all pictures.
        seed: Keys orders and crops.
    """

    def __init__(self, streams: Mapping[str, Sequence[Path]], length: int, size: int, crop: Crop, seed: int) -> None:
        self.streams = {name: list(files) for name, files in streams.items() if files}
        self.length, self.size, self.crop, self.seed = length, size, crop, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        sample: dict[str, Any] = {"index": draw.index}
        for name, files in self.streams.items():
            round_, place = divmod(draw.epoch * self.length + draw.index, len(files))
            path = files[int(keyed_rng(self.seed, name, round_).permutation(len(files))[place])]
            rng = keyed_rng(self.seed, "crop", name, draw.epoch, draw.index)
            sample |= {name: cut(open_picture(path), self.size, self.crop, rng), f"{name}_id": f"{name}/{path.name}"}
        return sample


def collate_streams(samples: list[dict[str, Any]]) -> DomainBatch:
    """Samples -> batch."""
    batch: Any = default_collate([{key: value for key, value in each.items() if not key.endswith("_id")} for each in samples])
    return batch | {key: [each[key] for each in samples] for key in samples[0] if key.endswith("_id")}


class DomainImages(FewPictures):
    """Pictures of a domain for DomainGallery and what it is compared with.

    Args:
        root: Folder of the domain's pictures, all in it; or of several (``target_dataset/<domain>``); ``tiny:domain_images``
            writes procedural ones on first use.
        domain: Which, where there are several.
        category: N, the noun for what the pictures show; left out, what ``metadata.jsonl`` says.
        source: Folder of pictures of the plain category; left out, the method has the plain model draw them.
        subject: Folder of pictures of one subject, which is learned beside the domain (DomainGallery's personalisation).
        subject_category: M, the noun for it.
        reference: Folder of many more pictures of the domain, which ``test`` compares with; left out, it compares with the few.
        image_size: Pixels per side. Paper: 512.
        crop: After resizing, ``random`` as in the released code, or ``center``, which lets latents be kept.
        batch_size: Pictures of the domain per device, and as many of the source. Released scripts: 4.
        eval_batch_size: Pictures drawn at once.
        prompts: Templates of pictures drawn in validation and prediction; left out, ``{target}`` and
            ``{source}``, the method's own prompts.
        pictures: Of each prompt in validation and prediction.
        test_pictures: Of the target prompt in ``test``. Paper: 1000.
        num_workers: Reading processes.
        seed: Keys orders and crops.
    """

    def __init__(
        self,
        root: str,
        domain: str | None = None,
        category: str | None = None,
        source: str | None = None,
        subject: str | None = None,
        subject_category: str | None = None,
        reference: str | None = None,
        image_size: int = 512,
        crop: Crop = "random",
        batch_size: int = 4,
        eval_batch_size: int = 4,
        prompts: list[str] | None = None,
        pictures: int = 4,
        test_pictures: int = 1000,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        sizes = {"image_size": image_size, "batch_size": batch_size, "eval_batch_size": eval_batch_size, "pictures": pictures}
        for name, value in (sizes | {"test_pictures": test_pictures}).items():
            if value < 1:
                raise UserError(f"data.{name}: {value} is too small; use 1 or more.")
        self.target: list[Path] = []
        self.source: list[Path] = []
        self.subject: list[Path] = []
        self.subject_source: list[Path] = []
        self.category = category or ""
        if (subject is None) != (subject_category is None):
            raise UserError("data.subject and data.subject_category go together: a folder of pictures, and the noun for what they show.")

    # What there is

    @property
    def folder(self) -> Path:
        """Of the domain's pictures."""
        root = tiny_root(self.hparams.root)
        if not root.is_dir():
            raise MissingPath(f"data.root: {root} is not a folder. Name the one with about ten pictures of the domain.")
        domains = root / "target_dataset"
        if not domains.is_dir():
            return root
        names = sorted(path.name for path in domains.iterdir() if path.is_dir())
        if self.hparams.domain not in names:
            raise UserError(f"data.domain: {self.hparams.domain or 'nothing'} is none of {', '.join(names)}.")
        return domains / self.hparams.domain

    @property
    def data_name(self) -> str:
        """Names the folder of an evaluation."""
        return self.hparams.domain or super().data_name

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hash of the names and sizes of the pictures."""
        return {"target": fingerprint((path.name, file_size(path)) for path in self.target)}

    @property
    def protocol(self) -> dict[str, Any]:
        """What must agree for two results to be comparable."""
        names = ("domain", "image_size", "crop", "test_pictures")
        tiny = str(self.hparams.root).startswith("tiny:")
        return {name: self.hparams[name] for name in names} | {"category": self.category, "n_target": len(self.target), "tiny_world": tiny}

    def setup(self, stage: str) -> None:
        """Finds the pictures, and reads each once.

        Raises:
            UserError: Too few, none that can be read, or nobody says what they show.
        """
        if self.target:
            return
        found = read_folder(self.folder)
        self.target = _all_fit("data.root", [each.path for each in found])
        said = sorted({each.category for each in found if each.category})
        if not self.category:
            if len(said) != 1:
                known = f"metadata.jsonl has {some(said)}" if said else "there is no metadata.jsonl"
                raise UserError(f"data.category: name what the pictures show, a noun such as face ({known}).")
            self.category = said[0]
        if self.hparams.source is not None:
            self.use_source(Path(self.hparams.source))
        if self.hparams.subject is not None:
            self.subject = _all_fit("data.subject", pictures_in(Path(self.hparams.subject)))
        log.info("%d pictures of the domain, category %r", len(self.target), self.category)

    def use_source(self, folder: Path, count: int | None = None) -> None:
        """From now on source pictures come from there, the first ``count`` of them: a cache may hold more, of runs that wanted more.

        Raises:
            MissingPath: There are none.
        """
        self.source = pictures_in(folder)[:count]
        if not self.source:
            raise MissingPath(f"data.source: {folder} has no pictures.")

    def use_subject_source(self, folder: Path, count: int | None = None) -> None:
        """Likewise, pictures of the subject's plain category."""
        self.subject_source = pictures_in(folder)[:count]

    def real_pictures(self) -> Tensor:
        """The domain's pictures (N, 3, S, S) uint8, cut from the middle."""
        return self._cut(self.target)

    def reference_pictures(self) -> Tensor | None:
        """Those of ``reference``, likewise; ``None`` without.

        Raises:
            MissingPath: There are none.
            UserError: Some cannot be read.
        """
        if self.hparams.reference is None:
            return None
        return self._cut(_all_fit("data.reference", pictures_in(Path(self.hparams.reference))))

    def _cut(self, paths: Sequence[Path]) -> Tensor:
        return torch.stack([cut(open_picture(path), self.hparams.image_size, "center") for path in paths])

    # Loaders

    def train_dataloader(self) -> TrainLoader:
        h = self.hparams
        length = max(len(self.target), len(self.source), h.batch_size * self.ranks()[1])
        streams = {"target": self.target, "source": self.source, "subject": self.subject, "subject_source": self.subject_source}
        dataset = StreamDataset(streams, length, h.image_size, h.crop, h.seed)
        return TrainLoader(dataset, TrainSampler(None, length, h.seed, *self.ranks()), h.batch_size, **self.options(collate_streams))

    def val_dataloader(self) -> DataLoader[Any]:
        return self.drawn(self.templates(), self.hparams.pictures)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.drawn(["{target}"], self.hparams.test_pictures)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.drawn(self.templates(), self.hparams.pictures)

    def templates(self) -> list[str]:
        """Of the prompts that are drawn."""
        return self.hparams.prompts or ["{target}", "{source}"]

    # For ``data check`` and ``data show``

    def items(self) -> list[Item]:
        """Every picture."""
        return items(tiny_root(self.hparams.root), "domain_images")

    def preview(self, item: Item) -> list[Image.Image]:
        """The picture of an item, none if it cannot be read."""
        return preview(item)


REMEDIES: dict[Unfit, str] = {
    "animated": "save the frame that you mean as a picture",
    "CMYK": "inks of a print, whose colours depend on its profile: save as RGB",
    "unreadable": "mend or remove",
}


def _all_fit(field: str, paths: list[Path]) -> list[Path]:
    """The files as they are, each read once.

    Raises:
        MissingPath: There are none.
        UserError: Some cannot be read, show several pictures, or are in inks.
    """
    if not paths:
        raise MissingPath(f"{field}: there are no pictures in the folder.")
    found = {path.name: unfit(path) for path in paths}
    wrong = [
        f"{some(names)} ({kind}; {remedy})"
        for kind, remedy in REMEDIES.items()
        if (names := [n for n, each in found.items() if each == kind])
    ]
    if wrong:
        raise UserError(
            f"{field}: with about ten pictures each counts, and {len([*filter(None, found.values())])} are unfit: {'; '.join(wrong)}."
        )
    return paths

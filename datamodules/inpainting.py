"""Pictures with holes, to judge inpainters on: with masks in any layout of :mod:`datamodules.inpainting_index`, or with generated holes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.checks import CheckReport, Facts, Item, check_all, check_sample, checks_folder
from datamodules.images import is_picture, open_picture
from datamodules.inpainting_index import InpaintingItem, items, preview, read_hole
from datamodules.sampling import Draw, EvalSampler, leave_interrupts_to_parent
from datamodules.sniffing import pictures_below
from datamodules.tinyworld import tiny_root
from genlab.batches import InpaintingBatch
from genlab.errors import MissingPath, UserError
from genlab.files import fingerprint
from genlab.holes import KINDS, HoleKind, make_hole
from genlab.training.randomness import keyed_rng

log = logging.getLogger(__name__)

DATASET = "inpainting"
NAMED = 5  # pictures in a message
LABELS = {0: "picture"}


@dataclass(frozen=True)
class GeneratedHoles:
    """Holes for pictures that come without. Each has exactly the share of the picture that is drawn for it (``patch``: whole cells).

    Args:
        kind: ``free_form`` strokes of a brush (paper), ``thin`` or ``thick`` ones, ``box``, ``half``, ``border`` or ``patch``.
        min_share: Smallest share of the picture, in (0, 1).
        max_share: Largest share; the same number gives every hole that share. Paper: blocks of 20 %, 0.2 to 0.4 among them.
        seed: Another one, other holes.
    """

    kind: HoleKind = "free_form"
    min_share: float = 0.2
    max_share: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not 0 < self.min_share <= self.max_share < 1:
            raise UserError(
                f"data.holes: {self.kind=} {self.min_share=} {self.max_share=}; kinds are {', '.join(KINDS)}, shares lie between 0 and 1."
            )

    def make(self, name: str, height: int, width: int) -> NDArray[np.bool_]:
        """The hole of a picture, (H, W)."""
        rng = keyed_rng("hole", self.seed, self.kind, name)
        return make_hole(self.kind, height, width, float(rng.uniform(self.min_share, self.max_share)), rng)


class InpaintingDataset(Dataset[dict[str, Any]]):
    """Pictures cut to squares, with their holes.

    Args:
        chosen: Position in the whole list, and item.
        size: Side in pixels: the shorter side is brought to it, the longer one cut from both ends.
        holes: For items without a mask.
        invert: In masks black is the hole.
        max_hole: Largest share of a hole that is still a task.
    """

    def __init__(
        self, chosen: Sequence[tuple[int, InpaintingItem]], size: int, holes: GeneratedHoles, invert: bool, max_hole: float
    ) -> None:
        self.chosen, self.size, self.holes, self.invert, self.max_hole = list(chosen), size, holes, invert, max_hole

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index, item = self.chosen[draw.index]
        sample: dict[str, Any] = {"prompt": item.prompt, "group": item.group, "id": item.id, "index": index, "readable": True}
        try:
            picture = open_picture(item.path)
            pixels = np.asarray(square(picture, self.size, Image.Resampling.BICUBIC))
            if item.mask is None:
                hole = self.holes.make(item.id, self.size, self.size)
            else:
                mask = Image.fromarray(read_hole(item.mask, picture.size, self.invert))
                hole = np.asarray(square(mask, self.size, Image.Resampling.NEAREST))
        except OSError as error:
            log.warning("%s cannot be read: %s", item.id, error)
            pixels, hole = np.zeros((self.size, self.size, 3), np.uint8), np.zeros((self.size, self.size), bool)
            sample["readable"] = False
        usable = sample["readable"] and 0 < hole.mean() <= self.max_hole
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return sample | {"image": image, "hole": torch.from_numpy(hole.copy())[None], "usable": usable}


def square(picture: Image.Image, size: int, how: Image.Resampling) -> Image.Image:
    """The shorter side brought to ``size`` pixels, the longer one cut to it from both ends."""
    scale = size / min(picture.size)
    width, height = (max(round(side * scale), size) for side in picture.size)
    resized = picture if picture.size == (width, height) else picture.resize((width, height), how)
    left, top = (width - size) // 2, (height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def collate(samples: list[dict[str, Any]]) -> InpaintingBatch:
    """Samples -> batch."""
    batch: Any = {name: [each[name] for each in samples] for name in ("prompt", "group", "id")}
    batch |= {name: torch.stack([each[name] for each in samples]) for name in ("image", "hole")}
    return batch | {name: torch.tensor([each[name] for each in samples]) for name in ("index", "readable", "usable")}


class Inpainting(L.LightningDataModule):
    """Pictures with holes.

    Args:
        root: Any folder of pictures, in every layout that has masks too (``images/`` and ``masks/``, ``x.png`` with ``x_mask001.png``, a
            CSV or JSONL with ``image,mask[,prompt][,group]``), Places365's validation set, or one picture; ``tiny:inpainting`` writes a
            procedural set on first use.
        masks: Folder of masks with the pictures' names, or one mask for all; wins over masks that ``root`` has. White is the hole.
        invert_masks: Black is the hole.
        holes: Made for pictures without a mask.
        size: Side of the squares in pixels that pictures are brought to, and judged at.
        max_hole: Pictures whose hole is empty, or larger than this share, are left out and counted: most such masks are inverted ones.
        n_images: Judge only so many, always the same ones.
        subset_seed: Which ones.
        batch_size: Pictures per step and device.
        num_workers: Loading processes per device.
        predict_paths: Pictures, and folders of pictures, for ``predict``; the command line's positional arguments.
        test_list: CSV or JSONL of pictures and masks, instead of what is found in ``root``; its paths count from its own folder.
    """

    def __init__(
        self,
        root: str,
        masks: str | None = None,
        invert_masks: bool = False,
        holes: GeneratedHoles | None = None,
        size: int = 512,
        max_hole: float = 0.95,
        n_images: int | None = None,
        subset_seed: int = 0,
        batch_size: int = 4,
        num_workers: int = 0,
        predict_paths: list[str] | None = None,
        test_list: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        for name, value in {"size": size, "batch_size": batch_size, "n_images": n_images or 1}.items():
            if value < 1:
                raise UserError(f"data.{name}: {value} is too small; use 1 or more.")
        if not 0 < max_hole <= 1:
            raise UserError(f"data.max_hole: {max_hole} is no share of a picture; use one above 0, at most 1.")
        self.holes = holes or GeneratedHoles()
        self.all: list[InpaintingItem] = []
        self.dataset: InpaintingDataset | None = None

    @property
    def hparams(self) -> Any:
        """The constructor's arguments by name (Lightning types this as a plain mapping)."""
        return super().hparams

    @property
    def data_name(self) -> str:
        """Names the folder of an evaluation: ``test-inpainting``."""
        return DATASET

    @property
    def root(self) -> Path:
        """The dataset's folder; a tiny one is written on first use."""
        return tiny_root(self.hparams.root)

    @property
    def ids(self) -> list[str]:
        """Names of all pictures that are evaluated."""
        return [item.id for _, item in self.dataset.chosen] if self.dataset is not None else []

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hash of the paths and sizes of pictures and masks."""
        if self.dataset is None:
            return {}
        files = [(item.id, path) for _, item in self.dataset.chosen for path in (item.path, item.mask) if path is not None]
        return {"test": fingerprint((name, path.stat().st_size if path.exists() else -1) for name, path in files)}

    @property
    def protocol(self) -> dict[str, Any]:
        """What must agree for two results to be comparable."""
        h = self.hparams
        made = {"holes": "masks"} if self.all and all(item.mask is not None for item in self.all) else {"holes": repr(self.holes)}
        return {"size": h.size, "max_hole": h.max_hole, "n_images": len(self.ids), "tiny_world": h.root.startswith("tiny:")} | made

    def prepare_data(self) -> None:
        """Writes the tiny dataset, if that is what the root names (rank zero)."""
        tiny_root(self.hparams.root)

    def setup(self, stage: str) -> None:
        """Finds pictures and masks.

        Raises:
            UserError: Folders or lists that do not fit together; names what is missing.
        """
        h = self.hparams
        if stage == "predict":
            found = [item for path in h.predict_paths or [] for item in _users(Path(path))]
            self.all = _with_masks(found, Path(h.masks)) if h.masks else found
        else:
            self.all = self.items()
        if not self.all:
            raise UserError(f"data.root: there is no picture in {h.root}." if stage != "predict" else "predict: no picture was named.")
        chosen = list(enumerate(self.all))
        if h.n_images is not None and h.n_images < len(chosen):
            order = keyed_rng("subset", h.subset_seed).permutation(len(chosen))[: h.n_images]
            chosen = [chosen[i] for i in sorted(order)]
        self.dataset = InpaintingDataset(chosen, h.size, self.holes, h.invert_masks, h.max_hole)
        own = sum(item.mask is not None for _, item in chosen)
        log.info("%s: %d pictures, %d with a mask of their own", TrainerFn(stage).value, len(chosen), own)

    def items(self) -> list[Any]:
        """Every picture, once for each of its holes, readable or not."""
        h, root = self.hparams, self.root
        found: Sequence[Item]
        if h.test_list:
            found = items(Path(h.test_list), DATASET)
        elif root.is_file() and is_picture(root.name):
            found = _users(root)
        else:
            found = items(root, DATASET)
        return _with_masks(found, Path(h.masks)) if h.masks else list(found)

    def check(self, level: Literal["quick", "full"], workers: int | None = None) -> CheckReport:
        """Looks the dataset through: ``quick``, the lists and a sample of the pictures; ``full``, every one.

        Args:
            level: Which.
            workers: Processes of a full check; ``None`` is one per core.
        """
        found = [replace(item, label=0) for item in self.items()]
        if level == "quick":
            return check_sample(found, read_pair, LABELS)
        return check_all(found, read_pair, LABELS, checks_folder() / f"{DATASET}.sqlite", workers)

    def preview(self, item: Item) -> list[Image.Image]:
        """The picture with its hole tinted; none if it cannot be read."""
        return preview(item)

    def test_dataloader(self) -> DataLoader[Any]:
        assert self.dataset is not None, "setup() has not run"
        ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        sampler = EvalSampler(len(self.dataset), *ranks)
        # By name: Lightning makes the loader of a prediction anew from its arguments.
        return DataLoader(
            self.dataset,
            batch_size=self.hparams.batch_size,
            sampler=sampler,
            num_workers=self.hparams.num_workers,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            worker_init_fn=leave_interrupts_to_parent,
            generator=torch.Generator(),
        )

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: InpaintingBatch, dataloader_idx: int) -> InpaintingBatch:
        """uint8 -> float32 in [0, 1] on the device."""
        image: Tensor = batch["image"]
        batch["image"] = image.float() / 255
        return batch


def read_pair(item: Item, whole: bool) -> Facts:
    """Facts about a picture and its mask, for ``data check``."""
    picture = open_picture(item.path)
    mask = item.mask if isinstance(item, InpaintingItem) else None
    measures: dict[str, float | str] = {"size": f"{picture.width}x{picture.height}"}
    if mask is not None:
        if not mask.exists():
            return Facts("missing", f"its mask {mask.name}")
        share = float(read_hole(mask, picture.size).mean())
        if share in (0.0, 1.0):
            return Facts("empty", f"its mask {mask.name} hides {'nothing' if share == 0 else 'everything'}")
        measures["share of the hole"] = share
    return Facts(measures=measures)


def _users(path: Path) -> list[InpaintingItem]:
    """A user's own picture, or all pictures of a folder."""
    if path.is_dir():
        paths = pictures_below(path)
        if not paths:
            raise MissingPath(f"{path}: there is no picture in this folder.")
        return [InpaintingItem(each.relative_to(path).as_posix(), each, 0, "all", "all") for each in paths]
    if not path.is_file():
        raise MissingPath(f"{path}: no such picture or folder.")
    return [InpaintingItem(path.name, path, 0, "all", "all")]


def _with_masks(found: Sequence[Item], masks: Path) -> list[InpaintingItem]:
    """The same pictures, each once, with masks of their names; or with one mask for all.

    Raises:
        UserError: Pictures without a mask.
    """
    once: dict[Path, Item] = {}
    for item in found:
        once.setdefault(item.path, item)
    pictures = [
        item if isinstance(item, InpaintingItem) else InpaintingItem(item.id, item.path, item.label, item.group, item.split)
        for item in once.values()
        if masks.resolve() not in item.path.resolve().parents
    ]
    if masks.is_file():
        return [replace(item, mask=masks) for item in pictures]
    if not masks.is_dir():
        raise MissingPath(f"data.masks: {masks} is neither a folder of masks nor one mask.")
    by_name = {path.relative_to(masks).with_suffix("").as_posix(): path for path in pictures_below(masks)}
    paired: list[InpaintingItem] = []
    alone: list[str] = []
    for item in pictures:
        whole = Path(item.id).with_suffix("").as_posix()
        candidates = (whole, whole.split("/", 1)[-1], whole.rsplit("/", 1)[-1], Path(item.path).stem)
        mask = next((by_name[name] for name in candidates if name in by_name), None)
        if mask is None:
            alone.append(item.id)
        else:
            paired.append(replace(item, mask=mask))
    if alone:
        more = f" and {len(alone) - NAMED} more" if len(alone) > NAMED else ""
        raise UserError(f"data.masks: {masks} has no mask for {', '.join(alone[:NAMED])}{more}; masks have the names of their pictures.")
    return paired

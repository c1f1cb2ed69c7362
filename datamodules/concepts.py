"""A sentence with pictures in it: ``[img]`` stands for each picture in turn (Multi-Modal Prompt, arXiv 2405.16501)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms.v2 import functional as vision

from datamodules.checks import Item
from datamodules.domain_images import Crop, cut
from datamodules.images import open_picture, preview, unfit
from datamodules.listfiles import some
from datamodules.prompted import SeveralSources
from datamodules.sampling import Draw, TrainLoader, TrainSampler
from datamodules.scale_jitter import jittered
from datamodules.subjects_index import Request, make_request, read_requests
from datamodules.tinyworld import tiny_root
from genlab.batches import ConceptBatch
from genlab.errors import UserError
from genlab.files import file_size, fingerprint
from genlab.training.randomness import keyed_rng

log = logging.getLogger(__name__)

Schedule = Literal["joint", "sequential"]


class ConceptDataset(Dataset[dict[str, Any]]):
    """Pairs of a concept's picture and one that the plain model made of its description.

    Args:
        target: A file per concept.
        source: Files by concept; without any, pairs have none.
        length: Pairs of an epoch.
        size: Pixels per side.
        crop: Of all pictures.
        latent: Pixels of a latent's side where pictures are jittered in scale, as in Custom Diffusion; ``None``: they are not.
        schedule: ``joint``: every concept in turn; ``sequential``: one an epoch.
        seed: Keys crops, jitter and which of a concept's source pictures.
    """

    def __init__(
        self,
        target: Sequence[Path],
        source: Sequence[Sequence[Path]],
        length: int,
        size: int,
        crop: Crop,
        latent: int | None,
        schedule: Schedule,
        seed: int,
    ) -> None:
        self.target, self.source, self.length = list(target), [list(each) for each in source], length
        self.size, self.crop, self.latent, self.schedule, self.seed = size, crop, latent, schedule, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        concept = (draw.index if self.schedule == "joint" else draw.epoch) % len(self.target)
        rng = keyed_rng(self.seed, "concept", draw.epoch, draw.index)
        path, sample = self.target[concept], {"index": draw.index, "concept": concept, "prefix": ""}
        if self.latent is None:
            sample |= {"target": cut(open_picture(path), self.size, self.crop, rng), "target_id": f"target/{concept}"}
        else:
            found = jittered(vision.pil_to_tensor(open_picture(path)), self.size, rng, self.latent)
            sample |= {"target": found.picture, "mask": found.mask, "prefix": found.prefix, "target_id": f"target/{concept}"}
        if self.source:
            other = self.source[concept][int(rng.integers(len(self.source[concept])))]
            sample |= {"source": cut(open_picture(other), self.size, self.crop, rng), "source_id": f"source/{concept}/{other.name}"}
        return sample


def collate_concepts(samples: list[dict[str, Any]]) -> ConceptBatch:
    """Samples -> batch."""
    words = [key for key in ("target_id", "source_id", "prefix") if key in samples[0]]
    batch: Any = default_collate([{key: value for key, value in each.items() if key not in words} for each in samples])
    return batch | {key: [each[key] for each in samples] for key in words}


class Concepts(SeveralSources):
    """The user's sentence and pictures.

    Args:
        prompt: With ``[img]`` where a picture stands.
        images: As many pictures; or folders of a subject, of which the one at the concept's ``index`` is taken. A command line may say
            "[a.jpg, b.jpg]".
        concepts: What is known of each picture: any of ``foreground``, ``background``, ``action``, ``role`` (object or background),
            ``identifier``, ``index``; ``{}`` where nothing is. Given fields are never asked of a model.
        root: In place of these, a folder with ``prompts.json``; ``tiny:multimodal_prompt`` writes a procedural one on first use.
        entry: Which prompt of it.
        analyse_only: Say what the pictures are taken for, write ``concepts.json``, and stop before anything is drawn or trained.
        schedule: ``joint``: all concepts together, as the authors do with Custom Diffusion; ``sequential``: one after the other, each with
            a fresh optimizer, as they do with DreamBooth.
        steps_per_concept: Steps of training. Released code: 200 with DreamBooth, 250 of two concepts with Custom Diffusion.
        jitter: Pictures at random sizes with a mask and words for it, as in Custom Diffusion.
        image_size: Pixels per side.
        crop: After resizing the shorter side, ``random`` as in the released code, or ``center``, which lets latents be kept.
        batch_size: Pictures of concepts per device, and as many of the plain model's.
        eval_batch_size: Pictures drawn at once.
        prompts: Drawn in prediction: words, with ``{1}``, ``{2}`` for the concepts; left out, the sentence itself.
        pictures: Of each. Released code: 20.
        num_workers: Reading processes.
        seed: Keys orders, crops and jitter.
    """

    def __init__(
        self,
        prompt: str | None = None,
        images: list[str] | str | None = None,
        concepts: list[dict[str, str | int]] | None = None,
        root: str | None = None,
        entry: int = 0,
        analyse_only: bool = False,
        schedule: Schedule = "joint",
        steps_per_concept: int = 200,
        jitter: bool = False,
        image_size: int = 512,
        crop: Crop = "random",
        batch_size: int = 1,
        eval_batch_size: int = 5,
        prompts: list[str] | None = None,
        pictures: int = 20,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        sizes = {"image_size": image_size, "batch_size": batch_size, "eval_batch_size": eval_batch_size, "pictures": pictures}
        for name, value in (sizes | {"steps_per_concept": steps_per_concept}).items():
            if value < 1:
                raise UserError(f"data.{name}: {value} is too small; use 1 or more.")
        if (prompt is None) == (root is None):
            raise UserError("data: give data.prompt with data.images, or data.root with a prompts.json; one of the two.")
        self.request = Request("", ())

    category = "picture"  # of prompts that name one; a sentence has its own words
    wants_source = True

    @property
    def fixed_crop(self) -> bool:
        """Whether a picture is always cut the same."""
        return self.hparams.crop == "center" and not self.hparams.jitter

    @property
    def data_name(self) -> str:
        """Names the folder of an evaluation."""
        return "-".join(path.stem for path in self.request.images)[:60] or "text"

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hash of the names and sizes of the pictures."""
        return {"images": fingerprint((path.name, file_size(path)) for path in self.request.images)}

    @property
    def protocol(self) -> dict[str, Any]:
        """What must agree for two results to be comparable."""
        names = ("image_size", "pictures", "schedule", "steps_per_concept", "jitter")
        tiny = str(self.hparams.root).startswith("tiny:")
        return {name: self.hparams[name] for name in names} | {"prompt": self.request.prompt, "tiny_world": tiny}

    def setup(self, stage: str) -> None:
        """Reads what is asked for, and each picture once.

        Raises:
            UserError: What is missing, does not match, or cannot be read.
        """
        h = self.hparams
        if self.request.prompt:
            return
        if h.root is not None:
            found = read_requests(tiny_root(h.root))
            if not 0 <= h.entry < len(found):
                raise UserError(f"data.entry: {h.entry} is none of 0 to {len(found) - 1}, the prompts of {h.root}.")
            request = found[h.entry]
        else:
            request = make_request(h.prompt, h.images or [], h.concepts or ())
        if broken := [f"{path.name} ({why})" for path in request.images if (why := unfit(path))]:
            raise UserError(f"data.images: {some(broken)} cannot be used; each picture is a concept's only one.")
        self.request = request

    def picture(self, number: int) -> Image.Image:
        """Of a concept."""
        return open_picture(self.request.images[number])

    def use_source(self, folder: Path, count: int | None = None) -> None:
        """Pictures of the plain model for all concepts come from there."""
        self.use_sources([folder] * len(self.request.images), count)

    def real_pictures(self) -> Tensor:
        """The pictures (N, 3, S, S) uint8, cut from the middle."""
        size = self.hparams.image_size
        found = [cut(open_picture(path), size, "center") for path in self.request.images]
        return torch.stack(found) if found else torch.zeros(0, 3, size, size, dtype=torch.uint8)

    # Loaders

    def train_dataloader(self) -> TrainLoader:
        h, count = self.hparams, max(1, len(self.request.images))
        epoch = h.steps_per_concept * (count if h.schedule == "joint" else 1)
        length, latent = epoch * h.batch_size * self.ranks()[1], 8 if h.jitter else None
        dataset = ConceptDataset(self.request.images, self.source, length, h.image_size, h.crop, latent, h.schedule, h.seed)
        return TrainLoader(dataset, TrainSampler(None, length, h.seed, *self.ranks()), h.batch_size, **self.options(collate_concepts))

    def val_dataloader(self) -> DataLoader[Any]:
        return self.drawn(["{generation}"], self.hparams.pictures)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.drawn(["{generation}"], self.hparams.pictures)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.drawn(self.hparams.prompts or ["{generation}"], self.hparams.pictures)

    # For ``data check`` and ``data show``

    def items(self) -> list[Item]:
        """Every picture."""
        self.setup("check")
        return [Item(path.name, path, number, self.request.prompt, "all") for number, path in enumerate(self.request.images)]

    def preview(self, item: Item) -> list[Image.Image]:
        """The picture of an item, none if it cannot be read."""
        return preview(item)

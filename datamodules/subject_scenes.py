"""One picture of a subject, or a few, and the scenes that it is to be shown in (ComFusion, arXiv 2402.11849; DreamBooth's subjects)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from datamodules.checks import Item
from datamodules.domain_images import Crop, cut
from datamodules.images import open_picture, pictures_in, preview
from datamodules.listfiles import some
from datamodules.prompted import PromptDataset, SeveralSources
from datamodules.sampling import Draw, TrainLoader, TrainSampler
from datamodules.subjects_index import LIST, read_prompt_lists
from datamodules.tinyworld import tiny_root
from genlab.batches import SceneBatch, ScenePromptBatch
from genlab.errors import MissingPath, UserError
from genlab.files import file_size, fingerprint
from genlab.training.randomness import keyed_rng

log = logging.getLogger(__name__)

SHARED_SCENES = (  # of DreamBooth's prompts for objects and for living subjects (Ruiz et al., arXiv 2208.12242), what both lists have
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric", "on top of a wooden floor",
    "with a city in the background", "with a mountain in the background", "with a blue house in the background",
    "on top of a purple rug in a forest",
)  # fmt: skip
GREY = 128


def in_scene(subject: str, scene: str) -> str:
    """A prompt: the scene follows the subject, or has ``{subject}`` where it belongs."""
    return scene.replace("{subject}", subject) if "{subject}" in scene else f"{subject} {scene}"


def without_subject(scene: str) -> str:
    """The scene's own words."""
    return " ".join(scene.replace("{subject}", " ").split())


class SceneDataset(Dataset[dict[str, Any]]):
    """Pairs of a picture of the subject and one of its class in a scene, as the plain model made it.

    The subject's pictures take turns. Scenes are drawn evenly, however many pictures each has; of a scene any picture is as likely.

    Args:
        target: The subject's files.
        source: Files by scene.
        length: Pairs of an epoch.
        size: Pixels per side.
        crop: Of all pictures.
        seed: Keys orders, scenes and crops.
    """

    def __init__(self, target: Sequence[Path], source: Sequence[Sequence[Path]], length: int, size: int, crop: Crop, seed: int) -> None:
        self.target, self.source, self.length = list(target), [list(each) for each in source], length
        self.size, self.crop, self.seed = size, crop, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        rng = keyed_rng(self.seed, "scene", draw.epoch, draw.index)
        scene = int(rng.integers(len(self.source)))
        place = int(rng.integers(len(self.source[scene])))
        target = (draw.epoch * self.length + draw.index) % len(self.target)
        sample: dict[str, Any] = {"index": draw.index, "scene": scene, "picture": target}
        for name, path, known in (("target", self.target[target], target), ("source", self.source[scene][place], scene)):
            crop = keyed_rng(self.seed, "crop", name, draw.epoch, draw.index)
            sample |= {name: cut(open_picture(path), self.size, self.crop, crop), f"{name}_id": f"{name}/{known}/{path.name}"}
        return sample


def collate_scenes(samples: list[dict[str, Any]]) -> SceneBatch:
    """Samples -> batch."""
    batch: Any = default_collate([{key: value for key, value in each.items() if not key.endswith("_id")} for each in samples])
    return batch | {key: [each[key] for each in samples] for key in ("target_id", "source_id")}


class ScenePrompts(PromptDataset):
    """Prompts, each so often, and which scene each is of."""

    def __init__(self, prompts: Sequence[tuple[str, int]], each: int) -> None:
        super().__init__([prompt for prompt, _ in prompts], each)
        self.scenes = [scene for _, scene in prompts]

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return super().__getitem__(draw) | {"scene": self.scenes[draw.index // self.each]}


def collate_scene_prompts(samples: list[dict[str, Any]]) -> ScenePromptBatch:
    """Samples -> batch."""
    batch: Any = {key: [each[key] for each in samples] for key in ("prompt", "id")}
    return batch | {key: torch.tensor([each[key] for each in samples]) for key in ("number", "index", "scene")}


class SubjectScenes(SeveralSources):
    """A subject from one picture, and scenes that are named beforehand.

    Args:
        instance: A picture; or a folder of one subject's pictures, such as ``dataset/dog6`` of the DreamBooth dataset;
            ``tiny:dreambooth/heart`` is one of the tiny world.
        instance_index: Which of a folder, from 0; the others are for evaluation.
        instance_count: How many of a folder from there on; ``null`` takes all. ComFusion: 1.
        class_name: Noun for the subject, such as dog; left out, what ``prompts_and_classes.txt`` beside the folder says.
        scenes: What follows the subject in prompts ("on the beach"), or has ``{subject}`` where it belongs; left out, those that both
            of DreamBooth's lists of prompts share, ten. None at all (``[]``) is DreamBooth's plain class prior.
        mask: Picture that is white where the subject is: what is compared with it then has a grey background.
        source: Folder with a folder of the class's pictures per scene (``00``, ``01``, ...); left out, the method has the plain model
            draw them.
        image_size: Pixels per side. Stable Diffusion 1: 512.
        crop: After resizing the shorter side, ``random``, or ``center``, which lets latents be kept.
        batch_size: Pictures of the subject per device, and as many of the class in scenes.
        eval_batch_size: Pictures drawn at once.
        prompts: Templates of pictures that are drawn in prediction; left out, the subject in every scene.
        other_scenes: Drawn and scored in ``test`` as well, but never trained: what tuning does to other scenes.
        pictures: Of each prompt. DreamBooth's protocol: 4.
        num_workers: Reading processes.
        seed: Keys orders, scenes and crops.
    """

    def __init__(
        self,
        instance: str,
        instance_index: int = 0,
        instance_count: int | None = 1,
        class_name: str | None = None,
        scenes: list[str] | None = None,
        mask: str | None = None,
        source: str | None = None,
        image_size: int = 512,
        crop: Crop = "random",
        batch_size: int = 1,
        eval_batch_size: int = 4,
        prompts: list[str] | None = None,
        other_scenes: list[str] | None = None,
        pictures: int = 4,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        sizes = {"image_size": image_size, "batch_size": batch_size, "eval_batch_size": eval_batch_size, "pictures": pictures}
        for name, value in (sizes | {"instance_count": 1 if instance_count is None else instance_count}).items():
            if value < 1:
                raise UserError(f"data.{name}: {value} is too small; use 1 or more.")
        named = [*(scenes or []), *(other_scenes or [])]
        if wrong := [each for each in named if not without_subject(each) or named.count(each) > 1]:
            raise UserError(f"data.scenes: {some([repr(each) for each in wrong])} says nothing, or is there twice.")
        self.category = class_name or ""
        self.scenes: list[str] = []
        self.target: list[Path] = []
        self.others: list[Path] = []

    # What there is

    @property
    def instance(self) -> Path:
        """The picture, or the folder."""
        dataset, _, subject = str(self.hparams.instance).partition("/")
        if not dataset.startswith("tiny:"):
            return Path(self.hparams.instance)
        folder = tiny_root(dataset) / "dataset"
        if not subject or not (folder / subject).is_dir():
            known = sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else ["none"]
            raise UserError(f"data.instance: {self.hparams.instance} names no subject; there are {', '.join(known)}.")
        return folder / subject

    @property
    def data_name(self) -> str:
        """Names the folder of an evaluation."""
        return self.instance.stem

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hash of the names and sizes of the pictures."""
        return {"instance": fingerprint((path.name, file_size(path)) for path in self.target)}

    @property
    def protocol(self) -> dict[str, Any]:
        """What must agree for two results to be comparable."""
        names = ("instance_index", "instance_count", "image_size", "pictures")
        known = {"subject": self.instance.stem, "category": self.category, "scenes": self.scenes, "other_scenes": self.other_scenes}
        return {name: self.hparams[name] for name in names} | known | {"tiny_world": str(self.hparams.instance).startswith("tiny:")}

    @property
    def other_scenes(self) -> list[str]:
        """Never trained."""
        return self.hparams.other_scenes or []

    def setup(self, stage: str) -> None:
        """Finds the pictures, and reads each once.

        Raises:
            UserError: What is missing or cannot be read, and what nobody says of it.
        """
        if self.target:
            return
        h, path = self.hparams, self.instance
        if path.is_dir():
            there = pictures_in(path)
            end = len(there) if h.instance_count is None else h.instance_index + h.instance_count
            chosen = there[h.instance_index : end] if h.instance_index >= 0 else []
            if not chosen or len(chosen) < end - h.instance_index:
                raise UserError(
                    f"data.instance: {path} has {len(there)} pictures; {h.instance_index=} and {h.instance_count=} ask for others."
                )
            others = [each for each in there if each not in chosen]
        elif path.is_file():
            chosen, others = [path], []
        else:
            raise MissingPath(f"data.instance: {path} is not there. Name a picture of the subject, or a folder of its pictures.")
        if broken := [each.name for each in [*chosen, *others] if not preview(Item(each.name, each, 0, "", ""))]:
            raise UserError(f"data.instance: {some(broken)} cannot be read as pictures. With so few each counts: mend or remove them.")
        self._take_words(path)
        if h.mask is not None and not preview(Item("mask", Path(h.mask), 0, "", "")):
            raise UserError(f"data.mask: {h.mask} cannot be read as a picture.")
        self.target, self.others = chosen, others
        if h.source is not None:
            self.use_sources([Path(h.source) / f"{number:02d}" for number in range(max(1, len(self.scenes)))])
        log.info("%d picture(s) of the subject, class %r, %d scenes", len(chosen), self.category, len(self.scenes))

    def _take_words(self, path: Path) -> None:
        """Class and scenes, as given or as the list beside the subject says."""
        file = path.parent / LIST
        lists = read_prompt_lists(file) if path.is_dir() and file.is_file() else None
        if not self.category and (lists is None or path.name not in lists.classes):
            raise UserError("data.class_name: name what the picture shows, a noun such as dog; no prompts_and_classes.txt says.")
        self.category = self.category or (lists.classes[path.name] if lists else "")
        shared = lists.shared_scenes if lists else list(SHARED_SCENES)
        self.scenes = shared if self.hparams.scenes is None else list(self.hparams.scenes)

    def real_pictures(self) -> Tensor:
        """The pictures that are trained (N, 3, S, S) uint8, cut from the middle."""
        return self._cut(self.target)

    def held_back(self) -> Tensor:
        """The subject's other pictures (M, 3, S, S) uint8; M may be 0."""
        return self._cut(self.others)

    def matched_pictures(self) -> Tensor:
        """What made pictures are compared with while training: as :meth:`real_pictures`, grey where the mask is dark."""
        pictures, size = self.real_pictures(), self.hparams.image_size
        if self.hparams.mask is None:
            return pictures
        with Image.open(self.hparams.mask) as picture:
            mask = vision.resize(picture.convert("L"), [size], InterpolationMode.BILINEAR, antialias=True)
        kept = vision.pil_to_tensor(vision.center_crop(mask, [size, size])) > 127
        return torch.where(kept, pictures, torch.full_like(pictures, GREY))

    def _cut(self, paths: Sequence[Path]) -> Tensor:
        size = self.hparams.image_size
        found = [cut(open_picture(path), size, "center") for path in paths]
        return torch.stack(found) if found else torch.zeros(0, 3, size, size, dtype=torch.uint8)

    # Loaders

    def train_dataloader(self) -> TrainLoader:
        h = self.hparams
        length = max(len(self.target), sum(map(len, self.source)), h.batch_size * self.ranks()[1])
        dataset = SceneDataset(self.target, self.source, length, h.image_size, h.crop, h.seed)
        return TrainLoader(dataset, TrainSampler(None, length, h.seed, *self.ranks()), h.batch_size, **self.options(collate_scenes))

    def val_dataloader(self) -> DataLoader[Any]:
        return self._prompts(self._numbered(self.scenes))

    def test_dataloader(self) -> DataLoader[Any]:
        return self._prompts(self._numbered([*self.scenes, *self.other_scenes]))

    def predict_dataloader(self) -> DataLoader[Any]:
        prompts = self.hparams.prompts
        return self._prompts(self._numbered(self.scenes) if prompts is None else [(prompt, -1) for prompt in prompts])

    def in_scenes(self, subject: str, scenes: Sequence[str] | None = None) -> list[str]:
        """Prompts of the subject in each scene; without any, the subject alone."""
        return [in_scene(subject, scene) for scene in (self.scenes if scenes is None else scenes)] or [subject]

    def scene_words(self) -> list[str]:
        """The words of the scenes alone."""
        return [without_subject(scene) for scene in self.scenes]

    def _numbered(self, scenes: Sequence[str]) -> list[tuple[str, int]]:
        return [(prompt, number if scenes else -1) for number, prompt in enumerate(self.in_scenes("{target}", scenes))]

    def _prompts(self, prompts: Sequence[tuple[str, int]]) -> DataLoader[Any]:
        return self.prompt_loader(ScenePrompts(prompts, self.hparams.pictures), collate_scene_prompts)

    # For ``data check`` and ``data show``

    def items(self) -> list[Item]:
        """Every picture of the subject."""
        self.setup("check")
        return [Item(path.name, path, number, self.category, "train") for number, path in enumerate([*self.target, *self.others])]

    def preview(self, item: Item) -> list[Image.Image]:
        """The picture of an item, none if it cannot be read."""
        return preview(item)

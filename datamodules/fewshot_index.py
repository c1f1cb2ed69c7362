"""The eleven image classification datasets of few-shot adaptation, as CoOp (Zhou et al., IJCV 2022) lays them out.

Nine come with a ``split_zhou_<Name>.json``: lists ``[path, label, class name]`` for train, val and test. FGVC-Aircraft keeps the text files
of its owners, ImageNet is folders of pictures named by wnid. ``gpt3_prompts/CuPL_prompts_<name>.json`` holds sentences that describe
each class (Pratt et al., ICCV 2023).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datamodules.checks import Item
from datamodules.images import is_picture, preview
from datamodules.listfiles import raise_all, read_json, read_text, some
from genlab.errors import MissingPath, UserError

__all__ = ["PLACES", "FewShotLists", "Picture", "Place", "dataset_folder", "items", "preview", "read_lists", "read_sentences"]

SPLITS = ("train", "val", "test")
ADVICE = "DATASETS.md of the CoOp repository says where to get it."


@dataclass(frozen=True)
class Place:
    """Where things of a dataset are.

    Args:
        folder: The dataset's, below a folder of all of them.
        images: What the paths of its lists are relative to, below ``folder``.
        split: Its list, in ``folder``; the file that tells the folder of a dataset without one.
        sentences: Ending of the name of its CuPL file.
    """

    folder: str
    images: str
    split: str
    sentences: str


PLACES = {
    "imagenet": Place("imagenet", "images", "classnames.txt", "imagenet"),
    "caltech101": Place("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", "caltech101"),
    "oxford_pets": Place("oxford_pets", "images", "split_zhou_OxfordPets.json", "oxfordpets"),
    "stanford_cars": Place("stanford_cars", "", "split_zhou_StanfordCars.json", "stanfordcars"),
    "oxford_flowers": Place("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", "flowers102"),
    "food101": Place("food-101", "images", "split_zhou_Food101.json", "food101"),
    "fgvc": Place("fgvc_aircraft", "images", "variants.txt", "fgvcaircraft"),
    "sun397": Place("sun397", "SUN397", "split_zhou_SUN397.json", "sun397"),
    "dtd": Place("dtd", "images", "split_zhou_DescribableTextures.json", "dtd"),
    "eurosat": Place("eurosat", "2750", "split_zhou_EuroSAT.json", "eurosat"),
    "ucf101_midframes": Place("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", "ucf101"),
}


class Picture(NamedTuple):
    """A picture of a list: its path below the dataset's folder, with forward slashes, and its label."""

    path: str
    label: int


@dataclass(frozen=True)
class FewShotLists:
    """What is published of a dataset.

    Args:
        folder: Of the dataset.
        names: Class names as the lists spell them, by label. Two classes may have the same name, as some of ImageNet do.
        splits: Pictures of ``train``, ``val`` and ``test`` in the order of the list, which few-shot draws depend on. ImageNet has no
            ``val``; its validation set is what is tested.
    """

    folder: Path
    names: list[str]
    splits: dict[str, list[Picture]]


def spoken(name: str) -> str:
    """A class name as prompts have it: blanks for underscores."""
    return name.replace("_", " ")


def dataset_folder(root: Path, dataset: str) -> Path:
    """The dataset's folder: ``root``, or the one in it that has CoOp's name for it, or ours.

    Raises:
        MissingPath: None of them holds the list of the dataset.
    """
    place = PLACES[dataset]
    for folder in (root, root / place.folder, root / dataset):
        if (folder / place.split).is_file():
            return folder
    raise MissingPath(
        f"data.root: there is no {place.split} in {root}, nor in its folder {place.folder}. It is the list of {dataset}. {ADVICE}"
    )


def read_lists(root: Path, dataset: str) -> FewShotLists:
    """Class names and lists of a dataset.

    Args:
        root: Its folder, or a folder of several datasets with CoOp's names.

    Raises:
        UserError: A list is missing, or not as it should be: the first of what is wrong, each with its place.
    """
    folder = dataset_folder(root, dataset)
    if dataset == "imagenet":
        return _read_imagenet(folder)
    return _read_fgvc(folder) if dataset == "fgvc" else _read_split(folder, PLACES[dataset])


def _read_split(folder: Path, place: Place) -> FewShotLists:
    path = folder / place.split
    content = read_json(path, ADVICE)
    if not isinstance(content, dict) or not all(isinstance(content.get(split), list) for split in SPLITS):
        raise UserError(f"{path}: expected an object with the lists train, val and test. {ADVICE}")
    names: dict[int, str] = {}
    splits: dict[str, list[Picture]] = {}
    wrong: list[str] = []
    for split in SPLITS:
        splits[split] = []
        for number, entry in enumerate(content[split]):
            match entry:
                case [str(file), int(label), str(name)] if file and label >= 0:
                    pass
                case _:
                    wrong.append(f"{path}: {split}[{number}] is {json.dumps(entry)[:80]}; an entry is [path, label, class name].")
                    continue
            if split == "train" and names.setdefault(label, name) != name:
                wrong.append(f"{path}: {split}[{number}] calls class {label} {name!r}, an entry before {names[label]!r}.")
            elif label not in names:
                wrong.append(f"{path}: {split}[{number}] has label {label} ({name}), of which there is no training picture.")
            splits[split].append(Picture("/".join(part for part in (place.images, file.replace("\\", "/")) if part), label))
    raise_all(wrong)
    if sorted(names) != list(range(len(names))) or not names:
        gaps = sorted(set(range(max(names, default=0) + 1)) - set(names))
        raise UserError(f"{path}: labels count from 0 without gaps; no training picture has: {some([str(gap) for gap in gaps])}.")
    return FewShotLists(folder, [names[label] for label in range(len(names))], splits)


def _read_fgvc(folder: Path) -> FewShotLists:
    """``variants.txt`` has a class per line; ``images_variant_<split>.txt`` lines ``<picture> <variant with blanks>``."""
    names = [line.strip() for line in read_text(folder / "variants.txt", ADVICE).splitlines() if line.strip()]
    label_of = {name: label for label, name in enumerate(names)}
    splits: dict[str, list[Picture]] = {}
    wrong: list[str] = []
    for split in SPLITS:
        path, splits[split] = folder / f"images_variant_{split}.txt", []
        for number, line in enumerate(read_text(path, ADVICE).splitlines(), 1):
            if not line.strip():
                continue
            file, _, name = line.strip().partition(" ")
            if name.strip() not in label_of:
                wrong.append(f"{path}:{number}: variant {name.strip()!r} is not in variants.txt")
            else:
                splits[split].append(Picture(f"images/{file}.jpg", label_of[name.strip()]))
    raise_all(wrong)
    return FewShotLists(folder, names, splits)


def _read_imagenet(folder: Path) -> FewShotLists:
    """``classnames.txt`` has lines ``<wnid> <class name>``; labels count the sorted folders of ``images/train``."""
    path = folder / "classnames.txt"
    named: dict[str, str] = {}
    wrong: list[str] = []
    for number, line in enumerate(read_text(path, ADVICE).splitlines(), 1):
        wnid, _, name = line.strip().partition(" ")
        if wnid and not name.strip():
            wrong.append(f"{path}:{number}: no class name behind {wnid!r}")
        elif wnid:
            named[wnid] = name.strip()
    images = folder / "images"
    classes = _folders(images / "train", "Unpack the training pictures there, a folder per wnid.")
    wrong += [f"{images / 'train' / wnid}: this class is not in {path.name}" for wnid in classes if wnid not in named]
    tested = _folders(images / "val", "Unpack the validation pictures there and sort them into a folder per wnid (valprep.sh does).")
    wrong += [f"{images / 'val' / wnid}: there is no such folder in images/train" for wnid in tested if wnid not in classes]
    raise_all(wrong)
    splits: dict[str, list[Picture]] = {"train": [], "test": []}
    for split, part, folders in (("train", "train", classes), ("test", "val", tested)):
        for wnid in folders:
            with os.scandir(images / part / wnid) as entries:
                names = sorted(entry.name for entry in entries if is_picture(entry.name))
            splits[split] += [Picture(f"images/{part}/{wnid}/{name}", classes[wnid]) for name in names]
    return FewShotLists(folder, [named[wnid] for wnid in classes], splits)


def _folders(path: Path, advice: str) -> dict[str, int]:
    """Names of the folders in a folder, sorted, with their numbers."""
    names = sorted(each.name for each in path.iterdir() if each.is_dir()) if path.is_dir() else []
    if not names:
        raise MissingPath(f"{path} has no folders in it. {advice}")
    return {name: number for number, name in enumerate(names)}


# ---- sentences


def read_sentences(root: Path, dataset: str, names: Sequence[str]) -> list[list[str]]:
    """Sentences of CuPL for each class, in the order of the names; repeated ones stay, since they weigh in a mean.

    Args:
        names: Class names. They are looked up as they are spoken, then without regard to case.

    Raises:
        MissingPath: There is no such file.
        UserError: Classes without sentences, all of them in one message.
    """
    place, root = PLACES[dataset], root.resolve()
    file = f"gpt3_prompts/CuPL_prompts_{place.sentences}.json"
    folder = dataset_folder(root, dataset)
    found = next((each / file for each in (folder, folder.parent) if (each / file).is_file()), None)
    if found is None:
        raise MissingPath(f"{folder / file} is not there, nor beside the dataset's folder. Bring CuPL's file, or use templates alone.")
    content = read_json(found)
    if not isinstance(content, dict) or not all(
        isinstance(each, list) and all(isinstance(s, str) for s in each) for each in content.values()
    ):
        raise UserError(f"{found}: expected an object: class name -> list of sentences.")
    exact = {spoken(name): lines for name, lines in content.items()}
    loose = {name.lower(): lines for name, lines in exact.items()}
    sentences = [exact.get(spoken(name)) or loose.get(spoken(name).lower()) or [] for name in names]
    missing = [spoken(name) for name, lines in zip(names, sentences) if not lines]
    if missing:
        raise UserError(f"{found} has no sentences for {len(missing)} of {len(names)} classes: {', '.join(missing)}. Add them there.")
    return sentences


# ---- for ``data show``


def items(root: Path, dataset: str) -> list[Item]:
    """Every picture that is listed, there or not."""
    lists = read_lists(root, dataset)
    return [
        Item(picture.path, lists.folder / picture.path, picture.label, spoken(lists.names[picture.label]), split)
        for split, pictures in lists.splits.items()
        for picture in pictures
    ]

"""Writes the eleven few-shot classification sets in style B, as CoOp (Zhou et al., IJCV 2022) lays the real ones out.

What they show is in fewshot_classes.py. Each has its list, ``gpt3_prompts/CuPL_prompts_<name>.json`` with sentences about every class, and
whatever its owners put beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from datamodules.fewshot_index import PLACES, SPLITS, spoken
from datamodules.tinyworld.fewshot_classes import COLLECTIONS, photo_of, sentences
from datamodules.tinyworld.photos import jpeg, take
from datamodules.tinyworld.writing import Job, write_files
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

Key = tuple[str, int, int]  # of a picture: split, label, and number within them, as `photo_of` counts
SHORT_CLASS = -1  # label, from behind, of the class of caltech101 that has half as many training pictures as the others


def _names(dataset: str) -> list[str]:
    return [kind.name for kind in COLLECTIONS[dataset].kinds]


def _keys(dataset: str, size: int, **counts: int) -> list[Key]:
    """All pictures: split by split, class by class.

    Raises:
        UserError: A count below 1, or pictures too small to show anything.
    """
    wrong = [f"{name} {count} is wrong, use {least} or more" for name, count, least in _least(size, counts) if count < least]
    if wrong:
        raise UserError(f"{dataset}: {'; '.join(wrong)}.")
    labels = range(len(COLLECTIONS[dataset].kinds))
    return [(split, label, number) for split, count in counts.items() for label in labels for number in range(count)]


def _least(size: int, counts: Mapping[str, int]) -> list[tuple[str, int, int]]:
    return [("size", size, 16), *((name, count, 1) for name, count in counts.items())]


def _serials(dataset: str, seed: int, keys: Sequence[Key]) -> dict[Key, int]:
    """A number from 1 for each picture, in no order."""
    order = keyed_rng("fewshot", "serials", dataset, seed, keys[0][0]).permutation(len(keys))
    return {key: int(number) + 1 for key, number in zip(keys, order)}


def _write(
    dataset: str, folder: Path, seed: int, progress: bool, size: int, files: Mapping[Key, str], texts: Mapping[str, str], sort: bool = False
) -> None:
    """Writes pictures, texts, sentences, and the list where the dataset has one.

    Args:
        files: Where pictures go, below the folder that the list's paths start from.
        texts: Content of further files.
        sort: The list goes by the names of files, and not class by class.
    """
    place, names = PLACES[dataset], _names(dataset)
    jobs: list[Job] = []
    for (split, label, number), file in files.items():
        jobs.append((folder / place.images / file, partial(_picture, dataset, seed, split, label, number, size)))
    more = dict(texts)
    if place.split.endswith(".json"):
        lists: dict[str, list[list[str | int]]] = {split: [] for split in SPLITS}
        for (split, label, _), file in sorted(files.items(), key=lambda pair: pair[1]) if sort else files.items():
            lists[split].append([file, label, names[label]])
        more[place.split] = json.dumps(lists, indent=4, separators=(",", ": "))
    described = {spoken(kind.name): sentences(dataset, kind) for kind in COLLECTIONS[dataset].kinds}
    more[f"gpt3_prompts/CuPL_prompts_{place.sentences}.json"] = json.dumps(described, indent=4)
    jobs += [(folder / name, partial(bytes, text.encode())) for name, text in more.items()]
    write_files(jobs, f"tiny:{dataset}", progress)


def _picture(dataset: str, seed: int, split: str, label: int, number: int, size: int) -> bytes:
    return jpeg(take(photo_of(dataset, seed, split, label, number), size))


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def wnids() -> list[str]:
    """Of the classes of imagenet, sorted."""
    numbers = keyed_rng("imagenet", "wnids").choice(10**7, len(COLLECTIONS["imagenet"].kinds), replace=False)
    return sorted(f"n{10**7 + int(number):08d}" for number in numbers)


def write_imagenet(folder: Path, *, seed: int = 0, progress: bool = True, train: int = 20, test: int = 15, size: int = 64) -> None:
    """ImageNet with 24 classes: images/train and images/val with a folder per wnid, and classnames.txt.

    Args:
        train: Pictures per class.
        test: Pictures per class, in images/val: the real test set is not public.
        size: Shorter side of the pictures in pixels.
    """
    keys, ids = _keys("imagenet", size, train=train, test=test), wnids()
    serials = _serials("imagenet", seed, [key for key in keys if key[0] == "test"])
    files: dict[Key, str] = {}
    for key in keys:
        wnid = ids[key[1]]
        files[key] = (
            f"val/{wnid}/ILSVRC2012_val_{serials[key]:08d}.JPEG" if key in serials else f"train/{wnid}/{wnid}_{key[2] * 7 + 3}.JPEG"
        )
    texts = {"classnames.txt": _lines([f"{wnid} {name}" for wnid, name in zip(ids, _names("imagenet"))])}
    _write("imagenet", folder, seed, progress, size, files, texts)


def write_caltech101(
    folder: Path, *, seed: int = 0, progress: bool = True, train: int = 20, val: int = 4, test: int = 15, size: int = 64
) -> None:
    """Caltech-101 with 16 classes, 101_ObjectCategories/ and its list; the last class has half as many training pictures as the others.

    Args:
        train: Pictures per class; likewise ``val`` and ``test``.
        val: See ``train``.
        test: See ``train``.
        size: Shorter side of the pictures in pixels.
    """
    keys = _keys("caltech101", size, train=train, val=val, test=test)
    short = range(len(_names("caltech101")))[SHORT_CLASS]
    keys = [key for key in keys if key[:2] != ("train", short) or key[2] < max(1, train // 2)]
    files: dict[Key, str] = {}
    for label, name in enumerate(_names("caltech101")):
        own = [key for key in keys if key[1] == label]
        order = _serials(f"caltech101/{name}", seed, own)
        # The folder of the first class is called otherwise than the class, as that of airplanes is.
        files |= {key: f"{name}{'s' * (label == 0)}/image_{order[key]:04d}.jpg" for key in own}
    _write("caltech101", folder, seed, progress, size, {key: files[key] for key in keys}, {})


def write_oxford_pets(
    folder: Path, *, seed: int = 0, progress: bool = True, train: int = 20, val: int = 4, test: int = 15, size: int = 64
) -> None:
    """Oxford-IIIT Pets with 15 classes: images/ without folders, annotations/ and the list.

    Args:
        train: Pictures per class; likewise ``val`` and ``test``.
        val: See ``train``.
        test: See ``train``.
        size: Shorter side of the pictures in pixels.
    """
    keys, names = _keys("oxford_pets", size, train=train, val=val, test=test), _names("oxford_pets")
    serials, files, rows = _serials("oxford_pets", seed, keys), {}, {"trainval": list[str](), "test": list[str]()}
    for key in keys:
        species = 1 if names[key[1]].endswith("heart") else 2  # of these, file names are capitalised: cats
        breed = (names[key[1]].capitalize() if species == 1 else names[key[1]]).replace(" ", "_")
        files[key] = f"{breed}_{serials[key]}.jpg"
        rows["test" if key[0] == "test" else "trainval"].append(f"{breed}_{serials[key]} {key[1] + 1} {species} {key[1] // 3 + 1}")
    texts = {f"annotations/{name}.txt": _lines(sorted(lines)) for name, lines in rows.items()}
    _write("oxford_pets", folder, seed, progress, size, files, texts, sort=True)


def write_stanford_cars(
    folder: Path, *, seed: int = 0, progress: bool = True, train: int = 20, val: int = 4, test: int = 15, size: int = 64
) -> None:
    """Stanford Cars with 12 classes: cars_train/, cars_test/ and the list.

    Args:
        train: Pictures per class; likewise ``val`` and ``test``. Those of ``val`` lie in cars_train/, too.
        val: See ``train``.
        test: See ``train``.
        size: Shorter side of the pictures in pixels.
    """
    keys = _keys("stanford_cars", size, train=train, val=val, test=test)
    files: dict[Key, str] = {}
    for part in ("train", "test"):
        serials = _serials("stanford_cars", seed, [key for key in keys if (key[0] == "test") == (part == "test")])
        files |= {key: f"cars_{part}/{number:05d}.jpg" for key, number in serials.items()}
    _write("stanford_cars", folder, seed, progress, size, files, {}, sort=True)


def write_oxford_flowers(
    folder: Path, *, seed: int = 0, progress: bool = True, train: int = 20, val: int = 4, test: int = 15, size: int = 64
) -> None:
    """Oxford Flowers with 12 classes: jpg/ with numbered pictures and the list.

    Args:
        train: Pictures per class; likewise ``val`` and ``test``.
        val: See ``train``.
        test: See ``train``.
        size: Shorter side of the pictures in pixels.
    """
    serials = _serials("oxford_flowers", seed, _keys("oxford_flowers", size, train=train, val=val, test=test))
    _write(
        "oxford_flowers", folder, seed, progress, size, {key: f"image_{number:05d}.jpg" for key, number in serials.items()}, {}, sort=True
    )


def write_food101(
    folder: Path, *, seed: int = 0, progress: bool = True, train: int = 20, val: int = 4, test: int = 15, size: int = 64
) -> None:
    """Food-101 with 12 classes: images/ with a folder per class, meta/ and the list.

    Args:
        train: Pictures per class; likewise ``val`` and ``test``.
        val: See ``train``.
        test: See ``train``.
        size: Shorter side of the pictures in pixels.
    """
    keys, names = _keys("food101", size, train=train, val=val, test=test), _names("food101")
    files = {key: f"{names[key[1]]}/{1000 + 37 * number}.jpg" for key, number in _serials("food101", seed, keys).items()}
    texts = {"meta/classes.txt": _lines(names), "meta/labels.txt": _lines([spoken(name).capitalize() for name in names])}
    for part in ("train", "test"):
        chosen = sorted(file for key, file in files.items() if (key[0] == "test") == (part == "test"))
        texts[f"meta/{part}.txt"] = _lines([file.removesuffix(".jpg") for file in chosen])
    _write("food101", folder, seed, progress, size, files, texts)


def write_fgvc(
    folder: Path, *, seed: int = 0, progress: bool = True, train: int = 20, val: int = 4, test: int = 15, size: int = 64
) -> None:
    """FGVC-Aircraft with 12 variants: images/, variants.txt and images_variant_{train,val,trainval,test}.txt.

    Args:
        train: Pictures per class; likewise ``val`` and ``test``.
        val: See ``train``.
        test: See ``train``.
        size: Shorter side of the pictures in pixels.
    """
    keys, names = _keys("fgvc", size, train=train, val=val, test=test), _names("fgvc")
    files = {key: f"{34000 + 11 * number:07d}.jpg" for key, number in _serials("fgvc", seed, keys).items()}
    texts = {"variants.txt": _lines(names)}
    for name, splits in {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}.items():
        rows = [f"{files[key].removesuffix('.jpg')} {names[key[1]]}" for key in keys if key[0] in splits]
        texts[f"images_variant_{name}.txt"] = _lines(rows)
    _write("fgvc", folder, seed, progress, size, files, texts)


def write_sun397(
    folder: Path, *, seed: int = 0, progress: bool = True, train: int = 20, val: int = 4, test: int = 15, size: int = 64
) -> None:
    """SUN397 with 12 places: SUN397/ with folders by first letter, place and kind of it, and the list.

    Args:
        train: Pictures per class; likewise ``val`` and ``test``.
        val: See ``train``.
        test: See ``train``.
        size: Shorter side of the pictures in pixels.
    """
    keys, names = _keys("sun397", size, train=train, val=val, test=test), _names("sun397")
    files: dict[Key, str] = {}
    for key in keys:
        place = "/".join(reversed(names[key[1]].split(" ")))  # "brick wall" lies in w/wall/brick
        code = "".join(keyed_rng("sun397", "code", seed, *key).choice(list("abcdefghijklmnopqrstuvwxyz"), 16))
        files[key] = f"{place[0]}/{place}/sun_a{code}.jpg"
    _write("sun397", folder, seed, progress, size, files, {})


def write_dtd(folder: Path, *, seed: int = 0, progress: bool = True, train: int = 20, val: int = 4, test: int = 15, size: int = 64) -> None:
    """Describable Textures with 9 classes: images/ with a folder per class, labels/ and the list.

    Args:
        train: Pictures per class; likewise ``val`` and ``test``.
        val: See ``train``.
        test: See ``train``.
        size: Shorter side of the pictures in pixels.
    """
    keys, names = _keys("dtd", size, train=train, val=val, test=test), _names("dtd")
    files = {key: f"{names[key[1]]}/{names[key[1]]}_{number:04d}.jpg" for key, number in _serials("dtd", seed, keys).items()}
    texts = {f"labels/{split}1.txt": _lines(sorted(file for key, file in files.items() if key[0] == split)) for split in SPLITS}
    _write("dtd", folder, seed, progress, size, files, texts)


def write_eurosat(
    folder: Path, *, seed: int = 0, progress: bool = True, train: int = 20, val: int = 4, test: int = 15, size: int = 64
) -> None:
    """EuroSAT with 10 classes: 2750/ with a folder per class, whose name is written in one word, and the list.

    Args:
        train: Pictures per class; likewise ``val`` and ``test``.
        val: See ``train``.
        test: See ``train``.
        size: Shorter side of the pictures in pixels.
    """
    keys, names = _keys("eurosat", size, train=train, val=val, test=test), _names("eurosat")
    files: dict[Key, str] = {}
    for key, number in _serials("eurosat", seed, keys).items():
        name = names[key[1]].replace(" ", "")
        files[key] = f"{name}/{name}_{number}.jpg"
    _write("eurosat", folder, seed, progress, size, files, {})


def write_ucf101_midframes(
    folder: Path, *, seed: int = 0, progress: bool = True, train: int = 20, val: int = 4, test: int = 15, size: int = 64
) -> None:
    """Middle frames of UCF101 with 12 actions: UCF-101-midframes/ with a folder per class, and the list.

    Args:
        train: Pictures per class; likewise ``val`` and ``test``.
        val: See ``train``.
        test: See ``train``.
        size: Shorter side of the pictures in pixels.
    """
    keys, names = _keys("ucf101_midframes", size, train=train, val=val, test=test), _names("ucf101_midframes")
    first = {"test": 0, "train": -(-test // 4), "val": -(-test // 4) - (-train // 4)}  # groups of four, the first ones tested
    files: dict[Key, str] = {}
    for key in keys:
        name, group = names[key[1]], first[key[0]] + key[2] // 4 + 1
        files[key] = f"{name}/v_{name.replace('_', '')}_g{group:02d}_c{key[2] % 4 + 1:02d}.jpg"
    _write("ucf101_midframes", folder, seed, progress, size, files, {})

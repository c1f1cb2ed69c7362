"""Writes ``hyspefas``: spectral cubes of live faces, of prints and of masks, in the layouts of the HySpeFAS challenge or the full dataset.

Prints and masks are metamers of the skin that they imitate (materials.py): the camera sees the same colours, within the scatter that living
skin has too. What differs is the spectrum between and beyond the camera's channels, and some of the wearer's own skin shines through.
The cubes are the scene in its light with the noise and the band errors of a reconstruction; nothing is reconstructed from snapshots.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.tinyworld.backgrounds import Array
from datamodules.tinyworld.faces import Colour, Look, Person, compose, face_layers, palette_of, random_person, shrink
from datamodules.tinyworld.materials import BANDS, HAIR, IMITATIONS, PLAIN, SKIN, illumination, painted, see
from datamodules.tinyworld.writing import Job, write_files
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

SKIN_PARTS = ("skin", "neck", "ear", "lid", "blush", "nose", "lip")
HAIR_PARTS = ("hair", "brow", "beard")
LEVELS = (0.9, 1.1)  # of the infrared reflectance, relative to what goes with the colour
SCATTER = 0.02  # relative, of the colours of a part from image to image, live or not
MISS = {"paper": (-0.02, 0.01, 0.02), "silicone": (0.02, -0.01, -0.02), "latex": (-0.01, 0.02, -0.02)}  # relative, of an imitation's colour
BAND_ERROR = 0.03  # relative, of a reconstruction, per image and band
RAW = 16000  # of a raw snapshot's counts per unit

TRAIN_BLOCK = {"live": 1, "print": 1, "silicone": 6, "latex": 6}  # images of a capture
TEST_BLOCK = {"live": 2, "print": 1, "silicone": 3, "latex": 3}
FULL_BLOCK = {"live": 2, "print": 1, "silicone": 5, "latex": 5}
FOLDERS = {"live": "real", "print": "2D", "silicone": "3D", "latex": "3D"}


@dataclass(frozen=True)
class Shot:
    """One image.

    Args:
        type: ``live``, ``print``, ``silicone`` or ``latex``.
        subject: Number of the person whose face it shows.
        capture: Number of the sitting: images of the same one share person, light and background.
        number: Of the image within its type and capture.
    """

    type: str
    subject: int
    capture: int
    number: int
    outdoors: bool = False

    @property
    def label(self) -> int:
        return int(self.type == "live")


@dataclass(frozen=True)
class Setting:
    """What all images of a dataset share; the writer's options."""

    seed: int
    size: int
    identities: int
    noise: int
    likeness: int


@lru_cache(maxsize=8)
def subjects(seed: int, count: int) -> tuple[Person, ...]:
    """The people of a dataset, each with another tone of skin than the one before."""
    people: list[Person] = []
    for number in range(10 * count):
        person = random_person("hyspefas", seed, number)
        if not people or abs(sum(person.skin) - sum(people[-1].skin)) > 0.15:
            people.append(person)
        if len(people) == count:
            break
    return tuple(people)


def palette(setting: Setting, shot: Shot) -> dict[str, Array]:
    """Spectra (30,) of the parts of the face and of the background, before light and noise."""
    person = subjects(setting.seed, setting.identities)[shot.subject]
    capture = keyed_rng("hyspefas capture", setting.seed, shot.capture)
    grey = capture.uniform(0.45, 0.8)
    colours: dict[str, Colour] = {**palette_of(person), "background": tuple(float(grey + c) for c in capture.uniform(-0.08, 0.08, 3))}  # type: ignore[dict-item]
    rng = keyed_rng("hyspefas palette", setting.seed, shot.capture, shot.type, shot.number)
    tint = 1 + SCATTER * rng.standard_normal(3)
    level, fake_level, share = rng.uniform(*LEVELS), rng.uniform(*LEVELS), rng.uniform(0, setting.likeness / 100)
    material = "paper" if shot.type == "print" else shot.type
    spectra: dict[str, Array] = {}
    for part, colour in colours.items():
        seen = np.clip(np.asarray(colour) * tint * (1 + 0.5 * SCATTER * rng.standard_normal(3)), 0.01, 1)
        own = SKIN if part in SKIN_PARTS else HAIR if part in HAIR_PARTS else PLAIN
        beyond = (
            0.3 + 0.45 * float(seen.mean()) if own is PLAIN else 0.38 + 0.42 * person.skin[0]
        )  # pigments of skin and hair are clear there
        spectra[part] = painted(own, seen, level * beyond)
        if shot.type == "print" or (shot.type != "live" and part in SKIN_PARTS):  # a mask leaves eyes, hair and clothes as they are
            missed = np.clip(seen * (1 + np.asarray(MISS[material])), 0.01, 1)
            other = painted(IMITATIONS[material], missed, fake_level * beyond)
            spectra[part] = (1 - share) * other + share * spectra[part]
    return spectra


@lru_cache(maxsize=4)  # the file of the cube and that of its picture are written one after the other
def cube(setting: Setting, shot: Shot) -> Array:
    """The image as it comes from the reconstruction, (H, W, 30) float32, about 0 to 1. Not to be written into."""
    rng = keyed_rng("hyspefas shot", setting.seed, shot.capture, shot.type, shot.number)
    height = round(setting.size * rng.uniform(0.92, 1.08))
    width = round(0.86 * height)
    person = subjects(setting.seed, setting.identities)[shot.subject]
    unit = height / rng.uniform(2.15, 2.4)
    turn, shift = rng.uniform(-0.1, 0.1), rng.uniform(-0.06, 0.06, 2)
    look = Look(float(rng.random() < 0.08), rng.uniform(-1, 1), rng.uniform(-0.7, 0.7), max(0.0, rng.uniform(-0.8, 0.8)))
    fine = 1
    v = ((np.arange(fine * height, dtype=np.float32) + 0.5) / fine - height / 2)[:, None] / unit + shift[1] + 0.02
    u = ((np.arange(fine * width, dtype=np.float32) + 0.5) / fine - width / 2)[None] / unit + shift[0]
    u, v = u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)
    shape = (1, *u.shape)
    layers = face_layers(person, u[None].astype(np.float32), v[None].astype(np.float32), fine * unit, look)
    scene = compose([("background", np.ones(shape, np.float32), 1.0), *layers], _with_glints(palette(setting, shot)), shape)
    light = illumination(keyed_rng("hyspefas light", setting.seed, shot.capture), shot.outdoors)
    gains = light * np.exp(BAND_ERROR * rng.standard_normal(BANDS, dtype=np.float32)) * np.float32(rng.uniform(0.65, 1.0))
    side = np.float32(rng.uniform(-0.12, 0.12))
    picture = shrink(scene, fine)[0] * gains * (1 + side * np.linspace(-1, 1, width, dtype=np.float32)[:, None])
    picture += setting.noise / 100 * rng.standard_normal(picture.shape, dtype=np.float32)
    picture = np.clip(np.round(picture * 256) / 256, 0, None).astype(np.float32)  # far below the noise, and files get small
    picture.flags.writeable = False
    return picture


def _with_glints(spectra: dict[str, Array]) -> dict[str, Array]:
    return {**spectra, "glint": np.ones(BANDS, np.float32)}  # of the light itself


def colours(picture: Array) -> NDArray[np.uint8]:
    """The cube as the camera sees it, (H, W, 3) uint8 RGB."""
    return (np.clip(see(picture), 0, 1) * 255 + 0.5).astype(np.uint8)


# ---- files


def write_hyspefas(
    folder: Path, *, seed: int = 0, progress: bool = True, train_captures: int = 40, val_captures: int = 12, test_captures: int = 24,
    identities: int = 5, size: int = 48, noise: int = 5, likeness: int = 60, full: int = 0,
) -> None:  # fmt: skip
    """HySpeFAS: 30-band cubes (.mat) and colour pictures of live faces, prints and masks, with lists as the challenge has them.

    Args:
        train_captures: Sittings to train on, of 14 images, one of them live.
        val_captures: Sittings to choose a threshold on, of 9 images, two of them live.
        test_captures: Sittings to test on, likewise.
        identities: People, in every split.
        size: About the height of an image in pixels.
        noise: Standard deviation in percent of full scale.
        likeness: How much of the skin's own spectrum an imitation shows at the most, in percent.
        full: 1 for the layout of the full dataset (raw snapshots, protocols p1 to p3, indoors and outdoors), of 13 images a sitting.
    """
    sizes = {"train_captures": train_captures, "val_captures": val_captures, "test_captures": test_captures}
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"hyspefas: {name} {value} is too few; use 1 or more.")
    for name, value, low, high in (
        ("identities", identities, 2, 99),
        ("size", size, 24, 256),
        ("noise", noise, 0, 50),
        ("likeness", likeness, 0, 95),
    ):
        if not low <= value <= high:
            raise UserError(f"hyspefas: {name} {value} is out of range; use {low} to {high}.")
    if full not in (0, 1):
        raise UserError(f"hyspefas: full {full} is wrong; use 0 for the challenge's layout, 1 for the full one.")
    setting = Setting(seed, size, identities, noise, likeness)
    jobs = _full(folder, setting, sum(sizes.values())) if full else _challenge(folder, setting, sizes)
    write_files(jobs, "tiny:hyspefas", progress)


def captures(setting: Setting, first: int, count: int, block: Mapping[str, int], outdoors: bool = False) -> list[Shot]:
    """Shots of some sittings, one after the other; those of a sitting in random order."""
    shots: list[Shot] = []
    for capture in range(first, first + count):
        here = [Shot(kind, capture % setting.identities, capture, i, outdoors) for kind, images in block.items() for i in range(images)]
        shots += [here[i] for i in keyed_rng("hyspefas order", setting.seed, capture).permutation(len(here))]
    return shots


def challenge_shots(setting: Setting, sizes: Mapping[str, int]) -> dict[str, list[Shot]]:
    """Shots of the splits train, val and test, in the order of their numbers, which count on from split to split."""
    train, val, test = sizes["train_captures"], sizes["val_captures"], sizes["test_captures"]
    return {
        "train": captures(setting, 0, train, TRAIN_BLOCK),
        "val": captures(setting, train, val, TEST_BLOCK),
        "test": captures(setting, train + val, test, TEST_BLOCK),
    }


def _challenge(folder: Path, setting: Setting, sizes: Mapping[str, int]) -> list[Job]:
    jobs: list[Job] = []
    number = 0
    lists: dict[str, str] = {}
    for split, shots in challenge_shots(setting, sizes).items():
        part = "HySpeFAS_test" if split == "test" else "HySpeFAS_trainval"
        rows: list[tuple[str, Shot]] = []
        for shot in shots:
            number += 1
            jobs.append((folder / part / "images" / f"{number:04d}.mat", partial(_mat, setting, shot)))
            jobs.append((folder / part / "images" / f"{number:04d}.png", partial(_png, setting, shot)))
            rows.append((f"{number:04d}.mat", shot))
        labelled = "".join(f"{name} {shot.label}\n" for name, shot in rows)
        if split == "train":
            lists[f"{part}/train.txt"] = labelled
        else:
            lists[f"{part}/{split}.txt"] = "".join(f"{name}\n" for name, _ in rows)
            lists[f"{part}/{split}_gt.txt"] = labelled
        types = f"{part}/types.csv"
        lists[types] = lists.get(types, "image,type\n") + "".join(f"{name},{shot.type}\n" for name, shot in rows)
    return [*jobs, *((folder / name, partial(bytes, text.encode())) for name, text in lists.items())]


def _mat(setting: Setting, shot: Shot) -> bytes:
    return mat_bytes({"var": cube(setting, shot)})


def _png(setting: Setting, shot: Shot) -> bytes:
    return png_bytes(colours(cube(setting, shot)))


def mat_bytes(arrays: Mapping[str, Array]) -> bytes:
    """A MATLAB v5 file without the time of writing in its header."""
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, dict(arrays), do_compression=True)
    return b"MATLAB 5.0 MAT-file, of the tiny world".ljust(116) + file.getvalue()[116:]


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) or (H, W) as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# ---- the full layout


def full_shots(setting: Setting, sittings: int) -> dict[str, Shot]:
    """Shots by the path of their snapshot; a third as many sittings outdoors as indoors."""
    found: dict[str, Shot] = {}
    indoors = captures(setting, 0, sittings, FULL_BLOCK)
    outdoors = captures(setting, sittings, -(-sittings // 3), FULL_BLOCK, outdoors=True)
    for shot in [*indoors, *outdoors]:
        place = "outdoor" if shot.outdoors else "indoor"
        stem = f"ID{shot.subject + 1:02d}_S{shot.capture + 1:02d}_{shot.type}{shot.number + 1:02d}_{1 - shot.label}"
        found[f"{place}/{FOLDERS[shot.type]}/{stem}.tiff"] = shot
    return dict(sorted(found.items()))


def protocols(setting: Setting, shots: Mapping[str, Shot]) -> dict[str, list[str]]:
    """Paths by list: p1 splits by sitting, p2 by person, p3 trains indoors and tests outdoors."""
    lists: dict[str, list[str]] = {f"{split}_p{p}": [] for p in (1, 2, 3) for split in ("train", "val", "test")}
    turn = {person: i for i, person in enumerate(keyed_rng("hyspefas p2", setting.seed).permutation(setting.identities).tolist())}
    third = max(1, setting.identities // 3)
    for path, shot in shots.items():
        part = shot.capture % 4  # the sittings of a person are spread over all splits, since 4 divides no small number of people
        lists[f"{('train', 'train', 'val', 'test')[part]}_p1"].append(path)
        place = turn[shot.subject]
        lists["test_p2" if place < third else "val_p2" if place == third and setting.identities > 2 else "train_p2"].append(path)
        lists["test_p3" if shot.outdoors else "val_p3" if part == 2 else "train_p3"].append(path)
    return lists


def _full(folder: Path, setting: Setting, sittings: int) -> list[Job]:
    base = folder / "data/datasets"
    shots = full_shots(setting, sittings)
    jobs: list[Job] = [(folder / "data/sensing_matrix.mat", partial(_sensing_file, setting.seed, _frame(setting)))]
    for path, shot in shots.items():
        stem = path.removesuffix(".tiff")
        jobs.append((base / path, partial(_snapshot_file, setting, shot)))
        jobs.append((base / "rgb" / f"{stem}.png", partial(_png, setting, shot)))
        jobs.append((base / "ssi_reconstructed" / f"{path}.mat", partial(_mat, setting, shot)))
    texts = {"labels": "".join(f"{path} {shot.label}\n" for path, shot in shots.items())}
    for name, paths in protocols(setting, shots).items():
        texts[name] = "".join(f"{path} {' '.join(map(str, box(setting, shots[path])))}\n" for path in paths)
    return [*jobs, *((folder / "data" / f"{name}.txt", partial(bytes, text.encode())) for name, text in texts.items())]


def _frame(setting: Setting) -> tuple[int, int]:
    """Height and width of a snapshot."""
    return round(1.5 * setting.size), round(1.8 * setting.size)


def box(setting: Setting, shot: Shot) -> tuple[int, int, int, int]:
    """Where in its snapshot the face is: left, top, right, bottom in pixels, the last two past the end."""
    rng = keyed_rng("hyspefas shot", setting.seed, shot.capture, shot.type, shot.number)
    height = round(setting.size * rng.uniform(0.92, 1.08))  # the first draw of `cube`
    width = round(0.86 * height)
    frame_height, frame_width = _frame(setting)
    place = keyed_rng("hyspefas place", setting.seed, shot.capture, shot.type, shot.number)
    left, top = int(place.integers(0, frame_width - width)), int(place.integers(0, frame_height - height))
    return left, top, left + width, top + height


@lru_cache(maxsize=2)
def sensing_mask(seed: int, frame: tuple[int, int]) -> Array:
    """(H, W, 30) in [0, 1]: how much of each band reaches each pixel of the sensor."""
    rng = keyed_rng("hyspefas sensing", seed)
    coarse = rng.random((*frame, 6), dtype=np.float32)
    mixing = np.exp(-((np.arange(BANDS)[None] / BANDS - np.arange(6)[:, None] / 6 - 0.08) ** 2) / 0.02).astype(np.float32)
    return np.clip(coarse @ mixing / mixing.sum(0), 0, 1)


def _sensing_file(seed: int, frame: tuple[int, int]) -> bytes:
    mask = sensing_mask(seed, frame)
    return mat_bytes({"mask": mask, "mask_s": mask.sum(2)})


def snapshot(setting: Setting, shot: Shot) -> NDArray[np.uint16]:
    """What the sensor took, (H, W): the bands of every pixel, weighed by the mask and added up; grey around the face."""
    frame = _frame(setting)
    scene = np.full((*frame, BANDS), 0.5, np.float32)
    left, top, right, bottom = box(setting, shot)
    scene[top:bottom, left:right] = cube(setting, shot)
    counts = (scene * sensing_mask(setting.seed, frame)).mean(2) * RAW
    return np.clip(np.round(counts), 0, 65535).astype(np.uint16)


def _snapshot_file(setting: Setting, shot: Shot) -> bytes:
    file = io.BytesIO()
    Image.fromarray(snapshot(setting, shot)).save(file, "TIFF")
    return file.getvalue()

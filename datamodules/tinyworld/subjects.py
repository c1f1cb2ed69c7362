"""Writes what subject-driven generation is tuned on: ``dreambooth``, a few photographs each of particular objects, as the DreamBooth
dataset (Ruiz et al., CVPR 2023) is distributed, and ``multimodal_prompt``, prompts with pictures in the place of words.

A subject is a shape that exists once: with its colour, its texture, and a mark stuck to it that no word of the tiny world describes. It is
photographed in style A, the world that tiny:sd is pretrained on, as photographs of real subjects are of the world that Stable Diffusion
knows: the subject is what is new. Its class is its shape.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.tinyworld.photos import Photo, jpeg, photo_scene, random_photo, take, with_objects
from datamodules.tinyworld.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, SceneObject, random_object
from datamodules.tinyworld.writing import Job, write_files
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

NAMES = ("circle", "cross", "heart", "heart2", "moon", "ring", "square", "star", "star2", "triangle")  # a shape each
FEWEST, MOST = 4, 6  # photographs of a subject
MARKS = ("circle", "heart", "square", "star", "triangle")
MARK = 0.34  # size of a mark relative to its bearer
DEEP = -0.17  # of the middle of a mark within its bearer: signed distance in radii
DISTINCT = 150  # least Euclidean distance between the colours of a mark and of its bearer, of 8 bits each


@dataclass(frozen=True)
class Subject:
    """A particular object.

    Args:
        mark: Shape stuck to it; ``u`` and ``v`` its place in coordinates of the object (radius 1).
        mark_colour: Of the mark.
    """

    name: str
    shape: str
    colour: str
    texture: str
    mark: str
    mark_colour: str
    u: float
    v: float

    @property
    def words(self) -> str:
        """"red striped heart": what can be said of it."""  # fmt: skip
        return " ".join(word for word in (self.colour, self.texture, self.shape) if word != "plain")


def subjects(dataset: str, seed: int, count: int = len(NAMES)) -> list[Subject]:
    """The subjects of a dataset; no two have the same colour and texture."""
    rng = keyed_rng(dataset, seed, "subjects")
    colours, textures = rng.permutation(list(COLOURS)).tolist(), rng.permutation(TEXTURES[1:]).tolist()
    found: list[Subject] = []
    for i, name in enumerate(NAMES[:count]):
        shape, turn, place = name.rstrip("2"), *divmod(i, len(colours))
        colour, texture = colours[place], textures[(place + turn) % len(textures)]
        standing_out = [other for other in COLOURS if math.dist(COLOURS[other], COLOURS[colour]) >= DISTINCT]
        mark = str(rng.choice([other for other in MARKS if other != shape]))
        found.append(Subject(name, shape, colour, texture, mark, str(rng.choice(standing_out)), *_place(shape, rng)))
    return found


def _place(shape: str, rng: np.random.Generator) -> tuple[float, float]:
    """Where a mark sticks within the shape."""
    tries = rng.uniform(-0.75, 0.75, (400, 2)).astype(np.float32)
    depths = SHAPES[shape](tries[:, 0], tries[:, 1])
    u, v = tries[np.flatnonzero(depths < DEEP)[0] if (depths < DEEP).any() else depths.argmin()]
    return round(float(u), 4), round(float(v), 4)


def subject_photo(subject: Subject, key: str, background: str) -> Photo:
    """A photograph of the subject on a background of either style, from a view and in a light that the key decides."""
    rng = keyed_rng("subject photo", key)
    scale, angle = rng.uniform(0.8, 1.1), round(rng.uniform(-25, 25), 2)
    x, y = (round(place, 4) for place in rng.uniform(-0.18, 0.18, 2).tolist())
    body = SceneObject(subject.shape, subject.colour, subject.texture, "large", x, y, angle)
    radius, cos, sin = SIZES["large"] * scale, math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along, down = radius * (cos * subject.u - sin * subject.v), radius * (sin * subject.u + cos * subject.v)
    mark = SceneObject(subject.mark, subject.mark_colour, "plain", "small", round(x + along, 4), round(y + down, 4), angle)
    scene = replace(photo_scene(key, "A", [body], background), mottle=round(rng.uniform(0.01, 0.03), 4))
    photo = replace(random_photo(scene, zoom=(0.95, 1.1), aim=0.08), unevenness=0.08, cast=0.04, noise=0.01, scales=(scale,))
    return with_objects(photo, [mark], [MARK * radius / SIZES["small"]])


def photo_count(dataset: str, seed: int, subject: Subject) -> int:
    """How many photographs there are of a subject, 4 to 6."""
    return int(keyed_rng(dataset, seed, "count", subject.name).integers(FEWEST, MOST + 1))


def subject_photos(dataset: str, seed: int, subject: Subject) -> list[Photo]:
    """All photographs of a subject, no two on the same background."""
    places = keyed_rng(dataset, seed, "backgrounds", subject.name).permutation(list(BACKGROUNDS["A"]))
    count = photo_count(dataset, seed, subject)
    return [subject_photo(subject, f"{dataset}/{seed}/{subject.name}/{i}", str(places[i])) for i in range(count)]


# ---- dreambooth

SCENES = tuple(BACKGROUNDS["A"].values())
COMPANY = ("a small blue circle", "a green cross", "a small yellow star", "a pink square", "a small red ring", "a purple moon")
PROPERTIES = ("red", "purple", "striped", "dotted", "large")


def scene_prompts() -> tuple[list[str], list[str]]:
    """25 prompts for objects and 25 for living subjects: 10 scenes that both share, 10 of their own, 5 properties; ``{0} {1}`` open."""
    together = [f"and {other} {scene}" for scene, other in product(SCENES, COMPANY)]
    mixed = [together[i * 13 % len(together)] for i in range(24)]  # 13 and 36 have no common divisor
    shared, for_objects, for_living = [*SCENES, *mixed[:4]], mixed[4:14], mixed[14:24]
    properties = [f"a {word} {{0}} {{1}}" for word in PROPERTIES]
    objects, living = ([*(f"a {{0}} {{1}} {scene}" for scene in (*shared, *own)), *properties] for own in (for_objects, for_living))
    return objects, living


def prompts_and_classes(subjects: Sequence[Subject]) -> str:
    """The text of ``prompts_and_classes.txt``."""
    parts = ["Classes\n", "subject_name,class", *(f"{subject.name},{subject.shape}" for subject in subjects), "\nPrompts"]
    for title, prompts in zip(("Object Prompts", "Live Subject Prompts"), scene_prompts()):
        listed = ",\n".join(f"'{prompt}'.format(unique_token, class_token)" for prompt in prompts)
        parts.append(f"\n{title}\n\nprompt_list = [\n{listed}\n]")
    return "\n".join(parts) + "\n"


def write_dreambooth(folder: Path, *, seed: int = 0, progress: bool = True, count: int = 10, size: int = 96) -> None:
    """The DreamBooth dataset with 10 subjects: dataset/<subject>/00.jpg and so on, 4 to 6 each, and prompts_and_classes.txt.

    Args:
        count: Subjects, 1 to 10; of two classes there are two.
        size: Shorter side of the pictures in pixels.
    """
    if not 1 <= count <= len(NAMES) or size < 16:
        raise UserError(f"dreambooth: {count=} {size=}; count is 1 to {len(NAMES)}, size at least 16.")
    there, root = subjects("dreambooth", seed, count), folder / "dataset"
    jobs: list[Job] = []
    for subject in there:
        for i in range(photo_count("dreambooth", seed, subject)):
            jobs.append((root / subject.name / f"{i:02d}.jpg", partial(_photograph, "dreambooth", seed, subject, i, size)))
    texts = {
        "prompts_and_classes.txt": prompts_and_classes(there),
        "references_and_licenses.txt": "All pictures are painted by the tiny world and free to use.\n",
    }
    jobs += [(root / name, partial(bytes, text.encode())) for name, text in texts.items()]
    write_files(jobs, "tiny:dreambooth", progress)


def _photograph(dataset: str, seed: int, subject: Subject, number: int, size: int) -> bytes:
    return jpeg(take(subject_photos(dataset, seed, subject)[number], size))


# ---- prompts with pictures

REQUESTS = (  # a prompt, and whose pictures are in it: subjects and backgrounds
    ("A photo of [img] in a studio", ("heart",)),
    ("A photo of [img] and [img] on paper", ("star", "ring")),
    ("A photo of [img] on the background of [img]", ("moon", "checks")),
    ("A photo of [img] and a small blue circle on a striped wall", ("square",)),
    ("A picture of [img] on the background of [img]", ("heart", "dots")),
    ("A photo of [img] and [img] on the background of [img]", ("circle", "cross", "fading")),
)


def background_photo(seed: int, background: str) -> Photo:
    """A picture that is about its background; a small object is in it."""
    key = f"multimodal_prompt/{seed}/{background}"
    thing = random_object(keyed_rng("multimodal_prompt", key), ("small",), 0.6)
    scene = replace(photo_scene(key, "A", [thing], background), mottle=0.02)
    return replace(random_photo(scene, zoom=(0.9, 1.0), aim=0.05), unevenness=0.08, cast=0.04, noise=0.01)


def write_multimodal_prompt(folder: Path, *, seed: int = 0, progress: bool = True, size: int = 96) -> None:
    """Prompts with [img] in the place of words: prompts.json with six of them, and images/.

    A prompt has its ``images`` and ``concepts``, which say what each shows, in the words of a run's settings: ``foreground``,
    ``background``, ``role``, ``identifier``. Where these are left out, an analyser looks at the picture.

    Args:
        size: Shorter side of the pictures in pixels.
    """
    if size < 16:
        raise UserError(f"multimodal_prompt: size {size} is wrong; use 16 or more.")
    known = {subject.name: subject for subject in subjects("multimodal_prompt", seed)}
    jobs: dict[Path, Job] = {}
    records: list[dict[str, object]] = []
    for prompt, names in REQUESTS:
        images: list[str] = []
        concepts: list[dict[str, str]] = []
        for name in names:
            if name in known:
                images.append(f"images/{name}.jpg")
                concepts.append({"foreground": f"a {known[name].words}"})
                make = partial(_photograph, "multimodal_prompt", seed, known[name], 0, size)
            else:
                thing = background_photo(seed, name).scene.objects[0]
                _, place = BACKGROUNDS["A"][name].split(" ", 1)  # "on a checked floor"
                images.append(f"images/{name}.png")
                concepts.append({"foreground": f"a {thing.words}", "background": place, "role": "background"})
                make = partial(_png, seed, name, size)
            jobs[folder / images[-1]] = (folder / images[-1], make)
        records.append({"prompt": prompt, "images": images, "concepts": concepts})
    records[0]["concepts"] = [{**records[0]["concepts"][0], "identifier": "sks"}]  # type: ignore[index]
    text = json.dumps(records, indent=1) + "\n"
    write_files([*jobs.values(), (folder / "prompts.json", partial(bytes, text.encode()))], "tiny:multimodal_prompt", progress)


def _png(seed: int, background: str, size: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(take(background_photo(seed, background), size)).save(file, "PNG")
    return file.getvalue()

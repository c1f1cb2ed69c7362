"""What the pictures of the eleven few-shot classification sets show; fewshot.py writes them in the layouts of the real ones.

Classes are named in words that a CLIP pretrained on the tiny world knows, at least in part, and are seen in style B, in other light,
from other places and among other things: zero-shot classification lies between chance and perfection, and each set asks for
something else.

- imagenet: what is in the picture, among other things; colour, texture and shape
- caltech101: texture and shape of one large object, whatever its colour; the easiest
- oxford_pets: colour and shape, with small things around
- stanford_cars: size, two colours, two shapes; only fine differences
- oxford_flowers: hues that lie close together, several of a kind
- food101: texture and colour from close up, always on a table
- fgvc: size and texture of the same shape, whatever its colour; the hardest to name
- sun397: the background; half of them were never seen in pretraining
- dtd: the surface, from very close
- eurosat: the background and which shape lies there, often and small
- ucf101_midframes: how an object is moving, seen by its smear in a single frame
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from datamodules.tinyworld.photos import Photo, clearance, photo_scene, random_photo
from datamodules.tinyworld.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, SceneObject, random_object
from datamodules.tinyworld.video import MOTIONS, Motion
from genlab.training.randomness import keyed_rng

PATTERNS = TEXTURES[1:]
SENTENCES = 12  # that describe a class


@dataclass(frozen=True)
class Kind:
    """A class: its name, as the dataset's lists spell it, and what all its pictures share. What is left empty differs between them."""

    name: str
    shape: str = ""
    colour: str = ""
    texture: str = ""
    size: str = ""
    background: str = ""
    motion: str = ""


@dataclass(frozen=True)
class Collection:
    """A dataset's classes in the order of their labels, and how their pictures are taken.

    Args:
        sizes: Of the object that the class is about, where the class leaves it open; likewise textures and backgrounds.
        copies: How many of it there are, fewest and most.
        others: Small things of any kind behind it, fewest and most.
        zoom: Of the camera, least and most.
        aim: How far off the middle the camera looks at the most.
        spread: How far off the middle the object is at the most.
    """

    kinds: tuple[Kind, ...]
    sizes: tuple[str, ...] = ("medium", "large")
    textures: tuple[str, ...] = TEXTURES
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS["B"])
    copies: tuple[int, int] = (1, 1)
    others: tuple[int, int] = (0, 2)
    zoom: tuple[float, float] = (0.85, 1.25)
    aim: float = 0.15
    spread: float = 0.3


def _imagenet() -> tuple[Kind, ...]:
    shapes, colours = list(SHAPES), list(COLOURS)
    kinds = []
    for turn, place in product(range(3), range(len(shapes))):
        colour, texture, shape = colours[(place + 3 * turn) % len(colours)], TEXTURES[(place + turn) % len(TEXTURES)], shapes[place]
        kinds.append(Kind(_name(colour, texture, shape), shape, colour, texture))
    order = keyed_rng("imagenet", "order of labels").permutation(len(kinds))  # wnids follow meanings, not the alphabet
    return tuple(kinds[i] for i in order)


def _name(*words: str) -> str:
    return " ".join(word for word in words if word != "plain")


MOVING = {  # shape -> its two motions; those that leave it as it is are not among them
    "star": {"spin_cw": "Spinning", "slide_right": "Sliding"},
    "heart": {"rise": "Rising", "approach": "Approaching"},
    "square": {"spin_cw": "Spinning", "rise": "Rising"},
    "cross": {"slide_right": "Sliding", "approach": "Approaching"},
    "triangle": {"spin_cw": "Spinning", "approach": "Approaching"},
    "moon": {"slide_right": "Sliding", "rise": "Rising"},
}
PLACES = {  # of sun397: background -> class
    "lights": "blurred lights", "bricks": "brick wall", "checks": "checked floor", "clouds": "clouds", "dots": "dotted wall",
    "fading": "fading wall", "hills": "hills", "paper": "paper", "sea": "sea", "stripes": "striped wall", "studio": "studio",
    "wood": "wooden table",
}  # fmt: skip
GROUNDS = ("hills", "sea", "bricks", "clouds", "wood")  # of eurosat

COLLECTIONS: dict[str, Collection] = {
    "imagenet": Collection(_imagenet()),
    "caltech101": Collection(
        tuple(Kind(f"{texture}_{shape}", shape, "", texture) for texture, shape in product(sorted(PATTERNS[:2]), sorted(SHAPES))),
        sizes=("large",),
        others=(0, 1),
        spread=0.2,
    ),
    "oxford_pets": Collection(
        tuple(
            Kind(f"{colour} {shape}", shape, colour)
            for colour, shape in product(("blue", "green", "orange", "red", "yellow"), ("heart", "moon", "star"))
        ),
        others=(1, 3),
    ),
    "stanford_cars": Collection(
        tuple(
            Kind(f"{size} {colour} {shape}".title(), shape, colour, "", size)
            for size, colour, shape in product(("large", "medium", "small"), ("blue", "purple"), ("circle", "square"))
        ),
        others=(0, 0),
        zoom=(0.97, 1.03),
    ),
    "oxford_flowers": Collection(
        tuple(
            Kind(f"{colour} {shape}", shape, colour)
            for shape, colour in product(("star", "cross", "heart"), ("pink", "red", "orange", "purple"))
        ),
        sizes=("small", "medium"),
        copies=(2, 4),
        others=(0, 0),
        spread=0.7,
    ),
    "food101": Collection(
        tuple(
            Kind(f"{colour}_{texture}_{shape}", shape, colour, texture)
            for colour, texture, shape in product(("cyan", "orange"), sorted(PATTERNS), ("circle", "ring"))
        ),
        sizes=("large",),
        backgrounds=("wood",),
        zoom=(1.3, 1.7),
        others=(1, 3),
    ),
    "fgvc": Collection(
        tuple(
            Kind(_name(size, texture, "cross"), "cross", "", texture, size)
            for size, texture in product(("large", "medium", "small"), ("checked", "plain", "dotted", "striped"))
        ),
        backgrounds=("clouds", "sea"),
        others=(0, 1),
        zoom=(0.97, 1.03),
    ),
    "sun397": Collection(
        tuple(Kind(name, background=place) for place, name in PLACES.items()), sizes=("small", "medium"), others=(0, 2), spread=0.7
    ),
    "dtd": Collection(
        tuple(
            Kind(f"{colour}_{texture}", "", colour, texture)
            for colour, texture in product(("blue", "orange", "pink"), sorted(PATTERNS))
        ),
        sizes=("large",),
        others=(0, 0),
        zoom=(1.8, 2.6),
        aim=0.0,
        spread=0.08,
    ),
    "eurosat": Collection(
        tuple(
            Kind(f"{shape} {BACKGROUNDS['B'][place]}".title(), shape, "", "", "small", place)
            for place, shape in product(GROUNDS, ("ring", "square"))
        ),
        copies=(3, 5),
        zoom=(0.75, 0.85),
        others=(0, 0),
        spread=0.9,
    ),
    "ucf101_midframes": Collection(
        tuple(
            sorted((Kind(f"{word}_{shape.title()}", shape, motion=motion) for shape in MOVING for motion, word in MOVING[shape].items()),
                   key=lambda kind: kind.name)
        ),
        others=(0, 1),
    ),
}  # fmt: skip


def photo_of(dataset: str, seed: int, split: str, label: int, number: int) -> Photo:
    """Description of picture ``number`` of a class in a split, on which nothing but these depends."""
    collection, kind = COLLECTIONS[dataset], COLLECTIONS[dataset].kinds[label]
    key = f"{dataset}/{seed}/{split}/{label}/{number}"
    rng = keyed_rng("fewshot", key)
    things = _things(collection, kind, rng)
    background = kind.background or str(rng.choice(list(collection.backgrounds)))
    scene = photo_scene(key, "B", things, background, int(rng.integers(collection.others[0], collection.others[1] + 1)))
    photo = random_photo(scene, collection.zoom, collection.aim)
    if not kind.motion:
        return photo
    still = tuple(Motion(kind.motion, 0.0) for _ in scene.objects[len(things) :])  # the others do not take part
    reach = rng.uniform(0.35, 0.6) * (0.5 if kind.motion.startswith("spin") else 1.0)  # a square that turns too far looks like a disc
    return replace(photo, motions=(*still, *(Motion(kind.motion, round(reach, 4)) for _ in things)), smear=0.22)


def _things(collection: Collection, kind: Kind, rng: np.random.Generator) -> list[SceneObject]:
    """The objects that the class is about, all alike."""
    like = random_object(rng, (kind.size,) if kind.size else collection.sizes)
    texture = kind.texture or str(rng.choice(list(collection.textures)))
    like = replace(like, shape=kind.shape or like.shape, colour=kind.colour or like.colour, texture=texture)
    things: list[SceneObject] = []
    for _ in range(int(rng.integers(collection.copies[0], collection.copies[1] + 1))):
        places = [random_object(rng, spread=collection.spread) for _ in range(8)]
        tries = [replace(like, x=place.x, y=place.y, angle=place.angle) for place in places]
        things.append(max(tries, key=lambda new: clearance(new, things)))
    return things


def sentences(dataset: str, kind: Kind) -> list[str]:
    """A class in other words, as language models are asked to describe it: what it can look like, and where."""
    rng = keyed_rng("fewshot", "sentences", dataset, kind.name)
    phrases = {**BACKGROUNDS["A"], **BACKGROUNDS["B"]}
    found = []
    for _ in range(SENTENCES):
        (thing,) = _things(replace(COLLECTIONS[dataset], copies=(1, 1)), kind, rng)
        place = kind.background or (str(rng.choice(list(BACKGROUNDS["A"]))) if rng.random() < 0.6 else "")
        prefix = str(rng.choice(["a ", "a photo of a ", "a picture of a "]))
        words = thing.words if rng.random() < 0.5 or not (kind.shape or kind.texture) else _essential(kind)
        doing = MOTIONS[kind.motion][0] if kind.motion else ""
        found.append(" ".join(f"{prefix}{words} {doing} {phrases.get(place, '')}".split()))
    return found


def _essential(kind: Kind) -> str:
    return _name(*(word for word in (kind.size, kind.colour, kind.texture, kind.shape or "object") if word))

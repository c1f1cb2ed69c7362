"""Reflectance spectra of skin and of what imitates it: other materials whose colour is the same and whose spectrum is not (metamers).

A camera with three channels averages five visible bands each and sees no infrared. `painted` bends the typical curve of a material until
the camera sees the colour that it is asked for, so materials differ only within the camera's channels and beyond them. The curves follow
the absorbers that tell the materials apart in the literature on skin detection: oxygenated blood at 542 and 577 nm and water at 970 nm
in skin, iron oxide and C-H overtones in silicone and latex, inks that are clear in the infrared on paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.tinyworld.backgrounds import Array

WAVELENGTHS = np.arange(420, 1001, 20).astype(np.float32)  # nm, the middles of the 30 bands
BANDS = len(WAVELENGTHS)
VISIBLE = 15  # bands of up to 700 nm
CAMERA = np.kron(np.eye(3, dtype=np.float32)[::-1], np.full(5, 0.2, np.float32))  # (3, 15), red, green, blue
MATERIALS = ("skin", "paper", "silicone", "latex")


@dataclass(frozen=True)
class Material:
    """A typical spectrum in two pieces that meet at 730 nm.

    Args:
        visible: (30,) relative reflectance, which the colour that is asked for rescales.
        infrared: (30,) reflectance, for a ``level`` of 1.
    """

    visible: Array
    infrared: Array


def see(spectra: Array) -> Array:
    """What the camera sees: (..., 30) -> (..., 3) red, green, blue."""
    return spectra[..., :VISIBLE] @ CAMERA.T


def painted(material: Material, colour: Sequence[float] | Array, level: float) -> Array:
    """Spectrum (30,) of the material in a colour.

    Args:
        colour: (3,) as the camera sees it. Met exactly, save where a reflectance would be negative.
        level: Of the infrared piece.
    """
    crossing = 1 / (1 + np.exp(-(WAVELENGTHS - 730) / 10))
    beyond = crossing * level * material.infrared
    wide = np.stack([np.exp(-(((WAVELENGTHS - middle) / 75) ** 2)) for middle in (660, 560, 460)], 1)
    wide[WAVELENGTHS > 660, 0] = 1
    bent = ((1 - crossing) * material.visible)[:, None] * wide
    weights = np.linalg.solve(CAMERA @ bent[:VISIBLE], np.asarray(colour, np.float32) - see(beyond))
    return np.clip(bent @ weights + beyond, 0.004, None).astype(np.float32)


def _band(middle: float, width: float) -> Array:
    return np.exp(-(((WAVELENGTHS - middle) / width) ** 2))


def _step(middle: float, width: float) -> Array:
    return 1 / (1 + np.exp(-(WAVELENGTHS - middle) / width))


def _material(visible: Array, infrared: Array) -> Material:
    return Material(visible.astype(np.float32), infrared.astype(np.float32))


SKIN = _material(
    np.exp(-0.35 * _band(542, 16) - 0.42 * _band(577, 14) - 0.5 * _band(420, 25)),
    1 - 0.05 * _band(760, 25) - 0.26 * _band(975, 35) + 0.05 * (WAVELENGTHS - 850) / 150,
)
PAPER = _material(
    (1 + 0.35 * _band(445, 18)) * np.exp(-0.3 * _band(525, 22) - 0.18 * _band(640, 20)),  # a brightener; magenta and cyan inks
    np.full(BANDS, 1.15),
)
SILICONE = _material(
    np.exp(-0.3 * _band(480, 30)) * (0.8 + 0.35 * _step(585, 10)),
    1 - 0.10 * _band(870, 60) - 0.09 * _band(910, 18),
)
LATEX = _material(
    np.exp(-0.35 * _band(430, 22)) * (1 + 0.12 * _band(600, 25)),
    1.02 - 0.12 * _band(935, 28) - 0.10 * (WAVELENGTHS - 850) / 150,
)
PLAIN = _material(np.ones(BANDS), np.ones(BANDS))
HAIR = _material(np.ones(BANDS), 0.8 + 0.5 * (WAVELENGTHS - 720) / 280)
IMITATIONS = {"paper": PAPER, "silicone": SILICONE, "latex": LATEX}


def illumination(rng: np.random.Generator, outdoors: bool = False) -> Array:
    """(30,) light of a capture, as a sensor that sees less and less in the infrared has it.

    Warmer or colder; in half of the rooms with the blue and the yellow hump of an LED, outdoors without what oxygen and water absorb.
    """
    slope = rng.uniform(-0.3, 0.5) if outdoors else rng.uniform(-0.4, 0.4)
    light = np.exp(slope * (WAVELENGTHS - 560) / 290) * (1 - 0.5 * np.clip((WAVELENGTHS - 700) / 300, 0, 1))
    if outdoors:
        light = light * (1 - rng.uniform(0.05, 0.3) * _band(760, 14) - rng.uniform(0.05, 0.3) * _band(940, 30))
    elif rng.random() < 0.5:
        light = light * (0.9 + rng.uniform(0.05, 0.25) * _band(455, 14) + rng.uniform(0.05, 0.2) * _band(590, 60))
    return (light / see(light).mean()).astype(np.float32)

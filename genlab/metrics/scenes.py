"""Is it the subject, is it the scene, and are no two pictures alike? Scores of pictures of one subject in several scenes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Scorer(Protocol):
    """What pictures are looked at with: :class:`genlab.models.picture_encoders.PictureEncoder` is such."""

    name: str

    def scored(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> features (B, D)."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> features (n, D)."""
        ...


def fidelity(made: Tensor, real: Tensor) -> Tensor:
    """Mean cosine of all pairs, as DreamBooth's DINO and CLIP-I (Ruiz et al., arXiv 2208.12242, Sec. 4.2): (G, D), (R, D) -> scalar."""
    return (F.normalize(made, dim=1) @ F.normalize(real, dim=1).T).mean()


def diversity(made: Tensor) -> Tensor:
    """Mean of 1 - cosine over pairs of different pictures, (G, D) -> scalar in [0, 2]; NaN of fewer than two."""
    if len(made) < 2:
        return torch.tensor(math.nan, device=made.device)
    cosines = F.normalize(made, dim=1) @ F.normalize(made, dim=1).T
    rows, columns = torch.triu_indices(len(made), len(made), 1, device=made.device)
    return (1 - cosines[rows, columns]).mean()


class SceneScores(Metric):
    """Means over scenes of each scene's scores, cosines of features; NaN before the first picture.

    ``<visual>_i`` and ``<textual>_i``: to the real pictures; ``_i_<name>`` to further sets of them. ``<textual>_t``: to the scene's text.
    ``<visual>_diversity``: see `diversity`. The same with ``/<scene>`` behind for every scene.

    Args:
        visual: What pictures are compared with.
        textual: What pictures and texts are; may be the same.
        scenes: Name of each scene -> its text.
        real: Name -> pictures (R, 3, H, W) in [0, 1] of the subject; the empty name stands for those that the subject was learned from.
        first: Number of the first of these scenes.
    """

    looks: list[Tensor]
    meanings: list[Tensor]
    number: list[Tensor]
    full_state_update = False

    def __init__(self, visual: Scorer, textual: Scorer, scenes: Mapping[str, str], real: Mapping[str, Tensor], first: int = 0) -> None:
        super().__init__()
        self.by = (visual, textual)  # a tuple: networks are no part of this module, nor of a checkpoint
        self.scenes, self.first = list(scenes), first
        self.texts = textual.encode_text(list(scenes.values())) if scenes else torch.zeros(0, 1)
        self.real = {name: (visual.scored(each), textual.scored(each)) for name, each in real.items() if len(each)}
        for name in ("looks", "meanings", "number"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, pictures: Tensor, number: Tensor) -> None:
        """Made pictures (B, 3, H, W) in [0, 1] and the numbers (B,) of their scenes; those of other scenes are left out."""
        self.looks.append(self.by[0].scored(pictures))
        self.meanings.append(self.by[1].scored(pictures))
        self.number.append(number - self.first)

    def compute(self) -> dict[str, Tensor]:
        visual, textual = self.by
        text, spread = f"{textual.name}_t", f"{visual.name}_diversity"
        found: dict[str, list[Tensor]] = {text: [], spread: []}
        named: dict[str, Tensor] = {}
        looks, meanings, number = (
            dim_zero_cat(each) if self.number else torch.zeros(0) for each in (self.looks, self.meanings, self.number)
        )
        for place in (place for place in range(len(self.scenes)) if (number == place).any()):
            look, meaning = looks[number == place], meanings[number == place]
            scores = {text: fidelity(meaning, self.texts[place][None].to(meaning)), spread: diversity(look)}
            for name, (real_looks, real_meanings) in self.real.items():
                suffix = f"_{name}" if name else ""
                scores[f"{visual.name}_i{suffix}"] = fidelity(look, real_looks.to(look))
                scores[f"{textual.name}_i{suffix}"] = fidelity(meaning, real_meanings.to(meaning))
            for name, value in scores.items():
                found.setdefault(name, []).append(value)
                named[f"{name}/{self.scenes[place]}"] = value
        return {name: torch.stack(values).mean() for name, values in found.items()} | named

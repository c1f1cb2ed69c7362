"""What one looks at: a sheet of the subject in its scenes, and the scores of all steps in one plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from genlab.figures import chart, finish
from genlab.files import write_json
from genlab.sheets import frame_strip, stack
from genlab.training.gathering import gather_list

Point = tuple[int, float, float]
"""Step, fidelity to the subject, agreement with the scene."""


class ScenePictures:
    """Drawn pictures by scene, for a sheet.

    Args:
        most: Pictures of a scene that are kept.
    """

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self._kept: dict[tuple[int, int], tuple[str, np.ndarray]] = {}

    def add(self, pictures: Tensor, scene: Tensor, number: Tensor, prompts: Sequence[str]) -> None:
        """(B, 3, H, W) in [0, 1]; (B,) scenes; (B,) numbers within them."""
        for picture, place, count, prompt in zip(_frames(pictures), scene.tolist(), number.tolist(), prompts):
            if count < self.most:
                self._kept[place, count] = prompt, picture

    def gather(self) -> None:
        """Brings together what all processes have."""
        self._kept = dict(gather_list(list(self._kept.items())))

    def sheet(self, path: Path, real: Tensor, beside: Sequence[Tensor]) -> None:
        """Writes it: a row per scene with the subject's picture, those of the plain model, and those of the tuned one.

        Args:
            real: (3, H, W) uint8.
            beside: By scene, (n, 3, H, W) in [0, 1]; scenes behind the last one have none.
        """
        first, rows = real.permute(1, 2, 0).cpu().numpy()[None], []
        for scene in sorted({scene for scene, _ in self._kept}):
            own = sorted((count, *self._kept[place, count]) for place, count in self._kept if place == scene)
            plain = [_frames(beside[scene])] if 0 <= scene < len(beside) else []
            told = f"subject | {f'plain model, {len(plain[0])} | ' if plain else ''}{own[0][1]}"
            rows.append(frame_strip(np.concatenate([first, *plain, np.stack([picture for *_, picture in own])]), None, told, None))
        if rows:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack(rows, path=path)


def _frames(pictures: Tensor) -> np.ndarray:
    return (pictures.permute(0, 2, 3, 1) * 255 + 0.5).clamp(0, 255).byte().cpu().numpy()


def best_step(points: Sequence[Point]) -> int:
    """The step nearest to what is best of both scores, each scaled to its range over the steps; of two as near, the earlier one.

    The rule is ours. Steps without finite scores are passed over.

    Raises:
        ValueError: None is left.
    """
    known = [point for point in points if math.isfinite(point[1]) and math.isfinite(point[2])]
    if not known:
        raise ValueError("no step has scores.")
    span = [(min(values), max(values)) for values in ([point[axis] for point in known] for axis in (1, 2))]

    def lacking(point: Point) -> float:
        return math.hypot(*((high - value) / (high - low) if high > low else 0.0 for value, (low, high) in zip(point[1:], span)))

    return min(known, key=lambda point: (round(lacking(point), 9), point[0]))[0]


class StepScores:
    """Both scores of each validation.

    Args:
        points: Of earlier ones.
    """

    PLOT, TABLE = "fidelity_over_scene.png", "best_step.json"

    def __init__(self, points: Sequence[Point] = ()) -> None:
        self.points = list(points)

    def add(self, step: int, fidelity: float, scene: float) -> None:
        """Of a validation; one of the same step takes the place of an earlier one."""
        self.points = sorted([*(point for point in self.points if point[0] != step), (step, fidelity, scene)])

    @property
    def best(self) -> int | None:
        """The suggested step; none before scores that are finite."""
        try:
            return best_step(self.points)
        except ValueError:
            return None

    def write(self, folder: Path, fidelity: str, scene: str) -> None:
        """The plot into ``media/`` of the run, the points and the suggestion into its ``best_step.json``.

        Args:
            fidelity: Name of the score.
            scene: Likewise.
        """
        points = [{"step": step, fidelity: x, scene: y} for step, x, y in self.points]
        write_json(folder / self.TABLE, {"best_step": self.best, "points": points})
        known = [point for point in self.points if math.isfinite(point[1]) and math.isfinite(point[2])]
        if not known:
            return
        (folder / "media").mkdir(parents=True, exist_ok=True)
        with chart(6.4, 4.4) as (figure, (ax,)):
            ax.plot([x for _, x, _ in known], [y for *_, y in known], "-o", ms=5)
            for step, x, y in known:
                ax.annotate(str(step), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7)
                if step == self.best:
                    ax.plot(x, y, "o", ms=12, mfc="none", mew=1.5, color="black", label=f"suggested: step {step}")
            ax.set(xlabel=f"{fidelity}: like the subject's picture", ylabel=f"{scene}: like the scene's text")
            ax.margins(0.12)
            ax.legend(loc="best")
            finish(figure, folder / "media" / self.PLOT)

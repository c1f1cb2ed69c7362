"""Plots of detectors: the trade-off between two errors, and where embeddings lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from genlab.figures import PALETTE, QUIET, chart, finish, short

if TYPE_CHECKING:
    from PIL import Image

TICKS = (0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95)


def det_curve(scores: ArrayLike, labels: ArrayLike, types: Sequence[str], path: Path | str | None = None) -> Image.Image:
    """Detection error trade-off on normal deviates: APCER of each attack type against BPCER, over all thresholds.

    Args:
        scores: (N,) P(live).
        labels: (N,) 1 = live.
        types: (N,) names of the attack types; those of live faces are not looked at.
        path: PNG to write.
    """
    from scipy.stats import norm

    values, live, kinds = np.asarray(scores, np.float64), np.asarray(labels).astype(bool), np.asarray(types, object)
    thresholds = np.append(np.unique(values), np.inf)
    least = 0.5 / max(len(values), 1)  # an error of none in N is drawn at half of one in N
    with chart(5.6, 4.6) as (figure, (ax,)):
        bpcer = np.searchsorted(np.sort(values[live]), thresholds) / max(int(live.sum()), 1)
        for number, name in enumerate(sorted(set(kinds[~live]))):
            attacks = np.sort(values[~live & (kinds == name)])
            apcer = 1 - np.searchsorted(attacks, thresholds) / len(attacks)
            x, y = (norm.ppf(np.clip(each, least, 1 - least)) for each in (apcer, bpcer))
            ax.plot(x, y, color=PALETTE[number % len(PALETTE)], linewidth=1.6, label=f"{short(name, 18)} ({len(attacks)})")
        ticks, limits = norm.ppf(TICKS), (norm.ppf(least / 1.5), norm.ppf(0.97))
        ax.plot(limits, limits, color=QUIET, linewidth=0.8, linestyle=":")
        names = [f"{tick:.1%}" if tick < 0.01 else f"{tick:.0%}" for tick in TICKS]
        ax.set_xticks(ticks, names)
        ax.set_yticks(ticks, names)
        ax.set(
            title="Detection error trade-off",
            xlabel="APCER: attacks called live",
            ylabel="BPCER: live called attacks",
            xlim=limits,
            ylim=limits,
        )
        if (~live).any():
            ax.legend(loc="upper right")
        return finish(figure, path)


def embedding_map(vectors: ArrayLike, names: Sequence[str], path: Path | str | None = None) -> Image.Image:
    """The two main directions of embeddings (N, E), coloured by name (N,)."""
    rows, kinds = np.asarray(vectors, np.float64), np.asarray(names, object)
    centred = rows - rows.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    places, shares = centred @ directions[:2].T, sizes**2 / max(float((sizes**2).sum()), 1e-12)
    with chart(5.6, 4.6) as (figure, (ax,)):
        for number, name in enumerate(sorted(set(kinds))):
            mine = places[kinds == name]
            ax.scatter(
                mine[:, 0],
                mine[:, -1],
                s=14,
                alpha=0.7,
                linewidths=0,
                color=PALETTE[number % len(PALETTE)],
                label=f"{short(name, 18)} ({len(mine)})",
            )
        ax.set(
            title="Embeddings",
            xlabel=f"first direction ({shares[0]:.0%} of the variance)",
            ylabel=f"second ({shares[1]:.0%})" if len(shares) > 1 else "",
        )
        ax.legend(loc="best")
        return finish(figure, path)

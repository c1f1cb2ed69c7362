"""Plots of detectors: how scores spread, ROC and precision-recall, the trade-off between two errors, and where embeddings lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genlab.figures import FAKE, INK, PALETTE, QUIET, REAL, SIDES, chart, finish, short

if TYPE_CHECKING:
    from PIL import Image

TICKS = (0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95)


def _arrays(scores: ArrayLike, labels: ArrayLike, generators: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    values, fake, names = np.asarray(scores, np.float64), np.asarray(labels).astype(bool), np.asarray(generators, object)
    if not len(values) == len(fake) == len(names):
        raise ValueError(f"{len(values)} scores, {len(fake)} labels and {len(names)} generators; need one of each per sample.")
    return values, fake, names


def score_histogram(
    scores: ArrayLike,
    labels: ArrayLike,
    generators: Sequence[str],
    threshold: float = 0.5,
    path: Path | str | None = None,
    classes: tuple[str, str] = SIDES,
) -> Image.Image:
    """One panel per generator: how its fakes (red) and all reals (blue) spread over the score.

    Args:
        scores: (N,) P(fake) in [0, 1].
        labels: (N,) 1 = fake.
        generators: N names; those of reals are not looked at.
        threshold: Drawn as a line; the panel's title tells the recall above it.
        path: PNG to write.
        classes: Names of labels 0 and 1.
    """
    values, fake, names = _arrays(scores, labels, generators)
    panels = sorted(set(names[fake])) or [None]
    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    bins = np.linspace(0, 1, 21)
    with chart(max(2.2 * columns, 4.0), 1.65 * rows + 0.6, rows, columns) as (figure, axes):
        for ax, name in zip(axes, panels):
            mine = values[fake & (names == name)]
            for chosen, color, label in ((values[~fake], REAL, classes[0]), (mine, FAKE, classes[1])):
                share = np.histogram(chosen, bins)[0] / max(len(chosen), 1)
                ax.stairs(share, bins, fill=True, color=color, alpha=0.35)
                ax.stairs(share, bins, color=color, linewidth=1.2, label=label)
            ax.axvline(threshold, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
            ax.set(xlim=(0, 1), xticks=[0, 0.5, 1], yticks=[])
            ax.set_xticklabels(["0", "0.5", "1"])
            ax.grid(False)
            ax.spines["left"].set_visible(False)
            if name is not None:
                ax.set_title(f"{short(name, 16)}\n", fontsize=9)
                told = f"recall {np.mean(mine > threshold):.3f} · n {len(mine)}"
                ax.text(0, 1.04, told, transform=ax.transAxes, fontsize=7.5, color=QUIET)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        figure.supxlabel(f"score = P({classes[1]})", fontsize=9)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
        return finish(figure, path)


def roc_pr(scores: ArrayLike, labels: ArrayLike, generators: Sequence[str], path: Path | str | None = None) -> Image.Image:
    """ROC and precision-recall curves, one line per generator against all reals, with AUROC and AP; arguments as in `score_histogram`."""
    from genlab.metrics import generators as metric  # imports torch

    values, fake, names = _arrays(scores, labels, generators)
    with chart(8.4, 3.9, 1, 2) as (figure, (roc, pr)):
        styles = ("-", (0, (5, 1.5)), (0, (1.5, 1)))  # a palette of ten comes round again in other dashes
        handles, entries = [], []
        for number, name in enumerate(sorted(set(names[fake]))):
            chosen = ~fake | (names == name)
            s, y = values[chosen], fake[chosen]
            color, dashes = PALETTE[number % len(PALETTE)], styles[number // len(PALETTE) % len(styles)]
            (line,) = roc.plot(*metric.roc_curve(s, y), color=color, linestyle=dashes, linewidth=1.4)
            recall, precision = metric.precision_recall_curve(s, y)
            pr.step(np.append(0, recall), np.append(precision[:1], precision), where="pre", color=color, linestyle=dashes, linewidth=1.4)
            handles.append(line)
            entries.append(f"{short(name, 18)}  AUROC {metric.roc_auc(s, y):.3f}, AP {metric.average_precision(s, y):.3f}")
        roc.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=":")
        roc.set(title="ROC", xlabel="false positive rate", ylabel="recall")
        pr.set(title="Precision and recall", xlabel="recall", ylabel="precision")
        for ax in (roc, pr):
            ax.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.03))
        if entries:
            figure.legend(handles, entries, loc="outside lower center", ncols=min(len(entries), 2))
        figure.set_figheight(4.4 + 0.2 * math.ceil(len(entries) / 2))
        return finish(figure, path)


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

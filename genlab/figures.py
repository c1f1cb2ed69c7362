"""Pictures of results in the house's look: training curves, bars, lines, points, accuracy over shots, reliability.

Every function returns a PIL image and, given a ``path``, also writes it there as PNG, atomically. Blue speaks for what is as it should be
("real", "live"), red for what is looked for ("generated", "attack"). Pictures are deterministic; names are drawn as they are, never read
as formulas.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genlab.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REAL, FAKE, INK, QUIET = "#2f6db5", "#d0453f", "#22262e", "#5b6472"
PALETTE = ("#2a9d74", "#e09a27", "#7d5bb8", "#13a3b5", "#c45a96", "#8d6a4f", "#7f8c2d", "#5b6676", "#243b63", "#94c23c")  # no REAL or FAKE
SIDES = ("real", "generated")
DPI = 160  # of a figure drawn 7 to 9 inches wide: sharp at the width of a page


# Charts


@contextlib.contextmanager
def chart(width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure in the house's look, without pyplot and so without global figures; its text is never parsed as mathematics."""
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "axes.axisbelow": True,
        "axes.edgecolor": "#c9ced6",
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.prop_cycle": cycler(color=PALETTE),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "figure.constrained_layout.h_pad": 0.08,
        "figure.constrained_layout.w_pad": 0.08,
        "figure.constrained_layout.wspace": 0.06,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "grid.color": "#e8ebef",
        "legend.fontsize": 8,
        "legend.frameon": False,
        "text.color": INK,
        "text.parse_math": False,
        "xtick.color": QUIET,
        "xtick.labelsize": 8,
        "ytick.color": QUIET,
        "ytick.labelsize": 8,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        yield figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def finish(figure: Figure, path: Path | str | None) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return saved(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), path)


def saved(image: Image.Image, path: Path | str | None) -> Image.Image:
    if path is not None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        write_bytes(path, buffer.getvalue())
    return image


def short(name: object, length: int = 28) -> str:
    """A name for a label: one line, shortened in the middle; a leading underscore would hide it from a legend."""
    text = " ".join(str(name).split())
    if len(text) > length:
        text = text[: length // 2] + "…" + text[len(text) - length // 2 + 1 :]
    return f" {text}" if text.startswith("_") else text


def curves(rows: Sequence[Mapping[str, Any]], path: Path | str | None = None) -> Image.Image:
    """Training curves over optimizer steps: rewards, losses, validation metrics, learning rates; one panel for each that there is.

    Args:
        rows: Rows of ``metrics.csv`` as `csv.DictReader` gives them: a ``step`` column, an empty cell where nothing was logged. Metrics
            of one generator (``val/Sora/ap``) are left out: they belong in a table.
        path: PNG to write.
    """
    series, groups = curve_groups(rows)
    bare = {key: key.removesuffix("_step").removesuffix("_epoch") for key in series}
    if not groups:
        raise ValueError("rows: no column of train/loss…, val/… or lr… with a step; is this a run's metrics.csv?")
    with chart(max(3.6 * len(groups), 4.6), 3.3, 1, len(groups)) as (figure, axes):
        for ax, (title, keys) in zip(axes, groups.items()):
            for number, key in enumerate(keys):
                x, y = (np.array(values) for values in series[key])
                color = PALETTE[number % len(PALETTE)]
                if len(x) >= 60:  # noise faint, its running mean in front
                    ax.plot(x, y, color=color, linewidth=0.8, alpha=0.25)
                    y = _running_mean(y, len(y) // 25)
                ax.plot(x, y, color=color, marker="o" if len(x) <= 12 else "", ms=3, label=f"{short(bare[key], 24)}  {y[-1]:.4g}")
            ax.set(title=title, xlabel="step")
            ax.margins(x=0.02)
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=1 if len(keys) <= 3 else 2)
            if title == "Learning rate":
                ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        return finish(figure, path)


def curve_groups(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, tuple[list[float], list[float]]], dict[str, list[str]]]:
    """What there is to draw in rows of ``metrics.csv``: (steps, values) by column, and the columns of each panel that has any."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for key, cell in row.items():
            if key not in ("step", "epoch") and cell not in ("", None) and row.get("step") not in ("", None):
                xs, ys = series.setdefault(key, ([], []))
                xs.append(float(row["step"]))
                ys.append(float(cell))
    bare = {key: key.removesuffix("_step").removesuffix("_epoch") for key in series}
    twice = {key for key in series if key.endswith("_epoch") and f"{bare[key]}_step" in series}
    own = [key for key in series if key.count("/") == 1 and key not in twice]
    groups = {
        "Rewards": [key for key in own if key.startswith("train/reward")],
        "Losses": [key for key in own if "/loss" in key],
        "Validation": [key for key in own if key.startswith("val/") and "/loss" not in key and not key.startswith("val/n_")],  # no counts
        "Learning rate": [key for key in series if key.startswith("lr")],
    }
    return series, {title: sorted(keys) for title, keys in groups.items() if keys}


def _running_mean(values: NDArray[Any], half: int) -> NDArray[Any]:
    """Mean of the finite values among `half` neighbours to each side, fewer at the ends; NaN where there are none."""
    finite = np.isfinite(values)
    total, count = (np.append(0.0, np.cumsum(x)) for x in (np.where(finite, values, 0), finite))
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    with np.errstate(invalid="ignore"):
        return (total[high] - total[low]) / (count[high] - count[low])


def scatter(points: Sequence[Mapping[str, Any]], x_label: str, y_label: str, path: Path | str | None = None) -> Image.Image:
    """Named points in a plane.

    Args:
        points: ``{"name", "x", "y"}`` each; those that are not finite are left out.
        x_label: Under the horizontal axis.
        y_label: Beside the vertical one.
        path: PNG to write.
    """
    with chart(7.2, 4.4) as (figure, (ax,)):
        for number, point in enumerate(each for each in points if math.isfinite(each["x"]) and math.isfinite(each["y"])):
            marker = "osD^vPX"[number // len(PALETTE) % 7]  # a palette of ten comes round again in other shapes
            ax.plot(point["x"], point["y"], marker, color=PALETTE[number % len(PALETTE)], ms=7, label=short(point["name"]))
        ax.set(xlabel=x_label, ylabel=y_label)
        ax.margins(0.08)
        if points:
            figure.legend(loc="outside right upper")
        return finish(figure, path)


def bars(table: Sequence[Mapping[str, Any]], path: Path | str | None = None) -> Image.Image:
    """Horizontal bars: a group per row of the table, a bar per numeric column; the first column names the row.

    Args:
        table: Rows with the same columns, e.g. ``{"degradation": "JPEG 35", "recall": 0.93, "f1": 0.68, "ap": 0.76}``.
        path: PNG to write.

    Raises:
        ValueError: No rows, or no numeric column.
    """
    columns = list(table[0]) if table else []
    numeric = [c for c in columns[1:] if all(isinstance(r.get(c), int | float) for r in table)]
    if not numeric:
        raise ValueError(f"table: {len(table)} rows with columns {columns}; need rows, and a numeric column after the first.")
    thick = 0.8 / len(numeric)
    with chart(7.2, 0.75 + len(table) * (0.16 + 0.17 * len(numeric))) as (figure, (ax,)):
        y = np.arange(len(table))
        for number, column in enumerate(numeric):
            values = np.array([float(row[column]) for row in table])
            color = PALETTE[number % len(PALETTE)]
            drawn = ax.barh(y + (number + 0.5) * thick - 0.4, values, thick * 0.9, color=color, label=short(column))
            told = [f"{value:.3f}" if math.isfinite(value) else "–" for value in values]
            ax.bar_label(drawn, told, padding=2, fontsize=7, color=QUIET)
        ax.set_yticks(y, [short(row[columns[0]]) for row in table])
        ax.set_ylim(len(table) - 0.45, -0.55)
        ax.margins(x=0.08)
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside upper left", ncols=len(numeric))
        return finish(figure, path)


def lines(points: Mapping[str, Mapping[float, float]], x_label: str, y_label: str, path: Path | str | None = None) -> Image.Image:
    """A line for each name, through its (x, y) points."""
    with chart(6.4, 3.6) as (figure, (ax,)):
        for number, (name, places) in enumerate(points.items()):
            x = sorted(places)
            ax.plot(x, [places[each] for each in x], marker="o", ms=4, color=PALETTE[number % len(PALETTE)], label=short(name))
        ax.set(xlabel=x_label, ylabel=y_label)
        figure.legend(loc="outside right upper")
        return finish(figure, path)


def accuracy_over_shots(rows: Sequence[Mapping[str, Any]], path: Path | str | None = None) -> Image.Image:
    """A panel per dataset, a line per method: mean accuracy over the number of training pictures per class, bars for its deviation.

    Args:
        rows: With ``dataset, method, shots, seed`` and ``acc`` in percent.
        path: PNG to write.
    """
    datasets, methods = (list(dict.fromkeys(str(row[key]) for row in rows)) for key in ("dataset", "method"))
    columns = min(3, len(datasets))
    lines = -(-len(datasets) // columns)
    with chart(3.0 * columns + 1.6, 2.6 * lines, lines, columns) as (figure, axes):
        for ax, dataset in zip(axes, datasets):
            for number, method in enumerate(methods):
                own = [row for row in rows if (row["dataset"], row["method"]) == (dataset, method)]
                shots = sorted({int(row["shots"]) for row in own})
                values = [np.array([float(row["acc"]) for row in own if row["shots"] == count]) for count in shots]
                color = PALETTE[number % len(PALETTE)]
                means, deviations = [v.mean() for v in values], [v.std(ddof=1) if len(v) > 1 else 0.0 for v in values]
                ax.errorbar(shots, means, deviations, color=color, marker="o", markersize=3, linewidth=1.4, capsize=2, label=short(method))
            ax.set_xscale("log", base=2)
            ax.set_xticks(shots := sorted({int(row["shots"]) for row in rows}), [str(count) for count in shots])
            ax.set_title(short(dataset))
            ax.set_xlabel("shots")
        axes[0].set_ylabel("accuracy, %")
        for ax in axes[len(datasets) :]:
            ax.set_visible(False)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
        return finish(figure, path)


def reliability(
    answers: Mapping[str, tuple[Sequence[float], Sequence[bool]]], path: Path | str | None = None, bins: int = 10
) -> Image.Image:
    """How often answers are right, by how sure of them a method is; on the diagonal it is as sure as it should be.

    Args:
        answers: Method -> probability of each answer, and whether it was right.
        path: PNG to write.
        bins: Of equal width.
    """
    with chart(5.2, 3.8) as (figure, (ax,)):
        ax.plot([0, 1], [0, 1], color="#c9ced6", linewidth=1)
        for number, (method, (sure, right)) in enumerate(answers.items()):
            chance, truth = np.asarray(sure, np.float64), np.asarray(right, np.float64)
            place = np.minimum((chance * bins).astype(int), bins - 1)
            there = [b for b in range(bins) if (place == b).any()]
            x, y = [chance[place == b].mean() for b in there], [truth[place == b].mean() for b in there]
            ax.plot(x, y, color=PALETTE[number % len(PALETTE)], marker="o", markersize=3, linewidth=1.4, label=short(method))
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1)
        ax.set_xlabel("probability of the answer")
        ax.set_ylabel("share that is right")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
        return finish(figure, path)


def png(image: Image.Image) -> bytes:
    """The picture as a file's content."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()

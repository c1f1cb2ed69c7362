"""Pictures of results: score histograms, ROC and PR curves, training curves, bars, frame strips and contact sheets.

Every function returns a PIL image and, given a ``path``, also writes it there as PNG, atomically. Blue speaks for what is as it should be
("real", "live"), red for what is looked for ("generated", "attack"). Pictures are deterministic; names are drawn as they are, never read
as formulas.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

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
    return _saved(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), path)


def _saved(image: Image.Image, path: Path | str | None) -> Image.Image:
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


# Frames and photographs


def _font(size: int, bold: bool = False) -> Any:
    """DejaVu Sans as Matplotlib ships it, found without importing Matplotlib: PIL's own font knows little beyond Latin letters."""
    found = find_spec("matplotlib")
    assert found and found.origin, "matplotlib is a dependency"
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / name, size)


def _fitting(text: str, width: float, font: Any) -> str:
    """The text in one line, shortened in the middle until it is at most `width` pixels wide."""
    text = " ".join(text.split())[:400]
    if font.getlength(text) <= width:
        return text
    for keep in range(len(text) - 1, 0, -1):
        shorter = text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]
        if font.getlength(shorter) <= width:
            return shorter
    return "…"


def _rgb(name: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(name[1:]))


def frame_strip(
    frames: NDArray[np.uint8],
    heat: NDArray[Any] | None = None,
    title: str = "",
    path: Path | str | None = None,
    height: int = 128,
    sides: tuple[str, str] = SIDES,
) -> Image.Image:
    """A clip's frames in a row; with `heat`, a second row shows where "generated" (red) and where "real" (blue) was seen.

    Args:
        frames: (T, H, W, 3) uint8.
        heat: (T, h, w) of any scale, > 0 speaks for "generated"; its cells are drawn as they are, not smoothed. The strongest cell of the
            clip gets the full colour, so strips cannot be compared by colour: the key tells the value.
        title: One line above; shortened to fit.
        path: PNG to write.
        height: Of one frame in pixels.
        sides: What blue and red mean; an empty word for blue, of a heat that is never below 0.

    Raises:
        ValueError: Shapes that do not fit.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames: {frames.dtype} {frames.shape}; need uint8 (T, H, W, 3).")
    if heat is not None and (heat.ndim != 3 or len(heat) != len(frames)):
        raise ValueError(f"heat: {heat.shape} for {len(frames)} frames; need (T, h, w).")
    width, gap, top = max(round(height * frames.shape[2] / frames.shape[1]), 1), 3, 26 if title else 0
    rows, bottom = (1, 0) if heat is None else (2, 24)
    wide = max((width + gap) * len(frames) - gap, 320 if bottom else 1)  # room for the key
    sheet = Image.new("RGB", (wide, top + (height + gap) * rows - gap + bottom), "white")
    small = [Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS) for frame in frames]
    for number, frame in enumerate(small):
        sheet.paste(frame, ((width + gap) * number, top))
    draw = ImageDraw.Draw(sheet)
    if title:
        font = _font(14, bold=True)
        draw.text((1, 4), _fitting(title, sheet.width - 2, font), INK, font)
    if heat is not None:
        values = np.nan_to_num(np.asarray(heat, np.float64))
        scale = float(np.abs(values).max())
        for number, frame in enumerate(small):
            overlaid = _overlaid(frame, values[number] / (scale or 1.0))
            sheet.paste(overlaid, ((width + gap) * number, top + height + gap))
        _heat_key(draw, sheet, scale, sides)
    return _saved(sheet, path)


def _overlaid(frame: Image.Image, heat: NDArray[Any]) -> Image.Image:
    """The frame in pale grey under red (heat 1) or blue (heat -1); grey, so that the clip's own colours are not taken for heat."""
    grey = np.repeat(90 + 0.6 * np.asarray(frame.convert("L"), np.float32)[..., None], 3, 2)
    cells = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(frame.size, Image.Resampling.NEAREST))[..., None]
    color = np.where(cells > 0, np.array(_rgb(FAKE), np.float32), np.array(_rgb(REAL), np.float32))
    alpha = 0.8 * np.abs(cells)
    return Image.fromarray((grey * (1 - alpha) + color * alpha).round().astype(np.uint8))


def _heat_key(draw: ImageDraw.ImageDraw, sheet: Image.Image, scale: float, sides: tuple[str, str]) -> None:
    font, y = _font(11), sheet.height - 18
    blue, red = sides
    left = (f"{blue} {-scale:.2g}" if scale else blue) if blue else "0"
    right = f"{scale:+.2g} {red}" if scale else f"{red} (all zero)"
    x = sheet.width - 100 - int(font.getlength(right)) - 8
    ramp = np.linspace(-1 if blue else 0, 1, 100)[None].repeat(10, 0)
    sheet.paste(_overlaid(Image.new("RGB", (100, 10), "#d2d2d2"), ramp), (x, y + 2))
    draw.text((x - 6 - font.getlength(left), y), left, INK, font)
    draw.text((x + 106, y), right, INK, font)


def contact_sheet(
    images: Sequence[NDArray[np.uint8] | Image.Image],
    captions: Sequence[str] | None = None,
    columns: int = 6,
    path: Path | str | None = None,
    width: int = 160,
) -> Image.Image:
    """Pictures in a grid, each fitted into a cell of the same size, with its caption below.

    Args:
        images: uint8 (H, W, 3) arrays or PIL images, of any sizes.
        captions: One each; lines are split at newlines and shortened to fit.
        columns: Cells per row.
        path: PNG to write.
        width: Of one cell in pixels; its height follows the median shape.

    Raises:
        ValueError: No images, or another number of captions.
    """
    if not images or (captions is not None and len(captions) != len(images)):
        raise ValueError(f"{len(images)} images and {len(captions or [])} captions; need images, and a caption for each or none.")
    pictures = [(image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB") for image in images]
    height = round(width * float(np.clip(np.median([p.height / p.width for p in pictures]), 0.4, 2.0)))
    lines = max((len(caption.splitlines()) for caption in captions or ()), default=0)
    gap, below, font = 8, 15 * lines + (3 if lines else 0), _font(11)
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", ((width + gap) * columns + gap, (height + below + gap) * rows + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for number, picture in enumerate(pictures):
        x, y = gap + (width + gap) * (number % columns), gap + (height + below + gap) * (number // columns)
        factor = min(width / picture.width, height / picture.height)
        size = max(round(picture.width * factor), 1), max(round(picture.height * factor), 1)
        enlarged = Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS  # big pixels rather than a blur
        draw.rectangle((x, y, x + width - 1, y + height - 1), "#f1f3f6")
        sheet.paste(picture.resize(size, enlarged), (x + (width - size[0]) // 2, y + (height - size[1]) // 2))
        for line, text in enumerate((captions[number] if captions else "").splitlines()):
            draw.text((x, y + height + 3 + 15 * line), _fitting(text, width, font), INK if line == 0 else QUIET, font)
    return _saved(sheet, path)


def stack(images: Sequence[Image.Image], path: Path | str | None = None, gap: int = 12) -> Image.Image:
    """Pictures below each other on white, e.g. the strips of several clips; at least one."""
    if not images:
        raise ValueError("images: none to stack.")
    sheet = Image.new("RGB", (max(i.width for i in images), sum(i.height + gap for i in images) - gap), "white")
    y = 0
    for image in images:
        sheet.paste(image, (0, y))
        y += image.height + gap
    return _saved(sheet, path)

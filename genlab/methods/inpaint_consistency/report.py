"""The study as sections of the run's one-file report, and as plain tables in its folder."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from genlab.figures import scatter
from genlab.files import write_bytes, write_csv
from genlab.methods.inpaint_consistency.outcome import Human, Outcome, Table
from genlab.metrics.consistency import higher_is_better
from genlab.reports import Report, formatted

HEADINGS = "picture, with its hole, first filling X1, hidden the second time (k = 0), second filling X2, mean |X1 - X2| over the repeats"
NOTES = """Each inpainter (F1) filled every picture's hole; then other parts of the result were hidden {k} times and filled by F2. **D** is
the distance between the first filling and the second one, averaged over the repeats and then over the pictures; no reference is used.
- `low` and `high` bound the 95 % interval of D, bootstrapped over pictures; with few pictures it is rough.
- `first` and `second` are distances of X1 and X2 from the picture itself: a reference, where the hole was made in a whole picture.
- `detail` compares how much goes on in the filled hole with the rest of the picture: 0 is flat, 1 as lively. D likes the flat ones.
- `leak` is how much the inpainter changed known pixels before they were put back.
- `second hole` is the share of the picture that was hidden the second time; it shrinks as the first hole grows, and with it D.

Compare runs of the same masks and settings only."""


def write_tables(outcome: Outcome, rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """``rows.csv`` with every measurement, ``leaderboard.csv`` and ``leaderboard.md``."""
    flat = []
    for row in rows:
        plain = {name: value for name, value in row.items() if name not in ("d", "original", "heat", "key")}
        plain |= row.get("d", {})
        flat.append(plain | {f"original_{name}": value for name, value in row.get("original", {}).items()})
    write_csv(folder / "rows.csv", flat, ("id", "group", "pass", "f1", "f2", "k"))
    boards = {f2: outcome.leaderboard(f2) for f2 in outcome.f2}
    write_csv(folder / "leaderboard.csv", [{"F2": f2, **row} for f2, board in boards.items() for row in board])
    text = "\n".join(f"## Filled again by {f2}\n\n{_markdown(board)}" for f2, board in boards.items())
    write_bytes(folder / "leaderboard.md", text.encode())


def _markdown(table: Table) -> str:
    names = list(table[0]) if table else []
    cells = [[formatted(row[name]).replace("|", r"\|") for name in names] for row in table]
    lines = [names, ["---"] * len(names), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_sections(report: Report, outcome: Outcome, panels: Callable[[str, str, str], Path], human: Human | None, pictures: int) -> None:
    """Everything there is to say about a study.

    Args:
        panels: (f1, f2, key of a picture) -> file with its pictures.
        pictures: Of the best and of the worst, each.
    """
    names, main, judge = outcome.honest, outcome.main, outcome.f2[0]
    best: dict[str, Literal["max", "min"]] = {f"D {name}": "max" if higher_is_better(name) else "min" for name in outcome.columns}
    repeats = outcome.second[outcome.f1[0], judge][main].shape[1]
    report.heading("Ranking").text(NOTES.format(k=repeats))
    report.text(
        f"{len(outcome.ids)} pictures"
        + (
            f"; {outcome.skipped} more were left out, whose hole is empty or nearly the whole picture (inverted masks?)."
            if outcome.skipped
            else "."
        )
    )
    for f2 in outcome.f2:
        for warning in outcome.warnings(f2):
            report.text(f"**Careful.** {warning}")
        report.table(outcome.leaderboard(f2, names), caption=f"Filled again by {f2}", highlight=best)
        if len(names) > 1:
            report.table(outcome.paired(f2, names), caption=f"Differences to the best one, D {main}, filled again by {f2}")
    for caption, labels in (("share of the first hole", outcome.buckets), ("group", outcome.groups)):
        if len(set(labels)) > 1:
            report.table(outcome.split(judge, names, labels), caption=f"D {main} by {caption}, filled again by {judge}")

    if len(names) > 1:
        report.heading("Does it agree with the pictures themselves?")
        report.text(
            "Where holes were made in whole pictures, the distance of a filling from what was there is a reference. Kendall's tau of the "
            "two orders of the inpainters: 1 is the same order, -1 the opposite one; intervals are bootstrapped over pictures."
        )
        report.table(outcome.rank_agreement(names), caption="Self-consistency against the reference")
        if len(outcome.f2) > 1:
            report.table(outcome.between_judges(names), caption="One F2 against another")
        points = [{"name": f1, "x": float(np.nanmean(outcome.first[f1][main])), "y": outcome.score(f1, judge)} for f1 in names]
        report.picture(
            scatter(points, f"distance from the picture itself, {main}", f"D {main}, filled again by {judge}"), "Both in one picture"
        )

    if human is not None:
        report.heading("Does it agree with people?")
        report.table(outcome.human_agreement(human), caption="Agreement of the score with people's, higher = alike")

    if outcome.spoiled:
        report.heading("Sanity: are spoiled results noticed?")
        report.text("Results were spoiled inside the hole; D should get worse. `noticed` looks whether the interval lies on one side of 0.")
        for f2 in outcome.f2:
            report.table(outcome.sanity(f2), caption=f"Filled again by {f2}")

    report.heading("Are the repeats enough?")
    report.table(outcome.convergence(judge, names), caption=f"D {main} of the first repeats, filled again by {judge}")

    report.heading("Every picture")
    report.table(outcome.rows_per_picture(judge), caption=f"D {main}, filled again by {judge}", search=True)
    _gallery(report, outcome, panels, pictures)


def _gallery(report: Report, outcome: Outcome, panels: Callable[[str, str, str], Path], count: int) -> None:
    judge = outcome.f2[0]
    report.heading("Pictures").text(f"From left to right: {HEADINGS}. Of each inpainter the worst and the best by D {outcome.main}.")
    for f1 in outcome.honest:
        values = outcome.per_picture(f1, judge)
        order = [
            int(n) for n in np.argsort(-values if higher_is_better(outcome.main) else values, kind="stable") if not np.isnan(values[n])
        ]
        best = order[:count]
        worst = [n for n in order[::-1] if n not in best][:count]
        for what, chosen in (("worst", worst), ("best", best)):
            for n in chosen:
                path = panels(f1, judge, outcome.pictures[n])
                if path.is_file():
                    caption = f"{f1}, {what}: {outcome.ids[n]}, D {outcome.main} {values[n]:.4f}"
                    report.picture(with_heat(path, outcome.heat[f1, judge][n]), caption, enlarge=True)


def with_heat(path: Path, heat: np.ndarray) -> Path:
    """The panels of a filling, and where its second fillings differed from it: white nowhere, dark red most; grey was never hidden.

    A JPEG beside the panels: as PNG a report of a few dozen photographs would have tens of megabytes.
    """
    with Image.open(path) as file:
        panels = file.convert("RGB")
    side = panels.height
    change, cover = heat
    share = np.clip(np.divide(change, cover, out=np.zeros_like(change), where=cover > 0.02) / 0.25, 0, 1)[..., None]
    color = (1 - share) * np.array([255, 255, 255]) + share * np.array([150, 10, 10])
    color = np.where(cover[..., None] > 0.02, color, np.array([200, 204, 210]))
    map_of = Image.fromarray(color.round().astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (panels.width + 4 + side, side), "white")
    sheet.paste(panels, (0, 0))
    sheet.paste(map_of, (panels.width + 4, 0))
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=88)
    return write_bytes(path.with_suffix(".map.jpg"), content.getvalue(), sync=False)

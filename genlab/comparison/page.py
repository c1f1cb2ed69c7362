"""The comparison as one HTML file, and as CSV, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genlab import figures
from genlab.comparison.records import Record, config_differences
from genlab.comparison.statistics import Group
from genlab.files import write_bytes
from genlab.reports import Report, formatted

MOST_LINES, MOST_PICTURES, MOST_CURVES, MOST_COLUMNS = 10, 24, 6, 12
Rows = Sequence[Mapping[str, Any]]
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {each: f"\\{each}" for each in "&%$#_{}"}


def write_page(
    path: Path,
    records: Sequence[Record],
    groups: Sequence[Group],
    tables: Mapping[str, Rows],
    warnings: Sequence[str],
    metrics: Sequence[str],
) -> Path:
    """Warnings first, then tables that sort and filter, curves, settings that differ, and the last picture of each run."""
    report = Report("Comparison", f"{len(records)} evaluations in {len(groups)} groups")
    if warnings:
        report.heading("Not all of this may be compared")
        report.text("\n".join(f"- {_plain(line)}" for line in warnings[:50]))
    if any(record.protocol.get("tiny_world") for record in records):
        report.text("Some runs are of the procedural tiny world: their numbers say that a method works here, not how it does on real data.")
    for name, rows in tables.items():
        if rows:
            report.heading(name)
            report.table(rows, search=len(rows) > 8)
    _curves(report, records, groups, metrics)
    differing = config_differences(records)
    if differing:
        report.heading("Settings that differ")
        if len(records) > MOST_COLUMNS:
            report.text(f"Of the first {MOST_COLUMNS} of {len(records)} runs; name fewer runs to see others.")
        shown = {"setting", *(record.name for record in records[:MOST_COLUMNS])}
        report.table([{key: value for key, value in row.items() if key in shown} for row in differing], search=True)
    _pictures(report, records)
    return report.write(path)


def _plain(line: str) -> str:
    """Marks of the report's text taken out of names."""
    return re.sub(r"[`*]", "'", line)


def _curves(report: Report, records: Sequence[Record], groups: Sequence[Group], metrics: Sequence[str]) -> None:
    logged = dict.fromkeys(key for record in records for row in record.curves[:1] for key in row)
    wanted = [name for name in logged if name in metrics or name in ("train/loss", "train/loss_step", "train/loss_epoch")]
    wanted += [name for name in logged if name.startswith("val/") and name.count("/") == 1 and name not in wanted and "/n" not in name]
    drawn = []
    for name in wanted:
        lines = {record.run: _curve(record, name) for record in records}
        lines = {run: line for run, line in lines.items() if len(line) > 1}
        if len(lines) > MOST_LINES:
            lines = {group.name: _mean([_curve(record, name) for record in group.records]) for group in groups}
            lines = {run: line for run, line in list(lines.items())[:MOST_LINES] if len(line) > 1}
        if lines:
            drawn.append((name, figures.lines(lines, "step", name)))
    if drawn:
        report.heading("Over the steps")
    for name, picture in drawn[:MOST_CURVES]:
        report.picture(picture, name, half=True)


def _curve(record: Record, name: str) -> dict[float, float]:
    return {float(row["step"]): float(row[name]) for row in record.curves if row.get(name) and row.get("step")}


def _mean(lines: Sequence[Mapping[float, float]]) -> dict[float, float]:
    steps = sorted({step for line in lines for step in line})
    return {step: sum(found) / len(found) for step in steps if (found := [line[step] for line in lines if step in line])}


def _pictures(report: Report, records: Sequence[Record]) -> None:
    found: list[tuple[Record, Path]] = []
    for record in records:
        folder = record.folder / "media" if record.folder is not None else None
        made = sorted(folder.glob("*.png")) if folder is not None and folder.is_dir() else []
        samples = [path for path in made if path.name not in ("scores.png", "roc_pr.png", "curves.png")]
        found += [(record, path) for path in samples[-1:]]
    if found:
        report.heading("Pictures")
    if len(found) > MOST_PICTURES:
        report.text(f"Of the first {MOST_PICTURES} of {len(found)} runs that have any.")
    for record, path in found[:MOST_PICTURES]:
        report.picture(path, f"{record.name}: {path.name}", half=True, enlarge=True)


def markdown(rows: Rows) -> str:
    """A table of GitHub's Markdown."""
    columns = _columns(rows)
    lines = [columns, ["---"] * len(columns), *([formatted(row.get(name)) for name in columns] for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def latex(rows: Rows) -> str:
    """A tabular with the rules of booktabs, everything escaped."""
    columns = _columns(rows)
    numbers = [all(isinstance(row.get(name), int | float) or row.get(name) is None for row in rows) for name in columns]
    body = [" & ".join(_tex(formatted(row.get(name))) for name in columns) + r" \\" for row in rows]
    head = [r"\begin{tabular}{" + "".join("r" if number else "l" for number in numbers) + "}", r"\toprule"]
    return "\n".join([*head, " & ".join(map(_tex, columns)) + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _tex(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in text).replace("±", r"$\pm$").replace("–", "--")


def write_text(path: Path, text: str) -> None:
    """Writes a table beside its place and renames it."""
    write_bytes(path, text.encode("utf-8", "replace"))

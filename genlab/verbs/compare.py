"""``genlab compare runs/ [--metric test/ap] [--group-by seed] [--baseline RUN] [--wandb entity/project]``: runs side by side."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError
from genlab.nearest import did_you_mean

if TYPE_CHECKING:
    from genlab.comparison.records import Record
    from genlab.comparison.statistics import Group

HELP = "A table in the terminal and one HTML page: runs, means over seeds, paired tests, curves, settings that differ, pictures."


def main(args: list[str]) -> int:
    """Compares.

    Raises:
        UserError: No such run, metric or baseline; nothing to compare.
    """
    parser = argparse.ArgumentParser("python -m genlab compare", description=HELP, allow_abbrev=False)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders, or folders of runs (default: runs)")
    parser.add_argument("--metric", nargs="+", default=[], help="which, such as test/ap (default: those over everything)")
    parser.add_argument("--group-by", nargs="+", default=["seed"], metavar="KEY", help="settings that runs of a group may differ in")
    parser.add_argument("--baseline", metavar="RUN", help="run folder, group or experiment that the others are tested against")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="runs of this project too")
    parser.add_argument("--html", type=Path, help="page (default: compare.html in the first folder)")
    for kind in ("csv", "markdown", "latex"):
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"the table as {kind}")
    given = parser.parse_args(args)
    for kind in ("html", "csv", "markdown", "latex"):
        path = getattr(given, kind)
        if path is not None and (path.is_symlink() or (path.exists() and not path.is_file())):
            raise UserError(f"--{kind}: {path} is there and no plain file, and would be replaced. Name another one.")
    folders = given.runs or ([] if given.wandb else [Path("runs")])

    from genlab.comparison.page import latex, markdown, write_page, write_text
    from genlab.comparison.records import main_metrics, protocol_warnings, read_runs
    from genlab.comparison.statistics import grouped
    from genlab.comparison.wandb_runs import merged, read_project
    from genlab.files import write_csv
    from genlab.reports import console_table

    records = merged(read_runs(folders), read_project(given.wandb) if given.wandb else [])
    if not records:
        raise UserError("compare: there are no runs.")
    known = dict.fromkeys(name for record in records for name in record.metrics)
    for name in given.metric:
        if name not in known:
            raise UserError(f"--metric: no run has {name!r}{did_you_mean(name, known)} There are {', '.join(list(known)[:20])}.")
    metrics = given.metric or main_metrics(records)
    groups = grouped(records, given.group_by)
    baseline = _baseline(given.baseline, groups) if given.baseline else None
    warnings = protocol_warnings(records, metrics)
    tables = {"Runs": run_rows(records, metrics), "Groups": group_rows(groups, metrics)}
    if baseline is not None:
        tables |= compared(groups, baseline, metrics)
    for title, rows in tables.items():
        if rows and (title != "Runs" or len(rows) <= 60):
            print(console_table(rows, title) + "\n")
    for line in warnings[:12]:
        print(f"warning: {line}")
    if len(warnings) > 12:
        print(f"warning: and {len(warnings) - 12} more, see the page.")
    for path, write in ((given.markdown, markdown), (given.latex, latex)):
        if path is not None:
            write_text(path, write(tables["Groups"]))
    if given.csv is not None:
        write_csv(given.csv, tables["Runs"])
    page = given.html or (folders[0] if folders else Path()) / "compare.html"
    print(write_page(page, records, groups, tables, warnings, metrics))
    return 0


def _baseline(name: str, groups: Sequence[Group]) -> Group:
    """The group of that name, of that experiment, or with that run.

    Raises:
        UserError: None, or several.
    """
    path = str(Path(name))
    found = [group for group in groups if name == group.name or any(path in (record.run, record.name) for record in group.records)]
    found = found or [group for group in groups if any(record.experiment == name for record in group.records)]
    options = [group.name for group in groups] + [record.run for group in groups for record in group.records]
    if not found:
        raise UserError(f"--baseline: {name} is no run, group or experiment here{did_you_mean(name, options)} There are {_some(options)}.")
    if len(found) > 1:
        raise UserError(f"--baseline: {name} has several groups: {_some([group.name for group in found])}. Name one.")
    return found[0]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def run_rows(records: Sequence[Record], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """A row per evaluation, its metrics as they are."""
    return [
        {"run": record.run, "evaluation": record.evaluation, "seed": record.seed}
        | {name: record.metrics.get(name) for name in metrics}
        | {name: record.facts.get(name) for name in ("steps", "seconds", "trainable", "state")}
        for record in records
    ]


def group_rows(groups: Sequence[Group], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """A row per group: mean ± deviation over its seeds, and the 95 % interval of the mean."""
    from genlab.comparison.statistics import estimate

    rows: list[dict[str, Any]] = []
    for group in groups:
        row: dict[str, Any] = {"group": group.name, "seeds": len({record.seed for record in group.records})}
        for name in metrics:
            found = estimate(list(group.values(name).values()))
            row[name] = _told(found.mean, found.deviation)
            row[f"{name} 95 %"] = "" if math.isnan(found.low) else f"{found.low:.4g} .. {found.high:.4g}"
        rows.append(row)
    return rows


def _told(mean: float, deviation: float) -> str:
    if math.isnan(mean):
        return "–"
    return f"{mean:.4g}" if math.isnan(deviation) else f"{mean:.4g} ± {deviation:.2g}"


def compared(groups: Sequence[Group], baseline: Group, metrics: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Tables of the differences to a baseline, paired over seeds and over samples of the runs with the same seed."""
    from genlab.comparison.statistics import over_samples, over_seeds

    seeds: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    theirs = {record.seed: record for record in baseline.records}
    for group in groups:
        if group is baseline:
            continue
        seeds += [row for name in metrics if (row := over_seeds(group, baseline, name)) is not None]
        for record in group.records:
            other = theirs.get(record.seed)
            if other is None:
                continue
            found = over_samples(predictions(record), predictions(other))
            samples += [{"run": record.name, "baseline": other.name, **row} for row in found]
    return {f"Less {baseline.name}, paired over seeds": seeds, f"Less {baseline.name}, paired over samples": samples}


def predictions(record: Record) -> list[dict[str, str]]:
    """Rows of ``predictions.csv``; none where there is no such file."""
    from genlab.files import read_csv

    path = record.folder / "predictions.csv" if record.folder is not None else None
    return read_csv(path) if path is not None and path.is_file() else []

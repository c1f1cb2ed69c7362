"""``genlab sweep --methods cpr,coop --datasets dtd,eurosat --shots 1,4,16 --seeds 1,2,3``: methods over a grid, and their table.

Few-shot classifiers of pictures (``--protocol few_shot``, ``base_to_new``) or of actions (``few_shot``, ``base_to_novel``).

Every cell is a fit and a test of a shipped experiment, in this process, one after the other. Cells that are done are left out when the
command is given again, a cell that was stopped goes on; so it can be killed anywhere. On a cluster, ``submit --grid`` runs the fits.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from genlab.cli import take_apart
from genlab.config import check, compose, explain, shipped_experiments, shipped_root
from genlab.errors import CONTINUE_ME, UserError
from genlab.files import read_csv, read_json, write_csv, write_json
from genlab.nearest import did_you_mean
from genlab.store import content_key
from genlab.verbs.cells import Cell, Row, run_cells

LABELS = {
    "zero_shot": "CLIP",
    "clip_adapter": "CLIP-Adapter",
    "tip_adapter": "Tip-Adapter",
    "tip_adapter_f": "Tip-Adapter-F",
    "coop": "CoOp",
    "cocoop": "CoCoOp",
    "cpr": "CPR",
}
ACTIONS = {
    "video_zero_shot": "zero-shot",
    "video_fine_tuning": "full fine-tuning",
    "vifi_clip": "ViFi-CLIP",
    "video_lora": "LoRA",
    "adaptformer": "AdaptFormer",
    "msta_without_cc": "MSTA without L_CC",
    "msta": "MSTA",
}
NAMES = LABELS | ACTIONS
NNR = "CPR + NNR"
PROTOCOLS = ("few_shot", "base_to_new", "base_to_novel")
PUBLISHED = {"few_shot": "few_shot_rn50", "base_to_new": "base_to_new_vit_b16", "base_to_novel": "base_to_novel_vit_b16"}
HELP = "Methods over datasets, shots and seeds; goes on where it was. Other options are those of genlab fit: -c FILE, --KEY VALUE."


def main(args: list[str]) -> int:
    """Runs what is missing, and writes ``results.csv``, ``results.json`` and ``report.html`` into the sweep's folder.

    Raises:
        UserError: Unknown methods or options, or a cell that cannot run.
    """
    parser = argparse.ArgumentParser("python -m genlab sweep", description=HELP, allow_abbrev=False)
    parser.add_argument("--methods", required=True, metavar="M1,M2", help=", ".join(NAMES))
    parser.add_argument("--datasets", required=True, metavar="D1,D2", help="names as of --data.dataset")
    parser.add_argument("--shots", default="16", metavar="K1,K2", help="training samples per class (default 16)")
    parser.add_argument("--seeds", default="1,2,3", metavar="S1,S2", help="default 1,2,3")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="few_shot", help="default few_shot")
    parser.add_argument("--experiments", default="", metavar="FOLDER", help="of experiments/ that the methods are taken from, such as tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"), help="folder of the sweep (default runs/sweep)")
    own, rest = parser.parse_known_args(args)
    given = take_apart(rest)
    if given.positionals:
        raise UserError(f"sweep: {given.positionals[0]!r} stands alone; values are given as --key value.")
    more = [word for file in given.configs for word in ("-c", file)], [f"--{key}={value}" for key, value in given.overrides]
    rows, stopped = run_cells(list(_cells(own, given.configs, given.overrides, *more)), own.out, "sweep")
    if rows:
        print(report(rows, own.protocol, own.out))
    return CONTINUE_ME if stopped else 0


def _numbers(text: str, option: str) -> list[int]:
    if wrong := [each for each in text.split(",") if not each.strip().isdigit()]:
        raise UserError(f"sweep: --{option}: {wrong[0]!r} is no number; write --{option} 1,4,16.")
    return [int(each) for each in text.split(",")]


def _experiment(method: str, folder: str) -> str:
    """Name of the shipped experiment of a method."""
    there = {name.removesuffix(".yaml") for name in shipped_experiments()}
    for name in [f"{folder}/{method}"] if folder else [method, f"baselines/{method}"]:
        if method in NAMES and name in there:
            return name
    raise UserError(f"sweep: --methods: there is no {method!r}{did_you_mean(method, NAMES) or '.'} There are {', '.join(NAMES)}.")


def _cells(
    own: argparse.Namespace, configs: Sequence[str], overrides: Sequence[tuple[str, str]], files: list[str], options: list[str]
) -> Iterator[Cell]:
    methods, datasets = own.methods.split(","), own.datasets.split(",")
    if own.protocol == "base_to_new" and (stay := [name for name in methods if name.startswith("tip_")]):
        raise UserError(f"sweep: {', '.join(stay)} cannot move to new classes: leave them out of --protocol base_to_new.")
    if len({name in ACTIONS for name in methods if name in NAMES}) > 1:
        raise UserError("sweep: --methods: some classify pictures and some actions; sweep them apart.")
    actions = methods[0] in ACTIONS
    if own.protocol == ("base_to_new" if actions else "base_to_novel"):
        right = "base_to_novel" if actions else "base_to_new"
        raise UserError(f"sweep: --protocol {own.protocol} is not for {methods[0]}; use {right}.")
    for method in methods:
        experiment = _experiment(method, own.experiments)
        for dataset, shots, seed in itertools.product(datasets, _numbers(own.shots, "shots"), _numbers(own.seeds, "seeds")):
            name = f"{dataset}-{own.protocol}-{shots}shots-seed{seed}"
            settings = [
                ("data.dataset", dataset),
                ("data.shots", str(shots)),
                ("data.protocol", own.protocol),
                ("seed_everything", str(seed)),
                *([("data.split", str(seed))] if actions else []),  # the published draws are numbered
            ]
            composed = compose([experiment, *configs], [*settings, *overrides])
            if problems := check(composed, "fit"):
                raise UserError(explain(problems))
            settings += [("run.root", str(own.out / "runs")), ("run.experiment", method)]
            key = content_key(composed.yaml)
            settings += [("run.name", f"{name}-{key[:8]}")]
            module, _, made = str(composed.get("model.class_path")).rpartition(".")
            words = ["-c", experiment, *files, *(f"--{k}={v}" for k, v in settings), *options]
            trained = bool(getattr(importlib.import_module(module), made).needs_checkpoint)
            evaluation = f"test-{dataset}" if own.protocol == "few_shot" and not actions else f"test-{dataset}-{own.protocol}"
            last = ["--ckpt_path=last"] if trained else []
            commands = [*([["fit", *words, *last]] if trained else []), ["test", *words, *last]]
            facts: Row = {"method": method, "dataset": dataset, "shots": shots, "seed": seed}
            run = own.out / "runs" / method / f"{name}-{key[:8]}"
            yield Cell(f"{method} {name}", key, commands, partial(_row, facts, run, evaluation))


def _row(facts: Row, run: Path, evaluation: str) -> Row:
    results = read_json(run / evaluation / "results.json")
    metrics = {name.removeprefix("test/"): value for name, value in results["metrics"].items() if name.startswith("test/")}
    protocol = results["protocol"]
    flags = [*protocol.get("leaks", []), *(["labelled new classes"] if protocol.get("new_prototypes") == "fewshot" else [])]
    row = {**facts, **metrics}
    row |= {"flags": "; ".join(flags), "tiny_world": protocol.get("tiny_world", False), "n": results["counts"]["n_scored"]}
    return row | {"run": str(run), "evaluation": evaluation, "trainable_parameters": results["trainable_parameters"]}


# ---- tables


def labelled(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Rows with the method's label and these metrics in percent; CPR's rectified answers are a method of their own."""
    found: list[Row] = []
    for row in rows:
        label = NAMES[row["method"]] + (" *" if row["flags"] else "")
        same = {name: row[name] for name in ("dataset", "shots", "seed")}
        found.append({"method": label, **same, **{key: 100 * row[key] for key in keys}})
        nnr = {key: f"{key}_nnr" for key in keys}
        if all(name in row for name in nnr.values()):
            found.append({"method": label.replace("CPR", NNR), **same, **{key: 100 * row[name] for key, name in nnr.items()}})
    return found


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def few_shot_table(rows: Sequence[Row], published: Mapping[str, Any] | None) -> list[Row]:
    """A row per dataset and method, a column per number of shots; below, the average over the datasets."""
    shots = sorted({row["shots"] for row in rows})
    datasets, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("dataset", "method"))
    table: list[Row] = []
    for dataset, method in itertools.product([*datasets, *(["average"] if len(datasets) > 1 else [])], methods):
        line: Row = {"dataset": dataset, "method": method}
        for count in shots:
            own = [row for row in rows if row["method"] == method and row["shots"] == count and dataset in (row["dataset"], "average")]
            by_seed = [statistics.mean(row["acc"] for row in own if row["seed"] == seed) for seed in sorted({row["seed"] for row in own})]
            line[f"{count} shots"] = spread(by_seed) if by_seed else None
            known = ((published or {}).get("accuracy", {}).get(dataset, {})).get(method)
            if known is not None and count in (published or {})["shots"]:
                line[f"{count}, published"] = known[(published or {})["shots"].index(count)]
        table.append(line)
    return table


def base_to_new_table(rows: Sequence[Row], published: Mapping[str, Any] | None, other: str = "new") -> list[Row]:
    """Base, new and H per dataset and method; the average's H is that of the mean accuracies, beside the mean of the H.

    Args:
        other: What the classes that were not trained on are called. Papers on actions (``novel``) print the H of the means over seeds.
    """
    from genlab.metrics.few_shot import average_over_datasets

    table: list[Row] = []
    datasets, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("dataset", "method"))
    for method in methods:
        means: list[dict[str, float]] = []
        for dataset in datasets:
            own = [row for row in rows if (row["method"], row["dataset"]) == (method, dataset)]
            if not own:
                continue
            line = {name: statistics.mean(row[key] for row in own) for name, key in (("base", "base/acc"), ("new", f"{other}/acc"))}
            means.append(line)
            found: Row = {"dataset": dataset, "method": method, **{name: round(value, 2) for name, value in line.items()}}
            found["H"] = spread([row["harmonic_mean"] for row in own])
            if other == "novel":
                found["H of means"] = round(average_over_datasets([line])["harmonic_of_means"], 2)
                found = {{"new": "novel"}.get(key, key): value for key, value in found.items()}
            if known := (published or {}).get("accuracy", {}).get(dataset, {}).get(method):
                found["published"] = " / ".join(map(str, known))
            table.append(found)
        if len(means) > 1:
            whole = average_over_datasets(means)
            average: Row = {"dataset": "average", "method": method, "base": round(whole["base"], 2), "new": round(whole["new"], 2)}
            average |= {"H": f"{whole['harmonic_of_means']:.2f}", "mean of H": round(whole["mean_of_harmonics"], 2)}
            if other == "novel":
                average = {{"new": "novel"}.get(key, key): value for key, value in average.items()}
            if known := (published or {}).get("accuracy", {}).get("average", {}).get(method):
                average["published"] = " / ".join(map(str, known))
            table.append(average)
    return table


def differences(rows: Sequence[Row], key: str, first: str) -> list[Row]:
    """How much better ``first`` is than every other method on the same dataset, shots and seed: mean and 95 % interval in points."""
    from scipy.stats import t

    table: list[Row] = []
    by_place = {(row["method"], row["shots"], row["dataset"], row["seed"]): row[key] for row in rows}
    methods = dict.fromkeys(row["method"] for row in rows)
    for other, shots in itertools.product((name for name in methods if name != first), sorted({row["shots"] for row in rows})):
        pairs = [
            by_place[first, shots, dataset, seed] - value
            for (method, count, dataset, seed), value in by_place.items()
            if method == other and count == shots and (first, shots, dataset, seed) in by_place
        ]
        if not pairs:
            continue
        half = float(t.ppf(0.975, len(pairs) - 1)) * statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
        mean = statistics.mean(pairs)
        line: Row = {"difference": f"{first} - {other}", "shots": shots, "pairs": len(pairs), "mean": round(mean, 2)}
        table.append(line | {"low": round(mean - half, 2), "high": round(mean + half, 2)})
    return table


def report(rows: Sequence[Row], protocol: str, out: Path) -> str:
    """Writes the sweep's files and returns what is printed."""
    from genlab import figures
    from genlab.reports import Report, console_table

    tiny = all(row["tiny_world"] for row in rows)
    table_file = shipped_root() / "experiments" / "tables" / f"{PUBLISHED[protocol]}.json"
    published = None if tiny else json.loads(table_file.read_text())  # never beside numbers of the tiny world
    other = "novel" if protocol == "base_to_novel" else "new"
    keys = ["acc"] if protocol == "few_shot" else ["base/acc", f"{other}/acc", "harmonic_mean"]
    if protocol == "few_shot" and rows[0]["method"] in ACTIONS:
        published = None  # that table is of pictures
    lines = labelled(rows, keys)
    table = few_shot_table(lines, published) if protocol == "few_shot" else base_to_new_table(lines, published, other)
    first = next((name for name in (NNR, "CPR", "MSTA") if any(line["method"] == name for line in lines)), lines[0]["method"])
    compared = [line for name in dict.fromkeys(("CPR", first)) for line in differences(lines, keys[-1], name)]
    if other == "novel":
        compared += [line | {"difference": f"{line['difference']}, novel"} for line in differences(lines, keys[1], first)]
    write_csv(out / "results.csv", rows, ("method", "dataset", "shots", "seed"))
    write_json(
        out / "results.json", {"protocol": protocol, "tiny_world": tiny, "rows": list(rows), "table": table, "differences": compared}
    )
    title = f"{'Action' if rows[0]['method'] in ACTIONS else 'Few-shot'} classification, {protocol.replace('_', '-')}" + (
        " (tiny world)" if tiny else ""
    )
    page = Report(title)
    if tiny:
        page.text("Measured on the procedural tiny world: these numbers say that the methods work here, not how they do on real data.")
    page.table(table, caption="Accuracy in percent, mean and standard deviation over seeds")
    notes = [f"Published: {published['source']}. {published['protocol']}."] if published else []
    notes += ["* : labels of the tested pictures were used; not comparable."] if any(row["flags"] for row in rows) else []
    for note in notes:
        page.text(note)
    if compared:
        page.table(compared, caption="Paired differences in points, 95 % interval over datasets and seeds")
    if protocol == "few_shot":
        if len({line["shots"] for line in lines}) > 1:
            page.picture(figures.accuracy_over_shots(lines, out / "shots.png"), "Accuracy over shots")
    else:
        means = [
            {"method": name}
            | {short: statistics.mean(li[key] for li in lines if li["method"] == name) for short, key in zip(("base", "new", "H"), keys)}
            for name in dict.fromkeys(line["method"] for line in lines)
        ]
        page.picture(figures.bars(means, out / "base_to_new.png"), "Base, new and harmonic mean, over datasets and seeds")
    if chances := _chances(rows):
        page.picture(figures.reliability(chances, out / "reliability.png"), "How often the answer is right, by how sure the method is")
    page.write(out / "report.html")
    printed = console_table(table, title) + "".join(f"\n{note}" for note in notes)
    return printed + (f"\n\n{console_table(compared, 'Paired differences, points')}" if compared else "") + f"\n{out / 'report.html'}"


def _chances(rows: Sequence[Row]) -> dict[str, tuple[list[float], list[bool]]]:
    """Method -> how sure it was of each answer with the most shots, and whether it was right."""
    most, found = max(row["shots"] for row in rows), dict[str, tuple[list[float], list[bool]]]()
    for row in rows:
        file = Path(row["run"]) / row["evaluation"] / "predictions.csv"
        if row["shots"] != most or not file.is_file():
            continue
        sure, right = found.setdefault(NAMES[row["method"]], ([], []))
        for line in read_csv(file):
            if line["status"] == "ok":
                sure.append(float(line["score"]))
                right.append(line["called"] == line["label"])
    return found

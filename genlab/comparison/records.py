"""What a run folder, or a run on W&B, says of itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from genlab.errors import MissingPath, UserError
from genlab.files import read_csv, read_json

SEEDS = ("seed_everything", "model.seed", "data.seed")
PLACES = ("run.", "trainer.callbacks", "trainer.logger", "trainer.default_root_dir", "trainer.devices", "trainer.num_nodes", "ckpt_path")


@dataclass(frozen=True)
class Record:
    """An evaluation of a run, or a run that was only trained.

    Args:
        run: Its name: the path of the run folder.
        evaluation: ``test-genvideo`` and its like; "" for what training left.
        experiment: As in ``results.json``.
        seed: ``seed_everything``.
        metrics: By name, with the stage: ``test/ap``, ``val/ap``.
        protocol: What must agree for numbers to be comparable.
        config: Settings by dotted key.
        facts: Steps, seconds, parameters, version, state.
        counts: ``n_expected`` and ``n_scored`` of the predictions.
        data: Hash of each split.
        folder: Of the evaluation, ``None`` for what is only on W&B.
        curves: Rows of ``metrics.csv`` of the run.
        wandb: Its id there.
    """

    run: str
    evaluation: str = ""
    experiment: str = ""
    seed: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    curves: Sequence[Mapping[str, str]] = ()
    wandb: str | None = None

    @property
    def name(self) -> str:
        """Run and evaluation."""
        return f"{self.run} {self.evaluation}".strip()

    def settings(self, without: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """What tells this run from others: its configuration without places and without keys that are named."""
        left = {
            key: json.dumps(value, sort_keys=True, default=str)
            for key, value in self.config.items()
            if key not in without and not key.startswith(PLACES)
        }
        return (("experiment", self.experiment), ("evaluation", self.evaluation), *sorted(left.items()))


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys, as they are written on the command line: without ``init_args``; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, prefix if key == "init_args" else f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_runs(folders: Sequence[Path]) -> list[Record]:
    """All runs at or below folders that have left results, by name.

    Raises:
        MissingPath: No such folder, or none in it has results.
        UserError: A file of a run that cannot be read.
    """
    records: dict[Path, Record] = {}
    for folder in folders:
        if not folder.is_dir():
            raise MissingPath(f"compare: {folder} is no folder. Name run folders, or a folder of runs such as runs/demamba.")
        found = {each.folder: each for each in _runs_below(folder) if each.folder is not None}
        if not found:
            raise MissingPath(f"compare: no run in {folder} has left a results.json. Train or evaluate one first.")
        records |= found
    return [records[path] for path in sorted(records)]


def _runs_below(folder: Path) -> Iterator[Record]:
    runs = {path.parent for path in folder.rglob("run.json")}
    outer = sorted(path for path in runs if not any(parent in runs for parent in path.parents))
    for path in outer:
        own = folder if path == folder and path.parent.joinpath("run.json").is_file() else path
        trained = _record(path, path) if (path / "results.json").is_file() else None
        evaluated = [each for each in sorted(runs) if each.parent == own and not each.name.startswith("predict")]
        inner = [_record(path, each) for each in evaluated if (each / "results.json").is_file()]
        if inner:  # training's own row would repeat the validation of each
            fit = trained.metrics if trained else {}
            curves = trained.curves if trained else ()
            yield from (replace(each, metrics={**_validated(fit), **each.metrics}, curves=curves) for each in inner)
        elif trained is not None:
            yield trained


def _validated(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("val/")}


def _record(run: Path, folder: Path) -> Record:
    results, record, config = _read(folder / "results.json"), _read(folder / "run.json"), folder / "config.yaml"
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
        logged = read_csv(folder / "metrics.csv") if (folder / "metrics.csv").is_file() else []
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"compare: {folder}: {str(error).splitlines()[0]}. Mend or move this run.") from None
    trained = _read(run / "results.json") if run != folder and (run / "results.json").is_file() else results
    above = _read(run / "run.json") if run != folder else record
    return Record(
        run=str(run),
        evaluation="" if run == folder else folder.name,
        experiment=str(results.get("experiment", "")),
        seed=results.get("seed"),
        metrics={name: float(value) for name, value in results.get("metrics", {}).items()},
        protocol=results.get("protocol") or {},
        config=flattened(settings or {}),
        facts={
            "state": record.get("state", ""),
            "steps": trained.get("steps"),
            "seconds": trained.get("wall_seconds"),
            "trainable": trained.get("trainable_parameters"),
            "git": results.get("git", ""),
        },
        counts=results.get("counts") or {},
        data=results.get("data_fingerprint") or {},
        folder=folder,
        curves=logged,
        wandb=(above.get("wandb") or {}).get("id"),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"compare: {path}: {error}. Mend or move this run.") from None


def main_metrics(records: Sequence[Record], most: int = 8) -> list[str]:
    """What to show where nobody says: metrics over everything, of the latest stage that any run has; no counts."""
    names = dict.fromkeys(name for record in records for name in record.metrics)
    whole = [name for name in names if name.count("/") == 1 and not name.split("/")[1].startswith("n_") and name.split("/")[1] != "n"]
    for stage in ("test/", "val/", "train/"):
        found = sorted(name for name in whole if name.startswith(stage) and "unreadable" not in name)
        if found:
            return found[:most]
    return []


def protocol_warnings(records: Sequence[Record], metrics: Sequence[str]) -> list[str]:
    """Why numbers must not be compared: a sentence for each switch, and for data, in which runs that share a metric differ.

    What a run does not record, because its method has no such switch, is no difference.
    """
    said: list[str] = []
    shared = [record for record in records if any(name in record.metrics for name in metrics)]
    switches = dict.fromkeys(key for record in shared for key in record.protocol)
    for key in switches:
        said += _differing(f"protocol {key}", [(record.name, record.protocol[key]) for record in shared if key in record.protocol])
    for split in dict.fromkeys(name.split("/")[0] for name in metrics):
        said += _differing(f"{split} data", [(record.name, record.data[split]) for record in shared if split in record.data])
    for record in shared:
        expected, scored = record.counts.get("n_expected", 0), record.counts.get("n_scored", 0)
        if scored < expected:
            said.append(f"{record.name}: only {scored} of {expected} samples were scored.")
    return said


def _differing(what: str, values: Sequence[tuple[str, Any]]) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for name, value in values:
        kinds.setdefault(json.dumps(value, sort_keys=True, default=str), []).append(name)
    if len(kinds) < 2:
        return []
    told = [f"{value} ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})" for value, names in kinds.items()]
    return [f"{what} differs: {', '.join(told[:4])}{f' and {len(told) - 4} other values' if len(told) > 4 else ''}"]


def config_differences(records: Sequence[Record]) -> list[dict[str, str]]:
    """A row per setting that is not the same in all runs, a column per run."""
    keys = sorted({key for record in records for key in record.config if not key.startswith(PLACES)})
    rows: list[dict[str, str]] = []
    for key in keys:
        values = [json.dumps(record.config[key], default=str) if key in record.config else "" for record in records]
        if len(set(values)) > 1:
            rows.append({"setting": key, **{record.name: value for record, value in zip(records, values)}})
    return rows


def finite(value: float | None) -> bool:
    """Whether there is a number."""
    return value is not None and math.isfinite(value)

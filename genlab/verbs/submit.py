"""``genlab submit -c ... --nodes 2 --gpus-per-node 8 --time 24:00:00``: a fit as a SLURM job, or as an array over seeds and a grid.

It checks configuration, data, weights and folders here, where a mistake costs seconds, fills in ``slurm/ddp.sbatch``, and hands it to
sbatch. The job folder ``runs/<experiment>/jobs/<name>/`` keeps the configuration as it was submitted, the script and the logs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.cli import Arguments, find_checkpoint, is_finished, prepare, take_apart
from genlab.config import Composed, check, compose, explain, interpolate, shipped_root
from genlab.errors import UserError
from genlab.files import write_bytes, write_json
from genlab.results import RunFolder
from genlab.strategies import refusal

TEMPLATE = "slurm/ddp.sbatch"
BEGIN, END = "# what to run: begin\n", "# what to run: end\n"
PASSED_ON = ("partition", "account", "qos", "constraint", "mem", "reservation", "exclude", "dependency", "mail-type", "mail-user")
HELP = "Checks a fit here, and runs it on a SLURM cluster. All other options are those of genlab fit: -c FILE, --KEY VALUE."
Setting = tuple[str, str]


@dataclass(frozen=True)
class Cell:
    """One run of a submission.

    Args:
        settings: What it overrides, key and value as typed.
        composed: Its whole configuration.
        run: Its run folder.
    """

    settings: list[Setting]
    composed: Composed
    run: RunFolder


def main(args: list[str]) -> int:
    """Checks, fills the template, submits.

    Raises:
        UserError: Whatever would make the job fail, as far as it can be told here.
    """
    parser = _parser()
    own, rest = parser.parse_known_args(args)
    given = take_apart(rest)
    if not given.configs or given.positionals:
        wrong = f" {' '.join(given.positionals)!r} stands alone." if given.positionals else ""
        raise UserError(f"submit: give configurations with -c, such as -c experiments/demamba.yaml.{wrong}")
    for name, least in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_task", 1), ("warn_seconds", 1)):
        if (value := getattr(own, name)) < least:
            raise UserError(f"submit: --{name.replace('_', '-')} {value} is too few; use {least} or more.")
    given = _for_the_cluster(given, own)
    cells = [*_cells(given, own)]
    problems = dict.fromkeys(problem for cell in cells for problem in check(cell.composed, "fit"))
    if problems:
        raise UserError(explain([*problems]))
    if reason := next((reason for cell in cells if (reason := refusal(cell.composed))), None):
        raise UserError(reason)
    due = [cell for cell in cells if not _is_done(cell)]
    for cell in cells:
        print(f"{cell.run.path}{'' if cell in due else ': finished already, left out'}")
    if not due:
        print("nothing to submit.")
        return 0
    _check_folders(due)
    if not own.skip_check:
        _check_parts(due)

    first = prepare(given)
    folder = Path(first.settings.root) / str(first.settings.experiment) / "jobs" / _job_folder_name(own)
    script = fill((shipped_root() / TEMPLATE).read_text(), _options(own, folder.resolve(), due), _what_to_run(folder, due))
    print(f"\n{script}")
    if own.dry_run:
        return _test_only(script)
    sbatch = _sbatch()
    # Not first.composed, which knows the folder of one run already.
    write_bytes(folder / "config.yaml", compose(given.configs, given.overrides).yaml.encode())
    write_bytes(folder / "job.sbatch", script.encode())
    asked = subprocess.run([sbatch, "--parsable", str(folder / "job.sbatch")], capture_output=True, text=True)
    if asked.returncode:
        shutil.rmtree(folder)
        raise UserError(f"submit: sbatch refuses the job: {asked.stderr.strip()}")
    job = asked.stdout.strip().split(";")[0]
    write_json(folder / "job.json", {"job": job, "submitted": time.time(), "runs": [str(cell.run.path.resolve()) for cell in due]})
    print(f"job {job}, logs in {folder}\nLook after it with: python -m genlab status {due[0].run.path.parent}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m genlab submit", description=HELP, allow_abbrev=False)
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of a run (default 1)")
    parser.add_argument("--gpus-per-node", type=int, default=1, metavar="G", help="GPUs on each; 0: on the CPU, one process (default 1)")
    parser.add_argument("--cpus-per-task", type=int, default=8, metavar="C", help="cores per process, for its data workers (default 8)")
    parser.add_argument("--time", default="24:00:00", metavar="T", help="limit; a run that needs longer continues (default 24:00:00)")
    parser.add_argument(
        "--warn-seconds", type=int, default=300, metavar="S", help="how long before the limit a run saves and stops (default 300)"
    )
    parser.add_argument("--seeds", default="", metavar="S1,S2", help="a run per seed")
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=V1,V2", help="a run per value; several: per combination")
    parser.add_argument("--at-once", type=int, default=0, metavar="N", help="of an array, run no more than N at a time")
    parser.add_argument("--job-name", default="", metavar="NAME", help="default: the experiment")
    for name in PASSED_ON:
        parser.add_argument(f"--{name}", metavar="X", help="as of sbatch")
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION=VALUE", help="any other option of sbatch, without dashes")
    parser.add_argument("--skip-check", action="store_true", help="do not look at data and weights, which this machine may not see")
    parser.add_argument("--dry-run", action="store_true", help="do all but submit")
    return parser


def _for_the_cluster(given: Arguments, own: argparse.Namespace) -> Arguments:
    """The command line with the Trainer's share of the job: nodes, processes, and a strategy where none is named."""
    configs, overrides = [*given.configs], [*given.overrides]
    composed = compose(configs, overrides)
    several = own.nodes > 1 or own.gpus_per_node > 1
    if several and composed.get("trainer.strategy") is None:
        configs.insert(1, "trainer/ddp")
    if own.gpus_per_node == 0:
        configs.append("trainer/cpu")
    experiment = prepare(Arguments(configs, overrides)).settings.experiment
    overrides += [("run.experiment", str(experiment))]  # the name of the file that is submitted says nothing
    overrides += [("trainer.num_nodes", str(own.nodes)), ("trainer.devices", str(max(1, own.gpus_per_node)))]
    return Arguments(configs, overrides)


def _cells(given: Arguments, own: argparse.Namespace) -> Iterator[Cell]:
    """One cell per seed and combination of the grid, in order."""
    axes: list[list[Setting]] = []
    if own.seeds:
        seeds = [seed.strip() for seed in own.seeds.split(",")]
        if wrong := [seed for seed in seeds if not seed.isdigit()]:
            raise UserError(f"submit: --seeds: {wrong[0]!r} is no seed; write --seeds 1,2,3.")
        axes.append([("seed_everything", seed) for seed in seeds])
    for entry in own.grid:
        key, equals, values = entry.partition("=")
        if not equals or not values:
            raise UserError(f"submit: --grid {entry}: write KEY=VALUE1,VALUE2, such as model.lr=1e-5,1e-6.")
        axes.append([(key.removeprefix("--"), value) for value in split_values(values)])
    names: set[str] = set()
    for settings in map(list, itertools.product(*axes)):
        plain = prepare(Arguments(given.configs, [*given.overrides, *settings]))
        if len(own.grid) or (own.seeds and plain.composed.get("run.name")):
            named = [(key, value) for key, value in settings if key != "seed_everything"]
            prefix = [str(plain.composed.get("run.name") or "")] if plain.composed.get("run.name") else []
            seed = [f"seed{interpolate(plain.composed.get('seed_everything', 0), plain.composed)}"]
            parts = [*prefix, *(seed if own.seeds or not prefix else []), *(f"{_short(key, own.grid)}={value}" for key, value in named)]
            settings.append(("run.name", re.sub(r"[^\w.+=-]", "_", "-".join(parts))))
        cell = prepare(Arguments(given.configs, [*given.overrides, *settings]))
        if cell.settings.name in names:
            raise UserError(f"submit: two runs would share the folder {cell.run.path}; a value of --seeds or --grid is given twice.")
        names.add(str(cell.settings.name))
        yield Cell(settings, cell.composed, cell.run)


def split_values(text: str) -> list[str]:
    """``1e-5,[1,2],{a: b, c: d}`` at the commas outside brackets and quotes."""
    return [found[0] for found in re.finditer(r"(?:\[[^\]]*\]|\{[^}]*\}|\"[^\"]*\"|'[^']*'|[^,\[{\"'])+", text)]


def _short(key: str, grid: Sequence[str]) -> str:
    """The last part of a dotted key, where that tells it from the others."""
    last = key.rsplit(".", 1)[-1]
    return last if sum(entry.partition("=")[0].rsplit(".", 1)[-1] == last for entry in grid) == 1 else key


def _is_done(cell: Cell) -> bool:
    return cell.composed.get("ckpt_path") == "last" and is_finished(cell.run, cell.composed)


def _check_folders(cells: Sequence[Cell]) -> None:
    """Refuses folders in which somebody works, which hold a run that nobody asked to continue, or which cannot be written.

    Raises:
        UserError: As said.
    """
    for cell in cells:
        find_checkpoint("fit", cell.composed, cell.run)
        parent = next(parent for parent in cell.run.path.resolve().parents if parent.exists())
        if not parent.is_dir() or shutil.disk_usage(parent).free < 2**30:
            raise UserError(f"run.root: {parent} is no folder with a GB of free space; choose another with --run.root.")
        try:
            (probe := parent / f".genlab-{time.time_ns()}").touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"run.root: {parent} cannot be written to ({error.strerror}); choose another folder with --run.root."
            ) from error


def _check_parts(cells: Sequence[Cell]) -> None:
    """Builds each different method once, weights included, and looks at each different dataset.

    Raises:
        UserError: Weights that are missing, arguments that do not go together, data that cannot be used.
    """
    from genlab.lightning_cli import build_parts

    seen: set[str] = set()
    for cell in cells:
        sections = [interpolate(cell.composed.get(name), cell.composed, (name,)) for name in ("model", "data")]
        for section in sections:  # another seed is no other data
            (section or {}).get("init_args", {}).pop("seed", None)
        if (key := json.dumps(sections, sort_keys=True, default=str)) in seen:
            continue
        seen.add(key)
        model, data = build_parts(*sections)
        model.configure_model()
        report = data.check("quick") if data is not None and hasattr(data, "check") else None
        if report is not None and report.errors:
            raise UserError("\n".join(report.errors))
        for line in report.warnings if report is not None else []:
            print(f"data check: {line}")


def _job_folder_name(own: argparse.Namespace) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', own.job_name)}-{stamp}" if own.job_name else stamp


def _options(own: argparse.Namespace, folder: Path, cells: Sequence[Cell]) -> dict[str, str | None]:
    """Options of sbatch by name; ``None`` takes one out of the template."""
    array = len(cells) > 1
    experiment = str(cells[0].composed.get("run.experiment"))
    options: dict[str, str | None] = {
        "job-name": own.job_name or f"genlab-{experiment.replace('/', '-')}",
        "nodes": str(own.nodes),
        "ntasks-per-node": str(max(1, own.gpus_per_node)),
        "gpus-per-node": str(own.gpus_per_node) if own.gpus_per_node else None,
        "cpus-per-task": str(own.cpus_per_task),
        "time": own.time,
        "signal": f"USR1@{own.warn_seconds}",
        "chdir": str(Path.cwd()),
        "output": f"{folder}/{'%A_%a' if array else '%j'}.log",
    }
    if array:
        options["array"] = f"0-{len(cells) - 1}" + (f"%{own.at_once}" if own.at_once else "")
    options |= {name: value for name in PASSED_ON if (value := getattr(own, name.replace("-", "_")))}
    for entry in own.sbatch:
        name, _, value = entry.lstrip("-").partition("=")
        options[name] = value
    return options


def _what_to_run(folder: Path, cells: Sequence[Cell]) -> str:
    """Lines of bash that set ``arguments``; of an array, each task's own."""

    def words(cell: Cell) -> str:
        return " ".join(shlex.quote(f"--{key}={value}") for key, value in cell.settings)

    config = f"arguments=(-c {shlex.quote(str(folder.resolve() / 'config.yaml'))})\n"
    if len(cells) == 1:
        return config + (f"arguments+=({words(cells[0])})\n" if cells[0].settings else "")
    cases = "".join(f"  {number}) arguments+=({words(cell)}) ;;\n" for number, cell in enumerate(cells))
    return f"{config}case $SLURM_ARRAY_TASK_ID in\n{cases}esac\n"


def fill(template: str, options: Mapping[str, str | None], what_to_run: str) -> str:
    """The template with these options of sbatch, this Python, and these arguments.

    Args:
        template: A script with ``#SBATCH --NAME=VALUE`` lines and a part between ``BEGIN`` and ``END``.
        options: By name; those that the template lacks are added, ``None`` removes.
        what_to_run: Goes between ``BEGIN`` and ``END``.
    """
    lines, left = [], dict(options)
    header = re.compile(r"#SBATCH --([\w-]+)(?:=.*)?$")
    text = template.splitlines()
    last = max(number for number, line in enumerate(text) if header.match(line))
    for number, line in enumerate(text):
        found = header.match(line)
        if found and found[1] in left:
            value = left.pop(found[1])
            lines += [_directive(found[1], value)] if value is not None else []
        else:
            lines.append(line)
        if number == last:
            lines += [_directive(name, value) for name, value in left.items() if value is not None]
    script = "\n".join(lines) + "\n"
    script = re.sub(r"^python=.*$", lambda _: f"python={shlex.quote(sys.executable)}", script, flags=re.MULTILINE)
    before, _, rest = script.partition(BEGIN)
    return before + BEGIN + what_to_run + END + rest.partition(END)[2]


def _directive(name: str, value: str) -> str:
    quoted = f'"{value}"' if re.search(r"\s", value) else value  # sbatch splits at spaces, and knows double quotes
    return f"#SBATCH --{name}" + (f"={quoted}" if value else "")


def _sbatch() -> str:
    found = shutil.which("sbatch")
    if found is None:
        raise UserError("submit: there is no sbatch on this machine. Submit on the cluster's login node, or look with --dry-run.")
    return found


def _test_only(script: str) -> int:
    """Asks SLURM, where there is one, whether it would take the job.

    Raises:
        UserError: It would not.
    """
    if shutil.which("sbatch") is None:
        print("dry run: nothing was submitted. There is no SLURM here to ask whether it would take the job.")
        return 0
    asked = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True)
    said: Any = (asked.stderr.strip() or asked.stdout.strip()).replace("sbatch: ", "")
    if asked.returncode:
        raise UserError(f"submit: SLURM would not take the job: {said}")
    print(f"dry run: nothing was submitted. SLURM says: {said}")
    return 0

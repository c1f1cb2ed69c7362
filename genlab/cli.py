"""The door: ``python -m genlab VERB``. It imports nothing heavy; what a verb needs is imported when the verb is called.

``fit validate test predict`` are LightningCLI's verbs: their configuration is composed and checked here, before torch is imported, and
then handed to :mod:`genlab.lightning_cli`. Every other verb is a module of :mod:`genlab.verbs` with ``main(arguments) -> exit code``.

Exit codes: 0 done; 1 a bug, or a check that failed; 2 the user can mend it; 3 finished, but samples could not be read; 75 stopped by a
signal, continue me.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from genlab import __version__
from genlab.config import Composed, check, compose, explain, interpolate
from genlab.errors import CONTINUE_ME, INTERRUPTED, USER_ERROR, MissingPath, UserError
from genlab.nearest import did_you_mean
from genlab.results import RunFolder, RunSettings, is_first_process, living_owner
from genlab.strategies import refusal

LIGHTNING_VERBS = {
    "fit": "train; writes runs/<experiment>/<name>/",
    "validate": "evaluate on the validation data",
    "test": "evaluate on the test data",
    "predict": "score your own files: predict -c ... --ckpt_path ... FILE_OR_FOLDER...",
}
OTHER_VERBS = {
    "list": "methods, experiments and datasets",
    "doctor": "what this machine has, and what to do about the rest",
    "data": "make, prepare, check or show a dataset: data make|prepare|check|show NAME --root DIR",
    "weights": "make the tiny models anew, or say how good they are: weights make|show [NAME]",
    "convert": "checkpoints of official code to ours and back, sharded ones into one file: convert demamba FILE --out PATH",
    "submit": "fit on a SLURM cluster, over seeds and grids: submit -c ... --nodes 2 --gpus-per-node 8 --time 24:00:00",
    "mllm": "fake-image detection by MLLMs: mllm dry-run|rescore|calibrate|compare|merge",
    "sweep": "few-shot methods over datasets, shots and seeds, with their table: sweep --methods cpr,coop --datasets dtd,eurosat",
    "subjects": "DreamBooth's benchmark of subjects, with its table: subjects --methods comfusion,dreambooth --root DIR",
    "compare": "runs side by side, with intervals and paired tests: compare runs/ --metric test/ap --baseline RUN",
    "status": "state, step, metric and checkpoint of runs: status [RUN...]",
}
HELP = """usage: python -m genlab VERB [options]

GenLab {version}: train, evaluate and compare methods on generative media and its detection.

{verbs}

  -c FILE        a configuration; several are laid over each other, later ones win
  --KEY VALUE    overrides any value: --model.lr 1e-4 --data.root DIR --trainer.max_epochs 3
  --ckpt_path P  last: continue this run (fit), or its latest state; best: its best; none: the method as configured; or a file
  --debug        show the traceback of an error

  python -m genlab fit -c experiments/tiny/demamba.yaml
  python -m genlab fit -c experiments/tiny/demamba.yaml --help     what it takes, with every argument of the method
"""


@dataclass
class Arguments:
    """A command line taken apart, values as written."""

    configs: list[str] = field(default_factory=list)
    overrides: list[tuple[str, str]] = field(default_factory=list)
    positionals: list[str] = field(default_factory=list)
    asks_help: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    code = _run([a for a in arguments if a != "--debug"], debug)
    if is_first_process() and (file := os.environ.get("GENLAB_EXIT_FILE")):  # a job script wants to know
        Path(file).write_text(str(code))
    return code


def _run(arguments: list[str], debug: bool) -> int:
    """The exit code, whatever happens."""
    _set_up_logging()
    try:
        return _dispatch(arguments)
    except UserError as error:
        if debug:
            traceback.print_exc()
        elif is_first_process():
            print(f"genlab: {_message(error)}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # the reader of a pipe went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("genlab: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception:  # a bug: say all of it
        traceback.print_exc()
        return 1


def _message(error: UserError) -> str:
    """What the error says; one that a loader's worker raised comes wrapped in the worker's traceback."""
    text = str(error)
    return text.rsplit("UserError: ", 1)[1].strip() if "Original Traceback" in text and "UserError: " in text else text


def _set_up_logging() -> None:
    """Our own messages go to stderr as they are, from rank zero."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("genlab", "datamodules", "callbacks"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if is_first_process() else logging.ERROR)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, [*LIGHTNING_VERBS, *OTHER_VERBS]))
        verbs = "\n".join(f"  {name:<{width}}  {line}" for name, line in {**LIGHTNING_VERBS, **OTHER_VERBS}.items())
        print(HELP.format(version=__version__, verbs=verbs))
        return 0
    if arguments[0] in ("--version", "-V"):
        print(__version__)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb in LIGHTNING_VERBS:
        return run_lightning(verb, rest)
    if verb in OTHER_VERBS:
        return importlib.import_module(f"genlab.verbs.{verb}").main(rest)
    raise UserError(f"there is no verb {verb!r}{did_you_mean(verb, [*LIGHTNING_VERBS, *OTHER_VERBS]) or '.'} Try python -m genlab --help.")


def take_apart(arguments: Sequence[str]) -> Arguments:
    """Splits a command line into configs, overrides and positionals.

    Raises:
        UserError: An option without its value.
    """
    found, rest = Arguments(), list(arguments)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            found.asks_help = True
            continue
        if not word.startswith("-") or word == "-":
            found.positionals.append(word)
            continue
        if word == "--":
            found.positionals += rest
            break
        key, equals, value = word.partition("=")
        if not equals:
            if not rest:
                raise UserError(f"command line: {word} needs a value.")
            value = rest.pop(0)
        if key in ("-c", "--config"):
            found.configs.append(value)
        elif key.startswith("--"):
            found.overrides.append((key[2:], value))
        else:
            raise UserError(f"command line: there is no option {key}; a configuration comes after -c, values are --key value.")
    return found


def run_lightning(verb: str, arguments: Sequence[str]) -> int:
    """Composes and checks the configuration, finds the run folder, and hands over to LightningCLI."""
    given = take_apart(arguments)
    if given.asks_help:
        return show_help(verb, given)
    if not given.configs:
        raise UserError(
            f"{verb}: no configuration. Give one with -c, such as -c experiments/tiny/demamba.yaml; python -m genlab list shows them."
        )
    if given.positionals:
        if verb != "predict":
            raise UserError(
                f"{verb}: {' '.join(given.positionals)!r} stands alone; values are given as --key value, configurations as -c FILE."
            )
        given.overrides.append(("data.predict_paths", str(given.positionals)))
    prepared = prepare(given)
    composed, settings, run = prepared.composed, prepared.settings, prepared.run
    if problems := check(composed, verb):
        raise UserError(explain(problems))
    if reason := refusal(composed):
        raise UserError(reason)
    checkpoint = find_checkpoint(verb, composed, run)
    if verb == "fit" and checkpoint == run.last_checkpoint and is_finished(run, composed):
        if is_first_process():
            print(f"{run.path} is finished; nothing to do. Raise trainer.max_epochs to train on, or test it: python -m genlab test ...")
        return 0

    _stop_while_starting()
    from genlab.lightning_cli import run_verb

    return run_verb(verb, composed.yaml, run, settings, checkpoint)


@dataclass(frozen=True)
class Prepared:
    """A command line composed, not yet checked, and where its run lives."""

    composed: Composed
    settings: RunSettings
    run: RunFolder


def prepare(given: Arguments) -> Prepared:
    """Composes the configuration and finds the run folder.

    Raises:
        UserError: Files that are missing or broken, or a run name that leads elsewhere.
    """
    composed = compose(given.configs, given.overrides)
    settings = run_settings(composed, composed.files[0])
    if "default_root_dir" not in (composed.config.get("trainer") or {}):  # configurations refer to it
        folder = Path(settings.root) / str(settings.experiment) / str(settings.name)
        composed = compose(given.configs, [*given.overrides, ("trainer.default_root_dir", str(folder))])
    return Prepared(composed, settings, RunFolder(Path(str(interpolate(composed.config["trainer"]["default_root_dir"], composed)))))


def _stop_while_starting() -> None:
    """USR1 and TERM stop in order from now on. Until the callbacks listen there is nothing to save, and the run just ends."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, _stop_now)


def _stop_now(number: int, _frame: object) -> None:
    raise SystemExit(CONTINUE_ME)


def show_help(verb: str, given: Arguments) -> int:
    """Prints what the verb takes, and what the method and datamodule of the given configurations take."""
    from genlab.help import verb_help

    config = compose(given.configs, given.overrides).config if given.configs else None
    print(verb_help(verb, LIGHTNING_VERBS[verb], config))
    return 0


def run_settings(composed: Composed, first: Path) -> RunSettings:
    """The ``run`` group with nothing left open.

    Raises:
        UserError: A name that would lead out of its folder.
    """
    group = {key: interpolate(value, composed) for key, value in (composed.config.get("run") or {}).items()}
    seed = interpolate(composed.config.get("seed_everything"), composed)
    group["experiment"] = group.get("experiment") or experiment_name(first)
    group["name"] = str(group.get("name") or f"seed{seed if seed is not None else 0}")
    for key in ("experiment", "name"):
        if Path(group[key]).is_absolute() or ".." in Path(group[key]).parts:
            raise UserError(f"run.{key}: {group[key]!r} leads out of run.root; give a plain name.")
    return RunSettings(**group)


def is_finished(run: RunFolder, composed: Composed) -> bool:
    """Whether the run ended by itself, and nobody asks for more than it was asked for then."""
    saved = run.path / "config.yaml"
    if run.record.get("state") != "finished" or not saved.is_file():
        return False
    before = yaml.safe_load(saved.read_text()).get("trainer") or {}
    return all(before.get(key) == composed.get(f"trainer.{key}", before.get(key)) for key in ("max_epochs", "max_steps", "max_time"))


def experiment_name(config: Path) -> str:
    """``tiny/demamba`` for ``.../experiments/tiny/demamba.yaml``; the plain name of a file elsewhere."""
    parts = config.resolve().with_suffix("").parts
    return "/".join(parts[parts.index("experiments") + 1 :]) if "experiments" in parts[:-1] else parts[-1]


def find_checkpoint(verb: str, composed: Composed, run: RunFolder) -> Path | None:
    """The file that ``--ckpt_path`` means.

    ``fit``: ``last`` continues the run, and starts it where there is nothing to continue. Evaluation: ``best`` (default) and
    ``last`` are the run's own, ``none`` is none; without any it is ``None``, and the method says whether it can do without.

    Raises:
        UserError: ``fit`` would start a second time in a run folder.
        MissingPath: The checkpoint is not there.
    """
    name = interpolate(composed.config.get("ckpt_path"), composed)
    record = run.record
    if verb == "fit":
        # Of one SLURM job, the first process may be at work already when the others come here.
        own_job = not is_first_process() and record.get("job") == os.environ.get("SLURM_JOB_ID")
        if not own_job and (owner := living_owner(record)) is not None:
            raise UserError(f"{run.path}: another process is at work in this run folder ({owner}). Wait for it, or use --run.name NAME.")
        if name is None and record and run.has_results and is_first_process():
            state = record.get("state", "unknown")
            raise UserError(
                f"{run.path} already holds a run ({state}). Continue it with --ckpt_path last, or start another with --run.name NAME."
            )
        if name == "last":
            return run.last_checkpoint if run.last_checkpoint.exists() else None
    if name == "none":
        return None
    best = run.checkpoints / str(record.get("best", "best.ckpt"))
    if name is None or name == "best":
        if best.exists():
            return best
        if name is None:
            return run.last_checkpoint if run.last_checkpoint.exists() else None
        raise MissingPath(f"ckpt_path: {run.path} has no best checkpoint yet; give a file, or 'last'.")
    path = run.last_checkpoint if name == "last" else Path(name)
    if not path.exists():
        raise MissingPath(f"ckpt_path: {path} does not exist. Give a file, or 'last' or 'best' for those of {run.path}.")
    return path

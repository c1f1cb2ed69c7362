"""``genlab weights make NAME``, ``genlab weights show``: the tiny models that ship with GenLab, how they are made, and how good they are.

A tiny model has a recipe, ``experiments/tiny/NAME.yaml``: a pretraining run like any other. ``make`` runs it (stopped, the same command
continues), exports the weights in half precision, measures what was exported on the test split, and puts it into place together with
``recipe.json``: the hash of recipe and renderer, and what was measured.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import genlab.weights
from genlab.errors import UserError
from genlab.files import read_json, write_json
from genlab.nearest import did_you_mean
from genlab.results import RunFolder, config_hash, git_state, versions


@dataclass(frozen=True)
class TinyModel:
    """What a tiny model must reach on held-out scenes.

    Args:
        recipe: Below ``experiments``.
        floors: Metric of ``test`` -> the least that it may be; a negative number -x says that the metric may be x at the most.
        builds_on: Tiny models that its recipe starts from.
    """

    recipe: str
    floors: dict[str, float]
    builds_on: tuple[str, ...] = ()


TINY_MODELS = {
    "clip": TinyModel(
        "tiny/clip.yaml",
        {"test/top1_of_100": 0.90, "test/shape": 0.75, "test/colour": 0.90, "test/background": 0.95, "test/shape_spread": 0.4},
    ),
    "judge": TinyModel("tiny/judge.yaml", {"test/shape": 0.98, "test/colour": 0.98, "test/background": 0.98}),
    "viclip": TinyModel("tiny/viclip.yaml", {"test/motion": 0.70, "test/motion_shuffled": -0.40, "test/motion_pairs": 0.80}),
    "vae": TinyModel("tiny/vae.yaml", {"test/psnr": 26.0, "test/shape": 0.90}),
    "sd": TinyModel("tiny/sd.yaml", {"test/shape": 0.60, "test/colour": 0.80, "test/background": 0.75}, ("vae",)),
    "inpaint_vae": TinyModel("tiny/inpaint_vae.yaml", {"test/psnr": 26.0, "test/shape": 0.90}),
    "inpaint": TinyModel("tiny/inpaint.yaml", {"test/shape": 0.60, "test/colour": 0.80, "test/background": 0.75}, ("inpaint_vae", "sd")),
    "vlm": TinyModel("tiny/vlm.yaml", {"test/yes_no": 0.90}),
}
HELP = """usage: python -m genlab weights make NAME [--out FOLDER]   make a tiny model anew: train, measure, put into place
       python -m genlab weights show                       what each one reaches, and what it must reach

Tiny models: {names}. Use them as tiny:NAME where weights are asked for."""


def main(args: list[str]) -> int:
    """Runs ``make`` or ``show``. Exit code 1 when a model is below what it must reach."""
    if not args or args[0] in ("-h", "--help"):
        print(HELP.format(names=", ".join(TINY_MODELS)))
        return 0
    actions = {"make": make, "show": show}
    if args[0] not in actions:
        raise UserError(f"weights: there is no action {args[0]!r}{did_you_mean(args[0], actions) or '.'} There are {', '.join(actions)}.")
    return actions[args[0]](args[1:])


def make(args: list[str]) -> int:
    """Trains a tiny model by its recipe, or continues to, measures it and puts it into place."""
    parser = argparse.ArgumentParser("python -m genlab weights make", description=make.__doc__, allow_abbrev=False)
    parser.add_argument("name", help=", ".join(TINY_MODELS))
    parser.add_argument("--out", type=Path, help="folder to put it in (default: where tiny:NAME finds it)")
    given = parser.parse_args(args)
    if given.name not in TINY_MODELS:
        there = ", ".join(TINY_MODELS)
        raise UserError(
            f"weights make: there is no tiny model {given.name!r}{did_you_mean(given.name, TINY_MODELS) or '.'} There are {there}."
        )

    from genlab.cli import run_lightning

    recipe, out = TINY_MODELS[given.name].recipe, given.out or genlab.weights.TINY_MODELS / given.name
    if code := run_lightning("fit", ["-c", recipe, "--ckpt_path", "last"]):
        return code
    run = run_folder(recipe)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / given.name
        best = run.checkpoints / str(run.record.get("best", ""))
        export(best if best.is_file() else run.last_checkpoint, exported)
        if code := run_lightning("test", ["-c", recipe, "--model.weights", str(exported), "--ckpt_path", "none"]):
            return code
        results = max(run.path.glob("test-*/results.json"), key=lambda path: path.stat().st_mtime)
        metrics, fitted = read_json(results)["metrics"], read_json(run.path / "results.json")
        made = {key: fitted.get(key) for key in ("steps", "wall_seconds", "seed")}
        record = {"recipe": recipe, "hash": recipe_hash(given.name), "metrics": metrics, "git": git_state(), "versions": versions()}
        write_json(exported / "recipe.json", record | made)
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_name(f".{out.name}.new")
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(exported, beside)
        shutil.rmtree(out, ignore_errors=True)
        beside.rename(out)
    print(f"tiny:{given.name}: {out}")
    return _table({given.name: out})


def show(args: list[str]) -> int:
    """Prints what each tiny model reached when it was made, and what it must reach."""
    argparse.ArgumentParser("python -m genlab weights show", description=show.__doc__).parse_args(args)
    folders = {name: genlab.weights.TINY_MODELS / name for name in TINY_MODELS}
    return _table({name: folder for name, folder in folders.items() if (folder / "recipe.json").is_file()})


def _table(folders: dict[str, Path]) -> int:
    from genlab.reports import console_table

    rows: list[dict[str, Any]] = []
    below = False
    for name, folder in folders.items():
        record = read_json(folder / "recipe.json")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        model = TINY_MODELS[name]
        if record["hash"] != recipe_hash(name):
            print(f"tiny:{name} was made by another recipe or renderer; python -m genlab weights make {name} makes it anew.")
        for metric, floor in (model.floors or dict.fromkeys(record["metrics"])).items():
            value = record["metrics"].get(metric)
            good = floor is None or reaches(value, floor)
            below |= not good
            asked = "" if floor is None else f">= {floor}" if floor >= 0 else f"<= {-floor}"
            rows.append(
                {"model": name, "MB": round(size, 2), "metric": metric, "reached": value, "asked": asked, "": "" if good else "below"}
            )
    print(console_table(rows, "Tiny models, on held-out scenes"))
    return int(below)


def reaches(value: float | None, floor: float) -> bool:
    """Whether a metric is as good as asked; negative floors are ceilings."""
    return value is not None and (value >= floor if floor >= 0 else value <= -floor)


def recipe_hash(name: str) -> str:
    """Changes with the model's recipe, with those that it builds on, and with the renderer's version."""
    import yaml

    from datamodules.tinyworld.scene import RENDERER_VERSION
    from genlab.config.experiments import find_config

    recipes = [TINY_MODELS[each].recipe for each in (name, *TINY_MODELS[name].builds_on)]
    settings = {recipe: yaml.safe_load(find_config(recipe).read_text(encoding="utf-8")) for recipe in recipes}
    return config_hash({"recipes": settings, "renderer": RENDERER_VERSION})


def run_folder(recipe: str) -> RunFolder:
    """Where the recipe's run keeps its files."""
    from genlab.cli import run_settings
    from genlab.config import compose

    composed = compose([recipe], [])
    settings = run_settings(composed, composed.files[0])
    return RunFolder(Path(settings.root) / str(settings.experiment) / str(settings.name))


def export(checkpoint: Path, folder: Path) -> None:
    """Writes the weights of a pretraining checkpoint into ``folder``, in the format of the library that has the network's class."""
    from genlab.lightning_cli import read_checkpoint

    module, name = str(read_checkpoint(checkpoint)["method"]).rsplit(".", 1)
    method = getattr(importlib.import_module(module), name).load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    method.export(folder)

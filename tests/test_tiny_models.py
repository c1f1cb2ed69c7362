"""The tiny models that are shipped: made by the recipe that is here, and as good as they must be, measured anew without training."""

from __future__ import annotations

from pathlib import Path

import pytest

import genlab.weights
from datamodules.tinyworld import DATASETS, make
from genlab.cli import run_lightning
from genlab.config import compose
from genlab.files import read_json
from genlab.verbs.weights import TINY_MODELS, reaches, recipe_hash, run_folder

SHIPPED = sorted(name for name in TINY_MODELS if (genlab.weights.TINY_MODELS / name).is_dir())
MEGABYTES = {"clip": 2.7, "judge": 0.4, "viclip": 1.8, "vae": 0.9, "sd": 4.5, "inpaint_vae": 0.3, "inpaint": 1.5, "vlm": 0.7}
SEED = 1  # of data that no recipe trains on
HELD_OUT = {  # of each dataset, few but all classes; some splits of 100, so that retrieval is among a hundred
    "captions": {"pictures": 240, "held_out": 400},
    "captions_b": {"pictures": 240, "held_out": 400},
    "captioned_clips": {"clips": 32, "held_out": 320},
    "questions": {"pictures": 240, "held_out": 240},
}


@pytest.mark.parametrize("name", SHIPPED)
def test_made_by_the_recipe_that_is_here(name: str) -> None:
    """Recipe, and those that it builds on, and renderer."""
    folder = genlab.weights.TINY_MODELS / name
    record = read_json(folder / "recipe.json")
    assert record["hash"] == recipe_hash(name), f"python -m genlab weights make {name}"
    assert all(reaches(record["metrics"].get(metric), floor) for metric, floor in TINY_MODELS[name].floors.items()), record["metrics"]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1e6 * MEGABYTES[name]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Datasets by name, written when they are asked for."""
    folder = tmp_path_factory.mktemp("held_out")

    class Written(dict[str, Path]):
        def __missing__(self, dataset: str) -> Path:
            self[dataset] = make(dataset, folder / dataset, seed=SEED, progress=False, **HELD_OUT[dataset])
            return self[dataset]

    return Written()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_as_good_as_it_must_be(name: str, held_out: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same evaluation as the recipe's, of scenes of another seed."""
    model = TINY_MODELS[name]
    composed = compose([model.recipe])
    roots = {"data.root": composed.get("data.init_args.root"), "data.more_roots": composed.get("data.init_args.more_roots")}
    words = ["--model.weights", f"tiny:{name}", "--ckpt_path", "none", "--trainer.enable_progress_bar", "false"]
    for key, given in roots.items():
        folders = [str(held_out[str(root).removeprefix("tiny:")]) for root in ([given] if isinstance(given, str) else given or [])]
        if folders:
            words += [f"--{key}", folders[0] if key == "data.root" else f"[{', '.join(folders)}]"]
    monkeypatch.chdir(tmp_path)
    assert run_lightning("test", ["-c", model.recipe, *words]) == 0
    (results,) = run_folder(model.recipe).path.glob("test-*/results.json")
    metrics = read_json(results)["metrics"]
    for metric in [name for name in metrics if name.endswith("_unfilled")]:
        assert metrics[metric.removesuffix("_unfilled")] > metrics[metric] + 0.05, metrics
    low = {metric: metrics.get(metric) for metric, floor in model.floors.items() if not reaches(metrics.get(metric), floor)}
    assert not low, metrics


def test_every_dataset_of_a_recipe_is_held_out_here() -> None:
    for name in SHIPPED:
        composed = compose([TINY_MODELS[name].recipe])
        roots = [composed.get("data.init_args.root"), *(composed.get("data.init_args.more_roots") or [])]
        assert {str(root).removeprefix("tiny:") for root in roots} <= HELD_OUT.keys() <= DATASETS.keys(), name

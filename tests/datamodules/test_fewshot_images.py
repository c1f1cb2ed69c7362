"""Few-shot sets: draws as the official code makes them, base and new classes, the eleven layouts, and what is wrong with them."""

from __future__ import annotations

import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.fewshot_images import FewShotImages
from datamodules.fewshot_index import PLACES
from datamodules.fewshot_pictures import centre, random_crop
from datamodules.fewshot_sampling import draws, halves, subset
from datamodules.fewshot_texts import sentences_of
from datamodules.sampling import Draw
from datamodules.tinyworld import make
from genlab.errors import MissingPath, UserError
from genlab.metrics.few_shot import average_over_datasets, harmonic_mean
from tests.golden_files import golden_files, load_golden


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the datasets, small, under CoOp's names: an odd number of classes, one without validation, one with a short class."""
    folder = tmp_path_factory.mktemp("fewshot")
    for dataset, counts in {"dtd": {"val": 5}, "imagenet": {}, "caltech101": {"val": 2}}.items():
        make(dataset, folder / PLACES[dataset].folder, progress=False, size=24, train=6, test=2, **counts)
    return folder


def images(root: Path, dataset: str = "dtd", stage: str = "fit", **options: Any) -> FewShotImages:
    data = FewShotImages(str(root), dataset, image_size=16, num_workers=0, **({"shots": 2} | options))
    data.setup(stage)
    return data


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("cpr", "sampling"))
def test_draws_are_the_official_ones(path: Path) -> None:
    meta, _ = load_golden(path)
    train, val, test = (meta[f"{split}_labels"] for split in ("train", "val", "test"))
    state = random.getstate()
    for sampler in ("coop", "cpr"):
        for seed, by_shots in meta[sampler].items():
            for shots, expected in by_shots.items():
                first, second = draws(train, val, int(shots), int(seed), sampler, number=2)
                assert first == (expected["train"], expected["val"]), (sampler, seed, shots)
                if "second_train" in expected:
                    assert second == (expected["second_train"], expected["second_val"]), (sampler, seed, shots)
                for name, classes in zip(("base", "new"), halves([train[i] for i in first.train])):
                    for split, (positions, labels) in {
                        "train": (first.train, train),
                        "val": (first.val, val),
                        "test": (range(len(test)), test),
                    }.items():
                        if split in expected[name]:
                            kept = subset([labels[i] for i in positions], classes)
                            found = [[positions[i], new, f"c{labels[positions[i]]}"] for i, new in kept]
                            wanted = expected[name][split]
                            assert [row[: len(want)] for row, want in zip(found, wanted)] == wanted and len(found) == len(wanted)
    assert random.getstate() == state, "the global stream is left alone"
    for count, (base, new) in meta["halves"].items():
        assert tuple(map(len, halves(range(int(count))))) == (base, new)
    for base, new, expected in meta["harmonic"]:
        assert harmonic_mean(base, new) == pytest.approx(expected, abs=meta["tol"]["harmonic"]["atol"])


def test_averages_are_those_of_the_published_table() -> None:
    """CoCoOp's table: H of the mean accuracies, not the mean of H."""
    table = json.loads((Path(__file__).parents[2] / "experiments/tables/base_to_new_vit_b16.json").read_text())
    for method, expected in {"CLIP": (69.34, 74.22, 71.70), "CoOp": (82.69, 63.22, 71.66), "CoCoOp": (80.47, 71.69, 75.83)}.items():
        rows = [{"base": row[method][0], "new": row[method][1]} for name, row in table["accuracy"].items() if name != "average"]
        assert len(rows) == 11
        found = average_over_datasets(rows)
        assert [round(found[key], 2) for key in ("base", "new", "harmonic_of_means")] == pytest.approx(expected, abs=0.011)
    assert harmonic_mean(0, 0) == 0


def test_sets_of_the_protocols(root: Path) -> None:
    data = images(root)
    assert {name: len(own) for name, own in data.sets.items()} == {"train": 18, "val": 18, "test": 18} and data.eval_sets("test") == [
        "test"
    ]
    assert np.bincount(data.sets["train"].labels).tolist() == [2] * 9
    halved = images(root, protocol="base_to_new")
    assert {name: (len(own), len(own.names)) for name, own in halved.sets.items() if name != "val"} == {
        "train": (10, 5),
        "base": (10, 5),
        "new": (8, 4),
        "new_train": (8, 4),
    }
    assert set(halved.sets["train"].ids) <= set(data.sets["train"].ids), "the base classes' pictures are those of all classes"
    assert halved.sets["new"].places == [5, 6, 7, 8] and halved.sets["new"].labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert halved.classes("new").names == data.classes("test").names[5:]
    other = images(root, "imagenet", protocol="cross_dataset", targets=["dtd", "caltech101"])
    assert other.eval_sets("test") == ["dtd", "caltech101"] and other.classes("dtd").template == "{} texture."
    assert len(other.classes("train").templates) == 7
    assert not set(other.sets["val"].ids) & set(other.sets["train"].ids), "held out of training"
    assert np.bincount(other.sets["val"].labels).tolist() == [2] * 24
    assert other.data_name == "imagenet-cross_dataset" and data.data_name == "dtd"


def test_classes_with_few_pictures(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("datamodules").propagate = True
    short = len(images(root, "caltech101").classes("train").names) - 1
    for sampler, count in (("coop", 3), ("cpr", 5)):
        own = images(root, "caltech101", shots=5, sampler=sampler).sets["train"]
        assert (own.labels == short).sum() == count and "fewer than 5 training pictures" in caplog.text
        assert len(set(own.ids[own.labels == short])) <= 3


def test_protocol_tells_what_leaks(root: Path) -> None:
    assert images(root).protocol["leaks"] == []
    leaky = images(root, val="test")
    assert leaky.protocol["leaks"] == ["chosen by test pictures"] and len(leaky.sets["val"]) == len(leaky.sets["test"])


def test_pixels(root: Path) -> None:
    """Evaluation as CLIP's own preprocessing; crops keyed by picture and view, the same again and different in every view."""
    from torchvision import transforms as tv

    picture = Image.effect_mandelbrot((52, 40), (-2, -1.2, 1, 1.2), 60).convert("RGB")
    reference = tv.Compose([tv.Resize(16, tv.InterpolationMode.BICUBIC), tv.CenterCrop(16), tv.PILToTensor()])
    assert torch.equal(centre(picture, 16), reference(picture))
    crops = [random_crop(picture, 16, (0.5, 1.0), np.random.default_rng(seed)) for seed in range(4)]
    assert crops[0].shape == (3, 16, 16) and len({each.sum().item() for each in crops}) == 4
    train, again = (images(root).dataset("train") for _ in range(2))
    assert torch.equal(train[Draw(3, 1)]["image"], again[Draw(3, 1)]["image"])
    assert not torch.equal(train[Draw(3, 1)]["image"], train[Draw(3, 2)]["image"])
    assert not torch.equal(train[Draw(3, 1)]["image"], images(root, seed=2).dataset("train")[Draw(3, 1)]["image"])


def test_keys_change_with_what_features_depend_on(root: Path) -> None:
    key = images(root).feature_key("train")
    for options in ({"seed": 2}, {"shots": 3}, {"protocol": "base_to_new"}, {"crop_scale": (0.08, 1.0)}):
        assert images(root, **options).feature_key("train") != key, options
    assert images(root).feature_key("train") == key
    assert images(root, seed=2, shots=1).feature_key("test") == images(root).feature_key("test"), "shared by all seeds and shots"
    assert len(images(root, views=3).feature_ids("train")) == 3 * 18


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "dtdd"}, "data.dataset: no dataset is called 'dtdd'; did you mean 'dtd'"),
        ({"shots": 0}, "data.shots: 0 is too small"),
        ({"crop_scale": (0.0, 1.0)}, "data.crop_scale"),
        ({"targets": ["dtd"]}, "only the protocol cross_dataset"),
        ({"dataset": "eurosat"}, "there is no split_zhou_EuroSAT.json .*DATASETS.md of the CoOp repository"),
        ({"class_names": ["cat"], "stage": "predict", "predict_paths": ["."]}, "1 names; a choice needs two or more"),
        ({"stage": "predict"}, "name pictures, or folders"),
    ],
)
def test_mistakes(root: Path, options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        images(root, **options)


def test_own_sentences(tmp_path: Path) -> None:
    path = tmp_path / "sentences.json"
    path.write_text(json.dumps({"Sea_or Lake": ["Blue."], "forest": ["Green.", "Green."], "river": []}))
    assert sentences_of(path, ["forest", "sea or lake"]) == [["Green.", "Green."], ["Blue."]]
    with pytest.raises(UserError, match=r"no sentences for 2 of 3 classes: river, owl\. Add them there"):
        sentences_of(path, ["river", "forest", "owl"])
    with pytest.raises(MissingPath, match="data prepare descriptions"):
        sentences_of(tmp_path / "none.json", ["a"])


def test_a_whole_check(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    copy = tmp_path / "dtd"
    shutil.copytree(root / "dtd", copy)
    data = images(copy)
    assert not data.check("quick").errors and not data.check("full", workers=0).errors
    bad, twice = (copy / each for each in data.sets["test"].ids[:2])
    bad.write_bytes(bad.read_bytes()[:200])
    twice.write_bytes((copy / data.sets["train"].ids[0]).read_bytes())
    report = data.check("full", workers=0)
    problems = {(row["path"], row["problem"]) for row in report.findings}
    assert (data.sets["test"].ids[0], "truncated") in problems or (data.sets["test"].ids[0], "unreadable") in problems
    assert (data.sets["test"].ids[1], "overlap") in problems and len(report.errors) >= 2

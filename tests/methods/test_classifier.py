"""The judge: degraded pictures by hand, a toy task learned, measured, exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from genlab.errors import UserError
from genlab.methods.pretraining.classifier import TAPS, Classifier, degrade, draw_degradation
from genlab.models.judge import Judge
from genlab.weights import load_pretrained
from tests.methods.bars import SIZE, data_of, trainer, write_bars

SMALL: dict[str, Any] = {"channels": [8, 16, 16], "image_size": SIZE, "warmup": 2, "lr": 1e-2}


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bars(tmp_path_factory.mktemp("bars"))


@pytest.fixture(scope="module")
def learned(bars: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Path]:
    """A judge trained for some seconds, and its checkpoint."""
    L.seed_everything(0)
    model, run = Classifier(**SMALL), trainer(max_epochs=25, check_val_every_n_epoch=25)
    run.fit(model, datamodule=data_of(bars))
    path = tmp_path_factory.mktemp("learned") / "last.ckpt"
    run.save_checkpoint(path)
    return model.eval(), path


# Degraded pictures.


def test_degradation_by_hand() -> None:
    """A dot spreads as the taps say, by as much as the strength says; a plain picture stays, up to its border; values stay in range."""
    dot, none = torch.zeros(1, 3, 9, 9), torch.zeros(1, 3, 9, 9)
    dot[..., 4, 4] = 1
    taps = torch.tensor(TAPS)
    assert sum(TAPS) == 1
    half = degrade(dot, torch.tensor([[0.5, 0.0]]), none)[0, 1]
    wanted = torch.zeros(9, 9)
    wanted[2:7, 2:7] = taps[:, None] * taps / 2
    wanted[4, 4] += 0.5
    assert torch.allclose(half, wanted, atol=1e-6)
    plain = torch.full((2, 3, 9, 9), 0.4)
    assert torch.allclose(degrade(plain, torch.tensor([[1.0, 0.0], [0.3, 0.0]]), torch.zeros_like(plain)), plain)
    noise = torch.ones_like(plain)
    noise[1] *= -10
    rough = degrade(plain, torch.tensor([[0.0, 0.1], [0.0, 0.1]]), noise)
    assert torch.allclose(rough[0], torch.tensor(0.5)) and torch.equal(rough[1], torch.zeros(3, 9, 9))


def test_degradation_is_drawn_by_name() -> None:
    shape, names = (40, 3, 8, 8), [str(i) for i in range(40)]
    strength, noise = draw_degradation(shape, 0, "train", names, 0.1, always=False)
    again = draw_degradation(shape, 0, "train", names[::-1], 0.1, always=False)
    assert torch.equal(strength, again[0].flip(0)) and torch.equal(noise, again[1].flip(0))
    assert not torch.equal(noise, draw_degradation(shape, 1, "train", names, 0.1, always=False)[1])
    spared = (strength == 0).float().mean(0)
    assert 0.25 < spared[0] < 0.75 and 0.25 < spared[1] < 0.75 and 0.05 < strength[:, 1].max() <= 0.1
    everything, _ = draw_degradation(shape, 0, "train", names, 0.1, always=True)
    assert (everything > 0).all() and torch.equal(everything[strength > 0], strength[strength > 0])


# Learning, and what is measured.


class Watch(L.Callback):
    """Keeps the rows of an evaluation."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_test_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.rows += outputs["rows"]


def test_learns_what_pictures_show(bars: Path, learned: tuple[Classifier, Path]) -> None:
    watch = Watch()
    (found,) = trainer(watch).test(learned[0], datamodule=data_of(bars), verbose=False)
    assert found["test/colour"] == found["test/type"] == found["test/colour_degraded"] == 1, found
    assert len(watch.rows) == 8 and all(row["colour_said"] == row["colour"] and 0 < row["score"] <= 1 for row in watch.rows)


def test_subsets_and_unknown_labels_are_measured_by_themselves(bars: Path, learned: tuple[Classifier, Path], tmp_path: Path) -> None:
    """A judge that knows nothing is right where it is right: counted here from its answers, on the labels that there are."""
    torch.manual_seed(1)
    classes = {"colour": ["blue", "green", "red", "white"], "type": ["dark", "pale"]}
    Judge(classes, (4, 8), SIZE).save_pretrained(tmp_path)
    watch = Watch()
    model = Classifier(weights=str(tmp_path), subsets={"warm": {"colour": ["red", "white"], "type": ["pale"]}})
    assert not model.needs_checkpoint
    data = data_of(bars, labels=["colour", "type"])
    data.setup("test")
    unknown = data.datasets["test"].labels["type"]
    unknown[:3] = -1
    (found,) = trainer(watch).test(model, datamodule=data, verbose=False)
    asked = [row for row in watch.rows if row["type"]]
    assert len(asked) == 5 and found["test/type"] == pytest.approx(sum(row["type"] == row["type_said"] for row in asked) / 5)
    warm = [row for row in asked if row["type"] == "pale" and row["colour"] in ("red", "white")]
    assert warm and found["test/colour_warm"] == pytest.approx(sum(r["colour"] == r["colour_said"] for r in warm) / len(warm))


# Weights.


@torch.no_grad()
def test_exported_judge_is_read_as_weights(bars: Path, learned: tuple[Classifier, Path], tmp_path: Path) -> None:
    model, _ = learned
    model.export(tmp_path)
    judge = load_pretrained(Judge, str(tmp_path))  # type: ignore[arg-type]
    assert next(model.parameters()).dtype == next(judge.parameters()).dtype == torch.float32 and not judge.training
    data = data_of(bars)
    data.setup("test")
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    for column, logits in model(batch["image"]).items():
        assert torch.allclose(judge(batch["image"])[column], logits, atol=0.05)
    large = torch.nn.functional.interpolate(batch["image"], scale_factor=3, mode="nearest")
    assert judge.say(large) == judge.say(batch["image"]), "pictures of any size"
    assert judge.say(batch["image"])["colour"] == [data.classes["colour"][i] for i in batch["labels"]["colour"].tolist()]


def test_checkpoint_brings_its_own_classes(learned: tuple[Classifier, Path]) -> None:
    model, path = learned
    again = Classifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert again.network.classes == model.network.classes and list(model.network.classes) == ["colour", "type", "world"]
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


# What is wrong is said.


def test_what_is_wrong_is_said(bars: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.labels: there is nothing to learn"):
        trainer(max_steps=1).fit(Classifier(**SMALL), datamodule=data_of(bars, labels=None))
    with pytest.raises(UserError, match=r"model.weights: there is no network yet"):
        trainer().test(Classifier(**SMALL), datamodule=data_of(bars), verbose=False)
    Judge({"colour": ["pink", "red"]}, (4, 8), SIZE).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"data.labels: the data has other classes of colour"):
        trainer().test(Classifier(weights=str(tmp_path)), datamodule=data_of(bars), verbose=False)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    with pytest.raises(UserError, match=r"holds a clip, not a judge"):
        Judge.from_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"channels": [4, 8, 8]}))
    with pytest.raises(UserError, match=r"does not hold its config's judge"):
        Judge.from_pretrained(str(tmp_path))

"""Six few-shot methods on one tiny dataset: fit, test, checkpoints, the shared features, resuming, one's own pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from callbacks.predictions import Predictions
from callbacks.preemption import LastCheckpoint
from datamodules.fewshot_images import FewShotImages
from datamodules.tinyworld import make
from genlab.errors import UserError
from genlab.methods.baselines.clip_adapter import CLIPAdapter
from genlab.methods.baselines.cocoop import CoCoOp
from genlab.methods.baselines.coop import CoOp
from genlab.methods.baselines.tip_adapter import TipAdapter, TipAdapterF
from genlab.methods.baselines.zero_shot import ZeroShot
from genlab.methods.cpr import CPR, NNR
from genlab.training.few_shot import FewShotMethod
from genlab.training.resume import ExactResume
from tests.tiny_clip import tiny_clip

METHODS: dict[str, tuple[type[FewShotMethod], dict[str, Any], set[str]]] = {
    "zero_shot": (ZeroShot, {"text": "descriptions"}, set()),
    "clip_adapter": (CLIPAdapter, {}, {"adapter.fc.0.weight", "adapter.fc.2.weight"}),
    "tip_adapter": (TipAdapter, {}, {"keys", "values"}),
    "tip_adapter_f": (TipAdapterF, {}, {"keys", "values"}),
    "coop": (CoOp, {"n_ctx": 4}, {"prompt_learner.ctx"}),
    "cocoop": (CoCoOp, {}, {"prompt_learner.ctx", *(f"meta_net.linear{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias"))}),
    "cpr": (
        CPR,
        {"n_ctx": 4},
        {"prompt_learner.ctx", "prototypes"}
        | {f"adapter.{layer}.{kind}" for layer in ("query", "key", "value", "proj", "out", "norm1") for kind in ("weight", "bias")},
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP and a dataset of nine classes."""
    folder = tmp_path_factory.mktemp("place")
    tiny_clip(folder / "clip", 32)
    make("dtd", folder / "dtd", progress=False, size=32, train=4, val=2, test=2)
    return folder


@pytest.fixture(autouse=True)
def cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENLAB_CACHE", str(place / "cache"))
    return place / "cache"


def data_of(place: Path, **options: Any) -> FewShotImages:
    settings = {"shots": 2, "views": 2, "image_size": 32, "batch_size": 6, "num_workers": 0} | options
    return FewShotImages(str(place / "dtd"), "dtd", **settings)


def trainer_of(folder: Path, *callbacks: L.Callback, epochs: int = 2) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(each, LastCheckpoint) for each in callbacks),
        use_distributed_sampler=False,
        inference_mode=False,
        max_epochs=epochs,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )


def model_of(name: str, place: Path, **options: Any) -> FewShotMethod:
    made, settings, _ = METHODS[name]
    return made(backbone=str(place / "clip"), **(settings | options))


@pytest.mark.parametrize("name", METHODS)
def test_fit_test_and_checkpoint(name: str, place: Path, tmp_path: Path) -> None:
    """Trained, tested from the checkpoint in a new module, on the halves where the method can move to new classes."""
    L.seed_everything(1)
    moves = not name.startswith("tip")
    options = {"protocol": "base_to_new"} if moves else {}
    model, trainer = model_of(name, place), trainer_of(tmp_path)
    if model.needs_checkpoint:
        trainer.fit(model, datamodule=data_of(place, **options))
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        held = torch.load(tmp_path / "x.ckpt", weights_only=True)
        assert held["state_dict"].keys() == METHODS[name][2]
        assert all(torch.isfinite(value).all() for value in held["state_dict"].values())
        moving = {key for key, p in model.named_parameters() if p.requires_grad}
        assert moving == METHODS[name][2] - {"prototypes", "values"} and not any(p.requires_grad for p in model.clip.parameters())
        assert 0 <= float(trainer.callback_metrics["val/acc"]) <= 1
    rows, tester, again = Predictions(tmp_path), trainer_of(tmp_path), model_of(name, place)
    tester.callbacks.append(rows)
    checkpoint = tmp_path / "x.ckpt" if model.needs_checkpoint else None
    tester.test(again, datamodule=data_of(place, **options), ckpt_path=checkpoint, weights_only=True, verbose=False)
    metrics = {key: float(value) for key, value in tester.callback_metrics.items()}
    assert all(np.isfinite(value) for value in metrics.values())
    if moves:
        base, new = metrics["test/base/acc"], metrics["test/new/acc"]
        assert metrics["test/harmonic_mean"] == pytest.approx(2 * base * new / (base + new) if base + new else 0)
        assert base == pytest.approx(np.mean([row["called"] == row["label"] for row in rows.rows if row["set"] == "base"]))
    else:
        assert metrics["test/acc"] == pytest.approx(np.mean([row["called"] == row["label"] for row in rows.rows]))
    assert ("test/harmonic_mean_nnr" in metrics) == (name == "cpr") and len(rows.rows) == 18


def test_tip_adapter_answers_for_its_own_classes_alone(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot move to the classes of 'new'"):
        trainer_of(tmp_path).test(model_of("tip_adapter", place), datamodule=data_of(place, protocol="base_to_new"), verbose=False)


def test_what_methods_are_where_they_add_nothing(place: Path, tmp_path: Path) -> None:
    """Tip-Adapter with alpha 0 and CLIP-Adapter with ratio 0 are zero-shot; Tip-Adapter-F begins as Tip-Adapter."""

    def tested(model: FewShotMethod, fit: bool = False) -> list[Any]:
        rows, trainer = Predictions(tmp_path), trainer_of(tmp_path, epochs=0 if fit else 1)
        if fit:
            trainer.fit(model, datamodule=data_of(place))
        trainer.callbacks.append(rows)
        trainer.test(model, datamodule=data_of(place), verbose=False)
        return [(row["id"], row["called"], round(row["score"], 3)) for row in rows.rows]

    plain = tested(model_of("zero_shot", place, text="template"))
    assert tested(model_of("tip_adapter", place, alpha=0.0, search=False)) == plain
    tip = tested(model_of("tip_adapter", place, alpha=50.0, search=False))
    assert tip != plain and tested(model_of("tip_adapter_f", place, alpha=50.0, search=False), fit=True) == tip


class CountsPictures(L.Callback):
    """How many pictures the image tower has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        pl_module.configure_model()
        pl_module.clip.model.vision_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: torch.nn.Module, args: Any, options: Any) -> None:
        self.seen += len(options["pixel_values"])


def test_features_are_computed_once_for_all(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))

    def seen(name: str, **options: Any) -> int:
        counter = CountsPictures()
        trainer_of(tmp_path, counter, epochs=1).fit(model_of(name, place), datamodule=data_of(place, **options))
        return counter.seen

    assert seen("cpr") == 2 * 18 + 18 and seen("clip_adapter") == 0 and seen("coop", batch_size=3) == 0
    assert seen("coop", seed=2) > 0 and seen("coop", shots=1) > 0 and seen("coop", protocol="base_to_new") > 0
    other = tiny_clip(tmp_path / "clip", 32, seed=1)
    counter = CountsPictures()
    trainer_of(tmp_path, counter, epochs=1).fit(CoOp(str(other), n_ctx=4), datamodule=data_of(place))
    assert counter.seen == 2 * 18 + 18
    counter = CountsPictures()  # in every step; two epochs see what two views hold
    live, kept = model_of("clip_adapter", place), model_of("clip_adapter", place)
    for model, views, callbacks in ((live, None, [counter]), (kept, 2, [])):
        L.seed_everything(3)
        trainer_of(tmp_path, *callbacks).fit(model, datamodule=data_of(place, views=views))
    assert counter.seen == 2 * 18
    for one, two in zip(live.adapter.parameters(), kept.adapter.parameters()):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


class KeepAll(LastCheckpoint):
    """Keeps a copy of every ``last.ckpt``."""

    def save(self, trainer: L.Trainer) -> None:
        super().save(trainer)
        shutil.copy(self.path, self.path.with_name(f"{trainer.global_step:03d}.ckpt"))


def test_a_resumed_run_is_the_unbroken_one(place: Path, tmp_path: Path) -> None:
    def fit(checkpoint: Path | None) -> dict[str, torch.Tensor]:
        L.seed_everything(1)
        model = model_of("cpr", place)
        trainer = trainer_of(tmp_path, KeepAll(tmp_path / "last.ckpt", 15, 1), ExactResume())
        trainer.fit(model, datamodule=data_of(place), ckpt_path=checkpoint, weights_only=True)
        assert trainer.global_step == 6
        return {key: value for key, value in model.state_dict().items() if not model.is_frozen(key)}

    whole = fit(None)
    for step in (2, 4):
        resumed = fit(tmp_path / f"{step:03d}.ckpt")
        assert all(torch.equal(resumed[key], value) for key, value in whole.items()), step


def test_broken_pictures(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    shutil.copytree(place / "dtd", tmp_path / "dtd")
    data = data_of(tmp_path)
    data.setup("fit")
    tested, trained = (str(data.sets[name].ids[0]) for name in ("test", "train"))
    (tmp_path / "dtd" / tested).write_bytes(b"no picture")
    rows = Predictions(tmp_path)
    trainer_of(tmp_path, rows).test(model_of("zero_shot", place), datamodule=data_of(tmp_path), verbose=False)
    assert [row["id"] for row in rows.rows if row["status"] == "unreadable"] == [tested] and rows.counts["n_scored"] == 17
    (tmp_path / "dtd" / trained).write_bytes(b"no picture")
    with pytest.raises(UserError, match=f"of the few training pictures, {trained} cannot be read"):
        trainer_of(tmp_path).fit(model_of("coop", place), datamodule=data_of(tmp_path))


def test_predicting_ones_own(place: Path, tmp_path: Path) -> None:
    """Classes by name alone: zero-shot, and CPR from a checkpoint of other classes, without the dataset."""
    trainer = trainer_of(tmp_path, epochs=1)
    trainer.fit(model_of("cpr", place), datamodule=data_of(place))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    pictures = sorted((place / "dtd" / "images").rglob("*.jpg"))[:3]
    names = tmp_path / "names.txt"
    names.write_text("red square\nblue_star\ngreen ring\n")
    for name in ("zero_shot", "cpr"):
        rows, model = Predictions(tmp_path), model_of(name, place, **({"text": "template"} if name == "zero_shot" else {}))
        data = FewShotImages(
            "nowhere", "dtd", image_size=32, num_workers=0, class_names=[str(names)], predict_paths=[str(path) for path in pictures]
        )
        checkpoint = tmp_path / "x.ckpt" if name == "cpr" else None
        trainer_of(tmp_path, rows).predict(model, datamodule=data, ckpt_path=checkpoint, weights_only=True, return_predictions=False)
        assert len(rows.rows) == 3 and {row["called"] for row in rows.rows} <= {"red square", "blue star", "green ring"}
        assert all(row["score"] >= row["score_2"] >= row["score_3"] for row in rows.rows)


def test_new_prototypes(place: Path, tmp_path: Path) -> None:
    trainer, data = trainer_of(tmp_path, epochs=1), data_of(place, protocol="base_to_new")
    trainer.fit(model_of("cpr", place), datamodule=data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    found = {}
    for mode in ("base", "fewshot", "pseudo"):
        model = model_of("cpr", place, new_prototypes=mode, nnr=NNR(exclude_self=True))
        trainer_of(tmp_path).test(model, datamodule=data_of(place, protocol="base_to_new"), ckpt_path=tmp_path / "x.ckpt", verbose=False)
        found[mode] = model.prepared("new").p
        assert model.protocol["new_prototypes"] == mode and torch.equal(model.prepared("base").p, model.prototypes)
    assert torch.equal(found["base"], model.prototypes) and found["fewshot"].shape == found["pseudo"].shape == (4, 16)
    assert not torch.equal(found["fewshot"], found["pseudo"])


def test_sizes_must_agree(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.image_size: 64, but .* reads 32 pixels"):
        trainer_of(tmp_path).test(model_of("zero_shot", place), datamodule=data_of(place, image_size=64), verbose=False)

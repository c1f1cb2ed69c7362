"""Spectral face anti-spoofing: golden optimiser and sampling, SAM, mixup, learning, resume, and the whole way through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from callbacks.preemption import LastCheckpoint
from datamodules.hyspefas import HySpeFAS, repeat_factors
from genlab import detection_figures
from genlab.cli import main
from genlab.files import read_csv
from genlab.methods.spectral_fas import SpectralFAS, mixed, mixup_partners
from genlab.models.spectral_backbones import SpectralBackbone
from genlab.training.averaging import update_average, warm_decay
from genlab.training.resume import ExactResume
from genlab.training.sam import frozen_statistics, perturbed
from genlab.training.schedules import epoch_lr
from tests.golden_files import assert_close, golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("spectral_fas", "focal"))
def test_focal_golden(path: Path) -> None:
    meta, golden = load_golden(path)
    for case in meta["cases"]:
        logits = golden["logits"].clone().requires_grad_()
        losses = sigmoid_focal_loss(logits, golden["targets"], case["alpha"], case["gamma"])
        losses.mean().backward()
        assert logits.grad is not None
        assert_close(losses, golden[f"{case['name']}.none"], meta["tol"], case["name"])
        assert_close(logits.grad, golden[f"{case['name']}.grad_of_mean"], meta["tol"], case["name"])
        assert_close(losses.mean(), torch.tensor(case["mean"]), meta["tol"], case["name"])


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("spectral_fas", "sampling"))
def test_sampling_golden(path: Path) -> None:
    meta, _ = load_golden(path)
    for case in meta["cases"]:
        times = repeat_factors(case["n_live"], case["n_print"], case["n_mask"])
        assert (times["print"], times["live"]) == (case["repeat_print"], case["repeat_live"])
        assert case["n_mask"] + times["print"] * case["n_print"] + times["live"] * case["n_live"] == case["total"]


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("spectral_fas", "optim"))
def test_optim_golden(path: Path) -> None:
    meta, golden = load_golden(path)
    tol, sam = meta["tol"], meta["sam"]
    layer = nn.Linear(golden["w0"].shape[1], 1)
    with torch.no_grad():
        layer.weight.copy_(golden["w0"])
        layer.bias.copy_(golden["b0"])
    average = nn.Linear(golden["w0"].shape[1], 1)
    average.load_state_dict(layer.state_dict())
    optimizer = torch.optim.SGD(layer.parameters(), **meta["sgd"])
    for step, (x, y) in enumerate(zip(golden["x"], golden["y"])):
        optimizer.zero_grad()
        F.mse_loss(layer(x), y).backward()
        with perturbed(layer.parameters(), sam["rho"], sam["adaptive"], sam["eps"]):
            assert_close(layer.weight, golden[f"s{step}.w_perturbed"], tol, f"s{step}.w_perturbed")
            optimizer.zero_grad()
            F.mse_loss(layer(x), y).backward()
        optimizer.step()
        update_average(average, layer, warm_decay(step + 1, meta["ema"]["decay"]))
        assert_close(layer.weight, golden[f"s{step}.w"], tol, f"s{step}.w")
        assert_close(layer.bias, golden[f"s{step}.b"], tol, f"s{step}.b")
        assert_close(average.weight, golden[f"s{step}.ema_w"], tol, f"s{step}.ema_w")
    rates = meta["official_lr_per_epoch_0_to_30"]
    found = [epoch_lr(epoch, len(rates), 0.01, 1e-4, restart=True) for epoch in range(len(rates))]
    assert_close(torch.tensor(found), torch.tensor(rates), tol, "learning rates")
    labels = golden["mixup.labels"].long()
    partners = torch.empty(len(labels), dtype=torch.int64)
    for label in labels.unique().tolist():
        partners[labels == label] = golden[f"mixup.partner_of_class{label}"].long()
    assert_close(mixed(golden["mixup.x"], partners, meta["mixup_lambda"]), golden["mixup.out"], tol, "mixup")


def test_mixup_keeps_class_means_and_mixes_the_first_sample_like_any_other() -> None:
    labels = torch.tensor([1, 0, 0, 1, 0, 1, 1, 0])
    x, moved = torch.randn(8, 3, 2, 2), torch.zeros(8)
    for seed in range(200):
        partners = mixup_partners(labels, torch.Generator().manual_seed(seed))
        assert torch.equal(labels[partners], labels) and sorted(partners.tolist()) == list(range(8))
        moved += partners != torch.arange(8)
        out = mixed(x, partners, 0.3)
        for label in (0, 1):
            assert torch.allclose(out[labels == label].mean(0), x[labels == label].mean(0), atol=1e-5)
    assert abs(float(moved[0] / moved[1:].mean()) - 1) < 0.15


def test_without_a_radius_two_passes_are_one_and_statistics_move_once() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(16, 4), torch.randn(16, 1)

    def trained(two: bool) -> nn.Sequential:
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
        for _ in range(3):
            optimizer.zero_grad()
            F.mse_loss(network(x), y).backward()
            if two:
                with perturbed(network.parameters(), 0.0), frozen_statistics(network):
                    optimizer.zero_grad()
                    F.mse_loss(network(x), y).backward()
            optimizer.step()
        return network

    one, two = trained(False), trained(True)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    assert isinstance(two[1], nn.BatchNorm1d) and two[1].momentum == 0.1


TINY = {
    "class_path": "genlab.methods.spectral_fas.SpectralFAS",
    "init_args": {
        "channels": 33, "maps": 2, "middle": 32, "embedding": 32, "memory": 160, "rho": 0.0, "optimizer": "adamw", "lr": 3e-3,
        "backbone": {"class_path": "genlab.models.spectral_backbones.SpectralBackbone", "init_args": {"name": "tiny", "weights": None}},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Live, print and mask with smooth spectra of their own in an elliptic face, in the challenge's layout."""
    from scipy.io import savemat

    root, rng = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    waves = np.linspace(0, 1, 30)
    spectra = {"live": 0.4 + 0.3 * np.sin(3 * waves), "print": 0.4 + 0.3 * np.sin(3 * waves + 0.7), "mask": 0.45 + 0.25 * np.cos(4 * waves)}
    number = 0
    for split, count in (("train", 192), ("val", 64), ("test", 64)):
        part = root / ("HySpeFAS_test" if split == "test" else "HySpeFAS_trainval")
        (part / "images").mkdir(parents=True, exist_ok=True)
        lines = []
        for i in range(count):
            number += 1
            kind = ("live", "print", "mask", "mask")[i % 4]
            high, wide = 36 + i % 5, 32 + i % 3
            v, u = np.mgrid[-1 : 1 : high * 1j, -1 : 1 : wide * 1j]
            face = (u**2 / 0.6 + v**2 / 0.9 < 1)[..., None]
            cube = face * spectra[kind] * rng.uniform(0.7, 1.3) + 0.05 * rng.standard_normal((high, wide, 30))
            savemat(part / "images" / f"{number:04d}.mat", {"var": cube.astype(np.float32)})
            bands = np.stack([cube[..., k : k + 10].mean(2) for k in (20, 10, 0)], 2)
            Image.fromarray((bands.clip(0, 1) * 255).astype(np.uint8)).save(part / "images" / f"{number:04d}.png")
            lines.append((f"{number:04d}.mat", kind))
        name = "train.txt" if split == "train" else f"{split}_gt.txt"
        (part / name).write_text("".join(f"{mat} {int(kind == 'live')}\n" for mat, kind in lines))
        types = part / "types.csv"
        types.write_text((types.read_text() if types.is_file() else "image,type\n") + "".join(f"{mat},{kind}\n" for mat, kind in lines))
    return root


def config(tmp_path: Path, faces: Path, **model: Any) -> Path:
    path = tmp_path / "faces.yaml"
    settings = {
        "seed_everything": 1,
        "model": {**TINY, "init_args": {**TINY["init_args"], **model}},
        "data": {
            "class_path": "datamodules.hyspefas.HySpeFAS",
            "init_args": {
                "root": str(faces), "image_size": 32, "normalise": "train", "batch_size": 32, "num_workers": 0,
                "augment": {"class_path": "datamodules.spectral_augment.SpectralAugment", "init_args": {"half_mask": False, "holes": 0}},
            },
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 4, "enable_progress_bar": False},
    }  # fmt: skip
    path.write_text(json.dumps(settings))
    return path


@pytest.mark.slow
def test_learns_and_goes_the_whole_way(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learns within four epochs; the threshold of validation decides the test; the submission and a prediction of one's own cubes."""
    monkeypatch.chdir(tmp_path)
    file = config(tmp_path, faces)
    assert main(["fit", "-c", str(file)]) == 0
    run = tmp_path / "runs/faces/seed1"
    validated = json.loads((run / "results.json").read_text())["metrics"]
    assert validated["val/acer"] <= 0.05
    drawn: list[Any] = []
    monkeypatch.setattr(detection_figures, "score_histogram", lambda *given: drawn.append(given) or Image.new("RGB", (9, 9)))
    assert main(["test", "-c", str(file), "--ckpt_path", "last"]) == 0
    test = run / "test-hyspefas"
    metrics = json.loads((test / "results.json").read_text())["metrics"]
    assert metrics["test/threshold"] == pytest.approx(validated["val/threshold"])
    assert metrics["test/acer"] <= 0.1 and metrics["test/n_live"] == 16 and metrics["test/mask/n"] == 32
    rows = read_csv(test / "predictions.csv")
    lines = [line.split() for line in (test / "result.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == [row["id"] for row in rows] and len(lines) == 64
    (scores, labels, kinds, threshold, _, classes) = drawn[0]
    assert classes == ("live", "attack") and {kind for kind, attack in zip(kinds, labels) if attack} > {"mask"}
    assert [1 - float(row["score"]) for row in rows] == pytest.approx(scores.tolist()) and sum(labels) == 48
    assert threshold == pytest.approx(1 - metrics["test/threshold"])
    accepted = sum(answer == "1" and row["label"] == "0" for (_, answer), row in zip(lines, rows))
    assert accepted / 48 == pytest.approx(metrics["test/apcer"])
    assert (test / "media/det.png").is_file() and (test / "media/embeddings.png").is_file()
    own = faces / "HySpeFAS_test/images/0260.mat"
    assert main(["predict", "-c", str(file), "--ckpt_path", "last", str(own)]) == 0
    (row,) = read_csv(next(run.glob("predict*/predictions.csv")))
    tested = next(each for each in rows if each["id"] == "0260.mat")
    assert float(row["score"]) == pytest.approx(float(tested["score"]), abs=1e-3) and row["called"] == tested["called"]


@pytest.mark.slow
@pytest.mark.parametrize(("more", "epochs"), [({"scl_warmup_steps": 80}, 14), ({"scl_weight": 0.0}, 5)])
def test_learns_with_half_of_the_faces_masked(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, float], epochs: int
) -> None:
    """From random weights lambda has to rise slowly, else all embeddings become equal; without it there is nothing that could collapse."""
    monkeypatch.chdir(tmp_path)
    file = config(tmp_path, faces, **more)
    plain = "--data.augment={class_path: datamodules.spectral_augment.SpectralAugment}"
    assert main(["fit", "-c", str(file), plain, f"--trainer.max_epochs={epochs}"]) == 0
    acers = [float(row["val/acer"]) for row in read_csv(tmp_path / "runs/faces/seed1/metrics.csv") if row["val/acer"]]
    assert len(acers) == epochs and min(acers) <= 0.02, acers


class KeepAll(LastCheckpoint):
    """Keeps a copy of every ``last.ckpt``."""

    def save(self, trainer: L.Trainer) -> None:
        super().save(trainer)
        shutil.copy(self.path, self.path.with_name(f"{trainer.global_step:03d}.ckpt"))


@pytest.mark.slow
def test_resumed_runs_are_the_unbroken_one_with_memory_average_and_two_passes(faces: Path, tmp_path: Path) -> None:
    def fit(folder: Path, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
        L.seed_everything(1)
        folder.mkdir()
        model = SpectralFAS(
            33, SpectralBackbone("tiny", None), 2, 16, 16, memory=80, rho=0.05, xbm_enqueue="both", scl_warmup_steps=5, seed=1
        )
        data = HySpeFAS(
            str(faces), image_size=32, normalise="train", rebalance="sampler", batch_size=64, eval_batch_size=64, num_workers=0, seed=1
        )
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            inference_mode=False, max_epochs=2, num_sanity_val_steps=0, callbacks=[KeepAll(folder / "last.ckpt", 15, 1), ExactResume()],
        )  # fmt: skip
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        assert trainer.global_step == 6
        return {key: value.clone() for key, value in model.state_dict().items()} | {"acer": trainer.callback_metrics["val/acer"]}

    whole = fit(tmp_path / "whole")
    assert int(whole["xbm.filled"]) == 80 and int(whole["xbm.position"]) == 12 * 64 % 80 and int(whole["ema_updates"]) == 6
    steps = [int(path.stem) for path in sorted((tmp_path / "whole").glob("0*.ckpt"))][:-1]
    for step in (steps[0], steps[-1]):
        resumed = fit(tmp_path / f"from{step}", tmp_path / f"whole/{step:03d}.ckpt")
        different = [key for key, value in whole.items() if not torch.equal(resumed[key], value)]
        assert not different, step


def test_what_trains_and_what_a_test_needs(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = SpectralFAS(33, SpectralBackbone("tiny", None), maps=2, middle=8, embedding=8, scl_weight=0.0)
    model.configure_model()
    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert "head_mlp" not in trained and "swl" in trained
    assert not any(p.requires_grad for name, p in model.named_parameters() if name.startswith("average."))
    for words, said in (
        (["--model.channels=3"], "Set --model.channels 33"),
        (["--data.bands=[31]"], "data.bands: 31 is no band"),
        (["--data.bands=[]", "--data.colour=none"], "nothing left to see"),
        (["--data.protocol=4"], "data.protocol: 4"),
        (["--model.threshold=2"], "model.threshold: 2"),
    ):
        assert main(["fit", "-c", str(config(tmp_path, faces)), f"--run.root={tmp_path / 'runs'}", *words]) == 2
        assert said in capsys.readouterr().err, words


def test_channels_and_their_statistics(faces: Path) -> None:
    data = HySpeFAS(str(faces), image_size=32, bands=[1, 30], colour="rgb")
    data.setup("fit")
    assert data.statistics is not None and len(data.statistics[0]) == 5
    assert data.statistics[0].tolist() == pytest.approx([0.57979, 0.66979, 0.35215, 0.22949, 0.24814]), "official ones, red first"
    both = HySpeFAS(str(faces), image_size=32, train_on_val=True)
    both.setup("fit")
    assert len(both.datasets["train"]) == 192 + 64 and both.protocol["validation pictures in training"] == 64
    assert not any("in the train list" in line for line in both.check("quick").warnings), "the lists themselves do not overlap"

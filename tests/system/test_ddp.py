"""Several processes (gloo, CPU) against one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from genlab.files import read_csv
from tests.system.forked import run_forked
from tests.system.programs import run, tiny_fit

pytestmark = [pytest.mark.system, pytest.mark.slow]


@dataclass(frozen=True)
class Parity:
    """A method whose training is the same on any number of processes.

    Args:
        config: Experiment of the tiny world.
        data: Root of its data, one of those of :func:`roots`.
        coupled: What makes a sample's loss or gradient depend on the others of its batch, and what is done about it: ``gathered`` over
            all ranks; ``absent`` with these options; or ``equal``: batches are compared that are the same on each rank. Those are of one
            sample, since of larger ones different processes get different ones, and as many are accumulated as make up the global batch.
        options: Sizes that take seconds, and no dropout.
        tolerance: Of the losses, relative.
        precision: Of the trainer.
    """

    config: str
    data: str
    coupled: dict[str, Literal["gathered", "absent", "equal"]]
    options: tuple[str, ...] = ()
    tolerance: float = 1e-4
    precision: str = "32-true"


ROWS = {
    # Heads and layer norms see one clip; augmentations are keyed by clip.
    "demamba": Parity(
        "tiny/demamba", "genvideo", {"batch norms of the backbone": "gathered"},
        ("--model.mamba={d_state: 4, drop_path: 0}", "--data.val_fraction=0.2"),
    ),
    "contrastive": Parity(
        "tiny/clip", "captions", {"the other samples and captions are the negatives": "gathered"},
        ("--model.towers={class_path: genlab.models.towers.CLIPSettings, init_args: {width: 32, layers: 1, text_width: 32}}",),
    ),
    "classifier": Parity(
        "tiny/judge", "captions",
        {"batch norms": "gathered", "a column's loss is a mean over those that have it, and here all have": "absent"},
        ("--data.more_roots=null", "--model.subsets=null", "--model.channels=[8,8,8,8,8]"),
    ),
    "autoencoder": Parity(
        "tiny/vae", "captions", {}, ("--model.channels=[8,8]", "--model.latent_channels=4", "--model.crop_steps=10", "--model.judge=null"),
    ),
    "latent_diffusion": Parity(
        "{parts}/diffusion.yaml", "captions", {}, ("--model.text_dropout=0", "--model.inpainting=true", "--model.ema_decay=0.9"),
    ),
    "question_answering": Parity(
        "tiny/vlm", "questions", {"the loss is a mean over the answers' tokens, of which pictures have different numbers": "equal"},
        ("--model.network={width: 32, layers: 1, heads: 2, mlp: 32, vision_width: 16, vision_layers: 1, vision_heads: 2}",),
    ),
    "spectral_fas": Parity(
        "tiny/spectral_fas", "hyspefas",
        {"batch norms": "gathered", "the memory holds the embeddings of all": "gathered", "mixup within the batch": "absent"},
        (
            "--model.backbone.init_args.name=tiny", "--model.backbone.init_args.weights=null", "--model.mixup=false", "--model.dropout=0",
            "--model.maps=2", "--model.middle=8", "--model.embedding=8", "--model.memory=64", "--data.image_size=24",
            "--data.rebalance=none",
        ),
        precision="64-true",  # in fp32 rounding errors grow by five a step: batches of eight, ten batch norms, a temperature of .07
    ),
    "cpr": Parity("tiny/cpr", "fewshot", {"the consistency loss is over all classes, on every rank": "absent"}, ("--data.shots=4",)),
    "domaingallery": Parity(
        "tiny/domaingallery", "domain",
        {"the similarity loss compares pictures of a device's batch": "absent", "one timestep a step, keyed by it": "absent"},
        (
            "--model.sim_weight=0", "--model.erasure_steps=10", "--model.source_images=16", "--model.sampling_steps=2",
            "--data.domain=null", "--data.pictures=2",
        ),
    ),
    "msta": Parity("tiny/msta", "actions", {"the consistency loss is over all classes, on every rank": "absent"}, ("--data.num_frames=4",)),
}  # fmt: skip
"""A later method adds its row here."""
STEPS, GLOBAL_BATCH = 20, 8
DIFFUSION = """
seed_everything: 0
model:
  class_path: genlab.methods.pretraining.latent_diffusion.LatentDiffusion
  init_args: {{vae: {parts}, text_width: 32, text_layers: 1, channels: [8, 16], heads: 2, groups: 4, image_size: 16, sampling_steps: 2}}
data:
  class_path: datamodules.captioned_images.CaptionedImages
  init_args: {{root: "", image_size: 16}}
"""


@pytest.fixture(scope="module")
def roots(tiny_genvideo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data by name, with numbers of batches that ranks cannot share evenly, and ``parts`` of a diffusion pipeline."""
    from datamodules.tinyworld import make
    from tests.diffusion.tiny_parts import write_parts

    folder = tmp_path_factory.mktemp("parity")
    made = {"genvideo": tiny_genvideo, "parts": write_parts(folder / "parts")}
    made["captions"] = make("captions", folder / "captions", progress=False, pictures=96, held_out=16)
    made["questions"] = make("questions", folder / "questions", progress=False, pictures=96, held_out=6)
    made["hyspefas"] = make("hyspefas", folder / "hyspefas", progress=False, train_captures=4, val_captures=1, test_captures=1, size=24)
    made["fewshot"] = make("dtd", folder / "dtd", progress=False, size=32, train=6, val=2, test=2)
    made["actions"] = make("ucf101", folder / "ucf101", progress=False, groups=4, clips=2, size=32)
    made["domain"] = make("domain_images", folder / "domains", progress=False, reference=1, source=1) / "target_dataset/sketched_stars"
    (folder / "parts" / "diffusion.yaml").write_text(DIFFUSION.format(parts=folder / "parts"))
    return made


@pytest.mark.parametrize("name", ROWS)
def test_one_two_and_four_processes_train_alike(roots: dict[str, Path], tmp_path: Path, name: str) -> None:
    row = ROWS[name]
    losses, metrics, ids = {}, {}, {}
    for processes in (1, 2, 4):
        path = tmp_path / f"losses{processes}.json"
        batch, accumulate = GLOBAL_BATCH // processes, 1
        if "equal" in row.coupled.values():
            batch, accumulate = 1, batch
        trainer = {
            "devices": processes, "max_epochs": -1, "max_steps": STEPS, "val_check_interval": STEPS * accumulate,
            "check_val_every_n_epoch": None, "limit_val_batches": 1.0, "accumulate_grad_batches": accumulate, "accelerator": "cpu",
            "precision": row.precision, "log_every_n_steps": 5, "num_sanity_val_steps": 0, "enable_progress_bar": False, "logger": False,
            "callbacks": [{"class_path": "tests.system.parity.BatchLosses", "init_args": {"path": str(path)}}],
        }  # fmt: skip
        if processes > 1:
            trainer |= {"strategy": "ddp", "plugins": [{"class_path": "tests.system.parity.SyncOnCPU"}]}
        overlay = tmp_path / f"{processes}.yaml"
        overlay.write_text(json.dumps({"trainer": trainer}))
        data = [f"--data.root={roots[row.data]}", f"--data.batch_size={batch}", "--data.eval_batch_size=3", "--data.num_workers=0"]
        config, run_name = row.config.format(**roots), f"--run.name=on{processes}"
        run_forked("fit", "-c", config, "-c", str(overlay), *data, *row.options, run_name, processes=processes, cwd=tmp_path)
        losses[processes] = json.loads(path.read_text())
        (folder,) = tmp_path.glob(f"runs/**/on{processes}")
        results, rows = json.loads((folder / "results.json").read_text()), read_csv(folder / "predictions.csv")
        ids[processes] = sorted(entry["id"] for entry in rows)
        assert len(set(ids[processes])) == len(rows) == results["counts"]["n_expected"], "each sample once"
        metrics[processes] = {key: value for key, value in results["metrics"].items() if key.startswith("val/")}
    assert len(losses[1]) == STEPS and len(set(losses[1])) == STEPS, "it trains"
    assert metrics[1]
    for processes in (2, 4):
        assert losses[processes] == pytest.approx(losses[1], rel=row.tolerance), f"{processes} processes; coupled: {row.coupled}"
        assert ids[processes] == ids[1]
        assert metrics[processes] == pytest.approx(metrics[1], abs=1e-3, nan_ok=True)


def test_two_processes_measure_what_one_does(tiny_genvideo: Path, tmp_path: Path) -> None:
    """Same metrics to the last digit that the order of additions leaves, and every clip counted once."""
    run(*tiny_fit(tiny_genvideo, "--trainer.max_epochs=2", "--run.name=a"), cwd=tmp_path)
    best = tmp_path / "runs/tiny/demamba/a/checkpoints/best.ckpt"
    found = {}
    for devices in (1, 2):
        arguments = ["test", *tiny_fit(tiny_genvideo)[1:], f"--ckpt_path={best}", f"--trainer.devices={devices}"]
        strategy = ["--trainer.strategy=ddp"] if devices > 1 else []
        run(*arguments, *strategy, cwd=tmp_path)
        folder = tmp_path / "runs/tiny/demamba/a/test-genvideo"
        results = json.loads((folder / "results.json").read_text())
        rows = read_csv(folder / "predictions.csv")
        assert len({row["id"] for row in rows}) == len(rows) == results["counts"]["n_expected"]
        found[devices] = (results["metrics"], {row["id"]: float(row["score"]) for row in rows})
    assert found[1][0].keys() == found[2][0].keys()
    for name, value in found[1][0].items():
        assert found[2][0][name] == pytest.approx(value, abs=1e-6), name
    assert found[1][1] == pytest.approx(found[2][1], abs=1e-6)


def test_two_processes_train_and_resume(tiny_genvideo: Path, tmp_path: Path) -> None:
    arguments = tiny_fit(tiny_genvideo, "--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=4")
    for name, epochs, more in (("whole", 3, ()), ("parts", 2, ()), ("parts", 3, ("--ckpt_path=last",))):
        run_forked(*arguments, f"--run.name={name}", f"--trainer.max_epochs={epochs}", *more, processes=2, cwd=tmp_path)
    import torch

    whole, parts = (
        torch.load(tmp_path / f"runs/tiny/demamba/{name}/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert whole["global_step"] == parts["global_step"] > 0
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(value, parts["state_dict"][key], atol=1e-6, rtol=1e-5)


def test_every_parameter_of_the_baseline_takes_part(tiny_genvideo: Path, tmp_path: Path) -> None:
    """Plain ``ddp`` stops at a parameter without a gradient, so two steps are proof. The methods' are above."""
    more = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1"]
    run_forked(*tiny_fit(tiny_genvideo, *more, "--model.head=pool"), processes=2, cwd=tmp_path)

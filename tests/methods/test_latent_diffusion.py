"""Latent diffusion: it learns, samples like the stock pipeline, and a resumed run is the unbroken one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from torch.utils.data import DataLoader, Dataset

from callbacks.preemption import LastCheckpoint
from datamodules.sampling import Draw, TrainLoader, TrainSampler
from genlab.errors import UserError
from genlab.methods.pretraining import pipeline_parts
from genlab.methods.pretraining.latent_diffusion import (
    LatentDiffusion,
    fresh_text_encoder,
    fresh_unet,
    random_holes,
    share_parts,
    widen_input,
)
from genlab.training.resume import ExactResume
from tests.diffusion.tiny_parts import CHANNELS, LENGTH, write_parts

SIZE = 16
CAPTIONS = ["red star", "blue circle"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


def collate(numbers: list[int]) -> dict[str, Any]:
    """Two pictures with their captions, again and again under other names."""
    pictures = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    batch: dict[str, Any] = {"image": pictures[[i % 2 for i in numbers]], "caption": [CAPTIONS[i % 2] for i in numbers], "labels": {}}
    batch |= {"id": [f"train/{i}" for i in numbers], "index": torch.tensor(numbers)}
    return batch | {"occurrence": torch.zeros(len(numbers), dtype=torch.int64), "group": torch.tensor(numbers)}


def loader(count: int = 16, batch_size: int = 8) -> DataLoader[Any]:
    return DataLoader(range(count), batch_size=batch_size, collate_fn=collate)  # type: ignore[arg-type]


class KeepStep(LastCheckpoint):
    """Keeps a copy of every ``last.ckpt``."""

    def save(self, trainer: L.Trainer) -> None:
        super().save(trainer)
        shutil.copy(self.path, self.path.with_name(f"{trainer.global_step}.ckpt"))


class Numbers(Dataset[int]):
    """What the training loader of the datamodules draws: positions."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, draw: Draw) -> int:
        return draw.index


class Pictures(L.LightningDataModule):
    """What a fresh text tower asks of a datamodule: the captions that its words come from."""

    def __init__(self, captions: list[str]) -> None:
        super().__init__()
        self.datasets = {"train": SimpleNamespace(captions=captions)}

    def train_dataloader(self) -> TrainLoader:
        return batches()


def batches() -> TrainLoader:
    return TrainLoader(Numbers(), TrainSampler(None, 24, 0, 0, 1), 8, collate_fn=collate)  # three an epoch


SIZES: dict[str, Any] = {"channels": [8, 16], "heads": 2, "groups": 4, "image_size": SIZE, "sampling_steps": 8, "warmup": 2}


def tiny(parts: Path, **options: Any) -> LatentDiffusion:
    torch.manual_seed(0)
    model = LatentDiffusion(str(parts), **({"text_encoder": str(parts)} | SIZES | options))
    model.configure_model()
    return model


def with_fresh_text(parts: Path, **options: Any) -> LatentDiffusion:
    torch.manual_seed(0)
    return LatentDiffusion(str(parts), **(SIZES | {"text_width": 16, "text_layers": 1, "text_length": LENGTH} | options))


def trainer(folder: Path, steps: int) -> L.Trainer:
    return L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip


@pytest.mark.slow
def test_learns_which_picture_belongs_to_which_caption(parts: Path, tmp_path: Path) -> None:
    model = tiny(parts, cache=True, lr=5e-3, ema_decay=0.9, posterior="mean", guidance=1.0)
    trainer(tmp_path, 250).fit(model, loader())
    batch = collate([20, 21])
    drawn, shown = model.draw(batch), (model.vae.decode(model.latents(batch)).sample / 2 + 0.5).clamp(0, 1)
    errors = (drawn[:, None] - shown[None]).pow(2).mean((2, 3, 4))
    assert (errors.diagonal() < 0.2 * errors.flip(1).diagonal()).all(), errors


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_exported_pipeline_draws_the_same_pictures(parts: Path, tmp_path: Path, prediction: str) -> None:
    model = tiny(parts, prediction=prediction)
    for parameter in model.ema.parameters():  # what is exported, and as half precision has it
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.export(tmp_path)
    again = tiny(parts, weights=str(tmp_path))
    assert again.needs_checkpoint is False
    batch = collate([0, 1])
    noise = again.noise(batch, torch.empty(1, CHANNELS, SIZE // 2, SIZE // 2), "draw")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path).to(torch.float32)
    assert pipeline.tokenizer.model_max_length == LENGTH
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(batch["caption"], latents=noise, num_inference_steps=8, guidance_scale=4.0, output_type="pt", height=SIZE, width=SIZE)
    assert torch.allclose(again.draw(batch), result.images, atol=2e-2)  # the pipeline's text and autoencoder went through half precision


def test_resumed_run_is_the_unbroken_one(parts: Path, tmp_path: Path) -> None:
    def fit(checkpoint: Path | None = None) -> LatentDiffusion:
        model = tiny(parts, cache=True, ema_decay=0.5)
        run = trainer(tmp_path, 6)
        run.callbacks += [ExactResume(), KeepStep(tmp_path / "last.ckpt", 15, 1)]  # type: ignore[attr-defined]
        run.fit(model, batches(), ckpt_path=checkpoint, weights_only=True)
        return model

    unbroken, within = fit(), tmp_path / "5.ckpt"
    held = torch.load(within, weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in held} == {"unet", "ema", "ema_updates"}, "frozen parts stay out of checkpoints"
    second = fit(within)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert int(second.ema_updates) == 6
    assert not torch.equal(second.ema.conv_in.weight, second.trained.conv_in.weight)


def test_a_fresh_text_tower_is_trained_resumed_and_exported(parts: Path, tmp_path: Path) -> None:
    def fit(captions: list[str] = CAPTIONS, checkpoint: Path | None = None) -> LatentDiffusion:
        model, run = with_fresh_text(parts, cache=True, ema_decay=0.5, lr=1e-2), trainer(tmp_path, 6)
        run.callbacks += [ExactResume(), KeepStep(tmp_path / "last.ckpt", 15, 1)]  # type: ignore[attr-defined]
        run.fit(model, datamodule=Pictures(captions), ckpt_path=checkpoint, weights_only=True)
        return model

    unbroken, within = fit(), tmp_path / "4.ckpt"
    held = torch.load(within, weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in held} == {"unet", "ema", "ema_updates", "text_encoder", "text_ema"}
    second = fit(checkpoint=within)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    with pytest.raises(UserError, match="another vocabulary"):
        fit(["green heart"], within)

    start = fresh_text_encoder(unbroken.tokenizer, 16, 1).state_dict()
    ends = [dict(each.named_parameters()) for each in (unbroken.text_encoder, unbroken.text_ema)]  # type: ignore[union-attr]
    assert start.keys() == ends[0].keys()
    assert all(not torch.equal(*(end[name] for end in ends)) for name in start if "k_proj.bias" not in name), "all of it is trained"

    loaded = LatentDiffusion.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu", weights_only=True)
    loaded.export(tmp_path / "whole")
    again = tiny(tmp_path / "whole", text_encoder=None, weights=str(tmp_path / "whole"))
    batch = collate([0, 1])
    assert torch.allclose(again.draw(batch), unbroken.draw(batch), atol=2e-2)  # half precision
    assert not torch.allclose(unbroken.states(CAPTIONS), unbroken.trained_states(CAPTIONS), atol=1e-4), "the running mean is what draws"


def test_a_fresh_text_tower_needs_captions(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a tokenizer is learned from captions"):
        trainer(tmp_path, 1).fit(with_fresh_text(parts), batches())


def test_running_mean_by_hand(parts: Path, tmp_path: Path) -> None:
    """decay_n = min(0.3, (1 + n) / (10 + n)): 2/11, 3/12, then 0.3."""
    model = tiny(parts, ema_decay=0.3)
    seen: list[torch.Tensor] = [model.trained.conv_in.weight.detach().clone()]

    class Watch(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(model.trained.conv_in.weight.detach().clone())

    run = trainer(tmp_path, 4)
    run.callbacks.append(Watch())  # type: ignore[attr-defined]
    run.fit(model, loader())
    mean = seen[0]
    for decay, weight in zip((2 / 11, 3 / 12, 0.3, 0.3), seen[1:]):
        mean = decay * mean + (1 - decay) * weight
    assert torch.allclose(model.ema.conv_in.weight, mean, atol=1e-6)


def test_draws_belong_to_samples(parts: Path) -> None:
    """The loss is a mean over samples that does not depend on their order, on the cache, nor on who computes it."""
    model, cached, other = tiny(parts), tiny(parts, cache=True), tiny(parts, seed=1)
    whole = model.loss(model.trained, collate([0, 1, 2, 3]), 0.1, 7)
    halves = [model.loss(model.trained, collate(numbers), 0.1, 7) for numbers in ([3, 1], [0, 2])]
    assert torch.allclose(whole, torch.stack(halves).mean(), rtol=1e-4)
    for _ in range(2):
        assert torch.allclose(cached.loss(cached.trained, collate([0, 1, 2, 3]), 0.1, 7), whole, rtol=1e-5)
    assert len(cached.kept_latents) == 4 and not model.kept_latents
    assert not torch.allclose(other.loss(other.trained, collate([0, 1, 2, 3]), 0.1, 7), whole, rtol=1e-3)
    assert not torch.allclose(model.loss(model.trained, collate([0, 1, 2, 3]), 0.1, 8), whole, rtol=1e-3)


def test_dropout_leaves_captions_empty(parts: Path) -> None:
    model, batch = tiny(parts), collate([0, 1])
    for parameter in model.trained.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    empty = model.loss(model.trained, batch | {"caption": ["", ""]}, 0.0, 0)
    assert torch.allclose(model.loss(model.trained, batch, 1.0, 0), empty)
    assert not torch.allclose(model.loss(model.trained, batch, 0.0, 0), empty, rtol=1e-5)


def test_holes_are_of_all_kinds() -> None:
    holes = random_holes(200, 32, 0, "holes")
    assert set(holes.unique().tolist()) == {0.0, 1.0}
    share = holes.mean((1, 2, 3))
    assert 0.1 < (share == 1).float().mean() < 0.25
    assert share.min() > 0.01 and share[share < 1].max() < 0.8
    assert torch.equal(holes[:5], random_holes(5, 32, 0, "holes"))


def test_inpainting_starts_as_what_it_was(parts: Path) -> None:
    plain = fresh_unet([8, 16], 1, 2, 4, CHANNELS, 0, 16, SIZE // 2)
    wide = widen_input(plain, CHANNELS + 1)
    noised, seen = torch.randn(2, CHANNELS, 8, 8), torch.randn(2, CHANNELS + 1, 8, 8)
    timesteps, states = torch.tensor([3, 500]), torch.randn(2, LENGTH, 16)
    with torch.no_grad():
        assert torch.allclose(wide(torch.cat([noised, seen], 1), timesteps, states).sample, plain(noised, timesteps, states).sample)


def test_inpainting_agrees_with_the_stock_pipeline(parts: Path, tmp_path: Path) -> None:
    model = tiny(parts, inpainting=True, guidance=1.0)
    model.export(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path).to(torch.float32)
    assert isinstance(pipeline, StableDiffusionInpaintPipeline)
    again = tiny(parts, weights=str(tmp_path), inpainting=True, guidance=1.0)
    batch = collate([0, 1])
    holes = random_holes(2, SIZE, 0)
    noise = again.noise(batch, torch.empty(1, CHANNELS, SIZE // 2, SIZE // 2), "draw")
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(
        batch["caption"], image=batch["image"], mask_image=holes, latents=noise, num_inference_steps=8, guidance_scale=1.0,
        output_type="pt", height=SIZE, width=SIZE, strength=1.0,
    )  # fmt: skip
    assert torch.allclose(again.draw(batch, again.seen(batch, holes)), result.images, atol=2e-2)


def test_tiny_models_share_their_parts(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoencoder is named and not written again, and so are a CLIP's text tower, or another pipeline's."""
    models = tmp_path / "tiny_models"
    monkeypatch.setattr(pipeline_parts, "TINY_MODELS", models)
    tiny(parts).export(models / "sd")
    for name, text, tower in (
        ("clip", "tiny:clip", {"from": "clip/model.safetensors", "prefix": "text_model."}),
        ("pipeline", "tiny:sd", {"from": "sd/text_encoder/model.safetensors"}),
    ):
        folder = tmp_path / name
        tiny(parts).export(folder)
        share_parts(folder, "tiny:vae", text)
        shared = json.loads((folder / "parts.json").read_text())
        assert shared["text_encoder/model.safetensors"] == tower
        assert shared["vae/config.json"] == {"from": "vae/vae/config.json"}
        place = "sd/tokenizer" if name == "pipeline" else "clip"
        assert shared["tokenizer/tokenizer_config.json"] == {"from": f"{place}/tokenizer_config.json"}
        left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert left >= {"model_index.json", "text_encoder/config.json", "unet/config.json", "scheduler/scheduler_config.json", "parts.json"}
        assert not left & shared.keys()

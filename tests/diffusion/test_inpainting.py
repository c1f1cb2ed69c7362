"""Pipelines of diffusers as inpainters: how they are called, and a tiny real one from a folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from genlab.diffusion.inpainting import Diffusers, run_pipeline
from genlab.errors import MissingPath, UserError
from tests.diffusion.tiny_parts import write_inpainting_pipeline


class Recorder:
    """Takes what a pipeline takes, and fills holes with what each item's generator draws."""

    def __init__(self, flagged: bool = False) -> None:
        self.calls: list[dict[str, Any]] = []
        self.flagged = flagged

    def __call__(self, *, image: Tensor, mask_image: Tensor, generator: list[torch.Generator], **more: Any) -> SimpleNamespace:
        self.calls.append({"image": image, "mask_image": mask_image, "generator": generator, **more})
        drawn = torch.stack([torch.rand(image.shape[1:], generator=each) for each in generator])
        images = image * (1 - mask_image) + drawn * mask_image
        return SimpleNamespace(images=images, nsfw_content_detected=[self.flagged] * len(image))


def test_how_a_pipeline_is_called() -> None:
    images, holes = torch.rand(2, 3, 30, 41), torch.zeros(2, 1, 30, 41)
    holes[:, :, 4:16, 8:24] = 1
    pipeline = Recorder()
    filled = run_pipeline(pipeline, images, holes, ["a", "b"], [5, 6], steps=7, guidance=2.0)
    (call,) = pipeline.calls
    assert call["image"].shape == (2, 3, 32, 48) and call["mask_image"].shape == (2, 1, 32, 48)
    assert (call["height"], call["width"], call["prompt"], call["num_inference_steps"]) == (32, 48, ["a", "b"], 7)
    assert set(call["mask_image"].unique().tolist()) == {0.0, 1.0}
    assert abs(float(call["mask_image"].mean() - holes.mean())) < 0.02, "white is the hole"
    assert [each.initial_seed() for each in call["generator"]] == [5, 6] and filled.shape == images.shape
    alone = run_pipeline(pipeline, images[1:, :, :24, :40], holes[1:, :, :24, :40], ["b"], [6], steps=7, guidance=2.0)
    both = run_pipeline(pipeline, images[..., :24, :40], holes[..., :24, :40], ["a", "b"], [5, 6], steps=7, guidance=2.0)
    assert torch.equal(alone[0], both[1])
    with pytest.raises(UserError, match="safety checker"):
        run_pipeline(Recorder(flagged=True), images, holes, ["", ""], [5, 6], steps=1, guidance=1.0)


@pytest.mark.slow
def test_a_real_pipeline_from_a_folder(tmp_path: Path) -> None:
    folder = write_inpainting_pipeline(tmp_path / "pipe")
    fills = Diffusers(str(folder), steps=2, guidance=2.0)
    fills.load(torch.device("cpu"))
    images, holes = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.zeros(3, 1, 32, 32)
    holes[:, :, 8:20, 8:24] = 1
    hidden = images * (1 - holes)
    whole = fills.fill(hidden, holes, seeds=[1, 2, 3])
    assert whole.shape == images.shape and whole.min() >= 0 and whole.max() <= 1 and torch.isfinite(whole).all()
    alone = torch.cat([fills.fill(hidden[n : n + 1], holes[n : n + 1], seeds=[n + 1]) for n in range(3)])
    assert (alone - whole).abs().max() < 1e-4
    assert (fills.fill(hidden, holes, seeds=[4, 5, 6]) - whole).abs().max() > 1e-2
    assert fills.name == "pipe" and fills.key() != Diffusers(str(folder), steps=3, guidance=2.0).key()
    assert fills.key() == Diffusers(str(folder), steps=2, guidance=2.0, batch_size=1, name="other").key()


@pytest.mark.slow
def test_tiny_inpaint_fills_holes() -> None:
    """The stock pipeline's own call. A plain picture's hole is filled nearer to its colour than grey is, by a quarter."""
    fills = Diffusers("tiny:inpaint", steps=10, guidance=2.0)
    fills.load(torch.device("cpu"))
    assert type(fills._pipeline).__name__ == "StableDiffusionInpaintPipeline"
    images, holes = torch.full((2, 3, 64, 64), 0.75), torch.zeros(2, 1, 64, 64)
    holes[:, :, 20:40, 24:48] = 1
    filled = fills.fill(images * (1 - holes), holes, seeds=[1, 2])
    assert (filled - images)[holes.expand_as(images) == 1].abs().mean() < 0.75 * 0.25
    assert torch.allclose(filled[1:], fills.fill(images[1:] * (1 - holes[1:]), holes[1:], seeds=[2]), atol=1e-4)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingPath, match="not on this machine as a whole pipeline"):
        Diffusers("nobody/no-pipeline").load(torch.device("cpu"))
    with pytest.raises(UserError, match="at least one step"):
        Diffusers("x/y", steps=0)

"""The schedule's formulas, by hand and against diffusers' own scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler

from genlab.diffusion.components import stable_diffusion_scheduler
from genlab.diffusion.schedule import (
    Prediction,
    add_noise,
    ddim_step,
    offset_noise,
    predict_noise,
    predict_x0,
    scaled_linear,
    sub_schedule,
    training_target,
    velocity,
)

KINDS: list[Prediction] = ["epsilon", "v_prediction"]


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 5, 3, 4, 4, generator=generator, dtype=torch.float64)
    return latents, noise, torch.tensor([0, 10, 400, 750, 999])


def test_noising_by_hand() -> None:
    alphas, one, two = torch.tensor([0.81, 0.36]), torch.full((1, 1), 2.0), torch.full((1, 1), 1.0)
    assert add_noise(one, two, torch.tensor([1]), alphas).item() == pytest.approx(0.6 * 2 + 0.8 * 1)
    assert velocity(one, two, torch.tensor([1]), alphas).item() == pytest.approx(0.6 * 1 - 0.8 * 2)
    assert add_noise(one, two, torch.tensor([-1]), alphas).item() == pytest.approx(0.9 * 2 + math.sqrt(0.19))  # the end of the schedule


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_diffusers(kind: Prediction, drawn: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """Noising, velocity, and a whole sampling with another network output at every step."""
    scheduler = stable_diffusion_scheduler(kind)
    latents, noise, timesteps = (each.float() if each.is_floating_point() else each for each in drawn)
    alphas = scaled_linear()
    assert torch.allclose(alphas, scheduler.alphas_cumprod, rtol=1e-6)
    assert torch.allclose(add_noise(latents, noise, timesteps, alphas), scheduler.add_noise(latents, noise, timesteps))
    assert torch.allclose(velocity(latents, noise, timesteps, alphas), scheduler.get_velocity(latents, noise, timesteps))
    scheduler.set_timesteps(10)
    mine = theirs = noise
    for step, timestep in enumerate(scheduler.timesteps):
        output = torch.randn(noise.shape, generator=torch.Generator().manual_seed(step))
        mine, clean = ddim_step(output, mine, timestep, timestep - 100, alphas, kind)
        result = scheduler.step(output, timestep, theirs)
        theirs = result.prev_sample
        assert torch.allclose(clean, result.pred_original_sample, rtol=1e-4, atol=1e-5)
    assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_truth_leads_back(kind: Prediction, drawn: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """A perfect prediction gives latents and noise back at every timestep, and a DDIM step with it is the noising itself."""
    latents, noise, timesteps = drawn
    alphas = scaled_linear().double()
    noised = add_noise(latents, noise, timesteps, alphas)
    output = training_target(latents, noise, timesteps, alphas, kind)
    assert torch.allclose(predict_x0(output, noised, timesteps, alphas, kind), latents, atol=1e-10)
    assert torch.allclose(predict_noise(output, noised, timesteps, alphas, kind), noise, atol=1e-10)
    earlier, clean = ddim_step(output, noised, timesteps, timesteps // 2, alphas, kind)
    assert torch.allclose(earlier, add_noise(latents, noise, timesteps // 2, alphas), atol=1e-10)
    assert torch.allclose(clean, latents, atol=1e-10)


def test_sub_schedules() -> None:
    assert sub_schedule(999, 4) == [999, 749, 500, 250]  # 749.25 and 499.5: to the nearest, half to even
    assert sub_schedule(3, 5) == [3, 2, 1, 0]
    assert sub_schedule(5, 5) == [5, 4, 3, 2, 1]
    assert sub_schedule(0, 5) == [0]


def test_offset_shifts_whole_channels() -> None:
    noise, offset = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 1, 1)
    shift = offset_noise(noise, offset, 0.1) - noise
    assert torch.allclose(shift, (0.1 * offset).expand_as(shift), atol=1e-6)


def test_latents_are_never_clipped() -> None:
    assert stable_diffusion_scheduler("epsilon").config.clip_sample is False
    assert DDIMScheduler().config.clip_sample is True  # what a configuration that does not say so would mean

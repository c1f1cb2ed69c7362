"""Diffusion losses by hand, and against golden numbers of an independent implementation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genlab.diffusion.losses import diffusion_loss, min_snr_weights, prior_preservation_loss, signal_to_noise
from genlab.diffusion.schedule import Prediction, add_noise, scaled_linear, sub_schedule, training_target, velocity
from tests.golden_files import assert_close, golden_files, load_golden

KINDS: dict[str, Prediction] = {"epsilon": "epsilon", "v": "v_prediction"}


def test_min_snr_by_hand() -> None:
    """SNR 9 lies above gamma 5, SNR 1 below it."""
    snr = signal_to_noise(torch.tensor([0.9, 0.5], dtype=torch.float64))
    assert snr.tolist() == pytest.approx([9.0, 1.0])
    assert min_snr_weights(snr, 5, "epsilon").tolist() == pytest.approx([5 / 9, 1.0])
    assert min_snr_weights(snr, 5, "v_prediction").tolist() == pytest.approx([5 / 10, 1 / 2])


def test_the_two_predictions_weigh_the_same_error_alike() -> None:
    """An error d in x_0 is d sqrt(SNR) in the noise and d sqrt(SNR + 1) in the velocity: both weights make min(SNR, gamma) d^2 of it."""
    snr = signal_to_noise(scaled_linear().double())
    assert torch.allclose(min_snr_weights(snr, 5, "epsilon") * snr, min_snr_weights(snr, 5, "v_prediction") * (snr + 1))


def test_losses_by_hand() -> None:
    output, target = torch.tensor([[1.0, 3.0], [0.0, 2.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert diffusion_loss(output, target).item() == pytest.approx((5 + 2) / 2)
    assert diffusion_loss(output, target, torch.tensor([1.0, 0.5])).item() == pytest.approx((5 + 1) / 2)
    assert [each.item() for each in prior_preservation_loss(output, target, 0.5)] == pytest.approx([5 + 0.5 * 2, 5, 2])


def test_half_precision_is_not_summed_in_half_precision() -> None:
    output = torch.full((1, 4096), 100.0, dtype=torch.bfloat16)
    loss = diffusion_loss(output, torch.zeros_like(output))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1e4)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("domaingallery", "cases"))
def test_golden_schedule_and_losses(path: Path) -> None:
    case, tensors = load_golden(path)
    core, tol = case["shared_core"], case["tol"]["shared_core"]
    alphas = scaled_linear()
    listed = torch.tensor(core["timesteps"])
    snr = signal_to_noise(alphas)[listed]
    found = {"alphas_cumprod": alphas[listed], "snr": snr}
    found |= {f"min_snr_weight_{short}": min_snr_weights(snr, core["gamma"], kind) for short, kind in KINDS.items()}
    for name, values in found.items():
        assert_close(values, torch.tensor(core[name]), tol, name)

    clean, noise, output, timesteps = (tensors[f"core.{name}"] for name in ("x0", "noise", "pred", "timesteps"))
    assert_close(add_noise(clean, noise, timesteps, alphas), tensors["core.noisy"], tol, "noisy")
    assert_close(velocity(clean, noise, timesteps, alphas), tensors["core.velocity"], tol, "velocity")
    for short, kind in (("eps", "epsilon"), ("v", "v_prediction")):
        target = training_target(clean, noise, timesteps, alphas, kind)
        weights = min_snr_weights(signal_to_noise(alphas[timesteps]), core["gamma"], kind)
        assert_close(diffusion_loss(output, target), torch.tensor(core["loss"][f"{short}_plain"]), tol, "plain")
        assert_close(diffusion_loss(output, target, weights), torch.tensor(core["loss"][f"{short}_min_snr"]), tol, "min-SNR")
    prior = core["prior_preservation"]
    assert_close(prior_preservation_loss(output, noise, prior["lam"])[0], torch.tensor(prior["loss_eps"]), tol, "prior")
    for steps, chains in case["pred_timesteps"].items():
        assert {t: sub_schedule(int(t), int(steps)) for t in chains} == chains

"""Losses of diffusion training as pure functions: the squared error, its weights over time, and the preservation of a prior."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from genlab.diffusion.schedule import Prediction


def signal_to_noise(alphas_cumprod: Tensor) -> Tensor:
    """SNR_t = a_t / (1 - a_t), of any shape."""
    return alphas_cumprod / (1 - alphas_cumprod)


def min_snr_weights(snr: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Weights over time that keep easy, almost clean latents from ruling the loss (Hang et al., arXiv 2303.09556, Eq. 8).

    min(SNR, gamma) is the weight of an error in x_0. It is divided by SNR where the network predicts the noise, and by SNR + 1 where it
    predicts the velocity. The paper: gamma = 5.

    Args:
        snr: (B,), of `signal_to_noise` at each sample's timestep.
        gamma: At and below this SNR the weight of x_0 is the SNR itself.
    """
    return snr.clamp_max(gamma) / (snr if prediction == "epsilon" else snr + 1)


def diffusion_loss(output: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the batch of each sample's mean squared error, times its weight. (B, ...) twice, (B,) -> scalar, in fp32 or finer."""
    errors = F.mse_loss(as_fine(output), as_fine(target), reduction="none").flatten(1).mean(1)
    return (errors if weights is None else weights.to(errors) * errors).mean()


def prior_preservation_loss(output: Tensor, target: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of a batch ``[instance; prior]`` (Ruiz et al., arXiv 2208.12242, Eq. 2): the halves' separate means, L = L_i + weight L_p.

    Args:
        output: (2B, ...), instances first.
        target: Likewise.
        weight: lambda.

    Returns:
        L, L_i and L_p.
    """
    mine, prior = (diffusion_loss(*halves) for halves in zip(output.chunk(2), target.chunk(2)))
    return mine + weight * prior, mine, prior


def masked_loss(output: Tensor, target: Tensor, mask: Tensor, mean_channels: bool = False) -> Tensor:
    """Mean over the batch of each sample's squared error within a mask, as in Custom Diffusion's code (arXiv 2212.04488).

    There the sum over all channels is divided by the number of places in the mask: C times a mean. An empty mask gives 0.

    Args:
        output: (B, C, h, w).
        target: Likewise.
        mask: (B, 1, h, w), 1 where it counts.
        mean_channels: Divide by C as well.
    """
    errors = (mask * F.mse_loss(as_fine(output), as_fine(target), reduction="none")).sum((1, 2, 3))
    return (errors / mask.sum((1, 2, 3)).clamp_min(1)).mean() / (output.shape[1] if mean_channels else 1)


def as_fine(value: Tensor) -> Tensor:
    """fp16 and bf16 as fp32; others as they are."""
    return value.float() if value.element_size() < 4 else value

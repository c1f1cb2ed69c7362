"""Mamba block (arXiv 2312.00752, Sec. 3.4) with an optional second direction, as DeMamba (arXiv 2405.19707) runs it over a zone.

Parameter names are those of the official DeMamba code; those of the first direction are also mamba-ssm's and Hugging Face's. The official
``conv1d_b`` never takes part in the computation and is not created.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.selective_scan import Backend, selective_scan

DT_MIN, DT_MAX, DT_FLOOR = 0.001, 0.1, 1e-4  # range of the initial step sizes, as in mamba-ssm


@dataclass(frozen=True)
class MambaOptions:
    """Sizes and switches of a Mamba block; the defaults are DeMamba's.

    Args:
        d_state: State dimensions per channel, N.
        d_conv: Kernel of the causal depthwise convolution, in tokens.
        expand_factor: Inner channels per channel of the block.
        dt_rank: Rank of the projection to the step sizes; None = d_model / 16, rounded up.
        bias: Whether the projections in and out have a bias.
        conv_bias: Whether the convolution has a bias.
        bidirectional: What the second scan reverses: ``time`` (evidently meant by the paper), ``channel`` (what the official code does,
            by flipping the last axis), ``none`` = one scan only.
        drop_path: Probability to drop the mixer's contribution to a sequence in training, in [0, 1).
        second_direction_dt_init: Initial step sizes of the second scan: ``mamba`` = as the first, log-uniform in [0.001, 0.1]; ``linear`` =
            the default of a linear layer, about 0.7 after softplus (official code).
    """

    d_state: int = 16
    d_conv: int = 4
    expand_factor: int = 2
    dt_rank: int | None = None
    bias: bool = False
    conv_bias: bool = True
    bidirectional: Literal["time", "channel", "none"] = "time"
    drop_path: float = 0.1
    second_direction_dt_init: Literal["mamba", "linear"] = "mamba"

    def __post_init__(self) -> None:
        for name in ("d_state", "d_conv", "expand_factor"):
            if getattr(self, name) < 1:
                raise UserError(f"MambaOptions.{name} is {getattr(self, name)}; use at least 1.")
        if self.dt_rank is not None and self.dt_rank < 1:
            raise UserError(f"MambaOptions.dt_rank is {self.dt_rank}; use at least 1, or null for d_model / 16.")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"MambaOptions.drop_path is {self.drop_path}; use a probability in [0, 1).")
        if self.bidirectional not in ("time", "channel", "none"):
            raise UserError(f"MambaOptions.bidirectional is {self.bidirectional!r}; use 'time', 'channel' or 'none'.")
        if self.second_direction_dt_init not in ("mamba", "linear"):
            raise UserError(f"MambaOptions.second_direction_dt_init is {self.second_direction_dt_init!r}; use 'mamba' or 'linear'.")


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; the statistics in fp32 for half precision.

    Args:
        dim: Size of the last axis.
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim), same type."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, zeroes whole rows of the first axis and scales the others by 1 / (1 - p).

    Args:
        p: Probability to drop a row, in [0, 1).
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(M, ...) -> (M, ...)."""
        if not self.training or self.p == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.p)
        return x * (keep / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class MambaMixer(nn.Module):
    """Gated selective state space over a sequence, in one or two directions that share projection, convolution and gate.

    Args:
        d_model: Channels of a token, C.
        options: Sizes and switches.
        scan_backend: See ``selective_scan``.
    """

    def __init__(self, d_model: int, options: MambaOptions | None = None, scan_backend: Backend = "auto") -> None:
        super().__init__()
        self.options = options = options or MambaOptions()
        self.scan_backend = scan_backend
        inner, self.dt_rank = options.expand_factor * d_model, options.dt_rank or math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=options.bias)
        self.conv1d = nn.Conv1d(inner, inner, options.d_conv, groups=inner, padding=options.d_conv - 1, bias=options.conv_bias)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * options.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log, self.D = nn.Parameter(torch.empty(inner, options.d_state)), nn.Parameter(torch.empty(inner))
        if options.bidirectional != "none":
            self.x_proj_b = nn.Linear(inner, self.dt_rank + 2 * options.d_state, bias=False)
            self.dt_proj_b = nn.Linear(self.dt_rank, inner)
            self.A_b_log, self.D_b = nn.Parameter(torch.empty(inner, options.d_state)), nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=options.bias)
        self.reset_state_space()

    @torch.no_grad()
    def reset_state_space(self) -> None:
        """Initial A, D and step sizes (arXiv 2312.00752, Sec. 3.6 and its code); the other layers keep torch's defaults."""
        _reset_direction(self.A_log, self.D, self.dt_proj)
        if self.options.bidirectional != "none":
            mamba = self.options.second_direction_dt_init == "mamba"
            _reset_direction(self.A_b_log, self.D_b, self.dt_proj_b if mamba else None)

    def forward(self, x: Tensor) -> Tensor:
        """(M, L, C) -> (M, L, C)."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv1d(u.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)  # padded on both sides: the cut makes it causal
        y = self._scan(u, self.x_proj, self.dt_proj, self.A_log, self.D)
        if self.options.bidirectional != "none":
            axis = 1 if self.options.bidirectional == "time" else 2
            y = y + self._scan(u.flip(axis), self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b).flip(axis)
        return self.out_proj(y * F.silu(z))

    def _scan(self, u: Tensor, x_proj: nn.Linear, dt_proj: nn.Linear, A_log: Tensor, D: Tensor) -> Tensor:
        """u (M, L, E) -> y (M, L, E); the step sizes, B and C are read off u, and the scan itself runs in fp32."""
        dt, B, C = x_proj(u).split([self.dt_rank, self.options.d_state, self.options.d_state], dim=-1)
        delta = F.linear(dt, dt_proj.weight)  # its bias belongs inside the scan's softplus, in fp32
        u, delta, B, C = (v.transpose(1, 2) for v in (u, delta, B, C))
        A = -torch.exp(A_log if A_log.dtype == torch.float64 else A_log.float())
        y = selective_scan(u, delta, A, B, C, D, delta_bias=dt_proj.bias, delta_softplus=True, backend=self.scan_backend)
        return y.transpose(1, 2)


def _reset_direction(A_log: Tensor, D: Tensor, dt_proj: nn.Linear | None) -> None:
    """A = -(1, ..., N) for every channel, D = 1; softplus(bias of dt_proj) log-uniform, its weight uniform within rank^-0.5."""
    A_log.copy_(torch.arange(1, A_log.shape[1] + 1, dtype=torch.float32, device=A_log.device).log().expand_as(A_log))
    D.fill_(1)
    if dt_proj is None:
        return
    nn.init.uniform_(dt_proj.weight, -(dt_proj.in_features**-0.5), dt_proj.in_features**-0.5)
    dt = torch.empty_like(dt_proj.bias).uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp_().clamp_(min=DT_FLOOR)
    dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus


class MambaBlock(nn.Module):
    """y = x + DropPath(mixer(norm(x))): pre-norm residual block.

    Args:
        d_model: Channels of a token, C.
        options: Sizes and switches.
        scan_backend: See ``selective_scan``.
    """

    def __init__(self, d_model: int, options: MambaOptions | None = None, scan_backend: Backend = "auto") -> None:
        super().__init__()
        self.norm = RMSNorm(d_model)
        self.mixer = MambaMixer(d_model, options, scan_backend)
        self.drop_path = DropPath(self.mixer.options.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(M, L, C) -> (M, L, C); a row of M is one sequence, and is dropped as a whole."""
        return x + self.drop_path(self.mixer(self.norm(x)))

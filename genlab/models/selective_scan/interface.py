"""One entrance to the selective scan of Mamba (arXiv 2312.00752, Sec. 3.2 and Algorithm 2) with interchangeable backends."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.errors import UserError

log = logging.getLogger(__name__)

Backend = Literal["auto", "mamba_ssm", "cpu", "torch"]


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: Literal[False] = False,
    *,
    backend: Backend = "auto",
) -> Tensor: ...
@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    return_last_state: Literal[True],
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]: ...
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t from h = 0 and reads y_t = C_t h_t + D u_t, gated by silu(z_t).

    Arguments and axes as in mamba-ssm's ``selective_scan_fn``. Never builds a (batch, length, channels, state) tensor. Computes in fp32
    whatever the inputs (fp64 where ``u`` is fp64); no double backward.

    Args:
        u: (B, D, L) input, any strides, any L.
        delta: (B, D, L) step sizes.
        A: (D, N) state matrix, diagonal per channel; Mamba's is negative.
        B: (B, N, L) input matrix.
        C: (B, N, L) output matrix.
        D: (D,) skip weights.
        z: (B, D, L) gate.
        delta_bias: (D,), added to ``delta``.
        delta_softplus: Whether delta is softplus(delta + delta_bias).
        return_last_state: Whether to return h_{L-1} too. No gradient flows from it (nor in mamba-ssm).
        backend: ``mamba_ssm`` = its CUDA kernels; ``cpu`` = compiled multi-threaded kernels; ``torch`` = a loop over time on any device;
            ``auto`` = the fastest of these for the device, said once in the log.

    Returns:
        y (B, D, L) in the type of ``u``, or (y, last state (B, D, N) in the type computed in).

    Raises:
        ValueError: Shapes, devices or types do not fit together.
        UserError: The backend asked for cannot run here.
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    chosen, why = _choose(backend, u.device.type, u.dtype == torch.float64, A.shape[1])
    _announce(chosen, why)
    compute, returned = torch.float64 if u.dtype == torch.float64 else torch.float32, u.dtype
    u, delta, A, B, C = (x.to(compute) for x in (u, delta, A, B, C))
    D, z, delta_bias = (x if x is None else x.to(compute) for x in (D, z, delta_bias))
    if chosen == "mamba_ssm" and u.numel() > 0:  # CUDA refuses to launch a kernel on nothing
        bias = None if delta_bias is None else delta_bias.contiguous()
        y, last = _mamba_ssm()(u, delta, A, B, C, D, z, delta_bias=bias, delta_softplus=delta_softplus, return_last_state=True)
        y, last = y.to(returned), last.detach()
        return (y, last) if return_last_state else y
    keep_states = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (u, delta, A, B, C, D, delta_bias))
    if chosen == "cpu":
        from genlab.models.selective_scan.cpu import CpuScan  # Numba takes a second to import

        y, last = CpuScan.apply(u, delta, A, B, C, D, delta_bias, delta_softplus, return_last_state, keep_states)
    else:
        from genlab.models.selective_scan.torch_scan import TorchScan

        delta = delta if delta_bias is None else delta + delta_bias[:, None]
        delta = F.softplus(delta) if delta_softplus else delta
        y, last = TorchScan.apply(delta * u, delta, A, B, C, keep_states)
        y = y if D is None else y + D[:, None] * u
    y = (y if z is None else y * F.silu(z)).to(returned)
    return (y, last) if return_last_state else y


def _check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None
) -> None:
    if u.dim() != 3:
        raise ValueError(f"selective_scan: u has shape {tuple(u.shape)}; expected (batch, channels, length).")
    if A.dim() != 2 or A.shape[0] != u.shape[1] or A.shape[1] == 0:
        raise ValueError(
            f"selective_scan: A has shape {tuple(A.shape)}; expected (channels, d_state) with {u.shape[1]} channels, as u has."
        )
    (batch, channels, length), d_state = u.shape, A.shape[1]
    sequence, matrix, vector = (batch, channels, length), (batch, d_state, length), (channels,)
    expected = {"u": sequence, "delta": sequence, "A": tuple(A.shape), "B": matrix, "C": matrix, "D": vector, "z": sequence}
    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    for name, x in given.items():
        if x is None:
            continue
        if tuple(x.shape) != expected.get(name, vector):
            raise ValueError(
                f"selective_scan: {name} has shape {tuple(x.shape)}; expected {expected.get(name, vector)}, "
                f"from u (batch {batch}, channels {channels}, length {length}) and A (d_state {d_state})."
            )
        if not x.is_floating_point():
            raise ValueError(f"selective_scan: {name} is {x.dtype}; expected a real floating-point type.")
        if x.device != u.device:
            raise ValueError(f"selective_scan: {name} is on {x.device}, u on {u.device}.")


@functools.cache
def _choose(backend: str, device: str, double: bool, d_state: int) -> tuple[str, str]:
    """(backend to run, why); cached, so that looking for packages costs nothing per call."""
    if backend == "auto":
        if device == "cuda":
            missing = "fp64 input" if double else "d_state above 256" if d_state > 256 else _missing_mamba_ssm()
            return ("torch", f"tensors on CUDA, mamba_ssm not used: {missing}") if missing else ("mamba_ssm", "tensors on CUDA")
        if device == "cpu":
            found = importlib.util.find_spec("numba") is not None
            return ("cpu", "tensors on the CPU") if found else ("torch", "tensors on the CPU, Numba not installed")
        return "torch", f"tensors on {device}"
    if backend == "torch":
        return backend, "asked for"
    if backend == "cpu":
        if device != "cpu":
            raise UserError(f"Selective scan backend 'cpu': the tensors are on {device}. Use 'auto' or 'torch'.")
        if importlib.util.find_spec("numba") is None:
            raise UserError("Selective scan backend 'cpu' needs Numba. Install it (pip install numba), or use 'auto' or 'torch'.")
        return backend, "asked for"
    if backend == "mamba_ssm":
        missing = f"the tensors are on {device}, not on CUDA" if device != "cuda" else "it has no fp64" if double else None
        missing = missing or ("it has no d_state above 256" if d_state > 256 else _missing_mamba_ssm())
        if missing:
            raise UserError(f"Selective scan backend 'mamba_ssm' cannot run: {missing}. Use 'auto' or 'torch'.")
        return backend, "asked for"
    raise UserError(f"Selective scan backend is {backend!r}; use 'auto', 'mamba_ssm', 'cpu' or 'torch'.")


def _missing_mamba_ssm() -> str | None:
    """What keeps mamba-ssm from being imported; None where nothing does. It is optional: built against one torch and one CUDA."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return "the package mamba-ssm is not installed"
    try:
        _mamba_ssm()
    except ImportError as error:
        return f"the package mamba-ssm does not import here ({error})"
    return None


@functools.cache
def _mamba_ssm() -> Callable[..., tuple[Tensor, Tensor]]:
    function: Callable[..., tuple[Tensor, Tensor]] = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    return function


@functools.cache
def _announce(backend: str, why: str) -> None:
    """Says it once per process, on rank zero."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_rank() == 0:
        log.info("selective scan: backend %s (%s)", backend, why)

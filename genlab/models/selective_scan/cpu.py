"""The selective scan on the CPU: the Numba kernels of ``cpu_kernels.py`` as a differentiable torch function."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genlab.models.selective_scan.cpu_kernels import BLOCK, CHUNK, LOG2E, backward_kernel, forward_kernel

PARTS = 32  # how many parts the backward pass is cut into; fixed, so that gradients do not depend on the number of threads


class _Threads:
    """Plain threads for kernels that release the GIL: safe under concurrent calls, and made anew in a forked child."""

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)  # threads do not survive a fork, and the lock might be held

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._size = 0

    def run(self, task: Callable[..., None], arguments: Iterable[tuple[int, ...]]) -> None:
        """Calls task(*a) for every a, on as many threads as torch uses (one in a DataLoader worker)."""
        size, calls = torch.get_num_threads(), list(arguments)
        if size == 1 or len(calls) <= 1:
            for call in calls:
                task(*call)
            return
        with self._lock:
            if self._pool is None or self._size != size:
                self._pool, self._size = ThreadPoolExecutor(size, thread_name_prefix="selective_scan"), size
            running = [self._pool.submit(task, *call) for call in calls]
        for future in running:
            future.result()


_threads = _Threads()


def _cuts(total: int, parts: int) -> list[tuple[int, int]]:
    """total things in at most ``parts`` runs of nearly equal length, none empty."""
    parts = min(parts, total)
    return [(total * i // parts, total * (i + 1) // parts) for i in range(parts)]


def _padded(x: Tensor | None, like: Tensor, blocks: int) -> Tensor:
    """(D,) -> (blocks * BLOCK,), zeros where there is nothing."""
    out = like.new_zeros(blocks * BLOCK)
    if x is not None:
        out[: len(x)] = x
    return out


def _operands(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None) -> list[Any]:
    """The NumPy views that both kernels start with; only the small operands are copied."""
    blocks = -(-A.shape[0] // BLOCK)
    rate = A.new_zeros(A.shape[1], blocks * BLOCK)
    rate[:, : A.shape[0]] = A.t() * LOG2E
    small = [rate, B.transpose(1, 2).contiguous(), C.transpose(1, 2).contiguous(), _padded(D, A, blocks), _padded(delta_bias, A, blocks)]
    return [x.detach().numpy() for x in (u, delta, *small)]


class CpuScan(torch.autograd.Function):
    """y and the last state; fp32 or fp64, all operands of one type. The last state carries no gradient.

    ``keep_states``: whether a backward pass may follow; autograd's own flags do not tell inside a forward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        return_last_state: bool,
        keep_states: bool,
    ) -> tuple[Tensor, Tensor]:
        (batch, channels, length), d_state = u.shape, A.shape[1]
        blocks, chunks = -(-channels // BLOCK), -(-length // CHUNK)
        operands = _operands(u, delta, A, B, C, D, delta_bias)
        y = torch.empty_like(u)  # keeps the layout: channels-last input gives channels-last output
        stored = max(chunks - 1, 0) if keep_states else 0
        states = u.new_empty(batch, stored, d_state, blocks * BLOCK)
        last = u.new_empty((batch, channels, d_state) if return_last_state else 0)
        outputs = [x.numpy() for x in (y, states, last if return_last_state else u.new_empty(0, 0, 0))]
        kernel = forward_kernel(operands[0].dtype.name)
        _threads.run(
            lambda start, stop: kernel(*operands, delta_softplus, *outputs, start, stop),
            _cuts(batch * blocks, 8 * torch.get_num_threads()),
        )
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, states)
        ctx.delta_softplus = delta_softplus
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, delta_bias, states = ctx.saved_tensors
        (batch, channels, length), d_state = u.shape, A.shape[1]
        blocks = -(-channels // BLOCK)
        operands = _operands(u, delta, A, B, C, D, delta_bias)
        du, ddelta = torch.empty_like(u), torch.empty_like(delta)
        rows = _cuts(batch, PARTS)
        columns = _cuts(blocks, -(-PARTS // max(len(rows), 1)))
        # Sums over the batch get one slot per run of rows, sums over channels one per run of blocks; added up in a fixed order.
        dA, dD, dbias = (A.new_zeros(len(rows), *shape) for shape in ((d_state, blocks * BLOCK), (blocks * BLOCK,), (blocks * BLOCK,)))
        dB, dC = (B.new_zeros(len(columns), batch, length, d_state) for _ in range(2))
        fixed = [*operands, ctx.delta_softplus, *(x.numpy() for x in (states, dy, du, ddelta))]
        sums = [x.numpy() for x in (dA, dB, dC, dD, dbias)]

        kernel = backward_kernel(operands[0].dtype.name)

        def part(i: int, j: int) -> None:
            slots = (sums[0][i], sums[1][j], sums[2][j], sums[3][i], sums[4][i])
            kernel(*fixed, *slots, *rows[i], *columns[j])

        _threads.run(part, [(i, j) for i in range(len(rows)) for j in range(len(columns))])
        return (
            du,
            ddelta,
            dA.sum(0)[:, :channels].t(),
            dB.sum(0).transpose(1, 2),
            dC.sum(0).transpose(1, 2),
            None if D is None else dD.sum(0)[:channels],
            None if delta_bias is None else dbias.sum(0)[:channels],
            None,
            None,
            None,
        )

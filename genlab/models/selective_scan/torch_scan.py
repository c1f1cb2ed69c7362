"""The selective scan in plain torch, for CUDA without mamba-ssm, MPS and machines without Numba.

One loop over time whose state is updated in place. The state is kept every ~sqrt(L) steps only; the backward pass runs each stretch again
and walks it back by hand: differentiating a loop over slices instead would cost L^2 memory traffic.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class TorchScan(torch.autograd.Function):
    """h_t = exp(delta_t A) h_{t-1} + x_t B_t, y_t = C_t h_t with x = delta * u; also the last h, which carries no gradient.

    x and delta (B, D, L), A (D, N), B and C (B, N, L) -> y (B, D, L), last state (B, D, N). States are held as (B, N, D).
    ``keep_states``: whether a backward pass may follow; autograd's own flags do not tell inside a forward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, keep_states: bool) -> tuple[Tensor, Tensor]:
        batch, channels, length = x.shape
        stretch = math.isqrt(max(length - 1, 0)) + 1  # ceil(sqrt(L))
        stored = -(-length // stretch) if keep_states else 0
        y = x.new_empty(length, batch, channels)
        states = x.new_empty(stored, batch, A.shape[1], channels)
        steps = _Steps(x, delta, A, B, C)
        h = x.new_zeros(batch, A.shape[1], channels)
        scratch = torch.empty_like(h)
        for t in range(length):
            if stored and t % stretch == 0:
                states[t // stretch] = h
            steps.advance(h, t, scratch)
            torch.mul(h, steps.C[t], out=scratch)
            torch.sum(scratch, 1, out=y[t])
        ctx.save_for_backward(x, delta, A, B, C, states)
        ctx.stretch = stretch
        last = h.transpose(1, 2)
        ctx.mark_non_differentiable(last)
        return y.permute(1, 2, 0), last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, A, B, C, states = ctx.saved_tensors
        (batch, channels, length), d_state = x.shape, A.shape[1]
        steps, dy = _Steps(x, delta, A, B, C), dy.permute(2, 0, 1)
        dx, ddelta = x.new_empty(length, batch, channels), x.new_empty(length, batch, channels)
        dB, dC = x.new_empty(length, batch, d_state), x.new_empty(length, batch, d_state)
        drate = x.new_zeros(d_state, channels)
        g = x.new_zeros(batch, d_state, channels)  # gradient of the state
        tape = x.new_empty(min(ctx.stretch, length) + 1, batch, d_state, channels)
        scratch, decay = torch.empty_like(g), torch.empty_like(g)
        for start in reversed(range(0, length, ctx.stretch)):
            stop = min(start + ctx.stretch, length)
            tape[0] = states[start // ctx.stretch]
            for t in range(start, stop):
                steps.advance(tape[t - start + 1].copy_(tape[t - start]), t, scratch)
            for t in reversed(range(start, stop)):
                gradient_of_y = dy[t].unsqueeze(1)
                torch.sum(torch.mul(tape[t - start + 1], gradient_of_y, out=scratch), 2, out=dC[t])
                g.addcmul_(gradient_of_y, steps.C[t])
                torch.sum(torch.mul(g, steps.x[t], out=scratch), 2, out=dB[t])
                torch.sum(torch.mul(g, steps.B[t], out=scratch), 1, out=dx[t])
                g.mul_(steps.decay(t, decay))
                torch.mul(g, tape[t - start], out=scratch)  # gradient of delta_t * A
                torch.sum(torch.mul(scratch, steps.rate, out=decay), 1, out=ddelta[t])
                drate += scratch.mul_(steps.delta[t]).sum(0)
        return dx.permute(1, 2, 0), ddelta.permute(1, 2, 0), drate.t(), dB.permute(1, 2, 0), dC.permute(1, 2, 0), None


class _Steps:
    """The operands of one step, broadcast against a state (B, N, D)."""

    def __init__(self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
        self.x, self.delta = (v.permute(2, 0, 1).contiguous().unsqueeze(2) for v in (x, delta))  # (L, B, 1, D)
        self.B, self.C = (v.permute(2, 0, 1).contiguous().unsqueeze(3) for v in (B, C))  # (L, B, N, 1)
        self.rate = A.t().contiguous()  # (N, D)

    def decay(self, t: int, out: Tensor) -> Tensor:
        return torch.mul(self.delta[t], self.rate, out=out).exp_()

    def advance(self, h: Tensor, t: int, scratch: Tensor) -> None:
        h.mul_(self.decay(t, scratch)).addcmul_(self.x[t], self.B[t])

"""The selective scan and its gradient as Numba kernels; NumPy arrays in, NumPy arrays out, no torch.

Time runs outermost and a block of channels innermost, so that the compiler turns every innermost loop into vector instructions and the
state of a block, (N, BLOCK), never leaves the first-level cache. What limits the speed is one exponential per step, channel and state
dimension; Numba has no vector exponential without Intel's SVML, hence the polynomial in ``_exp2``.

The kernels release the GIL and are called from ordinary Python threads (``cpu.py``), each on its own part of the work: Numba's own
threading layers either kill a process that forks (OpenMP) or abort on concurrent use (workqueue).

Arrays that share an innermost loop lie interleaved in one array, (..., slot, BLOCK): LLVM then sees constant distances between them and
proves that they do not overlap, where separate arrays would need more run-time overlap checks than it is willing to emit.

Notation of Mamba (arXiv 2312.00752, Algorithm 2): u, delta, y (B, D, L); A (D, N); B, C (B, N, L). ``rate`` is A * log2(e), padded along D.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
from numba.extending import overload

Array = np.ndarray

BLOCK = 64  # channels that a kernel handles at once: four vectors of 512 bit in fp32
CHUNK = 32  # steps between two stored states; the backward pass keeps one chunk of states and decays, 256 KiB at N = 16 in fp32
LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453

# Without the two flags that assume there is no NaN and no infinity, so that a diverged training shows itself.
_MATH = {"reassoc", "contract", "nsz", "arcp"}

_DT, _DU, _Y = 0, 1, 2  # slots of a tile in both passes: step size, step size * input, output (or its gradient)
_U, _RAW, _GX, _GDT = 3, 4, 5, 6  # more slots of the backward pass: input, step size before softplus, gradients of slots 1 and 0
_H, _RATE, _DA = 0, 1, 2  # slots of a state: state (or its gradient), rate, gradient of A
_DECAY, _BEFORE = 0, 1  # slots of the tape: decay of the step, state before the step


def _writable_cache() -> Path | None:
    """A private folder under the system's temporary one; None where somebody else owns the name (cached kernels are pickles)."""
    path = Path(tempfile.gettempdir()) / f"genlab-numba-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        stat = path.lstat()
    except OSError:
        return None
    mine = not path.is_symlink() and (not hasattr(os, "getuid") or (stat.st_uid == os.getuid() and not stat.st_mode & 0o022))
    return path if mine and os.access(path, os.W_OK) else None


def _compiled(function: Callable[..., None], signature: Any) -> Callable[..., None]:
    """Compiled without the GIL for one signature; kept beside this file, else in the user's cache, else in a temporary folder."""
    options: dict[str, Any] = {"nogil": True, "fastmath": _MATH, "error_model": "numpy"}
    try:
        return numba.njit(signature, cache=True, **options)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
    folder, config = _writable_cache(), cast(Any, numba.config)  # a read-only installation without a home folder
    if folder is None:
        return numba.njit(signature, **options)(function)
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)  # read while decorating only
    try:
        return numba.njit(signature, cache=True, **options)(function)
    finally:
        config.CACHE_DIR = before


@functools.cache
def forward_kernel(dtype: str) -> Callable[..., None]:
    """``_scan_forward`` for "float32" or "float64". One signature for all strides: compiling takes seconds, once per machine."""
    of, strided = numba.from_dtype(np.dtype(dtype)), numba.from_dtype(np.dtype(dtype))[:, :, :]
    inputs = [strided, strided, of[:, ::1], of[:, :, ::1], of[:, :, ::1], of[::1], of[::1], numba.boolean]
    outputs = [strided, of[:, :, :, ::1], of[:, :, ::1]]
    return _compiled(_scan_forward, numba.void(*inputs, *outputs, numba.intp, numba.intp))


@functools.cache
def backward_kernel(dtype: str) -> Callable[..., None]:
    """``_scan_backward``, as ``forward_kernel``."""
    of, strided = numba.from_dtype(np.dtype(dtype)), numba.from_dtype(np.dtype(dtype))[:, :, :]
    inputs = [strided, strided, of[:, ::1], of[:, :, ::1], of[:, :, ::1], of[::1], of[::1], numba.boolean, of[:, :, :, ::1], strided]
    outputs = [strided, strided, of[:, ::1], of[:, :, ::1], of[:, :, ::1], of[::1], of[::1]]
    return _compiled(_scan_backward, numba.void(*inputs, *outputs, *[numba.intp] * 4))


# 2^f on [-1/2, 1/2] with value 1 at 0, relative error 2e-9 (minimax fit); atanh(s)/s on [0, 1/3] as polynomial in s^2, 5e-9.
_E1, _E2, _E3 = np.float32(0.6931472028552517), np.float32(0.24022647913611114), np.float32(0.05550332470702349)
_E4, _E5, _E6 = np.float32(0.009618437358500126), np.float32(0.0013398874588414975), np.float32(0.00015353362059570587)
_T1, _T2 = np.float32(0.3333320812620759), np.float32(0.2001076471766224)
_T3, _T4 = np.float32(0.1400088261568623), np.float32(0.1400610120847202)
_LOW, _HIGH = np.float32(-100.0), np.float32(127.0)
_ONE, _TWO, _ZERO, _LOG2E32 = np.float32(1.0), np.float32(2.0), np.float32(0.0), np.float32(LOG2E)
_MANTISSA_BITS = np.int32(23)


def _exp2(x: Any) -> Any:
    """2^x. fp32: within 2 units in the last place for -100 <= x <= 127, the value at the border beyond (no denormals, no infinity)."""


def _softplus(x: Any) -> Any:
    """log(1 + e^x); fp64: x itself above 20, as torch and mamba-ssm do (in fp32 there is no difference)."""


def _sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x), the derivative of softplus."""


@overload(_exp2, jit_options={"fastmath": _MATH})
def _exp2_of(x: Any) -> Any:
    def single(x: Any) -> Any:
        x = _LOW if x < _LOW else x
        x = _HIGH if x > _HIGH else x
        whole = np.rint(x)
        f = x - whole
        power = (((((_E6 * f + _E5) * f + _E4) * f + _E3) * f + _E2) * f + _E1) * f + _ONE
        bits = np.float32(power).view(np.int32) + (np.int32(whole) << _MANTISSA_BITS)  # the whole part is added to the exponent
        return np.int32(bits).view(np.float32)

    def double(x: Any) -> Any:
        return math.exp(x * LN2)

    return single if x == numba.float32 else double


@overload(_softplus, jit_options={"fastmath": _MATH})
def _softplus_of(x: Any) -> Any:
    def single(x: Any) -> Any:
        e = _exp2(-abs(x) * _LOG2E32)  # log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), and log(1 + e) = 2 atanh(e / (2 + e))
        s = e / (_TWO + e)
        q = s * s
        return max(x, _ZERO) + _TWO * s * ((((_T4 * q + _T3) * q + _T2) * q + _T1) * q + _ONE)

    def double(x: Any) -> Any:
        return x if x > 20.0 else math.log1p(math.exp(x))

    return single if x == numba.float32 else double


@overload(_sigmoid, jit_options={"fastmath": _MATH})
def _sigmoid_of(x: Any) -> Any:
    def single(x: Any) -> Any:
        e = _exp2(-abs(x) * _LOG2E32)
        return (_ONE if x >= _ZERO else e) / (_ONE + e)

    def double(x: Any) -> Any:
        return 1.0 / (1.0 + math.exp(-x))

    return single if x == numba.float32 else double


@numba.njit(nogil=True)
def _load(tile: Array, slot: int, source: Array) -> None:
    """Copies source (channels, steps) into a slot of tile (steps, slots, BLOCK), reading along the axis that is dense; pads with 0."""
    width, steps = source.shape
    if source.strides[0] <= source.strides[1]:
        for t in range(steps):
            for c in range(width):
                tile[t, slot, c] = source[c, t]
    else:
        for c in range(width):
            for t in range(steps):
                tile[t, slot, c] = source[c, t]
    for t in range(steps):
        for c in range(width, BLOCK):
            tile[t, slot, c] = 0


@numba.njit(nogil=True)
def _store(target: Array, tile: Array, slot: int) -> None:
    """The way back of ``_load``."""
    width, steps = target.shape
    if target.strides[0] <= target.strides[1]:
        for t in range(steps):
            for c in range(width):
                target[c, t] = tile[t, slot, c]
    else:
        for c in range(width):
            for t in range(steps):
                target[c, t] = tile[t, slot, c]


def _scan_forward(
    u: Array,
    delta: Array,
    rate: Array,
    B: Array,
    C: Array,
    D: Array,
    bias: Array,
    softplus: bool,
    y: Array,
    states: Array,
    last: Array,
    start: int,
    stop: int,
) -> None:
    """Fills y for the units start..stop-1; a unit is one row of the batch and one block of channels.

    Args:
        u: (B, D, L), any strides; delta and y likewise.
        rate: (N, P), P = D rounded up to whole blocks.
        B: (B, L, N), and C likewise.
        D: (P,) and bias likewise; zeros where the caller has none.
        states: (B, chunks - 1, N, P), filled with the state at the start of every chunk but the first; size 0 to leave it out.
        last: (B, D, N), filled with the state after the last step; size 0 to leave it out.
    """
    channels, length = u.shape[1:]
    d_state, padded = rate.shape
    blocks = padded // BLOCK
    state = np.empty((d_state, 2, BLOCK), rate.dtype)
    tile = np.empty((CHUNK, 3, BLOCK), rate.dtype)
    skip = np.empty(BLOCK, rate.dtype)
    shift = np.empty(BLOCK, rate.dtype)
    for unit in range(start, stop):
        row, d0 = unit // blocks, unit % blocks * BLOCK
        d1 = min(d0 + BLOCK, channels)
        for n in range(d_state):
            state[n, _H] = 0
            state[n, _RATE] = rate[n, d0 : d0 + BLOCK]
        skip[:] = D[d0 : d0 + BLOCK]
        shift[:] = bias[d0 : d0 + BLOCK]
        for chunk in range((length + CHUNK - 1) // CHUNK):
            t0 = chunk * CHUNK
            t1 = min(t0 + CHUNK, length)
            if chunk > 0 and states.size > 0:
                for n in range(d_state):
                    states[row, chunk - 1, n, d0 : d0 + BLOCK] = state[n, _H]
            _load(tile, _DU, u[row, d0:d1, t0:t1])
            _load(tile, _DT, delta[row, d0:d1, t0:t1])
            for t in range(t1 - t0):
                for c in range(BLOCK):
                    dt = tile[t, _DT, c] + shift[c]
                    if softplus:
                        dt = _softplus(dt)
                    tile[t, _Y, c] = tile[t, _DU, c] * skip[c]
                    tile[t, _DU, c] *= dt
                    tile[t, _DT, c] = dt
                for n in range(d_state):
                    b, weight = B[row, t0 + t, n], C[row, t0 + t, n]
                    for c in range(BLOCK):
                        h = _exp2(tile[t, _DT, c] * state[n, _RATE, c]) * state[n, _H, c] + tile[t, _DU, c] * b
                        state[n, _H, c] = h
                        tile[t, _Y, c] += h * weight
            _store(y[row, d0:d1, t0:t1], tile, _Y)
        if last.size > 0:
            for n in range(d_state):
                for c in range(d1 - d0):
                    last[row, d0 + c, n] = state[n, _H, c]


def _scan_backward(
    u: Array,
    delta: Array,
    rate: Array,
    B: Array,
    C: Array,
    D: Array,
    bias: Array,
    softplus: bool,
    states: Array,
    dy: Array,
    du: Array,
    ddelta: Array,
    dA: Array,
    dB: Array,
    dC: Array,
    dD: Array,
    dbias: Array,
    row_start: int,
    row_stop: int,
    block_start: int,
    block_stop: int,
) -> None:
    """Fills du and ddelta of these rows and blocks of channels, and adds this part's share to the other gradients.

    Every chunk is run forward again from its stored state, keeping decays and states, then backward. Shapes as in ``_scan_forward``;
    dA is (N, P), dB and dC (B, L, N), dD and dbias (P,): the caller gives parts that run at the same time their own.
    """
    channels, length = u.shape[1:]
    d_state = rate.shape[0]
    state = np.empty((d_state, 3, BLOCK), rate.dtype)
    tile = np.empty((CHUNK, 7, BLOCK), rate.dtype)
    tape = np.empty((min(CHUNK, length), d_state, 2, BLOCK), rate.dtype)
    skip = np.empty(BLOCK, rate.dtype)
    shift = np.empty(BLOCK, rate.dtype)
    dskip = np.empty(BLOCK, rate.dtype)
    dshift = np.empty(BLOCK, rate.dtype)
    ln2 = rate.dtype.type(LN2)
    zero = rate.dtype.type(0)
    chunks = (length + CHUNK - 1) // CHUNK
    for block in range(block_start, block_stop):
        d0 = block * BLOCK
        d1 = min(d0 + BLOCK, channels)
        for n in range(d_state):
            state[n, _RATE] = rate[n, d0 : d0 + BLOCK]
            state[n, _DA] = 0
        skip[:] = D[d0 : d0 + BLOCK]
        shift[:] = bias[d0 : d0 + BLOCK]
        dskip[:] = 0
        dshift[:] = 0
        for row in range(row_start, row_stop):
            grad = np.zeros((d_state, BLOCK), rate.dtype)
            for chunk in range(chunks - 1, -1, -1):
                t0 = chunk * CHUNK
                t1 = min(t0 + CHUNK, length)
                _load(tile, _U, u[row, d0:d1, t0:t1])
                _load(tile, _RAW, delta[row, d0:d1, t0:t1])
                _load(tile, _Y, dy[row, d0:d1, t0:t1])
                for n in range(d_state):
                    if chunk > 0:
                        state[n, _H] = states[row, chunk - 1, n, d0 : d0 + BLOCK]
                    else:
                        state[n, _H] = 0
                for t in range(t1 - t0):
                    for c in range(BLOCK):
                        raw = tile[t, _RAW, c] + shift[c]
                        dt = _softplus(raw) if softplus else raw
                        tile[t, _RAW, c] = raw
                        tile[t, _DT, c] = dt
                        tile[t, _DU, c] = dt * tile[t, _U, c]
                        tile[t, _GX, c] = 0
                        tile[t, _GDT, c] = 0
                    for n in range(d_state):
                        b = B[row, t0 + t, n]
                        for c in range(BLOCK):
                            decay = _exp2(tile[t, _DT, c] * state[n, _RATE, c])
                            tape[t, n, _DECAY, c] = decay
                            tape[t, n, _BEFORE, c] = state[n, _H, c]
                            state[n, _H, c] = decay * state[n, _H, c] + tile[t, _DU, c] * b
                for n in range(d_state):
                    state[n, _H] = grad[n]  # from here on the slot holds the gradient of the state
                for t in range(t1 - t0 - 1, -1, -1):
                    for n in range(d_state):
                        b, weight = B[row, t0 + t, n], C[row, t0 + t, n]
                        db, dweight = zero, zero
                        for c in range(BLOCK):
                            g = state[n, _H, c] + tile[t, _Y, c] * weight
                            decay = tape[t, n, _DECAY, c]
                            decayed = decay * tape[t, n, _BEFORE, c]
                            db += g * tile[t, _DU, c]
                            dweight += tile[t, _Y, c] * (decayed + tile[t, _DU, c] * b)
                            tile[t, _GX, c] += g * b
                            tile[t, _GDT, c] += g * decayed * state[n, _RATE, c]
                            state[n, _DA, c] += g * decayed * tile[t, _DT, c]
                            state[n, _H, c] = g * decay
                        dB[row, t0 + t, n] += db
                        dC[row, t0 + t, n] += dweight
                    for c in range(BLOCK):
                        gx, gy = tile[t, _GX, c], tile[t, _Y, c]
                        gdt = tile[t, _GDT, c] * ln2 + gx * tile[t, _U, c]
                        if softplus:
                            gdt *= _sigmoid(tile[t, _RAW, c])
                        dskip[c] += gy * tile[t, _U, c]
                        dshift[c] += gdt
                        tile[t, _GX, c] = gx * tile[t, _DT, c] + gy * skip[c]
                        tile[t, _GDT, c] = gdt
                for n in range(d_state):
                    grad[n] = state[n, _H]
                _store(du[row, d0:d1, t0:t1], tile, _GX)
                _store(ddelta[row, d0:d1, t0:t1], tile, _GDT)
        for n in range(d_state):
            dA[n, d0 : d0 + BLOCK] += state[n, _DA]
        dD[d0 : d0 + BLOCK] += dskip
        dbias[d0 : d0 + BLOCK] += dshift

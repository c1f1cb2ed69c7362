"""Speed and memory of the selective scan on the CPU, beside the scans that people use there today, all in one run.

    python benchmarks/selective_scan.py            # a few minutes, most of them the peers
    python benchmarks/selective_scan.py --quick    # an eighth of every size

Peers: mambapy's parallel scan (``pip install mambapy``; left out where missing), the slow path of transformers' Mamba, and the sequential
reference that mamba-ssm publishes; the last two are written anew here, with the same operations in the same order. Times are medians over
interleaved runs. Memory is what the process needs at its peak, above what it held before, for one forward and backward, each measured in
a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from genlab.models.selective_scan import Backend, selective_scan
from genlab.training.randomness import keyed_torch_generator

SIZES = [(196, 1536, 8, 16), (49, 1536, 32, 16), (1, 1536, 4096, 16)]  # DeMamba with R = 1, with R = 2 (one video), one long sequence
REACH = {"forward": {"reference": 8, "mambapy": 15}, "forward+backward": {"mambapy": 10}, "memory": {"mambapy": 8}}  # of the cpu backend

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def ours(backend: Backend) -> Scan:
    return lambda u, delta, A, B, C, D: selective_scan(u, delta, A, B, C, D, backend=backend)


def mambapy(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """As mambapy's ``MambaBlock.selective_scan``, whose layout is (B, L, ...): the views cost nothing."""
    from mambapy.pscan import pscan

    u, delta, B, C = (x.transpose(1, 2) for x in (u, delta, B, C))
    states = pscan(torch.exp(delta.unsqueeze(-1) * A), delta.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1))
    return ((states @ C.unsqueeze(-1)).squeeze(3) + D * u).transpose(1, 2)


def transformers_slow_path(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    decay = torch.exp(A[None, :, None, :] * delta[:, :, :, None])  # (B, D, L, N)
    driven = delta[:, :, :, None] * B.transpose(1, 2)[:, None] * u[:, :, :, None]
    state, outputs = u.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + driven[:, :, t]
        outputs.append(torch.matmul(state, C[:, :, t].unsqueeze(-1))[:, :, 0])
    return torch.stack(outputs, dim=-1) + u * D[None, :, None]


def reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    driven = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    state, outputs = u.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + driven[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    return torch.stack(outputs, dim=2) + u * D[:, None]


SCANS: dict[str, Scan] = {
    "cpu": ours("cpu"),
    "torch": ours("torch"),
    "mambapy": mambapy,
    "transformers": transformers_slow_path,
    "reference": reference,
}


def operands(batch: int, channels: int, length: int, d_state: int) -> list[Tensor]:
    """u, delta, A, B, C, D as Mamba starts: steps log-uniform in [0.001, 0.1], A = -(1, ..., N)."""
    generator = keyed_torch_generator("selective scan benchmark")
    u = torch.randn(batch, channels, length, generator=generator)
    delta = 10 ** (2 * torch.rand(batch, channels, length, generator=generator) - 3)
    A = -torch.arange(1.0, d_state + 1).repeat(channels, 1)
    B, C = (torch.randn(batch, d_state, length, generator=generator) for _ in range(2))
    return [x.requires_grad_() for x in (u, delta, A, B, C, torch.ones(channels))]


def runs_backward(name: str, length: int) -> bool:
    """Autograd through a loop over slices costs memory traffic in L^2: minutes for the long sequence."""
    return name in ("cpu", "torch", "mambapy") or length <= 256


def forward(scan: Scan, inputs: list[Tensor], dy: Tensor) -> None:
    with torch.no_grad():
        scan(*inputs)


def forward_backward(scan: Scan, inputs: list[Tensor], dy: Tensor) -> None:
    torch.autograd.grad(scan(*inputs), inputs, dy)


def times(names: list[str], size: tuple[int, int, int, int], rounds: int) -> dict[tuple[str, str], float]:
    """Median seconds by (what, name). A round runs everything once, so that a busy machine disturbs all alike."""
    inputs, dy = operands(*size), torch.ones(size[:3])
    expected = SCANS["cpu"](*inputs).detach()
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for name in names:
            if number == 0:
                with torch.no_grad():
                    error = (SCANS[name](*inputs) - expected).abs().max() / expected.abs().max()
                if error > 1e-5:
                    raise SystemExit(f"{name} computes something else: off by {error:.1e}")
            for what, run in (("forward", forward), ("forward+backward", forward_backward)):
                if what == "forward+backward" and not runs_backward(name, size[2]):
                    continue
                start = time.perf_counter()
                run(SCANS[name], inputs, dy)
                if number > 0:  # round 0 warms up
                    seconds.setdefault((what, name), []).append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in seconds.items()}


def peak_bytes() -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")) * 1024


def extra_memory(name: str, size: tuple[int, int, int, int], threads: int) -> int:
    """Bytes at the peak of one forward and backward above those in use before it."""
    torch.set_num_threads(threads)
    forward_backward(SCANS[name], operands(1, 64, 4, size[3]), torch.ones(1, 64, 4))
    inputs, dy = operands(*size), torch.ones(size[:3])
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from what is in use now
    before = peak_bytes()
    forward_backward(SCANS[name], inputs, dy)
    return peak_bytes() - before


def in_own_process(name: str, size: tuple[int, int, int, int], threads: int) -> int:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(extra_memory, name, size, threads).result()


def report(measured: dict[tuple[str, str], float], names: list[str]) -> None:
    """A row per scan: every figure, and how many times the cpu backend's it is; then what the cpu backend is to reach."""
    print(f"  {'':<13}" + "".join(f" | {what + (' (peak extra)' if what == 'memory' else ''):<21}" for what in REACH))
    for name in names:
        row = f"  {name:<13}"
        for what in REACH:
            if (what, name) in measured:
                value, ratio = measured[what, name], measured[what, name] / measured[what, "cpu"]
                row += f" | {value / 2**20:8.1f} MiB" if what == "memory" else f" | {value * 1e3:8.1f} ms "
                row += f" {ratio:7.1f}x"
            else:
                row += f" | {'-':>21}"
        print(row)
    for what, targets in REACH.items():
        for name, target in targets.items():
            if (what, name) in measured:
                ratio = measured[what, name] / measured[what, "cpu"]
                print(f"  {what}: {ratio:.1f} times better than {name}, at least {target} wanted: {'met' if ratio >= target else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of every size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = list(SCANS)
    if importlib.util.find_spec("mambapy") is None:
        names.remove("mambapy")
        print("mambapy is not installed (pip install mambapy): left out")
    measures_memory = Path("/proc/self/clear_refs").exists()
    for size in SIZES:
        if arguments.quick:
            size = (size[0] // 8, *size[1:]) if size[0] > 8 else (size[0], size[1], size[2] // 8, size[3])
        print(f"(batch, channels, length, d_state) = {size}, fp32, {arguments.threads} threads, median of {arguments.rounds}")
        measured = times(names, size, arguments.rounds)
        for name in names if measures_memory else []:
            if runs_backward(name, size[2]):
                measured["memory", name] = in_own_process(name, size, arguments.threads)
        report(measured, names)


if __name__ == "__main__":
    main()

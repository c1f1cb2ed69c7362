from __future__ import annotations

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from genlab.models.selective_scan import cpu_kernels, interface, selective_scan
from genlab.training.randomness import keyed_torch_generator
from tests.golden_files import assert_close, golden_files, load_golden

BACKENDS = ["cpu", "torch"]
CHUNK, BLOCK = cpu_kernels.CHUNK, cpu_kernels.BLOCK
INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def operands(batch: int, channels: int, length: int, d_state: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All inputs, of the sizes that Mamba gives them: A in -(0, 4), steps about 0.7 after softplus."""
    generator = keyed_torch_generator("selective scan test", batch, channels, length, d_state)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    shapes = {
        "u": (batch, channels, length),
        "delta": (batch, channels, length),
        "B": (batch, d_state, length),
        "C": (batch, d_state, length),
    }
    shapes |= {"D": (channels,), "z": (batch, channels, length), "delta_bias": (channels,)}
    return {"A": -4 * torch.rand(channels, d_state, generator=generator, dtype=torch.float64).to(dtype)} | {
        k: draw(*s) for k, s in shapes.items()
    }


def recurrence(u, delta, A, B, C, D, z, delta_bias) -> tuple[Tensor, Tensor]:
    """The definition, step by step."""
    delta = F.softplus(delta + delta_bias[:, None])
    h, ys = u.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta * u)[:, :, t, None] * B[:, None, :, t]
        ys.append((h * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
    return torch.stack(ys, 2) * F.silu(z), h


def run(inputs: dict[str, Tensor], backend: str, dy: Tensor) -> dict[str, Tensor]:
    """y, last state and all gradients."""
    leaves = {k: v.detach().requires_grad_() for k, v in inputs.items()}
    y, last = selective_scan(**leaves, delta_softplus=True, return_last_state=True, backend=backend)
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach(), "last_state": last} | {f"grad/{k}": g for k, g in zip(leaves, grads)}


@pytest.mark.golden
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("path", golden_files("demamba", "selective_scan"))
def test_golden(path, backend, dtype):
    facts, tensors = load_golden(path)
    tol = facts["tol"][str(dtype).removeprefix("torch.")]
    for name, case in facts["cases"].items():
        leaves = {k: tensors[f"{name}/{k}"].to(dtype).requires_grad_() for k in INPUTS if f"{name}/{k}" in tensors}
        y, last = selective_scan(**leaves, delta_softplus=case["softplus"], return_last_state=True, backend=backend)
        assert not last.requires_grad
        assert_close(y, tensors[f"{name}/y"], tol, f"{name}/y")
        assert_close(last, tensors[f"{name}/last_state"], tol, f"{name}/last_state")
        grads = torch.autograd.grad(y, list(leaves.values()), tensors[f"{name}/dy"].to(dtype))
        for k, grad in zip(leaves, grads):
            assert_close(grad, tensors[f"{name}/grad/{k}"], tol, f"{name}/grad/{k}")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_cuda_equals_the_cpu(backend):
    inputs, dy = operands(2, 70, 45, 5), torch.ones(2, 70, 45)
    expected = run(inputs, "cpu", dy)
    for k, v in run({k: v.cuda() for k, v in inputs.items()}, backend, dy.cuda()).items():
        assert_close(v.cpu(), expected[k], {"atol": 1e-5, "scaled": True}, k)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 1), (2, BLOCK + 6, CHUNK - 1, 3), (3, BLOCK, CHUNK, 2), (1, 2 * BLOCK + 1, CHUNK + 1, 5), (2, 7, 3 * CHUNK + 5, 16)],
    ids=str,
)
def test_any_length_and_width(sizes, backend):
    inputs = operands(*sizes, dtype=torch.float64)
    dy = torch.randn(sizes[:3], generator=keyed_torch_generator("dy"), dtype=torch.float64)
    leaves = {k: v.detach().requires_grad_() for k, v in inputs.items()}
    y, last = recurrence(**leaves)
    expected = {"y": y.detach(), "last_state": last.detach()}
    expected |= {f"grad/{k}": g for k, g in zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy))}
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        found = run({k: v.to(dtype) for k, v in inputs.items()}, backend, dy.to(dtype))
        for k, v in expected.items():
            assert_close(found[k], v, {"atol": atol, "scaled": True}, f"{k} in {dtype}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend):
    inputs, dy = operands(3, 40, CHUNK + 3, 4), torch.ones(1).expand(3, 40, CHUNK + 3)
    expected = run(inputs, backend, dy)
    channels_last = {k: v.transpose(1, 2).contiguous().transpose(1, 2) if v.dim() == 3 else v for k, v in inputs.items()}
    spread = {k: torch.stack([v, v], -1)[..., 0] for k, v in inputs.items()}
    for strided in (channels_last, spread):
        assert not strided["u"].is_contiguous()
        for k, v in run(strided, backend, dy).items():
            torch.testing.assert_close(v, expected[k], rtol=1e-5, atol=1e-5, msg=lambda m, k=k: f"{k}: {m}")
    one = inputs | {"u": inputs["u"][:1].expand(3, -1, -1)}
    torch.testing.assert_close(run(one, backend, dy)["y"][0], expected["y"][0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16_in_bf16_out_and_fp32_in_between(backend):
    half = operands(2, 20, 50, 8, torch.bfloat16)
    single = {k: v.float() for k, v in half.items()}
    dy = torch.randn(2, 20, 50, generator=keyed_torch_generator("dy")).bfloat16()
    found, expected = run(half, backend, dy), run(single, backend, dy.float())
    assert found["last_state"].dtype == torch.float32
    for k in found:
        if k != "last_state":
            assert found[k].dtype == torch.bfloat16
            torch.testing.assert_close(found[k], expected[k].bfloat16(), rtol=1e-2, atol=1e-3)
    mixed = half | {k: half[k].float() for k in ("A", "D", "delta_bias")}  # as under autocast
    assert run(mixed, backend, dy)["grad/A"].dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(0, 5, 7, 3), (2, 5, 0, 3)], ids=["no rows", "no steps"])
def test_nothing_to_scan_gives_zero_gradients(sizes, backend):
    found = run(operands(*sizes), backend, torch.zeros(sizes[:3]))
    assert found["y"].shape == sizes[:3]
    assert found["last_state"].shape == (sizes[0], 5, 3)
    assert all(not v.any() for v in found.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_steps_stay_finite_and_nan_shows(backend):
    inputs = operands(1, 5, 100, 4)
    dy = torch.ones(1, 5, 100)
    for factor in (1e3, -50.0):  # decays of 0, and growth beyond fp32
        found = run(inputs | {"A": inputs["A"] * factor}, backend, dy)
        if factor > 0:
            assert all(v.isfinite().all() for v in found.values())
        else:
            assert not found["y"].isfinite().all()
    broken = inputs | {"delta": inputs["delta"].clone()}
    broken["delta"][0, 2, 50] = float("nan")
    y = run(broken, backend, dy)["y"]
    assert y[0, 2, 50:].isnan().all()
    assert y[0, 2, :50].isfinite().all() and y[0, 3].isfinite().all()


def test_exponential_within_two_units_in_the_last_place():
    @numba.njit
    def exponential(x, out):
        for i in range(x.size):
            out[i] = cpu_kernels._exp2(x[i])

    x = np.linspace(-99.9, 126.9, 2_000_001).astype(np.float32)
    found = np.empty_like(x)
    exponential(x, found)
    exact = np.exp2(x.astype(np.float64))
    assert (np.abs(found - exact) / np.spacing(exact.astype(np.float32))).max() < 2
    exponential(np.float32([-1e30, -101, 0, 128, 1e30]), found)
    assert found[:5].tolist() == [2.0**-100, 2.0**-100, 1, 2.0**127, 2.0**127]


def test_softplus_and_its_slope_over_the_whole_range():
    delta = torch.linspace(-80, 80, 20001).view(1, 1, -1)
    leaf, exact = delta.clone().requires_grad_(), delta.double().requires_grad_()
    one = torch.ones(1, 1, 1)
    # A single step with A = 0 and u = B = C = 1 returns the step size itself.
    y = selective_scan(one.expand(20001, 1, 1), leaf.permute(2, 0, 1), -one[0], one.expand(20001, 1, 1), one.expand(20001, 1, 1), None,
                       delta_softplus=True, backend="cpu")  # fmt: skip
    expected = F.softplus(exact, threshold=100)
    torch.testing.assert_close(y.flatten().double(), expected.flatten(), rtol=5e-6, atol=1e-29)
    y.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=5e-6, atol=1e-29)


def test_gradients_do_not_depend_on_threads():
    inputs, dy = operands(5, 3 * BLOCK, 2 * CHUNK + 1, 4), torch.ones(5, 3 * BLOCK, 2 * CHUNK + 1)
    two = run(inputs, "cpu", dy)
    torch.set_num_threads(1)
    for k, v in run(inputs, "cpu", dy).items():
        assert torch.equal(v, two[k]), k


def test_concurrent_calls():
    inputs, dy = operands(4, 2 * BLOCK, CHUNK, 4), torch.ones(4, 2 * BLOCK, CHUNK)
    expected = run(inputs, "cpu", dy)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: run(inputs, "cpu", dy), range(16)):
            assert all(torch.equal(found[k], expected[k]) for k in expected)


class _ScansInTheWorker(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        torch.set_num_threads(2)  # a worker has one by default, which would never start a thread
        return run(operands(3, 2 * BLOCK, CHUNK + 1, 4), "cpu", torch.ones(3, 2 * BLOCK, CHUNK + 1))


def test_forked_workers_scan_after_the_parent_did():
    dataset = _ScansInTheWorker()
    expected = dataset[0]
    for batch in DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60):
        assert all(torch.equal(batch[k], expected[k]) for k in expected)
    assert torch.equal(dataset[0]["y"], expected["y"])  # and the parent goes on


PEAK = """
import sys, torch
from genlab.models.selective_scan import selective_scan
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
def scan(batch, channels, length, d_state):
    u, delta = (torch.rand(batch, channels, length).requires_grad_() for _ in range(2))
    A, B, C = -torch.rand(channels, d_state), *(torch.rand(batch, d_state, length).requires_grad_() for _ in range(2))
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from what is in use
    before = peak()
    selective_scan(u, delta, A.requires_grad_(), B, C, backend=sys.argv[1]).sum().backward()
    return peak() - before
torch.set_num_threads(2)
scan(1, 8, 4, 32)
print(scan(2, 1024, 512, 32))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux")
@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_stays_far_below_one_tensor_of_all_states(backend):
    # A process of its own: the allocator of this one may hold freed memory that hides the need.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", PEAK, backend], env=environment, capture_output=True, text=True, check=True)
    sequence, states = 2 * 1024 * 512 * 4, 2 * 1024 * 512 * 32 * 4
    assert int(done.stdout) < states / 3, f"{int(done.stdout) / sequence:.1f} times an input"


@pytest.mark.slow
def test_kernels_are_kept_even_where_neither_package_nor_home_can_be_written(tmp_path):
    code = "from genlab.models.selective_scan.cpu_kernels import forward_kernel as kernel\n"
    code += "print(sum(kernel('float32').stats.cache_hits.values()))"
    # Numba itself then finds a place only where NUMBA_CACHE_DIR is set, which is the case we have to arrange ourselves.
    environment = os.environ | {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "TMPDIR": str(tmp_path)}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("NUMBA_CACHE_DIR", None)
    for hits in (0, 1):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert int(done.stdout) == hits
    assert next(tmp_path.iterdir()).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.ones(2, 3)}, r"u has shape \(2, 3\); expected \(batch, channels, length\)"),
        ({"A": torch.ones(4, 2)}, r"A has shape \(4, 2\); expected \(channels, d_state\) with 3 channels"),
        ({"delta": torch.ones(2, 3, 4)}, r"delta has shape \(2, 3, 4\); expected \(2, 3, 5\)"),
        ({"B": torch.ones(2, 5, 2)}, r"B has shape \(2, 5, 2\); expected \(2, 2, 5\)"),
        ({"C": torch.ones(3, 2)}, r"C has shape"),
        ({"D": torch.ones(1)}, r"D has shape \(1,\); expected \(3,\)"),
        ({"z": torch.ones(2, 5, 3)}, r"z has shape"),
        ({"delta_bias": torch.ones(3, 1)}, r"delta_bias has shape"),
        ({"delta": torch.ones(2, 3, 5, dtype=torch.int64)}, r"delta is torch.int64"),
        ({"B": torch.ones(2, 2, 5, device="meta")}, r"B is on meta, u on cpu"),
        ({"backend": "numba"}, r"'numba'; use 'auto', 'mamba_ssm', 'cpu' or 'torch'"),
        ({"backend": "mamba_ssm"}, r"'mamba_ssm' cannot run: the tensors are on cpu"),
    ],
)
def test_errors_say_what_was_expected(change, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**(operands(2, 3, 5, 2) | change))


def test_the_log_says_once_which_backend_runs(caplog):
    interface._announce.cache_clear()
    with caplog.at_level(logging.INFO, logger=interface.log.name):
        for _ in range(3):
            selective_scan(**operands(1, 2, 3, 4))
    assert [r.getMessage() for r in caplog.records] == ["selective scan: backend cpu (tensors on the CPU)"]

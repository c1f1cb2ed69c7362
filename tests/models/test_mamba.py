from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from genlab.errors import UserError
from genlab.models.mamba import DropPath, MambaBlock, MambaMixer, MambaOptions, RMSNorm
from tests.golden_files import assert_close, golden_files, load_golden

OPTIONS = ("d_state", "d_conv", "expand_factor", "dt_rank", "bias", "conv_bias")


def golden_block(case, tensors, name, bidirectional, backend):
    options = MambaOptions(**{k: case[k] for k in OPTIONS if k in case}, bidirectional=bidirectional)
    block = MambaBlock(case["d_model"], options, backend).eval()
    state = {k.removeprefix(f"{name}/sd/"): v for k, v in tensors.items() if k.startswith(f"{name}/sd/")}
    block.load_state_dict({k: v for k, v in state.items() if "conv1d_b" not in k})  # strict: the names are the official ones
    return block


@pytest.mark.golden
@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("path", golden_files("demamba", "residual_block"))
def test_golden(path, backend):
    facts, tensors = load_golden(path)
    for name, case in facts["cases"].items():
        both = case.get("bimamba", True)
        block = golden_block(case, tensors, name, "channel" if both else "none", backend)
        for length in case["Ls"]:
            x = tensors[f"{name}/x_{length}"].requires_grad_()
            block.zero_grad()
            y = block(x)
            y.backward(tensors[f"{name}/dy_{length}"])
            assert_close(y, tensors[f"{name}/y_{length}"], facts["tol"], f"{name}/y_{length}")
            assert_close(x.grad, tensors[f"{name}/grad_x_{length}"], facts["tol"], f"{name}/grad_x_{length}")
            if length == max(case["Ls"]):
                for key, parameter in block.named_parameters():
                    assert_close(parameter.grad, tensors[f"{name}/grad/{key}"], facts["tol"], f"{name}/grad/{key}")
            if both:
                in_time = golden_block(case, tensors, name, "time", backend)(x)
                assert_close(in_time, tensors[f"{name}/y_time_{length}"], facts["tol"], f"{name}/y_time_{length}")


def test_parameter_counts_of_the_paper():
    with torch.device("meta"):
        block, single = MambaBlock(768), MambaBlock(768, MambaOptions(bidirectional="none"))
    unused_second_convolution = 1536 * 4 + 1536
    assert sum(p.numel() for p in block.parameters()) == 4_003_584 - unused_second_convolution
    assert sum(p.numel() for p in single.parameters()) == 3_770_880 + 768
    assert block.mixer.dt_rank == 48 and MambaMixer(20).dt_rank == 2


@pytest.mark.parametrize("bidirectional", ["time", "channel", "none"])
@pytest.mark.parametrize("bias", [False, True])
def test_every_parameter_gets_a_gradient(bidirectional, bias):
    torch.manual_seed(0)
    block = MambaBlock(16, MambaOptions(d_state=4, bidirectional=bidirectional, bias=bias, conv_bias=bias))
    block(torch.randn(3, 6, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in block.parameters())


def test_one_direction_is_causal_two_are_not():
    torch.manual_seed(0)
    x = torch.randn(2, 9, 16)
    later = x.clone()
    later[:, 6:] += 1
    for bidirectional, causal in (("none", True), ("channel", True), ("time", False)):
        block = MambaBlock(16, MambaOptions(d_state=4, bidirectional=bidirectional)).eval()
        assert torch.allclose(block(x)[:, :6], block(later)[:, :6], atol=1e-6) == causal


def test_sequences_do_not_see_each_other():
    torch.manual_seed(0)
    block, x = MambaBlock(16, MambaOptions(d_state=4)).eval(), torch.randn(5, 7, 16)
    torch.testing.assert_close(block(x)[3], block(x[3:4])[0])
    assert block(x[:0]).shape == (0, 7, 16)


def test_initial_step_sizes_and_decays():
    torch.manual_seed(0)
    mixer = MambaMixer(64, MambaOptions())
    for name in ("dt_proj", "dt_proj_b"):
        steps = F.softplus(getattr(mixer, name).bias)
        assert steps.min() >= 0.001 * 0.99 and steps.max() <= 0.1 * 1.01
        assert abs(steps.log().mean() - torch.tensor(0.01).log()) < 0.3  # log-uniform: centred on 0.01
        assert getattr(mixer, name).weight.abs().max() <= 4**-0.5
    for log_decay, skip in ((mixer.A_log, mixer.D), (mixer.A_b_log, mixer.D_b)):
        torch.testing.assert_close(log_decay.exp(), torch.arange(1.0, 17).expand(128, 16))
        assert torch.equal(skip, torch.ones(128))
    official = MambaMixer(64, MambaOptions(second_direction_dt_init="linear"))
    assert F.softplus(official.dt_proj.bias).max() <= 0.101
    assert F.softplus(official.dt_proj_b.bias).mean().item() == pytest.approx(0.7, abs=0.1)


def test_bf16_autocast_stays_near_fp32():
    torch.manual_seed(0)
    block, x = MambaBlock(64, MambaOptions(drop_path=0)), torch.randn(4, 20, 64, requires_grad=True)
    expected = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert y.dtype == torch.float32  # the residual stream keeps its type
    assert (y - expected).abs().max() < 0.02
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in block.parameters())
    half = MambaBlock(64).bfloat16().eval()
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_rms_norm_by_hand():
    norm = RMSNorm(2, eps=0.5)
    norm.weight.data = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(norm(torch.tensor([[1.0, 2.0]])), torch.tensor([[1.0, 4.0]]) / 3**0.5)
    assert RMSNorm(8).eps == 1e-5
    x = torch.full((1, 8), 300.0, dtype=torch.float16)  # the squares exceed fp16
    torch.testing.assert_close(RMSNorm(8)(x), torch.ones_like(x))


def test_drop_path_drops_whole_sequences_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    y = drop(x)
    rows = y.flatten(1)
    assert ((rows == 0).all(1) | torch.isclose(rows, torch.tensor(1 / 0.75)).all(1)).all()
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert drop.eval()(x) is x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_conv": 0}, "d_conv is 0"),
        ({"dt_rank": 0}, "dt_rank is 0"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"bidirectional": "both"}, "use 'time', 'channel' or 'none'"),
        ({"second_direction_dt_init": "zero"}, "use 'mamba' or 'linear'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        MambaOptions(**options)

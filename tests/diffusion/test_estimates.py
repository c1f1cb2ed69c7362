"""What a run will take: measured without leaving a trace, and multiplied."""

from __future__ import annotations

import torch

from genlab.diffusion.estimates import Pass, StageCost, estimate_table, measure_pass
from genlab.diffusion.lora import attach_lora
from tests.diffusion.test_tuning import unet
from tests.diffusion.tiny_parts import CHANNELS


def test_a_pass_leaves_no_gradients_and_counts_what_is_held() -> None:
    network = unet()
    attach_lora(network, 2)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    generator = torch.get_rng_state()
    one, two = (measure_pass(network, torch.ones(1, CHANNELS, side, side), torch.ones(1, 8, 16), trained) for side in (8, 16))
    assert all(parameter.grad is None for parameter in trained) and torch.equal(torch.get_rng_state(), generator)
    assert one.held is not None and two.held is not None and 2 * one.held < two.held, "four times the places"
    assert min(one.plain, one.trained) > 0
    network.enable_gradient_checkpointing()
    assert measure_pass(network, torch.ones(1, CHANNELS, 8, 8), torch.ones(1, 8, 16), trained).held is None


def test_the_table_multiplies() -> None:
    module = torch.nn.Linear(10**6, 1, bias=False)
    stages = [StageCost("drawing", 10, 0, 40), StageCost("training", 1000, 8, 4)]
    text = estimate_table(Pass(0.01, 0.03, 5 * 10**6), module, stages, 8)
    rows = {line.strip().rsplit("  ", 1)[0].strip(): line.strip().rsplit("  ", 1)[1].strip() for line in text.splitlines()[1:]}
    assert rows["weights"] == "4 MB" and rows["gradients and AdamW of 1,000,000 trained"] == "12 MB"
    assert rows["activations"] == "40 MB" and rows["memory"] == "56 MB"
    assert rows["drawing: 10 steps"] == "4 s" and rows["training: 1,000 steps"] == "5 min" and rows["time"] == "5 min"
    assert "few, by gradient checkpointing" in estimate_table(Pass(0.01, 0.03, None), module, stages, 2)

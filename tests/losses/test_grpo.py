"""GRPO: reference numbers and gradients, and what must not matter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genlab.losses.grpo import completion_mask, group_advantages, grpo_loss, kl_estimate, token_logprobs
from tests.golden_files import assert_close, golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("mllm_defake", "grpo"))
def test_reference_numbers(path: Path) -> None:
    meta, given = load_golden(path)
    c, tol = meta["config"], meta["tol"]
    ids, count = given["input_ids"].long(), c["completion_len"]
    mask = completion_mask(ids[:, -count:], c["eos_id"])
    assert_close(mask, given["completion_mask"], tol, "mask")
    logps = {name: token_logprobs(given[f"{name}logits"], ids, count) for name in ("", "old_", "ref_")}
    for name, value in logps.items():
        assert_close(value, given[f"{name}logps"], tol, f"{name}logps")
    advantages = group_advantages(given["rewards"], c["G"], eps=c["adv_eps"])
    assert_close(advantages, given["advantages"], tol, "advantages")
    assert_close(group_advantages(given["rewards"], c["G"], scale=False), given["advantages_no_std"], tol, "advantages without deviation")
    assert_close(kl_estimate(logps[""], logps["ref_"]), given["per_token_kl"], tol, "divergence")
    for name in ("onpolicy", "offpolicy"):
        logits = given["logits"].clone().requires_grad_()
        mine = token_logprobs(logits, ids, count)
        old = mine.detach() if name == "onpolicy" else logps["old_"]
        found = grpo_loss(mine, old, logps["ref_"], advantages, mask, c["epsilon"], c["beta"])
        found.loss.backward()
        assert logits.grad is not None
        assert_close(logits.grad, given[f"grad_logits_{name}"], tol, f"gradient {name}")
        for key, value in {f"loss_{name}": found.loss, f"clip_ratio_{name}": found.clip_ratio_official, "mean_kl": found.kl}.items():
            assert_close(value.detach(), torch.tensor(meta[key]), tol, key)
    tokens = grpo_loss(logps[""], logps["old_"], logps["ref_"], advantages, mask, c["epsilon"], c["beta"], "token_mean")
    assert_close(tokens.loss, torch.tensor(meta["loss_token_mean_offpolicy"]), tol, "mean over tokens")
    assert_close(mask.sum(1).mean(), torch.tensor(meta["completion_length_mean"]), tol, "length")


def test_the_clipped_term_counts_where_it_is_the_smaller_one() -> None:
    old, advantages, mask = torch.zeros(2, 2), torch.tensor([1.0, -1.0]), torch.ones(2, 2)
    logps = torch.log(torch.tensor([[1.5, 0.5], [1.5, 0.5]]))  # a gain that is cut off, one that is not; a loss that is not, one that is
    found = grpo_loss(logps, old, None, advantages, mask, beta=0.0)
    assert found.clip_ratio == 0.5 and found.clip_ratio_official == 0.5
    assert torch.allclose(found.loss, torch.tensor((-1.2 - 0.5 + 1.5 + 0.8) / 4))


def test_what_must_not_matter() -> None:
    torch.manual_seed(0)
    logps, reference, mask = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([[1.0, 1, 1, 0]] * 6)
    rewards = torch.rand(6)
    assert (group_advantages(torch.ones(6), 3) == 0).all(), "equal rewards teach nothing"
    whole = grpo_loss(logps, logps, reference, group_advantages(rewards, 3), mask)
    order = torch.tensor([3, 4, 5, 0, 1, 2])
    swapped = grpo_loss(logps[order], logps[order], reference[order], group_advantages(rewards[order], 3), mask)
    assert torch.allclose(whole.loss, swapped.loss, atol=1e-6)
    other = logps.clone()
    other[:, 3] += 5  # behind the end
    assert torch.equal(grpo_loss(other, other, reference, group_advantages(rewards, 3), mask).loss, whole.loss)
    assert grpo_loss(logps, logps, logps, group_advantages(rewards, 3), mask).kl == 0
    assert torch.allclose(whole.loss, 0.04 * whole.kl, atol=1e-6), "on policy the value is beta times the divergence"

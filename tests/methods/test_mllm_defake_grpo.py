"""GRPO of detectors: rewards rise, a run resumed between two passes is the unbroken one, and what must have no effect has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from genlab.errors import UserError
from genlab.methods.mllm_defake_grpo import MllmDefakeGRPO
from genlab.methods.mllm_defake_sft import MllmDefakeSFT
from genlab.training.resume import ExactResume
from genlab.vlm.scoring import VerdictReward
from genlab.vlm.tuning import LoRA
from tests.methods.plain_defake import Rewards, SaveAt, plain_world, trainer, words_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_world(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def blind(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that has learned how to answer, and from labels drawn by lot."""
    L.seed_everything(0)
    folder = tmp_path_factory.mktemp("blind")
    data = words_of(root, train="blind_train.jsonl")
    trainer(folder, 150).fit(MllmDefakeSFT("tiny:vlm", lr=3e-3), datamodule=data)
    return str(folder / "model")


def tuned(weights: str, **options: Any) -> MllmDefakeGRPO:
    defaults: dict[str, Any] = {"reward": VerdictReward(), "group": 8, "max_new_tokens": 12, "lr": 1e-3, "warmup": 0.0}
    return MllmDefakeGRPO(weights, **(defaults | options))


@pytest.mark.slow
def test_rewards_alone_teach_what_is_bright(root: Path, blind: str, tmp_path: Path) -> None:
    """Within sixty steps; docs/mllm_defake_tuning.md has figures of a hundred, over seeds."""
    L.seed_everything(0)
    rewards, model = Rewards(), tuned(blind)
    run = trainer(tmp_path, 60, rewards)
    run.fit(model, datamodule=words_of(root, batch_size=8, iterations=1))
    begin, end = sum(rewards.seen[:5]) / 5, sum(rewards.seen[-10:]) / 10
    assert begin < 0.65 and end >= 0.85, (begin, end)
    assert {"train/kl", "train/clip_ratio", "train/reward_verdict", "train/reward_spread", "train/completion_length"} <= set(
        run.callback_metrics
    )
    page = (tmp_path / "media" / "completions_step000000.html").read_text()
    assert "&lt;verdict&gt;" in page and "<verdict>" not in page and "http" not in page
    (found,) = run.test(model, datamodule=words_of(root), verbose=False)
    assert found["test/accuracy"] >= 0.9 and found["test/reward"] >= 0.9


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_resumed_between_two_passes_over_the_same_completions(lora: LoRA | None, root: Path, blind: str, tmp_path: Path) -> None:
    """Two passes over the completions of two accumulated batches: step 3 is the first pass over the second ones."""

    def run(name: str, *callbacks: L.Callback, ckpt: Path | None = None) -> MllmDefakeGRPO:
        L.seed_everything(0)
        model = tuned(blind, lora=lora, group=4, iterations=2, max_new_tokens=8, aggregation="token_mean")
        data = words_of(root, batch_size=2, iterations=2)
        run = trainer(tmp_path / name, 6, *callbacks, ExactResume(), accumulate_grad_batches=2)
        run.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
        assert run.global_step == 6
        return model

    saved = tmp_path / "three.ckpt"
    whole = run("whole", SaveAt(3, saved))
    parts = run("parts", ckpt=saved)
    assert len(torch.load(saved, weights_only=True)["rollouts"][0]) == 2
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    assert any(each.old is not None and not torch.equal(each.old, whole._logprobs(whole.model, each)) for each in whole.rollouts)


def test_equal_rewards_teach_nothing_and_the_reference_is_the_start(root: Path, blind: str, tmp_path: Path) -> None:
    model = tuned(blind, reward=VerdictReward(1, 1, 1), group=4, max_new_tokens=8)
    run = trainer(tmp_path, 1, gradient_clip_val=None)
    run.fit(model, datamodule=words_of(root, batch_size=2))
    metrics = run.callback_metrics
    assert metrics["train/kl"] == 0 and metrics["train/flat_groups"] == 1 and metrics["train/loss"] == 0
    assert all(value.grad is None or not value.grad.any() for value in model.parameters())
    assert not any(value.requires_grad for value in model.reference.parameters())
    assert not any(name.startswith("reference.") for name in model.state_dict() if not model.is_frozen(name))
    assert tuned(blind, beta=0.0).reference is None
    # The flat groups are left out: with all of them flat, nothing is divided by nothing.
    flat = tuned(blind, reward=VerdictReward(1, 1, 1), group=4, max_new_tokens=8, skip_flat_groups=True, beta=0.0)
    run = trainer(tmp_path / "flat", 1)
    run.fit(flat, datamodule=words_of(root, batch_size=2))
    assert run.callback_metrics["train/loss"] == 0 and flat.reference is None


def test_what_cannot_be_is_said(root: Path, blind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.group: 1 completions"):
        tuned(blind, group=1)
    with pytest.raises(UserError, match=r"data\.iterations: None, model\.iterations: 2"):
        trainer(tmp_path, 1).fit(tuned(blind, iterations=2), datamodule=words_of(root, batch_size=2))
    with pytest.raises(UserError, match="is more than the 128 pictures"):
        trainer(tmp_path, 1).fit(tuned(blind), datamodule=words_of(root, batch_size=200, iterations=1))

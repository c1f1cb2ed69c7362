"""Refusals before the job: what cannot run under a strategy, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from genlab.config import compose
from genlab.strategies import refusal, sharding

METHOD = """
from lightning.pytorch import LightningModule

class Parent(LightningModule):
    cannot_run_under: dict = {"ZeRO-3": "its weights are loaded whole."}

class Picky(Parent):
    cannot_run_under = {"FSDP": "it steps two optimizers."}
"""


@pytest.mark.parametrize(
    ("strategy", "found"),
    [
        ("auto", ""), ("ddp", "DDP"), ("ddp_find_unused_parameters_true", "DDP"), ("fsdp", "FSDP"), ("deepspeed", "ZeRO-2"),
        ("deepspeed_stage_3", "ZeRO-3"), ("{class_path: lightning.pytorch.strategies.DeepSpeedStrategy, init_args: {stage: 1}}", "ZeRO-1"),
        ("{class_path: lightning.pytorch.strategies.FSDPStrategy}", "FSDP"),
    ],
)  # fmt: skip
def test_a_strategy_is_known_by_name_and_by_class(strategy: str, found: str) -> None:
    assert sharding(compose(["tiny/demamba"], [("trainer.strategy", strategy)])) == found


def test_several_processes_are_ddp() -> None:
    assert sharding(compose(["tiny/demamba"], [("trainer.num_nodes", "2")])) == "DDP"


def test_a_class_derived_from_a_strategy_is_that_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_strategy.py").write_text(
        "from lightning.pytorch.strategies import FSDPStrategy\n\nclass Own(FSDPStrategy):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert sharding(compose(["tiny/demamba"], [("trainer.strategy", "{class_path: own_strategy.Own}")])) == "FSDP"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_shards_is_refused_on_the_cpu(strategy: str) -> None:
    on_gpu = compose(["demamba", "trainer/ddp"], [("trainer.strategy", strategy)])
    on_cpu = compose(["demamba", "trainer/ddp", "trainer/cpu"], [("trainer.strategy", strategy)])
    assert refusal(on_gpu) is None
    assert (refusal(on_cpu) is None) if strategy == "ddp" else "FSDP needs GPUs" in str(refusal(on_cpu))


def test_a_method_names_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "picky_method.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("model: {class_path: picky_method.Picky}\ntrainer: {accelerator: gpu}\n")
    found = {kind: refusal(compose(["x.yaml"], [("trainer.strategy", kind)])) for kind in ("ddp", "fsdp", "deepspeed_stage_3")}
    assert found["ddp"] is None
    assert found["fsdp"] == "trainer.strategy: Picky cannot run under FSDP: it steps two optimizers. Use DDP."
    assert "its weights are loaded whole." in str(found["deepspeed_stage_3"])


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"])
def test_the_shipped_overlays_are_what_they_are_called(name: str) -> None:
    kind = {"ddp": "DDP", "fsdp": "FSDP"}.get(name, f"ZeRO-{name[-1]}")
    assert sharding(compose(["demamba", f"trainer/{name}"])) == kind
    on_cpu = str(refusal(compose(["demamba", f"trainer/{name}", "trainer/cpu"])))
    assert name == "ddp" or f"{kind} needs GPUs" in on_cpu


@pytest.mark.parametrize(
    ("config", "refused"),
    [("demamba", ""), ("clip", "123"), ("judge", ""), ("vae", ""), ("sd", "123"), ("vlm", "3")],
)
def test_what_methods_cannot_do_is_refused_before_the_job(config: str, refused: str) -> None:
    """The others have trained under ZeRO on CPUs; ``demamba`` does so in tests/system/test_deepspeed.py."""
    for stage in "123":
        said = refusal(compose([f"tiny/{config}", f"trainer/deepspeed_zero{stage}"]))
        assert (f"cannot run under ZeRO-{stage}: " in str(said)) == (stage in refused), said

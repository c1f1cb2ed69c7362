"""Supervised fine-tuning of detectors: a toy task learned, the mean over tokens, LoRA, the folder, and an unbroken resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from genlab.errors import MissingPath, UserError
from genlab.methods.mllm_defake_sft import MllmDefakeSFT
from genlab.training.detector_tuning import seen_size
from genlab.training.resume import ExactResume
from genlab.verbs.mllm import main
from genlab.vlm.tuning import LoRA, load_for_tuning
from tests.methods.plain_defake import SaveAt, plain_world, trainer, words_of
from tests.tiny_vlms import tiny_internvl, tiny_qwen25


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_world(tmp_path_factory.mktemp("plain"))


def tuned(**options: Any) -> MllmDefakeSFT:
    return MllmDefakeSFT(**({"weights": "tiny:vlm", "lr": 3e-3, "max_new_tokens": 12} | options))


@pytest.mark.slow
def test_learns_bright_from_dark_and_leaves_a_folder(root: Path, tmp_path: Path) -> None:
    L.seed_everything(0)
    model, run = tuned(), trainer(tmp_path, 150)
    model.configure_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run.fit(model, datamodule=words_of(root))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and not any(".visual." in name for name in moved), "the picture tower stays"
    (found,) = run.test(model, datamodule=words_of(root), verbose=False)
    assert found["test/accuracy"] >= 0.95 and found["test/cut_off"] == found["test/unknown"] == 0

    again = tuned(weights=str(tmp_path / "model"))
    (same,) = trainer(tmp_path / "again", 1).test(again, datamodule=words_of(root), verbose=False)
    assert same == found
    data = words_of(root)
    data.setup("test")
    again.on_test_start()
    out = again.evaluate(next(iter(data.test_dataloader())))
    assert {row["status"] for row in out["rows"]} == {"ok"} and out["strips"][0]["frames"].dtype.name == "uint8"
    assert all(row["score"] == float(row["verdict"] == "generated") for row in out["rows"])


def step_gradients(root: Path, folder: Path, batch: int, accumulate: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Of one optimizer step over the first eight lines, whose answers have different numbers of tokens."""
    L.seed_everything(0)
    model = tuned()
    data = words_of(root, train="grounding_train.jsonl", batch_size=batch)
    run = trainer(folder, 1, accumulate_grad_batches=accumulate, gradient_clip_val=None)
    run.fit(model, datamodule=data)
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}, run.callback_metrics["train/loss"]


def test_every_token_of_a_step_counts_alike(root: Path, tmp_path: Path) -> None:
    whole, loss = step_gradients(root, tmp_path / "a", 8, 1)
    parts, _ = step_gradients(root, tmp_path / "b", 2, 4)
    assert whole.keys() == parts.keys() and loss > 0
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-3, msg=name)


def test_a_resumed_run_is_the_unbroken_one_and_lora_checkpoints_are_lean(root: Path, tmp_path: Path, capsys: Any) -> None:
    def run(name: str, steps: int, *callbacks: L.Callback, ckpt: Path | None = None) -> MllmDefakeSFT:
        L.seed_everything(0)
        model = tuned(lora=LoRA(rank=2, dropout=0.1))
        data = words_of(root, batch_size=4)
        trainer(tmp_path / name, 6, *callbacks, ExactResume()).fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
        return model

    saved = tmp_path / "three.ckpt"
    whole = run("whole", 6, SaveAt(3, saved))
    L.seed_everything(1)
    parts = run("parts", 6, ckpt=saved)
    held = torch.load(saved, weights_only=True)["state_dict"]
    assert held and all(".lora_" in name for name in held)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name

    # Out of the folder of peft's, and out of the checkpoint: models that need no peft.
    assert main(["merge", str(tmp_path / "whole"), "--out", str(tmp_path / "merged")]) == 0
    assert "transformers serve" in capsys.readouterr().out
    data = words_of(root)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    with pytest.raises(UserError, match="which another LoRA cannot build on"):
        tuned(weights=str(tmp_path / "whole/model"), lora=LoRA()).configure_model()
    merged = tuned(weights=str(tmp_path / "merged"))
    merged.configure_model()
    inputs = whole.prompts(batch)
    with torch.no_grad():
        wanted = whole.eval().model(**inputs).logits
        torch.testing.assert_close(merged.model.eval()(**inputs).logits, wanted, atol=1e-5, rtol=1e-4)
    assert main(["merge", str(saved), "-o", str(tmp_path / "of_three"), "--dtype", "float16"]) == 0
    assert load_for_tuning(str(tmp_path / "of_three"))[0].dtype == torch.float32, "it is loaded whole"
    with pytest.raises(UserError, match="exists already"):
        main(["merge", str(saved), "-o", str(tmp_path / "merged")])
    with pytest.raises(UserError, match="nothing to merge"):
        main(["merge", str(tmp_path / "merged"), "-o", str(tmp_path / "x")])
    torch.save({"state_dict": {}, "method": "other"}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="a checkpoint of other"):
        main(["merge", str(tmp_path / "other.ckpt"), "-o", str(tmp_path / "x")])


def test_what_cannot_be_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.max_length: the chat about .* has \d+ tokens, more than 10"):
        trainer(tmp_path, 1).fit(tuned(max_length=10), datamodule=words_of(root))
    with pytest.raises(UserError, match="LoRA leaves the picture tower alone"):
        tuned(lora=LoRA(), train_vision=True).configure_model()
    with pytest.raises(UserError, match="tiny:clip is no vision-language model"):
        tuned(weights="tiny:clip").configure_model()
    with pytest.raises(UserError, match="neither adapter_config"):
        main(["merge", str(tmp_path), "-o", str(tmp_path / "x")])
    with pytest.raises(MissingPath, match="is not there"):
        main(["merge", str(tmp_path / "nowhere"), "-o", str(tmp_path / "x")])
    with pytest.raises(UserError, match=r"no action 'merg'; did you mean|no action 'merg'"):
        main(["merg"])


@pytest.mark.parametrize("family", [tiny_qwen25, tiny_internvl])
def test_both_families_take_a_step(family: Any, root: Path, tmp_path: Path) -> None:
    weights = str(family(tmp_path / "model"))
    model = tuned(weights=weights, rescale_boxes=True, lora=LoRA(rank=2), gradient_checkpointing=True)
    data = words_of(root, train="grounding_train.jsonl", batch_size=4)
    run = trainer(tmp_path / "run", 2)
    run.fit(model, datamodule=data)
    assert torch.isfinite(run.callback_metrics["train/loss"]) and (tmp_path / "run/model/adapter_config.json").is_file()
    run.test(model, datamodule=words_of(root), verbose=False)
    if family is tiny_qwen25:  # 30 x 100 pixels become whole tokens of 28 x 28
        assert seen_size(model.processor, 100, 30) == (112, 28)
    else:
        with pytest.raises(UserError, match="does not resize as Qwen's"):
            seen_size(model.processor, 100, 30)

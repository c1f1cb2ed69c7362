"""Question answering: a toy task learned word for word, resumed, exported, and measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor

from callbacks.preemption import LastCheckpoint
from datamodules.visual_questions import VisualQuestions
from genlab.errors import UserError
from genlab.methods.pretraining.question_answering import QuestionAnswering
from genlab.training.randomness import keyed_rng
from genlab.training.resume import ExactResume
from genlab.vlm.small_qwen import SmallQwen

SIZES = SmallQwen(32, 1, 2, 32, 16, 1, 4, min_tokens=1, max_tokens=1)  # one token of 28 x 28 pixels per picture
LIGHTS = {"bright": (170, 250), "dark": (5, 85)}


@pytest.fixture(scope="module")
def lights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright and dark pictures with a closed and an open question: 32 to train on, 8 in each held-out split."""
    root = tmp_path_factory.mktemp("lights")
    for split, count in (("train", 32), ("validation", 8), ("test", 8)):
        (root / split).mkdir()
        lines = []
        for number in range(count):
            rng = keyed_rng(split, number)
            light = list(LIGHTS)[number % 2]
            pixels = np.full((28, 28, 3), rng.integers(*LIGHTS[light]), np.uint8)
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            lines.append({"file_name": f"{number}.png", "question": "is it bright?", "answer": "yes" if light == "bright" else "no"})
            lines.append({"file_name": f"{number}.png", "question": "what is it?", "answer": light, "kind": "light"})
        (root / split / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return root


def data_of(root: Path) -> VisualQuestions:
    return VisualQuestions(str(root), turns=2, shift=1, batch_size=8, eval_batch_size=4)


def tiny(**options: Any) -> QuestionAnswering:
    defaults: dict[str, Any] = {"network": SIZES, "lr": 1e-2, "warmup": 5, "vocab_size": 300, "max_new_tokens": 6}
    return QuestionAnswering(**(defaults | options))


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks), num_sanity_val_steps=0,
        use_distributed_sampler=False, gradient_clip_val=1.0, callbacks=list(callbacks), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def learned(lights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[QuestionAnswering, Path]:
    """A model trained for some seconds, and its checkpoint."""
    L.seed_everything(0)
    model, run = tiny(), trainer(max_epochs=20, check_val_every_n_epoch=20)
    run.fit(model, datamodule=data_of(lights))
    path = tmp_path_factory.mktemp("learned") / "last.ckpt"
    run.save_checkpoint(path)
    return model.eval(), path


class Watch(L.Callback):
    """Keeps the rows of an evaluation."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_test_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.rows += outputs["rows"]


def test_answers_word_for_word(lights: Path, learned: tuple[QuestionAnswering, Path]) -> None:
    watch = Watch()
    (found,) = trainer(watch).test(learned[0], datamodule=data_of(lights), verbose=False)
    assert found == {"test/yes_no": 1, "test/open": 1, "test/light": 1}
    assert len(watch.rows) == 16 and all(row["said"] == row["label"] and row["status"] == "ok" for row in watch.rows)
    assert {row["label"] for row in watch.rows} == {"yes", "no", "bright", "dark"}


def test_what_is_measured_is_what_is_said(lights: Path, learned: tuple[QuestionAnswering, Path], tmp_path: Path) -> None:
    """With every second picture's lines exchanged for those of the next, half of the answers are wrong."""
    root = shutil.copytree(lights, tmp_path / "mixed")
    lines = [json.loads(line) for line in (root / "test" / "metadata.jsonl").read_text().splitlines()]
    for line in lines[: len(lines) // 2]:
        number = int(line["file_name"].removesuffix(".png"))
        line["file_name"] = f"{number ^ 1}.png"  # bright for dark
    lines[-1]["answer"] = lines[-1]["answer"].capitalize() + ". "  # case, full stop and white space do not count
    (root / "test" / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    watch = Watch()
    (found,) = trainer(watch).test(learned[0], datamodule=data_of(root), verbose=False)
    assert found == {"test/yes_no": 0.5, "test/open": 0.5, "test/light": 0.5}
    assert sum(row["score"] for row in watch.rows) == 8


def test_answers_do_not_depend_on_the_rest_of_the_batch(lights: Path, learned: tuple[QuestionAnswering, Path]) -> None:
    model, data = learned[0], data_of(lights)
    data.setup("test")
    images = [data.datasets["test"][draw]["image"] for draw in data.test_dataloader().sampler]  # type: ignore[index, union-attr]
    questions = ["is it bright?", "what?", "is it bright or is it bright?", "what is it?"] * 2
    together = model.answer(images, questions)
    assert together == [model.answer([image], [question])[0] for image, question in zip(images, questions)]


def test_exported_folder_is_a_stock_model(lights: Path, learned: tuple[QuestionAnswering, Path], tmp_path: Path) -> None:
    learned[0].export(tmp_path)
    processor, stock = AutoProcessor.from_pretrained(tmp_path), AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert stock.dtype == torch.float16 and next(learned[0].parameters()).dtype == torch.float32
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    for light, value in (("bright", 220), ("dark", 40)):
        inputs = processor(text=[text], images=[Image.new("RGB", (28, 28), (value,) * 3)], return_tensors="pt")
        said = stock.float().generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(said) == f"{light}<|im_end|>", "greedy, and it knows when to stop"
    again = tiny(weights=str(tmp_path))
    assert not again.needs_checkpoint
    (found,) = trainer().test(again, datamodule=data_of(lights), verbose=False)
    assert found["test/yes_no"] == found["test/open"] == 1


def test_fine_tuning_leaves_the_frozen_picture_tower_alone(lights: Path, learned: tuple[QuestionAnswering, Path], tmp_path: Path) -> None:
    learned[0].export(tmp_path / "model")
    model = tiny(weights=str(tmp_path / "model"), train_vision=False)
    model.configure_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = trainer(max_steps=2)
    run.fit(model, datamodule=data_of(lights))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not [name for name in changed if ".visual." in name]
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert saved and not [name for name in saved if ".visual." in name]


class KeepAll(LastCheckpoint):
    """Keeps a copy of every ``last.ckpt``."""

    def save(self, trainer: L.Trainer) -> None:
        super().save(trainer)
        shutil.copy(self.path, self.path.with_name(f"{trainer.global_step:03d}.ckpt"))


def test_resumed_run_is_the_unbroken_one(lights: Path, tmp_path: Path) -> None:
    def fit(folder: str, seed: int, checkpoint: Path | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        L.seed_everything(seed)  # of another run: all that counts comes from the checkpoint
        (tmp_path / folder).mkdir(exist_ok=True)
        model, run = tiny(), trainer(KeepAll(tmp_path / folder / "last.ckpt", 15, 1), ExactResume(), max_epochs=2)
        run.fit(model, datamodule=data_of(lights), ckpt_path=checkpoint, weights_only=True)
        return model.state_dict(), dict(run.callback_metrics), run.global_step

    whole, metrics, steps = fit("whole", 1)
    assert steps == 8
    for number in (3, 4):  # within an epoch, and after one
        parts, again, resumed_steps = fit(f"parts{number}", 2 + number, tmp_path / "whole" / f"{number:03d}.ckpt")
        assert resumed_steps == steps
        assert all(torch.equal(parts[name], value) for name, value in whole.items()), number
        assert torch.equal(again["val/yes_no"], metrics["val/yes_no"]) and torch.equal(again["train/loss"], metrics["train/loss"])


def test_what_is_wrong_is_said(lights: Path, learned: tuple[QuestionAnswering, Path], tmp_path: Path) -> None:
    assert tiny().needs_checkpoint
    with pytest.raises(UserError, match=r"model.weights: there is no network yet"):
        trainer().validate(tiny(), datamodule=data_of(lights), verbose=False)
    with pytest.raises(UserError, match=r"data: a tokenizer is learned from questions.*VisualQuestions"):
        trainer(max_steps=1).fit(tiny(), DataLoader([{}], batch_size=None))  # type: ignore[arg-type]
    root = shutil.copytree(lights, tmp_path / "other")
    lines = root / "train" / "metadata.jsonl"
    lines.write_text(lines.read_text().replace("what is", "how might"))
    with pytest.raises(UserError, match=r"ckpt_path: the checkpoint has another vocabulary"):
        trainer(max_epochs=21).fit(tiny(), datamodule=data_of(root), ckpt_path=learned[1], weights_only=True)

"""Contrastive pretraining: the loss by hand, a toy task learned, resumed, exported, and measured."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from callbacks.preemption import LastCheckpoint
from genlab.errors import UserError
from genlab.methods.pretraining.contrastive import Contrastive, contrastive_loss, swap, without
from genlab.methods.pretraining.tokenizer import learn_tokenizer
from genlab.models.towers import CLIPSettings
from genlab.models.viclip_towers import ViCLIPSettings
from genlab.training.resume import ExactResume
from tests.methods.bars import SIZE, data_of, trainer, write_bars

TOWERS = CLIPSettings(SIZE, 8, width=32, layers=1, mlp=64, text_width=32, text_layers=1, text_mlp=64, head_width=16, embed_dim=16)


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bars(tmp_path_factory.mktemp("bars"))


def tiny(**options: Any) -> Contrastive:
    defaults: dict[str, Any] = {"towers": TOWERS, "ignored_words": ["a", "photo", "of"], "lr": 5e-3, "warmup": 5, "max_length": 12}
    return Contrastive(**(defaults | options))


@pytest.fixture(scope="module")
def learned(bars: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Contrastive, Path]:
    """A model trained for some seconds, and its checkpoint."""
    L.seed_everything(0)
    model, run = tiny(), trainer(max_epochs=60, check_val_every_n_epoch=60)
    run.fit(model, datamodule=data_of(bars))
    path = tmp_path_factory.mktemp("learned") / "last.ckpt"
    run.save_checkpoint(path)
    return model.eval(), path


# The loss.


def cross_entropy(logits: list[float], own: int) -> float:
    return math.log(sum(math.exp(each) for each in logits)) - logits[own]


def test_loss_by_hand() -> None:
    """Cosines [[1, r], [0, r]] with r = sqrt(1/2); lengths do not count."""
    samples, texts = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.5, 0.0], [4.0, 4.0]])
    r, none = 2 * math.sqrt(0.5), torch.eye(2, dtype=torch.bool)
    rows = (cross_entropy([2, r], 0) + cross_entropy([0, r], 1)) / 2
    columns = (cross_entropy([2, 0], 0) + cross_entropy([r, r], 1)) / 2
    assert contrastive_loss(samples, texts, 2.0, none).item() == pytest.approx((rows + columns) / 2, rel=1e-6)
    assert contrastive_loss(samples, texts, 2.0, ~torch.ones_like(none)).item() == pytest.approx((rows + columns) / 2, rel=1e-6)
    flipped = contrastive_loss(texts, samples, torch.tensor(2.0), none)
    assert flipped.item() == pytest.approx((rows + columns) / 2, rel=1e-6), "symmetric"


def test_false_negatives_are_left_out_both_ways() -> None:
    """Text 1 is true of sample 0: it is no wrong text of sample 0, and sample 0 no wrong sample of text 1; all else stays."""
    samples, texts = torch.tensor([[2.0, 0.0], [0.0, 3.0]], requires_grad=True), torch.tensor([[0.5, 0.0], [4.0, 4.0]])
    r = 2 * math.sqrt(0.5)
    loss = contrastive_loss(samples, texts, 2.0, torch.tensor([[True, True], [False, True]]))
    row, column = cross_entropy([0, r], 1), cross_entropy([2, 0], 0)  # sample 0 and text 1 have nothing left to be mistaken for
    assert loss.item() == pytest.approx((row / 2 + column / 2) / 2, rel=1e-6)
    everything = contrastive_loss(samples, texts, 2.0, torch.ones(2, 2, dtype=torch.bool))
    everything.backward()
    assert everything.item() == 0 and samples.grad is not None and not samples.grad.any()


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_training_leaves_out_captions_that_are_true_and_pictures_of_the_same_scene(learned: tuple[Contrastive, Path]) -> None:
    model = Contrastive.load_from_checkpoint(learned[1], map_location="cpu", weights_only=True)

    def loss(captions: list[str], scenes: list[int] | None = None) -> float:
        pictures = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        batch: Any = {"image": pictures, "caption": captions, "labels": {} if scenes is None else {"scene": torch.tensor(scenes)}}
        return model.training_step(batch, 0).item()

    different = ["a red bar", "a blue bar"]
    whole = loss(different)
    assert whole > 0.01
    assert loss(different, [4, 4]) == 0
    assert loss(different, [4, 5]) == loss(different, [-1, -1]) == whole
    assert loss(["a photo of a red bar", "red bar"]) == 0, "ignored words do not tell captions apart"
    one_way = loss(["a red bar on a dark wall", "a red bar"])
    pair: Any = {"image": torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))}
    images, texts = model(pair | {"caption": ["a red bar on a dark wall", "a red bar"]})
    scale = model.network.scale().clamp(max=100)
    wanted = contrastive_loss(images, texts, scale, torch.tensor([[True, True], [False, True]]))
    assert one_way == pytest.approx(wanted.item(), rel=1e-5)


def test_words_that_say_nothing() -> None:
    assert without([1, 2, 3, 1], [[1]]) == [2, 3]
    assert without([5, 6, 7, 6, 5, 6], [[5, 6]]) == [7, 6], "a phrase of several tokens, not its pieces"
    assert without([1, 2], []) == [1, 2] and without([], [[1]]) == []


def test_swap_takes_whole_words() -> None:
    assert swap("a reddish red star on red", "red", "blue") == "a reddish blue star on red"
    assert swap("a star on a wall", "on a wall", r"in a \1 room") == r"a star in a \1 room"
    assert swap("a reddish star", "red", "blue") is None


# Learning, and what is measured.


class Watch(L.Callback):
    """Keeps the rows of an evaluation."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_test_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.rows += outputs["rows"]


@torch.no_grad()
def test_learns_which_caption_belongs_to_which_picture(bars: Path, learned: tuple[Contrastive, Path]) -> None:
    model, _ = learned
    data = data_of(bars)
    watch = Watch()
    (found,) = trainer(watch).test(model, datamodule=data, verbose=False)
    assert found["test/top1_of_100"] == found["test/colour"] == found["test/type"] == 1, found
    assert 0.05 < found["test/colour_spread"] < 1 and 0.05 < found["test/type_spread"] < 1
    assert not [name for name in found if "world" in name], "one class is no question"
    (batch,) = list(data.test_dataloader())
    batch, rows = data.on_after_batch_transfer(batch, 0), watch.rows
    assert [row["id"] for row in rows] == batch["id"] and all(row["colour_said"] == row["colour"] for row in rows)
    images, texts = (F.normalize(each, dim=-1) for each in model(batch))
    assert [row["score"] for row in rows] == pytest.approx((images * texts).sum(1).tolist(), abs=1e-5)


@torch.no_grad()
def test_an_untrained_network_knows_nothing(bars: Path, tmp_path: Path) -> None:
    """What is measured is what its embeddings say, wrong as they are."""
    torch.manual_seed(3)
    TOWERS.build(learn_tokenizer(["a red green blue white bar on dark pale wall photo of"], max_length=12)).export(tmp_path)
    data, model = data_of(bars), tiny(weights=str(tmp_path))
    assert not model.needs_checkpoint
    (found,) = trainer().test(model, datamodule=data, verbose=False)
    (batch,) = list(data.test_dataloader())
    batch = data.on_after_batch_transfer(batch, 0)
    images = F.normalize(model.network.encode(batch["image"]), dim=-1)
    right = 0
    for image, text, number in zip(images, batch["caption"], batch["labels"]["colour"].tolist()):
        own = data.classes["colour"][number]
        texts = model.encode_text([text.replace(own, colour) for colour in data.classes["colour"]])
        right += int((F.normalize(texts, dim=-1) @ image).argmax()) == number
    assert found["test/colour"] == right / 8 < 0.8
    similar = images @ F.normalize(model.encode_text(batch["caption"]), dim=-1).T
    assert found["test/top1_of_100"] == (similar.argmax(1) == torch.arange(8)).float().mean()


@torch.no_grad()
def test_states_are_taken_from_the_word_to_the_end() -> None:
    towers = TOWERS.build(learn_tokenizer(["red dark bar left"], max_length=7))
    model = tiny()
    model._use(towers)
    texts = ["a red bar left", "a dark red bar left"]
    separate = [towers.text_states(towers.tokenize([text]))[0] for text in texts]
    # start a red bar left end: from "red" on. start a dark red bar left end: as many places before the end.
    wanted = torch.stack([separate[0][2:6], separate[1][3:7]])
    assert torch.allclose(model._states_from_word_on(texts), wanted, atol=1e-5)
    cut = model._states_from_word_on(["a a a a a a red bar", "a a a a a a dark bar"])
    assert cut.shape == (2, 1, 32) and torch.equal(cut[0], cut[1]), "the word is beyond what the tower reads"


def test_opposites_are_measured_by_themselves() -> None:
    model = tiny(opposites=[["left", "right"], ["left", "up"]])
    assert model._pairs(["down", "left", "right"]) == {1: 2, 2: 1} and model._pairs(["left"]) == {}


# Checkpoints and export.


@torch.no_grad()
def test_exported_folder_is_a_stock_clip(bars: Path, learned: tuple[Contrastive, Path], tmp_path: Path) -> None:
    model, _ = learned
    model.export(tmp_path)
    clip, tokenizer = CLIPModel.from_pretrained(tmp_path).float().eval(), CLIPTokenizer.from_pretrained(tmp_path)
    processor = CLIPImageProcessor.from_pretrained(tmp_path)
    data = data_of(bars)
    data.setup("test")
    (batch,) = list(data.test_dataloader())
    pictures = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in batch["image"]]
    tokens = tokenizer(batch["caption"], padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    assert tokens.shape == (8, 12)
    output = clip(input_ids=tokens, pixel_values=processor(pictures, return_tensors="pt")["pixel_values"])
    images, texts = (F.normalize(each, dim=-1) for each in model(data.on_after_batch_transfer(batch, 0)))
    assert torch.allclose(output.image_embeds, images, atol=5e-3)
    assert torch.allclose(output.text_embeds, texts, atol=5e-3)
    assert clip.logit_scale.exp().item() == pytest.approx(model.network.scale().item(), rel=1e-3)
    stored = {
        str(value.dtype) for value in CLIPModel.from_pretrained(tmp_path, dtype="auto").state_dict().values() if value.is_floating_point()
    }
    assert stored == {"torch.float16"} and next(model.parameters()).dtype == torch.float32


@torch.no_grad()
def test_checkpoint_brings_its_own_vocabulary(learned: tuple[Contrastive, Path]) -> None:
    model, path = learned
    again = Contrastive.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    assert again.settings == TOWERS and again.ignored == model.ignored
    texts = ["a red bar on a dark wall", "something unknown", "white " * 30]
    assert torch.equal(again.network.tokenize(texts), model.network.tokenize(texts))
    assert torch.equal(again.encode_text(texts), model.encode_text(texts))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


class KeepAll(LastCheckpoint):
    """Keeps a copy of every ``last.ckpt``."""

    def save(self, trainer: L.Trainer) -> None:
        super().save(trainer)
        shutil.copy(self.path, self.path.with_name(f"{trainer.global_step:03d}.ckpt"))


def test_resumed_run_is_the_unbroken_one(bars: Path, tmp_path: Path) -> None:
    def fit(folder: str, seed: int, checkpoint: Path | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        L.seed_everything(seed)  # of another run: all that counts comes from the checkpoint
        (tmp_path / folder).mkdir(exist_ok=True)
        model, run = tiny(), trainer(KeepAll(tmp_path / folder / "last.ckpt", 15, 1), ExactResume(), max_epochs=4)
        run.fit(model, datamodule=data_of(bars), ckpt_path=checkpoint, weights_only=True)
        return model.state_dict(), dict(run.callback_metrics), run.global_step

    whole, metrics, steps = fit("whole", 1)
    saved = sorted((tmp_path / "whole").glob("0*.ckpt"))
    assert steps == 8 and [int(path.stem) for path in saved] == [1, 2, 3, 4, 5, 6, 7, 8]
    for number in (2, 5):  # after an epoch, and within one
        parts, again, resumed_steps = fit(f"parts{number}", 2 + number, saved[number - 1])
        assert resumed_steps == steps
        assert all(torch.equal(parts[name], value) for name, value in whole.items()), number
        for name in ("val/top1_of_100", "val/colour", "val/colour_spread"):
            assert torch.equal(again[name], metrics[name]), (number, name)


# What is wrong is said.


def batches(*missing: str) -> DataLoader[Any]:
    batch = {"image": torch.rand(2, 3, SIZE, SIZE), "caption": ["a red bar", "a blue bar"], "labels": {}}
    kept = {name: value for name, value in batch.items() if name not in missing}
    return DataLoader([kept], batch_size=None)  # type: ignore[arg-type]


def test_missing_captions_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data: a tokenizer is learned from captions.*CaptionedImages"):
        trainer(max_steps=1).fit(tiny(), batches())
    tokenizer = learn_tokenizer(["a red bar"], max_length=12)
    TOWERS.build(tokenizer).export(tmp_path / "clip")
    with pytest.raises(UserError, match=r"data: .*the batches have no caption"):
        trainer(max_steps=1).fit(tiny(weights=str(tmp_path / "clip")), batches("caption"))
    video = ViCLIPSettings(vision_layers=1, text_layers=1)
    video.build(tokenizer).export(tmp_path / "viclip")
    with pytest.raises(UserError, match=r"data: the network reads videos.*the batches have no video"):
        trainer(max_steps=1).fit(tiny(towers=video, weights=str(tmp_path / "viclip")), batches())


def test_a_network_is_asked_for(bars: Path) -> None:
    assert tiny().needs_checkpoint
    with pytest.raises(UserError, match=r"model.weights: there is no network yet"):
        trainer().validate(tiny(), datamodule=data_of(bars), verbose=False)


def test_another_vocabulary_is_refused(bars: Path, learned: tuple[Contrastive, Path], tmp_path: Path) -> None:
    shutil.copytree(bars, tmp_path / "other")
    lines = tmp_path / "other" / "train" / "metadata.jsonl"
    lines.write_text(lines.read_text().replace("bar on a", "stripe on a"))
    with pytest.raises(UserError, match=r"ckpt_path: the checkpoint has another vocabulary"):
        trainer(max_epochs=61).fit(tiny(), datamodule=data_of(tmp_path / "other"), ckpt_path=learned[1], weights_only=True)

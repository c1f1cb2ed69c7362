"""What of a vision-language model is tuned, in each family that it is meant for; and completions drawn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from genlab.errors import UserError
from genlab.vlm.masking import assistant, question_batch, training_batch, user
from genlab.vlm.rollouts import draw_completions, keyed_gumbel
from genlab.vlm.tuning import (
    LoRA,
    attach_lora,
    decode,
    evaluating,
    frozen_twin,
    load_for_tuning,
    merged,
    repeat_rows,
    shifted_loss,
    unspeakable,
    vision_parts,
    with_completions,
    write_folder,
)
from tests.tiny_vlms import FAMILIES

PICTURES = [torch.full((3, 56, 56), 200, dtype=torch.uint8), torch.full((3, 56, 112), 40, dtype=torch.uint8)]
"""Of other sizes, which take other numbers of patches, tiles and tokens."""


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[request.param](tmp_path_factory.mktemp(request.param) / "model")


def asked(processor: Any) -> dict[str, torch.Tensor]:
    found = question_batch(processor, [[user("is it real?", 1)], [user("is it?", 1)]], [[each] for each in PICTURES])
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def test_lora_is_in_the_language_model_alone_and_merges(folder: Path, tmp_path: Path) -> None:
    model, processor = load_for_tuning(str(folder))
    plain = load_for_tuning(str(folder))[0]
    inputs = asked(processor)
    tuned = attach_lora(model, LoRA(rank=2), str(folder))
    trained = [name for name, value in tuned.named_parameters() if value.requires_grad]
    assert trained and all(".lora_" in name and ".language_model." in name for name in trained)
    assert not any("lm_head" in name or name.startswith(f"base_model.model.{part}") for name in trained for part in vision_parts(plain))
    for name, value in tuned.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(value, std=0.05)
    tuned.eval()
    with torch.no_grad():
        adapted, before = tuned(**inputs).logits, plain.eval()(**inputs).logits
        with tuned.disable_adapter():
            assert torch.equal(tuned(**inputs).logits, before), "without the adapter, the base bit for bit"
        assert (adapted - before).abs().max() > 1e-3
        write_folder(tuned, processor, tmp_path / "adapter")
        whole, again = merged(tmp_path / "adapter")
        torch.testing.assert_close(whole.eval()(**asked(again)).logits, adapted, atol=1e-5, rtol=1e-5)
        # The folder as it is, the way servers load one.
        served = AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter").eval()
        torch.testing.assert_close(
            served(**asked(AutoProcessor.from_pretrained(tmp_path / "adapter"))).logits, adapted, atol=1e-5, rtol=1e-5
        )
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="base_model_name_or_path is empty"):
        merged(tmp_path / "adapter")


def test_only_what_the_assistant_says_is_learned(folder: Path) -> None:
    model, processor = load_for_tuning(str(folder))
    chats = [[user("is it real?", 1), assistant(text)] for text in ("real", "generated the whole")]
    batch = training_batch(processor, chats, [[each] for each in PICTURES])
    labels = batch.pop("labels")
    said = [processor.tokenizer.decode(row[row >= 0]) for row in labels]
    assert said == ["real<|im_end|>", "generated the whole<|im_end|>"]
    total, count = shifted_loss(model(**batch).logits, labels)
    torch.testing.assert_close(total / count, model(**batch, labels=labels).loss, atol=1e-5, rtol=1e-5)


def test_repeated_rows_keep_their_pictures(folder: Path) -> None:
    model, processor = load_for_tuning(str(folder))
    model.eval()
    inputs = asked(processor)
    with torch.no_grad():
        once, twice = model(**inputs).logits, model(**repeat_rows(inputs, 2, processor)).logits
        torch.testing.assert_close(twice, once.repeat_interleave(2, 0), atol=1e-5, rtol=1e-4)
        # Completions: their log-probabilities do not depend on what stands behind their end.
        tokens = torch.tensor([[5, 6, 7], [8, 9, 9]])
        longer = model(**with_completions(inputs, tokens, torch.ones_like(tokens)), logits_to_keep=4).logits
        alone = model(**with_completions(inputs, tokens[:, :2], torch.ones(2, 2))).logits[:, -3:]
        torch.testing.assert_close(longer[:, :3], alone, atol=1e-5, rtol=1e-4)


def test_the_twin_stays_and_shares_what_is_frozen(folder: Path) -> None:
    model = load_for_tuning(str(folder))[0]
    for name in vision_parts(model):
        model.get_submodule(name).requires_grad_(False)
    twin, parts = frozen_twin(model), vision_parts(model)
    assert all(twin.get_submodule(name) is model.get_submodule(name) for name in parts)
    assert not any(value.requires_grad for value in twin.parameters()) and any(value.requires_grad for value in model.parameters())
    with torch.no_grad():
        next(value for value in model.parameters() if value.requires_grad).add_(1)
    assert any(not torch.equal(one, other) for one, other in zip(model.parameters(), twin.parameters()))


def test_what_is_drawn_depends_on_the_key_alone(folder: Path) -> None:
    model, processor = load_for_tuning(str(folder))
    ends, never = [int(processor.tokenizer.eos_token_id)], unspeakable(processor)

    def draw(inputs: dict[str, torch.Tensor], keys: list[tuple[int | str, ...]]) -> list[str]:
        with torch.no_grad(), evaluating(model):
            tokens = draw_completions(model, inputs, keys, 6, 1.0, never, ends, 0)
        assert not torch.isin(tokens, torch.tensor(never)).any()
        return decode(processor, tokens, ends)

    one = question_batch(processor, [[user("is it?", 1)]], [[PICTURES[1]]])
    keys: list[tuple[int | str, ...]] = [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    together = draw(repeat_rows(asked(processor), 2, processor), keys)
    assert together[2:] == draw(repeat_rows(one, 2, processor), keys[2:]), "not on the rest of the batch"
    assert len(set(together)) == 4


def test_noise_makes_greedy_decoding_a_draw_from_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, 3.0]).expand(8000, 4)
    processor = keyed_gumbel([(i,) for i in range(8000)], temperature=2.0, forbidden=[3], device=torch.device("cpu"))
    drawn = processor(torch.zeros(8000, 1), logits).argmax(1).bincount(minlength=4) / 8000
    wanted = torch.tensor([1.0, 0.5, 0.0, -torch.inf]).softmax(0)
    assert (drawn - wanted).abs().max() < 0.02 and drawn[3] == 0  # four standard errors


def test_a_model_without_pictures_is_refused() -> None:
    with pytest.raises(UserError, match="no picture tower"):
        vision_parts(torch.nn.Sequential(torch.nn.Linear(1, 1)))

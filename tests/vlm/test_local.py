"""A model in this process: batches say what single questions say, draws are repeatable, weights count by content."""

from __future__ import annotations

import asyncio
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from genlab.errors import UserError
from genlab.store import RowStore
from genlab.vlm.asking import with_system
from genlab.vlm.conversations import load_prompt
from genlab.vlm.engines import Reply
from genlab.vlm.local import LocalModel
from genlab.weights import resolve
from tests.vlm.bright_and_dark import picture

NAMES = ("simple", "defect_query", "regional_analysis")


def ask(store: Path, repeats: int = 1, **options: Any) -> tuple[list[Reply], LocalModel]:
    """Three prompts about two pictures, and a question without one."""
    engine = LocalModel(**{"weights": "tiny:vlm", "max_tokens": 6, **options})
    questions = [next(load_prompt(name).ask(picture("local", i, i))) for name in NAMES for i in range(2)]
    questions.append([{"role": "user", "content": "No picture?"}])

    async def all_of_them() -> list[Reply]:
        engine.open(RowStore(store))
        try:
            return list(await asyncio.gather(*(engine.ask(each, i) for i in range(repeats) for each in questions)))
        finally:
            await engine.close()

    return asyncio.run(all_of_them()), engine


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Reply], Path]:
    store = tmp_path_factory.mktemp("single") / "r.sqlite"
    return ask(store, batch_size=1)[0], store


def test_a_batch_says_what_single_questions_say(single: tuple[list[Reply], Path], tmp_path: Path) -> None:
    replies, engine = ask(tmp_path / "r.sqlite", batch_size=8)
    assert engine.requests == len(replies) == 7
    assert [reply.text for reply in replies] == [reply.text for reply in single[0]]
    assert len({reply.prompt_tokens for reply in replies}) > 2
    for one, other in zip(replies, single[0]):
        for (text, logprob, top), (_, expected, _) in zip(one.tokens, other.tokens):
            assert logprob == pytest.approx(expected, abs=1e-4)
            assert top[0] == [text, logprob] and sum(math.exp(p) for _, p in top) <= 1 + 1e-4  # greedy: the likeliest is taken
        assert "".join(token.text for token in one.logprobs()) == one.text


def test_kept_replies_need_no_model(single: tuple[list[Reply], Path]) -> None:
    replies, engine = ask(single[1], batch_size=1)
    assert replies == single[0] and engine.requests == 0 and engine._network is None


def test_draws_are_repeatable_in_any_batch_and_samples_differ(tmp_path: Path) -> None:
    one, _ = ask(tmp_path / "a.sqlite", batch_size=1, temperature=1.5, top_logprobs=0)
    other, _ = ask(tmp_path / "b.sqlite", batch_size=4, temperature=1.5, top_logprobs=0)
    assert [reply.text for reply in one] == [reply.text for reply in other] and not one[0].tokens
    seeded, _ = ask(tmp_path / "c.sqlite", batch_size=4, temperature=1.5, seed=1, top_logprobs=0)
    assert [reply.text for reply in seeded] != [reply.text for reply in one]


def test_an_adapter_changes_what_is_said_and_the_key(single: tuple[list[Reply], Path], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    base: Any = AutoModelForImageTextToText.from_pretrained(resolve("tiny:vlm"))
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False))
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            value.data.mul_(5)
    adapted.save_pretrained(tmp_path / "adapter")
    replies, engine = ask(single[1], adapter=str(tmp_path / "adapter"))
    assert engine.requests == 7 and [reply.tokens for reply in replies] != [reply.tokens for reply in single[0]]


def test_weights_count_by_content(tmp_path: Path) -> None:
    shutil.copytree(resolve("tiny:vlm"), tmp_path / "a")
    shutil.copytree(resolve("tiny:vlm"), tmp_path / "b")
    before = LocalModel(str(tmp_path / "a")).identity
    content = bytearray((tmp_path / "a/model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a/model.safetensors").write_bytes(content)
    assert LocalModel(str(tmp_path / "a")).identity != before
    assert LocalModel(str(tmp_path / "b")).identity == LocalModel(str(tmp_path / "b")).identity


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights"):
        ask(tmp_path / "r.sqlite", weights="./absent")
    with pytest.raises(UserError, match="batch_size"):
        LocalModel("tiny:vlm", batch_size=0)


def test_models_without_a_system_role() -> None:
    chat = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Real?"}, {"type": "image_url"}]},
    ]
    assert with_system(chat, "keep") is chat
    assert with_system(chat, "user")[0] == {"role": "user", "content": [{"type": "text", "text": "Be short."}]}
    (merged,) = with_system(chat, "merge")
    assert merged["content"] == [{"type": "text", "text": "Be short.\n\nReal?"}, {"type": "image_url"}]
    assert chat[1]["content"][0]["text"] == "Real?"

"""The tokenizer learned from captions: words, pieces, order, length."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from genlab.errors import UserError
from genlab.methods.pretraining.tokenizer import END, START, learn_tokenizer, merges_of, tokenizer_from

CAPTIONS = [
    f"A {size} {colour} {shape} on a {wall} wall."
    for size, colour in (("small", "red"), ("large", "purple"), ("tiny", "grün"))
    for shape in ("star", "sitar", "hexagon")
    for wall in ("fading", "faded", "striped")
]


def ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_word_is_one_token() -> None:
    tokenizer = learn_tokenizer(CAPTIONS)
    words = sorted({word for text in CAPTIONS for word in text.lower().removesuffix(".").split()} | {"."})
    numbers = [ids(tokenizer, word) for word in words]
    assert all(len(each) == 1 for each in numbers), dict(zip(words, numbers))
    assert len({each[0] for each in numbers}) == len(words)
    assert ids(tokenizer, "a SMALL  red star.") == [ids(tokenizer, word)[0] for word in ("a", "small", "red", "star", ".")]
    start, end = tokenizer.convert_tokens_to_ids([START, END])
    assert tokenizer("red")["input_ids"] == [start, *ids(tokenizer, "red"), end]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (start, end, end)
    assert tokenizer(["red", "small red star"], padding=True)["input_ids"][0][2:] == [end] * 3
    assert len(tokenizer) == len(tokenizer.get_vocab()) < 2048 and max(start, end) == len(tokenizer) - 1


def test_unknown_words_are_spelled_in_pieces() -> None:
    tokenizer = learn_tokenizer(CAPTIONS)
    for word in ("stars", "zebra", "日本", "öl", "🙂"):
        pieces = ids(tokenizer, word)
        assert len(pieces) > 1 and not {tokenizer.unk_token_id} & set(pieces), word
        assert tokenizer.decode(pieces).strip() == word
    assert ids(tokenizer, "zebra star")[-1:] == ids(tokenizer, "star")


def test_order_of_captions_does_not_matter() -> None:
    texts = list(CAPTIONS)
    one = learn_tokenizer(texts, 540)  # too small for all words: which merges come first matters
    for seed in range(4):
        random.Random(seed).shuffle(texts)
        other = learn_tokenizer(iter(texts), 540)
        assert other.get_vocab() == one.get_vocab() and merges_of(other) == merges_of(one)
    assert learn_tokenizer(CAPTIONS[:3], 540).get_vocab() != one.get_vocab()


def test_vocabulary_is_no_larger_than_asked_for() -> None:
    assert len(learn_tokenizer(CAPTIONS, 530)) == 530
    bytes_only = learn_tokenizer(CAPTIONS, 514)
    assert len(bytes_only) == 514 and merges_of(bytes_only) == []
    assert len(ids(bytes_only, "red star")) == 7
    assert len(ids(learn_tokenizer(CAPTIONS, 530), "hexagon")) > 1
    with pytest.raises(UserError, match=r"model.vocab_size: 513 is too small"):
        learn_tokenizer(CAPTIONS, 513)


def test_texts_are_cut_at_the_largest_length(tmp_path: Path) -> None:
    tokenizer = learn_tokenizer(CAPTIONS, max_length=5)
    learn_tokenizer(CAPTIONS, max_length=5).save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    rebuilt = tokenizer_from(merges_of(tokenizer), 5)
    words = [ids(tokenizer, word)[0] for word in ("small", "red", "star")]
    for each in (tokenizer, again, rebuilt):
        found = each("small red star on a faded wall", truncation=True)["input_ids"]
        assert found == [each.bos_token_id, *words, each.eos_token_id]
        assert each.get_vocab() == tokenizer.get_vocab() and merges_of(each) == merges_of(tokenizer)
        assert ids(each, "zebra") == ids(tokenizer, "zebra")

"""A CLIP tokenizer of one's own captions: in a small world every word becomes one token, in a large one the frequent words do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from genlab.errors import UserError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"  # END also pads, as in the published ones
SUFFIX = "</w>"  # of a word's last symbol


def learn_tokenizer(captions: Iterable[str], vocab_size: int = 2048, max_length: int = 32) -> CLIPTokenizer:
    """Byte-pair encoding learned from captions; the same captions give the same tokenizer, in any order.

    Merging stops at ``vocab_size`` or once every word of the captions is a single token. Other words are spelled in bytes.

    Args:
        captions: To learn from.
        vocab_size: Largest number of tokens, at least 514: all bytes, within and at the end of a word, and the two special ones.
        max_length: Tokens of a text with both special ones; longer texts are cut.

    Raises:
        UserError: ``vocab_size`` has no room for the bytes.
    """
    from tokenizers import trainers

    alphabet = _alphabet()
    if vocab_size < len(alphabet) + 2:
        raise UserError(f"model.vocab_size: {vocab_size} is too small; all bytes and two special tokens need {len(alphabet) + 2}.")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2, min_frequency=0, show_progress=False, initial_alphabet=alphabet[:256], end_of_word_suffix=SUFFIX
    )
    learner = tokenizer_from([], max_length).backend_tokenizer
    learner.train_from_iterator(sorted(captions), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return tokenizer_from(merges[: vocab_size - 2 - len(alphabet)], max_length)


def tokenizer_from(merges: Sequence[Sequence[str]], max_length: int) -> CLIPTokenizer:
    """The tokenizer with these merges, best first: ids are bytes, bytes that end a word, merges, start, end."""
    from transformers import CLIPTokenizer

    pairs = [(first, second) for first, second in merges]
    symbols = [*_alphabet(), *("".join(pair) for pair in pairs), START, END]
    vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=vocab, merges=cast(Any, pairs), model_max_length=max_length)  # annotated as str or list[str], takes pairs


def training_captions(trainer: Any) -> list[str]:
    """Captions of the training split, to learn a tokenizer from.

    Raises:
        UserError: The trainer has no datamodule with captions.
    """
    try:
        return [str(caption) for caption in trainer.datamodule.datasets["train"].captions]
    except (AttributeError, KeyError) as error:
        raise UserError(
            "data: a tokenizer is learned from captions, which need a datamodule such as datamodules.captioned_images.CaptionedImages."
        ) from error


def merges_of(tokenizer: CLIPTokenizer) -> list[list[str]]:
    """What :func:`tokenizer_from` needs to make it again."""
    return [list(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*letters, *(letter + SUFFIX for letter in letters)]

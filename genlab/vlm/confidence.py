"""P(fake) from the log-probabilities of a reply's tokens, at the last token that begins a verdict word. Our definition."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import NamedTuple

from genlab.vlm.verdicts import StrictParser, Word

OPENING = " \t\n\"'*`([{"
LEAST = 1e-6  # probability of a side that no listed token is on


class Token(NamedTuple):
    """A sampled token, its natural log-probability, and the most likely ones there with theirs."""

    text: str
    logprob: float
    top: Sequence[tuple[str, float]]


class Confidence(NamedTuple):
    """P(fake), the index of the token that decided, and what probability each side had there. None without a verdict."""

    verdict: Word
    p_fake: float | None
    position: int | None
    mass: dict[str, float] | None


def confidence(tokens: Sequence[Token], parser: StrictParser) -> Confidence:
    """How sure the model was of the word that it ended with."""
    reply = "".join(token.text for token in tokens)
    verdict = parser(reply).verdict
    real_words, fake_words = {*parser.lexicon["real_words"], "natural"}, {*parser.lexicon["fake_words"], "ai"}
    place = _decisive(tokens, real_words | fake_words) if verdict != "unknown" else None
    if place is None:
        return Confidence(verdict, None, None, None)
    position, word = place
    token = tokens[position]
    listed = {**dict(token.top), token.text: token.logprob}
    mass = {"real": 0.0, "fake": 0.0}
    for text, logprob in listed.items():
        if side := _side(text, real_words, fake_words):
            mass[side] += math.exp(logprob)
    probabilities = [math.exp(logprob) for logprob in listed.values()]
    floor = max(LEAST, min(min(probabilities), max(0.0, 1 - sum(probabilities))))
    real, fake = mass["real"] or floor, mass["fake"] or floor
    p = fake / (fake + real)
    said = "real" if word in real_words else "fake"
    return Confidence(verdict, p if said == verdict else 1 - p, position, mass)


def _decisive(tokens: Sequence[Token], words: set[str]) -> tuple[int, str] | None:
    """The last token where a word starts that is one of ``words``, and the word."""
    texts = [token.text for token in tokens]
    for i in range(len(texts) - 1, -1, -1):
        before = "".join(texts[:i])
        rest = "".join(texts[i:])
        if before and before[-1].isalpha() and rest[:1].isalpha():
            continue
        rest = rest.lstrip(OPENING).casefold()
        for word in words:
            if rest.startswith(word) and not rest[len(word) : len(word) + 1].isalpha():
                return i, word
    return None


def _side(text: str, real_words: set[str], fake_words: set[str]) -> str | None:
    stem = text.strip(string.whitespace + string.punctuation).casefold()
    if not stem:
        return None
    real, fake = (any(word.startswith(stem) for word in words) for words in (real_words, fake_words))
    return None if real == fake else "real" if real else "fake"

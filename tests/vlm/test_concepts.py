"""Captions taken apart: the rules, and the answers of language models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from genlab.errors import UserError
from genlab.vlm.concepts import EXAMPLES, Analysis, agreed, by_rules, instruction, parse_answer, said
from tests.golden_files import golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("multimodal_prompt", "rule_analyser"))
def test_captions_of_the_reference(path: Path) -> None:
    meta, _ = load_golden(path)
    for case in meta["cases"]:
        assert by_rules(case["caption"]) == Analysis(*case["result"]), case["caption"]


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("multimodal_prompt", "llm_answer_parsing"))
def test_answers_of_the_reference(path: Path) -> None:
    meta, _ = load_golden(path)
    for case in meta["cases"]:
        asked: list[str] = []

        def answers(case: dict[str, list[str]] = case, asked: list[str] = asked) -> Iterator[str | None]:
            for answer in case["answers"]:
                asked.append(answer)
                yield None if answer == "<timeout>" else answer

        if "error" in case:
            with pytest.raises(UserError, match=r"data\.concepts"):
                agreed(answers())
        else:
            assert agreed(answers()) == Analysis(*case["result"])
        assert len(asked) == case["calls"]


def test_what_is_said_is_understood() -> None:
    for caption in EXAMPLES:
        assert parse_answer(said(by_rules(caption))) == by_rules(caption)
    assert instruction("a dog").endswith("Sentence: a dog") and all(caption in instruction("a dog") for caption in EXAMPLES)
    assert by_rules("") == Analysis("")

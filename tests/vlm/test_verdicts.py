"""Verdicts, their confidence, and their fusion: golden replies and what a parser must not be fooled by."""

from __future__ import annotations

from pathlib import Path

import pytest

from genlab.vlm.confidence import Token, confidence
from genlab.vlm.fusion import NumericFusion
from genlab.vlm.verdicts import StrictParser, parse_official
from tests.golden_files import ROOT, golden_files, load_golden

OFFICIAL = {1: "real", 0: "fake", -1: "unknown"}


@pytest.mark.golden
@pytest.mark.parametrize("lexicon", golden_files("mllm_defake", "parser_lexicon"))
@pytest.mark.parametrize("path", golden_files("mllm_defake", "verdict_parse"))
def test_verdicts_golden(path: Path, lexicon: Path) -> None:
    parser = StrictParser.load(lexicon)
    wrong = []
    for case in load_golden(path)[0]["cases"]:
        found = parser(case["reply"])
        if tuple(found) != (case["recommended"], case["status"], case["rule"]):
            wrong.append((case["id"], case["reply"], tuple(found), (case["recommended"], case["status"], case["rule"])))
        assert parse_official(case["reply"]) == OFFICIAL[case["official"]]
    assert not wrong


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("mllm_defake", "fusion"))
def test_fusion_golden(path: Path) -> None:
    meta, _ = load_golden(path)
    for case in meta["cases"]:
        params = {key: tuple(value) if isinstance(value, list) else value for key, value in case["params"].items()}
        found = NumericFusion(**params)([(item["verdict"], item["p_fake"]) for item in case["items"]])
        assert (found.verdict, found.reason) == (case["verdict"], case["reason"]), case
        _assert_probability(found.p_fake, case["p_fake"], meta["tol"]["p_fake"])


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("mllm_defake", "logprob_confidence"))
def test_confidence_golden(path: Path) -> None:
    meta, _ = load_golden(path)
    parser = StrictParser.load(next(iter(sorted((ROOT / "mllm_defake").glob("parser_lexicon*.json")))))
    for case in meta["cases"]:
        tokens = [Token(each["token"], each["logprob"], [(top["token"], top["logprob"]) for top in each["top"]]) for each in case["tokens"]]
        found = confidence(tokens, parser)
        assert (found.verdict, found.position) == (case["verdict"], case["position"]), case
        _assert_probability(found.p_fake, case["p_fake"], meta["tol"]["p_fake"])


def _assert_probability(found: float | None, expected: float | None, tol: dict[str, float]) -> None:
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert abs(found - expected) <= tol["atol"] + tol["rtol"] * abs(expected)


def test_a_refusal_that_mentions_real_people_is_no_verdict() -> None:
    reply = "I'm sorry, I cannot identify real people."
    assert parse_official(reply) == "real"  # what the released numbers count
    assert StrictParser.load()(reply)[:2] == ("unknown", "refusal")

"""One picture, several prompts: the fusing question, confidences and where they come from, fusion that was fitted."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genlab.errors import UserError
from genlab.store import RowStore
from genlab.vlm.conversations import SIX, load_prompt
from genlab.vlm.decorators import Examples
from genlab.vlm.engines import OpenAIEndpoint
from genlab.vlm.fusing import CalibratedFusion, Calibration, FusingQuestion
from genlab.vlm.fusion import Fusion, Item, NumericFusion
from genlab.vlm.judging import Judge, Judgement, Reader, from_record
from genlab.vlm.verdicts import StrictParser
from tests.vlm.bright_and_dark import picture
from tests.vlm.fault_server import FaultServer, answer, serving

PICTURE = picture("judged", 0, 1)
READER = Reader("strict", StrictParser.load())


def judge(server: FaultServer, folder: Path, prompts: tuple[str, ...], fusion: Fusion, samples: int = 0, **options: Any) -> Judgement:
    engine = OpenAIEndpoint("m", server.url, "GENLAB_NO_KEY", **options)
    for name, label in (("real", 0), ("fake", 1)):
        (folder / f"{name}.png").write_bytes(picture("examples", 0, label))
    examples = Examples(str(folder / "real.png"), str(folder / "fake.png"))
    loaded = [load_prompt(name, examples=examples) for name in prompts]

    async def once() -> Judgement:
        engine.open(RowStore(folder / "r.sqlite"))
        try:
            return await Judge(engine, loaded, READER, fusion, samples)(PICTURE, "x.png", 1)
        finally:
            await engine.close()

    return asyncio.run(once())


def by_prompt(body: bytes, before: int) -> Any:
    """Says what it was asked: P2 refuses, P3 says real, the last question decides."""
    text = body.decode()
    if "You gave several replies" in text:
        return "All in all it is generated."
    if "offends logic" in text:
        return "It is real."
    return "I cannot help with that." if "cut out" in text else "It is generated."


def test_the_papers_fusion_asks_a_seventh_question(tmp_path: Path) -> None:
    with serving(by_prompt) as server:
        found = judge(server, tmp_path, SIX, FusingQuestion())
    assert len(server.bodies) == 10  # 1 + 1 + 1 + 1 + 3 + 3 + 1, and the first question of P5 is that of P6
    assert [each.verdict for each in found.answers] == ["fake", "unknown", "real", "fake", "fake", "fake"]
    assert (found.fused.verdict, found.fused.p_fake) == ("fake", None) and found.fusing is not None
    last = json.loads(server.bodies[-1])["messages"]
    assert [m["content"] for m in last if m["role"] == "assistant"] == ["It is generated.", "It is real.", *["It is generated."] * 3]
    assert last[-1]["content"][1]["type"] == "image_url"
    assert from_record(json.loads(json.dumps(found.record()))) == found


def test_with_too_few_verdicts_it_is_not_asked(tmp_path: Path) -> None:
    with serving(["Sorry, I cannot.", "It is real."]) as server:
        found = judge(server, tmp_path, ("simple", "defect_query", "common_sense_reasoning"), FusingQuestion())
    assert len(server.bodies) == 3 and found.fused == ("unknown", None, "quorum") and found.status == "ok"


def test_one_failed_call_is_no_verdict(tmp_path: Path) -> None:
    with serving(lambda body, before: 400 if b"offends logic" in body else "real") as server:
        found = judge(server, tmp_path, ("simple", "common_sense_reasoning"), NumericFusion(quorum=1))
    assert found.status == "error" and found.answers[1].status == "HTTP 400" and found.answers[1].failed


def test_confidence_from_the_replys_own_tokens(tmp_path: Path) -> None:
    reply = answer("generated")
    top = [{"token": "generated", "logprob": math.log(0.75)}, {"token": "real", "logprob": math.log(0.25)}]
    reply["choices"][0]["logprobs"] = {"content": [{"token": "generated", "logprob": math.log(0.75), "top_logprobs": top}]}
    with serving([reply] * 9) as server:
        found = judge(server, tmp_path, ("simple",), NumericFusion("logodds", quorum=1), samples=3, top_logprobs=2)
    assert len(server.bodies) == 1  # no need to ask again
    assert json.loads(server.bodies[0])["top_logprobs"] == 2
    assert (found.answers[0].p_source, found.answers[0].p_fake) == ("tokens", pytest.approx(0.75))
    assert found.fused.p_fake == pytest.approx(0.75)


def test_else_from_repeated_sampling_and_it_says_so(tmp_path: Path) -> None:
    with serving(["real", "fake", "fake", "Hm.", "real"]) as server:
        found = judge(server, tmp_path, ("simple",), NumericFusion(quorum=1), samples=4)
    assert (found.answers[0].p_source, found.answers[0].p_fake) == ("sampling", pytest.approx(2 / 3))
    bodies = [json.loads(body) for body in server.bodies]
    assert [body["temperature"] for body in bodies] == [0.0, 1.0, 1.0, 1.0, 1.0] and len({body["seed"] for body in bodies[1:]}) == 4


def test_neither_is_no_confidence(tmp_path: Path) -> None:
    with serving(["real"]) as server:
        found = judge(server, tmp_path, ("simple",), NumericFusion(quorum=1))
    assert (found.answers[0].p_source, found.answers[0].p_fake) == ("", None)


# ---- fitted fusion


def items_of(rng: np.random.Generator, label: int) -> list[Item]:
    """Two prompts that know something, one that says fake of everything, one that is silent half the time."""
    good = [float(np.clip(0.5 + (0.2 if label else -0.2) + rng.normal(0, 0.2), 0.01, 0.99)) for _ in range(2)]
    silent: Item = ("unknown", None) if rng.random() < 0.5 else ("real", None)
    return [*(("fake" if p > 0.5 else "real", p) for p in good), ("fake", 0.95), silent]  # type: ignore[list-item]


def test_fitting_finds_the_minimum_and_ignores_who_says_the_same_of_all() -> None:
    rng = np.random.default_rng(0)
    labels = [i % 2 for i in range(300)]
    items = [items_of(rng, label) for label in labels]
    fitted = Calibration.fit(list("abcd"), items, labels, [])
    both = [fitted.features(each) for each in items]
    x = np.array([[*values, *missing] for values, missing in both])
    weights = np.array([*fitted.weights, *fitted.missing])

    def gradient(w: Any, bias: float) -> Any:
        slopes = 1 / (1 + np.exp(-(x @ w + bias))) - np.array(labels)
        return np.concatenate([[slopes.mean()], x.T @ slopes / len(x) + w / len(x)])

    assert np.abs(gradient(weights, fitted.bias)).max() < 1e-6
    fresh = [(items_of(rng, i % 2), i % 2) for i in range(300)]
    right = [sum((rule(each).verdict == "fake") == bool(label) for each, label in fresh) for rule in (fitted, NumericFusion(quorum=1))]
    assert right[0] > right[1]


def test_a_calibration_is_kept_and_refuses_what_it_has_seen(tmp_path: Path) -> None:
    items: list[list[Item]] = [[("fake", 0.9)], [("real", 0.1)]]
    fitted = Calibration.fit(["simple"], items, [1, 0], ["d1", "d0"])
    fitted.write(tmp_path / "c.json")
    fusion = CalibratedFusion(str(tmp_path / "c.json"), quorum=1)
    assert fusion.fitted == fitted and fusion.fitted([("fake", 0.9)], 1).verdict == "fake"
    assert fitted([("unknown", None)], 1) == ("unknown", None, "quorum")
    with pytest.raises(UserError, match=r"fitted on x\.png"):
        fusion.fitted.refuse("x.png", "d1")
    with pytest.raises(UserError, match="fit it anew"):
        fusion.fitted.check(["simple", "defect_query"])
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(UserError, match="is not what"):
        Calibration.read(tmp_path / "c.json")
    with pytest.raises(UserError, match="both real and generated"):
        Calibration.fit(["simple"], items, [1, 1], [])

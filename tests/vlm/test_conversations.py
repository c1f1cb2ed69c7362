"""Prompt files, regions and the keys of calls: golden messages, and what is refused before anything is asked."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genlab.errors import UserError
from genlab.vlm.conversations import PROMPTS, SIX, call_key, call_text, load_prompt, parse_prompt
from genlab.vlm.data_urls import from_data_url
from genlab.vlm.decorators import Examples
from genlab.vlm.fusing import FusingQuestion
from genlab.vlm.regions import attention_box, roi_adaptive, roi_energy, roi_pyramid
from genlab.vlm.verdicts import parse_official
from tests.golden_files import golden_files, load_golden

OFFICIAL = {1: "real", 0: "fake", -1: "unknown"}


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    Image.new("RGB", (20, 20), (200, 200, 200)).save(tmp_path / "real.png")
    Image.new("RGB", (20, 20), (20, 20, 20)).save(tmp_path / "fake.png")
    return Examples(str(tmp_path / "real.png"), str(tmp_path / "fake.png"), fake_analysis="askew; generated")


def shout(variables: dict[str, Any]) -> None:
    """What the golden file calls gdeco.shout."""
    variables |= {"hint": variables["label"].upper(), "copy_url": variables["image_url"], "prev": str(variables.get("subject", "none"))}


def picture_file() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), (90, 120, 60)).save(buffer, "PNG")
    return buffer.getvalue()


def run(prompt: Any, image: bytes, replies: list[str], label: Any = None) -> tuple[list[Any], str]:
    asked, calls, answers = prompt.ask(image, label=label), [], iter(replies)
    try:
        calls.append(next(asked))
        while True:
            calls.append(asked.send(next(answers)))
    except StopIteration as end:
        return calls, end.value


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("mllm_defake", "prompt_render"))
def test_prompts_golden(path: Path) -> None:
    for case in load_golden(path)[0]["cases"]:
        prompt = parse_prompt(case["prompt"], path.name, {"gdeco.shout": shout}, allow_label=True)
        calls, result = run(prompt, base64.b64decode(case["image_png_base64"]), case["replies"], case["label"])
        assert calls == case["calls"]
        assert result == case["result"]
        assert parse_official(result) == OFFICIAL[case["official_pred"]]


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("mllm_defake", "cache_key"))
def test_keys_golden(path: Path) -> None:
    for case in load_golden(path)[0]["cases"]:
        call = case["messages"], case["model"], case["params"], case["sample"]
        assert (call_text(*call), call_key(*call)) == (case["canonical"], case["key"])


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("mllm_defake", "roi_energy"))
def test_regions_golden(path: Path) -> None:
    meta, _ = load_golden(path)
    for case in meta["cases"]:
        box, energy = roi_energy(Image.open(io.BytesIO(base64.b64decode(case["image_png_base64"]))))
        assert list(box) == case["box_xyxy"]
        assert energy == pytest.approx(case["energy"], rel=meta["tol"]["energy"]["rtol"], abs=meta["tol"]["energy"]["atol"])


def test_shipped_prompts_load_and_ask_as_often_as_the_paper(examples: Examples) -> None:
    shipped = {path.stem for path in PROMPTS.glob("*.json")}
    assert {"simple", "fusion", "p4-alt", "grounded", *SIX} == shipped
    asked = {name: len(load_prompt(name, examples=examples).conversations) for name in shipped}
    assert asked["structural_analysis"] == asked["stereotype_matching"] == 3
    assert all(asked[name] == 1 for name in shipped - {"structural_analysis", "stereotype_matching"})


def test_two_shots_are_shown_in_order_and_the_picture_last(examples: Examples) -> None:
    calls, _ = run(load_prompt("few_shot_combined", examples=examples), picture_file(), ["real"])
    sent = [part["image_url"]["url"] for message in calls[0] if isinstance(message["content"], list) for part in message["content"][1:]]
    digests = [hashlib.sha256(from_data_url(url)).hexdigest() for url in sent]
    assert digests[:2] == list(examples.digests()) and len(digests) == 3 and digests[2] not in digests[:2]
    said = [message["content"] for message in calls[0] if message["role"] == "assistant"]
    assert said == [examples.real_analysis, "askew; generated"]
    (alternative,), _ = run(load_prompt("p4-alt", examples=examples), Path(examples.real).read_bytes(), ["real"])
    assert sum("image_url" in str(message["content"]) for message in alternative) == 1  # analyses without their pictures


def test_a_prompt_with_examples_wants_some() -> None:
    with pytest.raises(UserError, match=r"few_shot_combined.*model\.examples\.real"):
        load_prompt("few_shot_combined")
    with pytest.raises(UserError, match=r"absent\.jpg is not there"):
        load_prompt("few_shot_combined", examples=Examples("absent.jpg", "absent.png"))


def test_what_cuts_out_the_region_can_be_exchanged() -> None:
    prompt = load_prompt("regional_analysis", roi="adaptive")
    assert [each.decorators for each in prompt.conversations] == [("roi.adaptive",)]


def test_outlines_are_cut_out_as_the_released_code_does() -> None:
    """A bright bar on a dark ground; the whole picture where there is nothing."""
    image = Image.new("RGB", (96, 64), (20, 20, 20))
    image.paste((230, 230, 230), (20, 24, 68, 40))
    for roi in (roi_adaptive, roi_pyramid):
        crop, (left, top, right, bottom) = roi(image)
        assert abs(left - 20) <= 6 and abs(top - 24) <= 6 and abs(right - 68) <= 6 and abs(bottom - 40) <= 6
        assert {abs(side - known) <= 10 for side, known in zip(sorted(crop.size), (16, 48))} == {True}
        assert roi(Image.new("RGB", (48, 40)))[1] == (0, 0, 48, 40)


def test_attention_keeps_its_largest_part() -> None:
    """Most of the mass in a block of 2 x 2 patches, a rival on one patch far off: the block, with margin, at least a quarter a side."""
    attention = np.full((8, 8), 1e-4)
    attention[2:4, 4:6] = 0.2
    attention[7, 0] = 0.15
    assert attention_box(attention, (80, 160)) == (38, 36, 62, 84)
    attention[:] = 1e-4
    attention[0, 7] = 1.0
    assert attention_box(attention, (80, 160)) == (60, 0, 80, 40)  # a quarter of each side, moved inside


def test_dinov2_of_its_own_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=1, image_size=224, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "facebook/dinov2-small")
    monkeypatch.setenv("GENLAB_WEIGHTS", str(tmp_path))
    variables: dict[str, Any] = {}
    buffer = io.BytesIO()
    Image.effect_noise((64, 48), 60).save(buffer, "PNG")
    asked = load_prompt("regional_analysis", roi="dinov2").ask(buffer.getvalue(), variables=variables)
    next(asked)
    left, top, right, bottom = variables["roi_box"]
    assert right - left >= 16 and bottom - top >= 12 and right <= 64 and bottom <= 48
    with Image.open(io.BytesIO(from_data_url(variables["roi_url"]))) as crop:
        assert crop.size == (right - left, bottom - top)


def test_replies_without_a_verdict_are_left_out_of_the_fusing_question() -> None:
    prompt, variables = FusingQuestion().about({"defect_query": "reason one", "stereotype_matching": "reason six", "simple": "never shown"})
    (line,) = prompt.conversations
    said = [slots for role, *slots in line.payload if role == "assistant"]
    assert said == [["{a1}"], ["{a6}"]] and variables == {"a1": "reason one", "a6": "reason six"}
    assert [role for role, *_ in line.payload] == ["system", "user", "assistant", "user", "assistant", "user"]


def _file(**changes: Any) -> dict[str, Any]:
    one = {"id": "a", "payload": [["user", "Real?", "{image_url}"]], "response_var_name": "result"}
    return {"format_version": "3", "name": "x", "conversations": [one | changes], "colour": "unknown keys are tolerated"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (_file() | {"format_version": "2"}, "format_version is '2'"),
        (_file(response_var_name="other"), "response_var_name result"),
        (_file(payload=[["user", "{nobody}"]]), "named before anything sets it"),
        (_file(payload=[["user", "{label}?"]]), "which is the truth"),
        (_file(payload=[["user", "{image_url.__class__}"]]), "is no variable"),
        (_file(decorators=["os.getcwd"]), "decorator_modules"),
        (_file(decorators=["roi.dinov2"]), "roi.dinov2"),
    ],
)
def test_wrong_prompt_files_are_refused_at_load(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    path = tmp_path / "prompt.json"
    path.write_text("\ufeff" + json.dumps(record))
    with pytest.raises(UserError, match=message):
        load_prompt(path)

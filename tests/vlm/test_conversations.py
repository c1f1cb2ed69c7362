"""Prompt files, regions and the keys of calls: golden messages, and what is refused before anything is asked."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from genlab.errors import UserError
from genlab.vlm.conversations import PROMPTS, SIX, call_key, call_text, load_prompt, parse_prompt
from genlab.vlm.regions import roi_energy
from genlab.vlm.verdicts import parse_official
from tests.golden_files import golden_files, load_golden

OFFICIAL = {1: "real", 0: "fake", -1: "unknown"}


def shout(variables: dict[str, Any]) -> None:
    """What the golden file calls gdeco.shout."""
    variables |= {"hint": variables["label"].upper(), "copy_url": variables["image_url"], "prev": str(variables.get("subject", "none"))}


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


def test_shipped_prompts_load_and_ask_as_often_as_the_paper() -> None:
    shipped = {path.stem for path in PROMPTS.glob("*.json")}
    assert {"simple", *SIX} - {"few_shot_combined"} <= shipped
    asked = {name: len(load_prompt(name).conversations) for name in shipped}
    assert asked["structural_analysis"] == asked["stereotype_matching"] == 3
    assert all(asked[name] == 1 for name in shipped - {"structural_analysis", "stereotype_matching"})


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

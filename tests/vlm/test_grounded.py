"""Regions in texts: reference targets, and replies read as models write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from datamodules.defake_index import read_grounding
from genlab.errors import UserError
from genlab.training.detector_tuning import conversation
from genlab.vlm.grounded import WORDS, Style, fill_target, has_grounded_form, read_regions, read_verdict, style_of
from genlab.vlm.small_qwen import byte_tokenizer
from tests.golden_files import golden_files, load_golden

HAND = "<|object_ref_start|>hand<|object_ref_end|><|box_start|>{}<|box_end|>"


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("mllm_defake", "grounding_jsonl"))
def test_reference_targets(path: Path, tmp_path: Path) -> None:
    meta, _ = load_golden(path)
    for case in meta["cases"]:
        (tmp_path / "one.jsonl").write_text(json.dumps(case["record"]))
        (line,) = read_grounding(tmp_path / "one.jsonl")
        size = cast(tuple[int, int], tuple(case["image_size_wh"]))
        refs, boxes = [region.ref for region in line.regions], [region.pixels(*size) for region in line.regions]
        assert [role for role, _ in line.turns] == case["prompt_roles"]
        assert conversation(line.turns)[-1]["content"] == [{"type": "image"}, {"type": "text", "text": case["user_text"]}]
        for style, key in (("qwen", "target_qwen_absolute"), ("internvl", "target_internvl_norm1000")):
            said = fill_target(line.target, refs, boxes, size, cast(Style, style))
            assert said == case[key]
            read = read_regions(said, size, cast(Style, style))
            assert [name for name, _ in read] == refs
            for (_, box), wanted in zip(read, boxes):
                assert box == pytest.approx(wanted, abs=0 if style == "qwen" else max(size) / 2000)


@pytest.mark.parametrize(
    ("written", "box"),
    [
        ("[1, 2, 3, 4]", (1, 2, 3, 4)),
        ("[[1, 2, 3.5, 4]]", (1, 2, 3.5, 4)),
        ("(1,2),(3,4)", (1, 2, 3, 4)),
        ("[[1, 2], [3, 4]]", (1, 2, 3, 4)),
        ("[3, 4, 1, 2]", (1, 2, 3, 4)),
        ("somewhere", None),
        ("[1, 2, 3]", None),
    ],
)
def test_boxes_as_models_write_them(written: str, box: tuple[float, ...] | None) -> None:
    assert read_regions(f"A {HAND.format(written)} b", (10, 10), "qwen") == [("hand", box)]


def test_thousandths_are_of_width_and_height() -> None:
    assert read_regions("<ref>x</ref><box>[[0, 500, 1000, 1000]]</box>", (40, 20), "internvl") == [("x", (0, 10, 40, 20))]


def test_form_of_the_staged_rewards() -> None:
    good = f"<think>Look: {HAND.format('[1, 2, 3, 4]')} melts. <tag>hands</tag></think><verdict>generated</verdict>"
    assert has_grounded_form(good, generated=True)
    assert not has_grounded_form(good.replace("<tag>hands</tag>", ""), generated=True)
    assert not has_grounded_form("<think><tag>hands</tag></think><verdict>generated</verdict>", generated=True), "no region"
    assert has_grounded_form("<think>Fine.</think><verdict>real</verdict>", generated=False)
    assert not has_grounded_form("Fine. <think></think><verdict>real</verdict>", generated=False)
    assert [read_verdict(text) for text in ("<verdict> Real </verdict>", "<verdict>fine</verdict>", "real")] == ["real", "", ""]


def test_the_tokenizer_tells_the_style() -> None:
    assert style_of(byte_tokenizer([])) == "qwen"

    class Words:
        def __init__(self, *known: str) -> None:
            self.known = dict.fromkeys(known, 0)

        def get_vocab(self) -> dict[str, int]:
            return self.known

    assert style_of(Words(*WORDS["qwen"], *WORDS["internvl"])) == "internvl", "whose tokenizers build on Qwen's"
    with pytest.raises(UserError, match="say how they are to be written"):
        style_of(Words())

"""Regions in texts: how a model is to write what it names and where it is, and how that is read again (arXiv 2504.14245, released code).

A target has ``<ref-object>`` and ``<bbox>`` for what regions are called and where they are, from left to right. Qwen's models write
``<|object_ref_start|>hand<|object_ref_end|><|box_start|>[10, 20, 110, 220]<|box_end|>`` with pixels, InternVL's
``<ref>hand</ref><box>[[25, 67, 275, 733]]</box>`` with thousandths of width and height. Boxes here are (x1, y1, x2, y2).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from genlab.errors import UserError

Style = Literal["qwen", "internvl"]
Corners = tuple[float, float, float, float]
REF, BOX = "<ref-object>", "<bbox>"
WORDS = {
    "qwen": ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    "internvl": ("<ref>", "</ref>", "<box>", "</box>"),
}  # fmt: skip
STYLES: tuple[Style, ...] = ("internvl", "qwen")  # InternVL's tokenizers know the words of Qwen's too, on which they build
EITHER = [f"(?:{'|'.join(re.escape(words[i]) for words in WORDS.values())})" for i in range(4)]
NAMED_BOX = re.compile(f"{EITHER[0]}(?P<ref>.*?){EITHER[1]}\\s*{EITHER[2]}(?P<box>.*?){EITHER[3]}", re.S)
NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
POINTS = re.compile(rf"\({NUMBER},{NUMBER}\)\s*,\s*\({NUMBER},{NUMBER}\)")
LIST = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")
PAIRS = re.compile(rf"\[\s*\[{NUMBER},{NUMBER}\]\s*,\s*\[{NUMBER},{NUMBER}\]\s*\]")
THINK = re.compile(r"<think>(.*?)</think>", re.S)
VERDICT = re.compile(r"<verdict>(.*?)</verdict>", re.S)
TAG = re.compile(r"<tag>(.*?)</tag>", re.S)
REAL, GENERATED = "real", "generated"


class Named(NamedTuple):
    """A region that a reply names; ``box`` is None where what it writes is no box."""

    ref: str
    box: Corners | None


def fill_target(target: str, refs: Sequence[str], boxes: Sequence[Sequence[float]], size: tuple[int, int], style: Style) -> str:
    """The text that a model is to say.

    Args:
        target: With as many ``<ref-object>`` and ``<bbox>`` as there are regions.
        boxes: In pixels.
        size: Width and height of the picture that the boxes belong to.
    """
    ref_start, ref_end, box_start, box_end = WORDS[style]
    names, places = iter(refs), iter(boxes)

    def said(found: re.Match[str]) -> str:
        if found[0] == REF:
            return f"{ref_start}{next(names)}{ref_end}"
        return f"{box_start}{write_box(next(places), size, style)}{box_end}"

    return re.sub(f"{REF}|{BOX}", said, target)


def write_box(box: Sequence[float], size: tuple[int, int], style: Style) -> str:
    """``[x1, y1, x2, y2]`` in pixels as they are given; InternVL: in thousandths, rounded as Python does, within a further list.

    The released code divides pixels by width times 1000, which makes every box [0, 0, 0, 0].
    """
    if style == "qwen":
        return json.dumps([int(v) if float(v).is_integer() else round(float(v), 2) for v in box])
    return json.dumps([[round(value / size[i % 2] * 1000) for i, value in enumerate(box)]])


def read_regions(text: str, size: tuple[int, int], style: Style) -> list[Named]:
    """Every named region of a reply, in order, boxes in pixels of a picture of that size; swapped corners are put right.

    Boxes may be written ``[x1, y1, x2, y2]``, ``[[x1, y1, x2, y2]]``, ``(x1, y1), (x2, y2)`` or ``[[x1, y1], [x2, y2]]``.
    """
    found: list[Named] = []
    for match in NAMED_BOX.finditer(text):
        written = match["box"].strip()
        numbers = next((m for m in (p.search(written) for p in (LIST, PAIRS, POINTS)) if m), None)
        found.append(Named(match["ref"].strip(), _corners([float(v) for v in numbers.groups()], size, style) if numbers else None))
    return found


def _corners(values: list[float], size: tuple[int, int], style: Style) -> Corners:
    if style == "internvl":
        values = [value * size[i % 2] / 1000 for i, value in enumerate(values)]
    x1, y1, x2, y2 = values
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def read_verdict(text: str) -> str:
    """The word of the last ``<verdict>``, ``real`` or ``generated``, whatever its case; else ``""``."""
    said = VERDICT.findall(text)
    word = said[-1].strip().lower() if said else ""
    return word if word in (REAL, GENERATED) else ""


def read_tags(text: str) -> str:
    """What the first ``<tag>`` holds, or ``""``."""
    found = TAG.search(text)
    return found[1] if found else ""


def has_grounded_form(text: str, generated: bool) -> bool:
    """Whether a reply has the form of the staged rewards: ``<think>..</think>``, for generated pictures with one region or more and after
    them a ``<tag>..</tag>`` within, then ``<verdict>..</verdict>``, and nothing else.

    The later version of the released code wants the first region right behind ``<think>``; here text may stand before it.
    """
    whole = re.fullmatch(r"\s*<think>(.*?)</think>\s*<verdict>[^<]*</verdict>\s*", text, re.S)
    if whole is None or not generated:
        return whole is not None
    regions = list(NAMED_BOX.finditer(whole[1]))
    return bool(regions) and TAG.search(whole[1], regions[-1].end()) is not None


def style_of(processor: Any) -> Style:
    """How the processor's model writes regions: by the special tokens that its tokenizer knows.

    Raises:
        UserError: It knows neither; ``model.regions`` has to say it.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    known = tokenizer.get_vocab()
    for style in STYLES:
        if all(word in known for word in WORDS[style]):
            return style
    raise UserError(
        "model.regions: the tokenizer has special tokens of neither Qwen nor InternVL for regions; "
        "say how they are to be written, qwen or internvl."
    )

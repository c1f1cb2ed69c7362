"""What is in the picture? A caption taken apart into what is in front, what is behind, and what happens (arXiv 2405.16501).

By rules, without any model, or from the answers of a language model to a fixed instruction.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from genlab.errors import UserError

ATTEMPTS = 10
NONE = "None"  # how models and files say that something is not there


@dataclass(frozen=True)
class Analysis:
    """Of a caption; ``None`` in words where there is nothing of the kind.

    Args:
        foreground: The main object, described.
        background: Where it is, without an article.
        action: What happens; asked for, and not used any further.
    """

    foreground: str
    background: str = NONE
    action: str = NONE


# ---- answers of language models

EXAMPLES = (
    "arafed dog sitting on the beach with its tongue out",
    "there is a cat and a dog that are playing together",
    "there are two cats that are playing with each other",
    "there is a cat on the bench",
    "there is a white sandy beach with cat",
)


def instruction(caption: str) -> str:
    """What a language model is asked: five captions solved, then this one."""
    solved = [f"Sentence: {each}\n{said(by_rules(each))}" for each in EXAMPLES]
    asked = (
        "Take the sentence apart into its foreground (the main objects, with all that describes them), its background and its action. Say "
        "None for what it does not have. Answer in three lines that begin with Foreground:, Background: and Action:, in this order."
    )
    return "\n\n".join([asked, *solved, f"Sentence: {caption}"])


def said(analysis: Analysis) -> str:
    """The three lines."""
    return f"Foreground: {analysis.foreground}\nBackground: {analysis.background}\nAction: {analysis.action}"


def parse_answer(answer: str) -> Analysis | None:
    """The three lines of an answer, whatever stands before; nothing where they are not there in this order.

    A value that begins with a quotation mark loses its first and last character. What follows the action is part of it.
    """
    found = re.search(r"Foreground: (.*?)\nBackground: (.*?)\nAction: (.*)", answer, re.DOTALL)
    return Analysis(*(value[1:-1] if value.startswith('"') else value for value in found.groups())) if found else None


def agreed(answers: Iterable[str | None]) -> Analysis:
    """What a model says twice running, else most often, of at most ten answers; well-formed ones alone count.

    Args:
        answers: Asked for one by one; ``None`` is a time-out.

    Raises:
        UserError: None is well-formed, or what was agreed on has no foreground.
    """
    known: list[Analysis] = []
    for number, answer in enumerate(answers, 1):
        parsed = None if answer is None else parse_answer(answer)
        if parsed is not None:
            if known and known[-1] == parsed:
                return _with_foreground(parsed)
            known.append(parsed)
        if number == ATTEMPTS:
            break
    if not known:
        raise UserError(
            f"analyser: no answer of {ATTEMPTS} has the lines Foreground:, Background: and Action:. Take another model, or write the "
            "concept into data.concepts."
        )
    return _with_foreground(Counter(known).most_common(1)[0][0])


def _with_foreground(analysis: Analysis) -> Analysis:
    if not analysis.foreground.strip():
        raise UserError("analyser: the model found no foreground. Write the concept into data.concepts.")
    return analysis


# ---- rules

LEAD = re.compile(
    r"^(?:there (?:is|are)|this is|these are"
    r"|(?:(?:a|an|the) )?(?:(?:close up|closeup)?(?: ?(?:photo|picture|image|photograph))|close up|closeup) of) "
)
PLACES = "in front of|on top of|next to|on|in|at|near|by|beside|under|inside|behind|against"
PLACE = re.compile(rf"(?:^|(?<= ))(?:{PLACES}) (?:(?:the|a|an) )?(?!(?:its|his|her|their|each|it|them)\b)(.+?)(?= with |$)")
NO_VERBS = (  # words that only look like verbs
    "ring", "king", "string", "thing", "building", "ceiling", "painting", "clothing", "wing", "spring", "morning", "evening", "railing",
    "earring", "swing", "pudding", "wedding", "bring", "sling", "drawing", "lightning", "anything", "something", "nothing", "everything",
)  # fmt: skip


def by_rules(caption: str) -> Analysis:
    """Foreground, background and action of a caption by fixed rules of ours; no model is asked.

    >>> by_rules("arafed dog sitting on the beach with its tongue out")
    Analysis(foreground='arafed dog with its tongue out', background='beach', action='sitting')
    """
    text = " ".join(caption.lower().split()).rstrip(".").strip()
    text = LEAD.sub("", text, count=1)
    text = " ".join(re.sub(r" (?:that|which|who) (?:is|are) ", " ", text).split())
    words = text.split()
    place = next((i for i, word in enumerate(words) if i and word.isalpha() and word.endswith("ing") and word not in NO_VERBS), None)
    region = text if place is None else " ".join(words[place + 1 :])
    found = PLACE.search(region)
    background = found[1].strip() if found else NONE
    before, tail = (region[: found.start()].strip(), region[found.end() :].strip()) if found else (region, "")
    if place is None:
        foreground, action = _joined(before, tail), NONE
    else:
        foreground, action = _joined(" ".join(words[:place]), tail), _joined(words[place], before).removesuffix(" together")
    return Analysis(foreground, background, action) if foreground else Analysis(text, NONE, action)


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)

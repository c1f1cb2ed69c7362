"""A sentence with pictures in it, put into words: each ``[img]`` becomes an identifier and the description of the picture's main object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genlab.errors import UserError
from genlab.vlm.concepts import NONE, Analysis

PLACEHOLDER = "[img]"
BEHIND = "on the background of"
IDENTIFIERS = ("sks", "olis", "sigue")  # of the released code; further ones follow the same pattern of rare letters


@dataclass(frozen=True)
class Concept:
    """What one picture of a sentence stands for.

    Args:
        identifier: As prompts write it, such as ``sks`` or ``<sks>``.
        description: The main object in words; the class prompt.
    """

    identifier: str
    description: str

    @property
    def replacement(self) -> str:
        """What stands in the place of the picture."""
        return " ".join(part for part in (self.identifier, self.description) if part)


@dataclass(frozen=True)
class Sentence:
    """All that follows from a sentence and its pictures.

    Args:
        generation: Prompt of the pictures to be made.
        evaluation: The same without identifiers: what CLIP knows.
        concepts: By picture.
    """

    generation: str
    evaluation: str
    concepts: tuple[Concept, ...]


def identifier_of(number: int) -> str:
    """The identifier of a picture, from 0: rare words, as many as are needed."""
    return IDENTIFIERS[number] if number < len(IDENTIFIERS) else f"{IDENTIFIERS[number % len(IDENTIFIERS)]}{number // len(IDENTIFIERS) + 1}"


def is_background(before: str) -> bool:
    """Whether what stands before a placeholder makes its picture a background. Case counts, as in the released code."""
    return before[:-1].strip().endswith(BEHIND)


def main_object(analysis: Analysis, background: bool) -> str:
    """The description that a picture contributes."""
    if background and analysis.background != NONE:
        return f"{analysis.background} with {analysis.foreground}"
    return analysis.foreground


def compose(
    prompt: str,
    analyses: Sequence[Analysis],
    identifiers: Sequence[str],
    roles: Sequence[str] | None = None,
    identifiers_alone: bool = False,
) -> Sentence:
    """Replaces the placeholders one by one, so that each sees those before it replaced.

    Args:
        prompt: With one ``[img]`` per picture.
        analyses: By picture.
        identifiers: Likewise.
        roles: ``object``, ``background`` or empty, where the sentence decides; left out, it always does.
        identifiers_alone: Without descriptions, as Textual Inversion has it.

    Raises:
        UserError: Numbers differ, or a picture has no foreground.
    """
    if not prompt.count(PLACEHOLDER) == len(analyses) == len(identifiers):
        raise UserError(f"prompt {prompt!r} has {prompt.count(PLACEHOLDER)} {PLACEHOLDER} for {len(analyses)} pictures; give one for each.")
    concepts: list[Concept] = []
    texts = [prompt, prompt]
    for number, (analysis, identifier) in enumerate(zip(analyses, identifiers)):
        if analysis.foreground in ("", NONE) and not identifiers_alone:
            raise UserError(f"image {number + 1}: nothing was found in its foreground. Say what it shows in data.concepts.")
        role = roles[number] if roles is not None else ""
        behind = role == "background" if role else is_background(texts[0].partition(PLACEHOLDER)[0])
        concept = Concept(identifier, "" if identifiers_alone else main_object(analysis, behind))
        concepts.append(concept)
        texts = [
            text.replace(PLACEHOLDER, new, 1) for text, new in zip(texts, (concept.replacement, concept.description or concept.identifier))
        ]
    return Sentence(texts[0], texts[1], tuple(concepts))

"""Pictures with questions and answers: ``<split>/metadata.jsonl`` with a line per question, several for a picture where there are.

``{"file_name": "000/000017.png", "question": "is there a star?", "answer": "yes", "kind": "shape"}``; ``kind`` may be left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datamodules.captioned_index import METADATA, preview, read_lines, splits_of
from datamodules.checks import Item
from genlab.errors import MissingPath

__all__ = ["Question", "Questioned", "items", "note", "preview", "read_split", "splits_of"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer, and what it asks about."""

    text: str
    answer: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Questioned:
    """A picture and what is asked about it."""

    id: str
    """Path below the root, with forward slashes."""
    path: Path
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class QuestionedItem(Item):
    """A picture for ``data show``, with a question to read below."""

    said: str = ""


def read_split(root: Path, split: str) -> list[Questioned]:
    """The pictures of ``<root>/<split>/metadata.jsonl`` with their questions, both in the order of the lines.

    Raises:
        MissingPath: There is no such file, or pictures that it names are missing.
        UserError: Lines that are not as they should be, all of them in one message.
    """
    asked: dict[str, list[Question]] = {}
    for name, record in read_lines(root, split, {"question": "is there a star?", "answer": "yes"}):
        asked.setdefault(name, []).append(Question(record["question"], record["answer"], str(record.get("kind") or "")))
    return [Questioned(f"{split}/{name}".lstrip("/"), root / split / name, tuple(each)) for name, each in asked.items()]


def items(root: Path, dataset: str) -> list[Item]:
    """Every picture once for each kind of question that is asked about it, for ``data show``."""
    splits = splits_of(root)
    if not splits:
        raise MissingPath(f"{root}: there is no {METADATA} in it, nor in a folder of it.")
    return [
        QuestionedItem(each.id, each.path, int(question.answer == "yes"), question.kind or "all", split or "all", said=_said(question))
        for split in splits
        for each in read_split(root, split)
        for question in each.questions
    ]


def _said(question: Question) -> str:
    return f"{question.text} {question.answer}"


def note(item: Item) -> str:
    """The question and its answer."""
    return item.said if isinstance(item, QuestionedItem) else item.path.name

"""Sentences about action classes as MSTA's authors published them: ``{N}_{s|t}_description_{set}.json`` (spatial, temporal).

A file is an object: id of the class -> list of N sentences. Sentences have no fixed form and are never changed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.listfiles import raise_all, read_json, some
from genlab.errors import MissingPath, UserError

log = logging.getLogger(__name__)

ADVICE = "The files are in the repository chenhaoxing/ETL4Video; for other classes: genlab data prepare descriptions --actions 2 ..."
KINDS = {"spatial": "s", "temporal": "t"}


def read_descriptions(path: Path, names: Sequence[str], expected: int | None = None) -> list[list[str]]:
    """Sentences of each class.

    Args:
        path: A file as above; or of one's own, with class names for keys.
        names: Of the classes, by id.
        expected: Sentences of each class; where it has another number, that is said.

    Raises:
        MissingPath: There is no such file.
        UserError: It has another form, or a class has none; all of these in one message.
    """
    content: Any = read_json(path, ADVICE)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object: id of the class -> list of sentences.")
    by_name = not all(key.isdigit() for key in content)
    content = {key.replace("_", " "): sentences for key, sentences in content.items()}
    found, wrong, uneven = list[list[str]](), list[str](), list[str]()
    for number, name in enumerate(names):
        sentences = content.get(name.replace("_", " ") if by_name else str(number))
        if sentences is None:
            wrong.append(f"{path}: class {number}, {name!r}, is missing.")
        elif not isinstance(sentences, list) or not sentences or not all(isinstance(each, str) and each.strip() for each in sentences):
            wrong.append(f"{path}: class {number}, {name!r}, has {str(sentences)[:60]}; it needs a list of sentences, none of them empty.")
        else:
            if expected is not None and len(sentences) != expected:
                uneven.append(f"{name!r} ({len(sentences)})")
            found.append(sentences)
    raise_all(wrong)
    if not by_name and len(content) > len(names):
        raise UserError(f"{path}: {len(content)} classes, but there are {len(names)}. Take the file of these classes.")
    if uneven:
        log.warning("%s: other than %d sentences of %s; their mean is taken.", path, expected, some(uneven))
    return found


def find_descriptions(folder: Path, sets: Sequence[tuple[str, Sequence[str]]], kind: str, number: int) -> list[list[str]]:
    """Sentences from the first file of a folder that is there.

    Args:
        folder: Searched through.
        sets: Ending of a file's name and the class names that it counts through; the last ones are those wanted. Of a file that has more
            classes, those wanted are taken by their name.
        kind: ``spatial`` or ``temporal``.
        number: N.

    Raises:
        MissingPath: None is there.
    """
    wanted = list(sets[-1][1])
    for ending, names in reversed(sets):
        name = f"{number}_{KINDS[kind]}_description_{ending}.json"
        path = next(iter(sorted(folder.rglob(name))), None)
        if path is None:
            continue
        found = dict(zip(names, read_descriptions(path, names, number)))
        if missing := [each for each in wanted if each not in found]:
            raise UserError(f"{path}: there is no class {some(missing)}; the label files belong to other descriptions.")
        return [found[each] for each in wanted]
    tried = " or ".join(f"{number}_{KINDS[kind]}_description_{ending}.json" for ending, _ in reversed(sets))
    raise MissingPath(f"data.descriptions: {folder} holds no {tried}. {ADVICE} Without: --model.consistency_weight 0.")

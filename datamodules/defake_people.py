"""What people said of pictures: tables of answers, and the released code's ``decider.json``. 1 = fake."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

from datamodules.defake_index import WORDS
from datamodules.listfiles import raise_all, read_text
from genlab.errors import UserError

PICTURE, ANSWER, PERSON = ("id", "path", "picture", "image"), ("answer", "verdict", "decision"), ("person", "rater", "user", "name")
UNDECIDED = ("", "unknown", "unsure", "-1", "?")


def read_people(path: Path) -> dict[str, dict[str, int | None]]:
    """Person -> picture -> 1 = fake, 0 = real, None = undecided.

    A CSV has a column for the picture (id, path, picture or image), one for the answer (answer, verdict or decision: fake, generated or 1;
    real or 0; unknown) and, for several people, one for the person (person, rater, user or name). A JSON file is the released code's, whose
    ``decisions`` have 1 = real.

    Raises:
        MissingPath: There is no such file.
        UserError: It is of neither form, or someone answers twice about a picture.
    """
    text = read_text(path)
    if path.suffix.lower() == ".json":
        try:
            decisions = json.loads(text)["decisions"]
            return {path.stem: {str(name).replace("\\", "/"): 1 - int(value) for name, value in decisions.items() if int(value) in (0, 1)}}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f'{path}: not {{"decisions": {{picture: 1 for real, 0 for fake}}}} ({error!r}).') from error
    rows = csv.DictReader(text.splitlines(keepends=True))
    columns = rows.fieldnames or []
    picture, answer, person = (next((name for name in names if name in columns), None) for names in (PICTURE, ANSWER, PERSON))
    if picture is None or answer is None:
        raise UserError(
            f"{path}:1: columns are {', '.join(columns) or 'missing'}; answers have id and answer, and person if there are several."
        )
    found: dict[str, dict[str, int | None]] = defaultdict(dict)
    wrong: list[str] = []
    for row in rows:
        name, word = (row[picture] or "").replace("\\", "/"), (row[answer] or "").strip().lower()
        who = (row[person] or "").strip() if person else path.stem
        if not name or not who or (word not in WORDS and word not in UNDECIDED):
            wrong.append(
                f"{path}:{rows.line_num}: picture {name!r}, answer {row[answer]!r}; an answer is fake or 1, real or 0, or unknown."
            )
        elif name in found[who]:
            wrong.append(f"{path}:{rows.line_num}: {who} answers about {name} a second time.")
        else:
            found[who][name] = WORDS.get(word)
    raise_all(wrong, 10)
    if not found:
        raise UserError(f"{path} is empty; it needs a line per answer.")
    return dict(found)

"""Reading the lists and annotations of datasets: errors that name the file, and all of what is wrong in one message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genlab.errors import MissingPath, UserError

NAMED = 5  # problems in a message


def read_text(path: Path, advice: str = "") -> str:
    """The text of a file, with or without a byte order mark.

    Args:
        advice: What to do where it is missing, a sentence.

    Raises:
        MissingPath: There is no such file.
        UserError: It is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingPath(f"{path} is not there. {advice}".strip()) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}).") from error


def read_json(path: Path, advice: str = "") -> Any:
    """What a JSON file holds; raises as `read_text` does, and a UserError where it is not JSON."""
    try:
        return json.loads(read_text(path, advice))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}).") from error


def raise_all(wrong: Sequence[str], named: int = NAMED) -> None:
    """Raises a UserError with a line for each of the first ``named`` things that are wrong; none, no error."""
    if wrong:
        raise UserError("\n".join([*wrong[:named], *([f"... and {len(wrong) - named} more."] if len(wrong) > named else [])]))


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are: "a, b, c, d, e and 3 more"."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more

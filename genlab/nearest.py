"""The nearest right spelling of a wrong word, for messages that end in ``did you mean ...?``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, options: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The option most like ``word``, ignoring case, or None where nothing is alike.

    Args:
        cutoff: Least similarity in [0, 1], as in ``difflib.get_close_matches``.
    """
    spellings = {option.lower(): option for option in sorted(options, reverse=True)}
    matches = difflib.get_close_matches(word.lower(), spellings, n=1, cutoff=cutoff)
    return spellings[matches[0]] if matches else None


def did_you_mean(word: str, options: Iterable[str], cutoff: float = 0.6) -> str:
    """``; did you mean 'x'?``, or an empty string where nothing is alike: made to end a sentence with."""
    match = nearest(word, options, cutoff)
    return f"; did you mean {match!r}?" if match else ""

"""The user's own files for ``predict``: those named, and what lies in folders named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from genlab.errors import MissingPath, UserError


def user_files(paths: Sequence[str] | None, kind: str, example: str, accepts: Callable[[Path], bool]) -> list[Path]:
    """Files as given, and of folders all below that are of the kind, by name.

    Args:
        paths: The command line's positional arguments.
        kind: What they should be, in the plural.
        example: Name of such a file.
        accepts: Whether a file in a folder is one; files that are named themselves are taken as they are.

    Raises:
        MissingPath: A path is not there.
        UserError: None is named, or none is found.
    """
    if not paths:
        raise UserError(f"predict: name {kind}, or folders of them: python -m genlab predict -c ... {example} folder/")
    if missing := [name for name in paths if not Path(name).exists()]:
        raise MissingPath(f"predict: {', '.join(missing)}: no such file or folder.")
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        below = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file() and accepts(each))
        found |= dict.fromkeys(below)
    if not found:
        raise UserError(f"predict: there are no {kind} in {', '.join(paths)}.")
    return list(found)

"""Many runs one after the other, in this process: done ones are left out when the command is given again, a stopped one goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.cli import main as genlab
from genlab.errors import CONTINUE_ME, UserError
from genlab.store import RowStore

Row = dict[str, Any]
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


@dataclass(frozen=True)
class Cell:
    """Command lines, and the row that is made of what they leave.

    Args:
        name: Of the log, and beside the progress bar.
        key: Changes with everything that the row depends on.
        commands: Each with its verb.
        row: Called when all have ended well.
    """

    name: str
    key: str
    commands: list[list[str]]
    row: Callable[[], Row]


def run_cells(cells: Sequence[Cell], out: Path, title: str) -> tuple[list[Row], bool]:
    """Rows of all cells that are done, and whether a signal has stopped them. Rows are in ``cells.sqlite``, what was said in ``logs/``.

    Raises:
        UserError: A cell that cannot run.
    """
    from tqdm import tqdm

    store, done = RowStore(out / "cells.sqlite"), list[Row]()
    with contextlib.closing(store), tqdm(cells, desc=title, unit="cell") as bar:
        for cell in bar:
            bar.set_postfix_str(cell.name)
            row = store.get(cell.key)
            if row is None:
                log = out / "logs" / f"{cell.name.replace(' ', '-')}-{cell.key[:8]}.log"
                code = _said_into(log, cell.commands)
                if code == CONTINUE_ME:
                    return done, True
                if code:
                    tail = log.read_text().strip().splitlines()[-1:]
                    raise UserError(f"{title}: {cell.name} ends with {code}: {' '.join(tail)} Give the command again once it is mended.")
                row = cell.row()
                store.put(cell.key, row)
            done.append(row)
    return done, False


def _said_into(log: Path, commands: Sequence[Sequence[str]]) -> int:
    """The first exit code that is not 0, else 0."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        return next((code for command in commands if (code := genlab([*command, *QUIET]))), 0)

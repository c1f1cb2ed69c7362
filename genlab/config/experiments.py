"""Finds a configuration file from any working folder, also one of those that are shipped with GenLab."""

from __future__ import annotations

from pathlib import Path

import genlab
from genlab.errors import MissingPath
from genlab.nearest import nearest


def shipped_root() -> Path:
    """The folder that holds ``experiments``: the repository, or the site-packages of an installed wheel."""
    return Path(genlab.__file__).resolve().parents[1]


def shipped_experiments() -> list[str]:
    """Paths of the shipped configurations below ``experiments``, such as ``tiny/demamba.yaml``."""
    folder = shipped_root() / "experiments"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def find_config(name: str | Path) -> Path:
    """The file that a user means by ``experiments/demamba.yaml``, ``demamba.yaml``, ``demamba`` or a path of their own.

    Raises:
        MissingPath: There is none; names the nearest ones.
    """
    given = Path(name).expanduser()
    if given.is_file():
        return given
    root = shipped_root()
    ending = [given] if given.suffix in (".yaml", ".yml") else [given, given.with_name(f"{given.name}.yaml")]
    candidates = [base / path for path in ending for base in (Path(), root, root / "experiments")]
    found = next((path for path in candidates if path.is_file()), None)
    if found is not None:
        return found
    raise MissingPath(f"{name}: no such configuration{_nearest_to(given)}")


def _nearest_to(given: Path) -> str:
    beside = given.parent if given.parent.is_dir() else None
    options = {path.as_posix(): path.name for path in (beside.glob("*.y*ml") if beside else ())}
    options |= {f"experiments/{name}": name for name in shipped_experiments()}
    spelled = given.as_posix().removeprefix("experiments/")
    by_name = {spelling.removesuffix(".yaml"): path for path, spelling in options.items()}
    by_name |= {Path(spelling).stem: path for path, spelling in options.items() if Path(spelling).stem not in by_name}
    match = nearest(spelled.removesuffix(".yaml"), by_name, 0.5) or nearest(given.stem, by_name, 0.5)
    if match:
        return f"; did you mean {by_name[match]}?"
    folder = f" The folder {given.parent} does not exist." if beside is None else ""
    return f".{folder} `python -m genlab list` shows the shipped ones."

"""Python source read as text: which class, function or alias a dotted name stands for, found without importing anything.

``locate("lightning.pytorch.callbacks.ModelCheckpoint")`` looks for the module's file as an import would, but runs none of it (finding
``a.b`` with ``importlib.util.find_spec`` would import ``a``), parses it, and follows re-exports to the ``class`` statement.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path

from genlab.errors import UserError
from genlab.nearest import did_you_mean


@dataclass(frozen=True)
class Imported:
    """What ``import module`` (``name`` is None) or ``from module import name`` binds."""

    module: str
    name: str | None


Binding = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.expr | Imported


@dataclass(frozen=True, eq=False)
class Module:
    """A module's top-level names.

    Args:
        folders: Where a package's submodules lie; empty for a plain module.
        bindings: Top-level name -> what it is bound to.
        stars: Modules of ``from x import *``.
        opaque: Whether names may exist that the source does not show (compiled, or a module ``__getattr__``).
    """

    name: str
    path: Path | None
    folders: tuple[str, ...] = ()
    bindings: dict[str, Binding] = field(default_factory=dict)
    stars: tuple[str, ...] = ()
    opaque: bool = False


@dataclass(frozen=True)
class Definition:
    """A ``class``, ``def`` or the right side of a top-level assignment, and the module in whose names it is written.

    ``node`` is None for a name that exists in compiled code only.
    """

    name: str
    module: Module
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.expr | None


def locate(dotted: str) -> Definition | Module:
    """What a dotted name stands for.

    Raises:
        UserError: There is no such module, or no such name in it; the message names the nearest that exists.
    """
    found, parts = _longest_module(dotted)
    if found is None:
        raise UserError(f"there is no module {parts[0]!r} on the Python path{did_you_mean(parts[0], _OUR_PACKAGES)}")
    if not parts:  # a module, unless its package binds the same name to something else, as in `from tqdm import tqdm`
        parent, _, last = dotted.rpartition(".")
        bound = _follow(package, last) if parent and (package := read_module(parent)) else None
        return bound if isinstance(bound, Definition) else found
    result = _walk(found, parts)
    if result is None:
        raise UserError(_no_such_name(found, parts, dotted))
    return result


def resolve(module: Module, expression: ast.expr) -> Definition | Module | None:
    """What ``Name`` or ``package.Name`` means in ``module``, or None where the source does not tell."""
    parts = dotted_parts(expression)
    if not parts:
        return None
    bound = module.bindings.get(parts[0])
    if isinstance(bound, Imported) and len(parts) > 1:  # the longest module path first: `torch.optim.Adam` needs no torch/__init__.py
        full = ".".join([bound.module, *([bound.name] if bound.name else []), *parts[1:]])
        found, rest = _longest_module(full)
        if found is not None:
            return _walk(found, rest)
    start = _follow(module, parts[0])
    return _walk(start, parts[1:]) if start is not None else None


def dotted_parts(expression: ast.expr) -> list[str]:
    """``a.b.c`` -> ["a", "b", "c"]; empty for any other expression."""
    if isinstance(expression, ast.Name):
        return [expression.id]
    if isinstance(expression, ast.Attribute) and (parts := dotted_parts(expression.value)):
        return [*parts, expression.attr]
    return []


def read_module(name: str) -> Module | None:
    """The top-level names of a module, or None where there is none of this name.

    Raises:
        UserError: The file is not valid Python.
    """
    place = _find(name)
    if place is None:
        return None
    if place.file is None or place.file.suffix != ".py":
        return Module(name, None, place.folders, opaque=place.file is not None)
    return _parse(name, place.file, place.file.stat().st_mtime_ns, place.folders)


def names_in(module: Module) -> list[str]:
    """Public names that a module offers, submodules included."""
    files = (path for folder in module.folders if Path(folder).is_dir() for path in Path(folder).iterdir())
    submodules = {path.stem for path in files if path.suffix == ".py" or (path.is_dir() and not path.name.startswith("."))}
    starred = (name for star in module.stars if (other := read_module(star)) for name in names_in(other))
    return sorted(name for name in {*module.bindings, *submodules, *starred} if not name.startswith("_"))


_OUR_PACKAGES = ("genlab", "datamodules", "callbacks", "lightning", "torch")


def _no_such_name(module: Module, parts: Sequence[str], dotted: str) -> str:
    """Which part of a dotted name fails, and the nearest that the module or class before it has."""
    owner: Definition | Module = module
    name = parts[0]
    for name in parts:
        step = _walk(owner, [name])
        if step is None:
            break
        owner = step
    if isinstance(owner, Module):
        place, options = f"{'package' if owner.folders else 'module'} {owner.name!r}", names_in(owner)
    else:
        body = owner.node.body if isinstance(owner.node, ast.ClassDef) else []
        place, options = owner.name, [line.name for line in body if isinstance(line, ast.FunctionDef)]
    alike = [option for option in options if option[:1].isupper() == name[:1].isupper()]  # classes for a class, modules for a module
    near = did_you_mean(name, alike) or did_you_mean(name, options)
    listed = f"; it has {', '.join(alike)}" if not near and name[:1].isupper() and 0 < len(alike) <= 8 else ""
    return f"{dotted!r} does not exist: {place} has no {name!r}{near or listed}"


def _longest_module(dotted: str) -> tuple[Module | None, list[str]]:
    """The innermost module that a dotted name passes through, and the parts after it. Only that one is read."""
    parts = dotted.split(".")
    count = 0
    while count < len(parts) and parts[count].isidentifier() and _find(".".join(parts[: count + 1])):
        count += 1
    return (read_module(".".join(parts[:count])) if count else None), parts[count:]


@dataclass(frozen=True)
class _Place:
    """A module's file (None for a folder without ``__init__.py``) and, of a package, its folders."""

    file: Path | None
    folders: tuple[str, ...] = ()


def _find(name: str) -> _Place | None:
    """As an import would find it; only the top-level package is asked of Python's finders, so that editable installs are found too."""
    parent, _, last = name.rpartition(".")
    if not parent:
        spec = _find_top_level(name, tuple(sys.path), os.getcwd())  # noqa: PTH109  # only a cache key
        if spec is None:
            return None
        return _Place(Path(spec.origin) if spec.origin and spec.has_location else None, tuple(spec.submodule_search_locations or ()))
    above = _find(parent)
    for folder in above.folders if above else ():
        stem = f"{folder}/{last}"
        candidates = [f"{stem}/__init__.py", *(stem + suffix for suffix in EXTENSION_SUFFIXES), f"{stem}.py"]
        file = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)  # noqa: PTH113  # twice as fast
        if file is not None:
            return _Place(Path(file), (stem,) if file == candidates[0] else ())
    names = tuple(f"{folder}/{last}" for folder in (above.folders if above else ()) if Path(folder, last).is_dir())
    return _Place(None, names) if names else None


@cache
def _find_top_level(name: str, search_path: tuple[str, ...], working_folder: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # `__main__` and hand-made modules have no spec
        return None


@cache
def _parse(name: str, path: Path, modified: int, folders: tuple[str, ...]) -> Module:
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from error
    bindings: dict[str, Binding] = {}
    stars: list[str] = []
    for binding_name, bound, certain in _bindings(tree.body, name if folders else name.rpartition(".")[0]):
        if isinstance(bound, Imported) and binding_name == "*":
            stars.append(bound.module)
        elif certain or binding_name not in bindings:
            bindings[binding_name] = bound
    return Module(name, path, folders, bindings, tuple(stars), opaque="__getattr__" in bindings)


def _bindings(body: Sequence[ast.stmt], package: str, certain: bool = True) -> Iterator[tuple[str, Binding, bool]]:
    """Name, what it is bound to, and False for the ``else`` and ``except`` branches, which never replace what is known."""
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement.name, statement, certain
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                yield (
                    (alias.asname or alias.name.split(".")[0]),
                    Imported(alias.name if alias.asname else alias.name.split(".")[0], None),
                    certain,
                )
        elif isinstance(statement, ast.ImportFrom):
            base = _absolute(package, statement.level, statement.module)
            for alias in statement.names:
                yield (alias.asname or alias.name), Imported(base, alias.name), certain
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    yield target.id, statement.value, certain
        elif isinstance(statement, ast.AnnAssign):
            if isinstance(statement.target, ast.Name) and statement.value is not None:
                yield statement.target.id, statement.value, certain
        elif isinstance(statement, ast.If | ast.Try | ast.With):
            yield from _bindings(statement.body, package, certain)
            yield from _bindings(_other_branches(statement), package, certain=False)


def _other_branches(statement: ast.If | ast.Try | ast.With) -> list[ast.stmt]:
    if isinstance(statement, ast.If):
        return statement.orelse
    if isinstance(statement, ast.Try):
        return [*statement.orelse, *statement.finalbody, *(line for handler in statement.handlers for line in handler.body)]
    return []


def _absolute(package: str, level: int, module: str | None) -> str:
    if level == 0:
        return module or ""
    base = package.split(".")[: len(package.split(".")) - level + 1]
    return ".".join([*base, *([module] if module else [])])


def _walk(start: Definition | Module, parts: Iterable[str]) -> Definition | Module | None:
    found: Definition | Module | None = start
    for part in parts:
        if isinstance(found, Module):
            found = _follow(found, part)
        elif isinstance(found, Definition) and isinstance(found.node, ast.ClassDef):
            found = _member(found, part)
        else:
            return Definition(part, found.module, None) if isinstance(found, Definition) and found.node is None else None
    return found


def _member(owner: Definition, name: str) -> Definition | None:
    assert isinstance(owner.node, ast.ClassDef)
    for statement in reversed(owner.node.body):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and statement.name == name:
            return Definition(f"{owner.name}.{name}", owner.module, statement)
    return None


def _follow(module: Module, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Definition | Module | None:
    """What ``module.name`` is in the end, through any chain of imports and plain aliases."""
    if (module.name, name) in seen:
        return None
    seen |= {(module.name, name)}
    bound = module.bindings.get(name)
    if isinstance(bound, Imported):
        return _follow_import(bound, seen)
    if isinstance(bound, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return Definition(name, module, bound)
    if bound is not None:  # `Name = Other` is followed, any other right side (a type alias, a value) is the definition
        parts = dotted_parts(bound)
        first = _follow(module, parts[0], seen) if parts else None
        aliased = _walk(first, parts[1:]) if first is not None else None
        return aliased or Definition(name, module, bound)
    for star in module.stars:
        other = read_module(star)
        if other is not None and not name.startswith("_") and (found := _follow(other, name, seen)):
            return found
    submodule = read_module(f"{module.name}.{name}") if module.folders else None
    return submodule or (Definition(name, module, None) if module.opaque else None)


def _follow_import(bound: Imported, seen: frozenset[tuple[str, str]]) -> Definition | Module | None:
    module = read_module(bound.module)
    if module is None or bound.name is None:
        return module
    return _follow(module, bound.name, seen)

"""A YAML file as a tree in which every value knows its file and line.

Plain values mean what they mean to jsonargparse, which reads the same files after us: YAML 1.1 as PyYAML has it, except that ``1e-4`` is a
number and a date is a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from genlab.errors import MissingPath, UserError


@dataclass(frozen=True)
class Problem:
    """One thing that a user has to mend.

    Args:
        where: ``file.yaml:3`` or ``command line: --model.lr``.
    """

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(eq=False)
class Node:
    """A value and where it was written.

    Args:
        value: A plain value, ``list[Node]`` or ``dict[key, Node]``.
        text: The value as it was typed on the command line.
        dotted: Whether this mapping stands for the dots of a command line key, such as ``--model.lr``.
    """

    value: Any
    where: str
    text: str | None = None
    dotted: bool = False

    @property
    def plain(self) -> Any:
        """The value without the places."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain for node in self.value]
        return self.value

    def walk(self, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Node]]:
        """Every node below with the keys that lead to it, itself first."""
        yield path, self
        pairs = self.value.items() if isinstance(self.value, dict) else enumerate(self.value) if isinstance(self.value, list) else ()
        for key, node in pairs:
            yield from node.walk((*path, key))


class BrokenConfig(UserError):
    """A file that is no configuration; carries its problems, so that those of several files can be told together."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # chosen at run time: C where it was compiled
    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own class attribute, without what jsonargparse takes out
        first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":timestamp", ":float"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_SIGNED = r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\d[\d_]*(:[0-5]?\d)+\.[\d_]*|\.(inf|Inf|INF))"
_FLOAT = re.compile(rf"^({_SIGNED}|\.\d[\d_]*([eE][-+]\d+)?|\.(nan|NaN|NAN))$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that ``_Loader`` would read as numbers."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def write_text(value: Any) -> str:
    """Plain values as YAML that ``read_text`` and jsonargparse read as the same values."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6))


def read_file(path: Path) -> Node:
    """The mapping in a YAML file.

    Raises:
        UserError: The file is missing, empty, no valid YAML, holds no mapping, or repeats a key; with file and line.
    """
    label = shown(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingPath(f"{label}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BrokenConfig([Problem(label, f"cannot be read as a text file: {error}")]) from error
    node = read_text(text, label)
    if not isinstance(node.value, dict):
        what = "is empty" if node.value is None else f"holds {describe(node.value)}"
        raise BrokenConfig([Problem(node.where, f"the file {what}; a configuration is a mapping, such as `trainer: {{max_epochs: 3}}`")])
    return node


def read_text(text: str, label: str) -> Node:
    """Any YAML value, with ``label:line`` as places.

    Raises:
        BrokenConfig: The text is no valid YAML or repeats a key.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return Node(None, f"{label}:1")
        reader = _Reader(loader, label)
        tree = reader.build(root)
    except yaml.YAMLError as error:
        raise BrokenConfig([_syntax_problem(error, text, label)]) from error
    finally:
        loader.dispose()
    if reader.problems:
        raise BrokenConfig(reader.problems)
    return tree


def read_value(text: str, where: str) -> Node:
    """A value from the command line; what is no YAML is a string."""
    try:
        node = read_text(text, where) if text.strip() else Node(text, where)
    except BrokenConfig:
        node = Node(text, where)
    if isinstance(node.value, dict) and all(entry.value is None for entry in node.value.values()):
        node = Node(text, where)  # `name:` and `{a}` are strings to jsonargparse as well
    for _, below in node.walk():
        below.where = where
    node.text = text
    return node


def shown(path: Path) -> str:
    """A path as short as it can be and still be opened from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def describe(value: object) -> str:
    """A value for a message: ``'abc' (str)``, ``null``, ``a list``."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null"
    return f"{str(value).lower() if isinstance(value, bool) else repr(value)} ({type(value).__name__})"


@dataclass
class _Reader:
    loader: Any
    label: str
    problems: list[Problem] = field(default_factory=list)

    def build(self, node: yaml.Node, line: int | None = None) -> Node:
        where = f"{self.label}:{(node.start_mark.line if line is None else line) + 1}"
        if not isinstance(node, yaml.ScalarNode) and not node.tag.endswith((":map", ":seq")):
            raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag!r} is not allowed", node.start_mark)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.build(item) for item in node.value], where)
        if isinstance(node, yaml.MappingNode):
            return Node(self._mapping(node), where)
        return Node(self.loader.construct_object(node, deep=True), where)

    def _mapping(self, node: yaml.MappingNode) -> dict[Any, Node]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            line, key = key_node.start_mark.line, self._key(key_node)
            if key in lines:
                place = f"{self.label}:{line + 1}"
                self.problems.append(Problem(place, f"{key!r} is given twice, first in line {lines[key] + 1}; keep one"))
            lines.setdefault(key, line)
        self.loader.flatten_mapping(node)  # `<<: *anchor`: puts the merged keys first, so that later ones win
        return {self._key(key): self.build(value, key.start_mark.line) for key, value in node.value}

    def _key(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be one word", node.start_mark)
        return node.value if node.tag.endswith(":merge") else self.loader.construct_object(node, deep=True)


def _syntax_problem(error: yaml.YAMLError, text: str, label: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return Problem(label, f"not valid YAML: {error}")
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return Problem(f"{label}:{mark.line + 1}", "a tab; YAML is indented with spaces only")
    context = getattr(error, "context", None)
    said = ", ".join(part for part in (context, getattr(error, "problem", None)) if part)
    return Problem(f"{label}:{mark.line + 1}", f"not valid YAML: {said}")

"""``${trainer.default_root_dir}`` and ``${oc.env:NAME,default}`` in a composed configuration, as OmegaConf resolves them later."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Sequence
from typing import Any

from genlab.annotations import ANY, Kind, group
from genlab.config.composing import Composed
from genlab.config.fields import ROOT, class_named, class_path_of, fields_at, is_spec, root_fields
from genlab.config.reading import Node, read_value
from genlab.errors import UserError
from genlab.nearest import did_you_mean, nearest

_INNERMOST = re.compile(r"(?<!\\)\$\{([^${}]*)\}")
_RESOLVERS = ("oc.env", "oc.select", "oc.decode", "oc.create", "oc.deprecated", "oc.dict.keys", "oc.dict.values")
Keys = tuple[str | int, ...]


def interpolate(value: Any, composed: Composed, path: Keys = ()) -> Any:
    """A value with its interpolations replaced; a string that is one interpolation takes the type of what it names.

    A key that was not written has the default of its class, as it will have when the run starts.

    Args:
        path: Where the value stands, for relative interpolations such as ``${.lr}``.

    Raises:
        UserError: A key that does not exist, an unset variable without default, or a circle.
    """
    return _Resolver(composed).resolve(value, path)


def interpolation_problems(value: str, composed: Composed, path: Keys) -> list[str]:
    """What ``interpolate`` would raise: a message for each interpolation of the string that fails."""
    resolver = _Resolver(composed, failures=[])
    resolver.resolve(value, path)
    return resolver.failures or []


class _Resolver:
    def __init__(self, composed: Composed, failures: list[str] | None = None) -> None:
        self.composed, self.failures = composed, failures  # a list collects messages, None raises the first
        self.open: list[str] = []  # what is being resolved, outermost first

    def resolve(self, value: Any, path: Keys) -> Any:
        if isinstance(value, dict):
            return {key: self.resolve(entry, (*path, key)) for key, entry in value.items()}
        if isinstance(value, list):
            return [self.resolve(entry, (*path, index)) for index, entry in enumerate(value)]
        if not isinstance(value, str):
            return value
        while match := _INNERMOST.search(value):  # the innermost first: `${oc.env:DATA,${run.root}}`
            try:
                result = self._evaluate(match[1].strip(), path)
            except UserError as error:
                if self.failures is None:
                    raise
                self.failures.append(str(error))
                result = ""
            if match[0] == value:
                return result
            value = value[: match.start()] + str(result) + value[match.end() :]
        return value.replace("\\${", "${")

    def _evaluate(self, expression: str, path: Keys) -> Any:
        name, colon, arguments = expression.partition(":")
        if not colon:
            return self._reference(expression, path)
        if name not in _RESOLVERS:
            raise UserError(f"${{{expression}}}: there is no resolver {name!r}{did_you_mean(name, _RESOLVERS)}")
        first, comma, rest = arguments.partition(",")
        if name == "oc.env":
            variable = first.strip()
            if variable in os.environ:
                return os.environ[variable]
            if not comma:
                raise UserError(
                    f"${{{expression}}}: the environment variable {variable} is not set. Set it, or write ${{oc.env:{variable},DEFAULT}}"
                )
            return rest.strip().strip("'\"")
        if name == "oc.select":
            try:
                return self._reference(first.strip(), path)
            except UserError:
                return read_value(rest.strip(), "").plain if comma else None
        return read_value(arguments, "").plain if name == "oc.decode" else f"${{{expression}}}".replace("${", "\\${")

    def _reference(self, expression: str, path: Keys) -> Any:
        dots = len(expression) - len(expression.lstrip("."))
        keys = [key for key in re.split(r"[.\[\]]+", expression) if key]
        full: list[str | int] = [*path[: len(path) - dots], *keys] if dots else [*keys]
        name = ".".join(map(str, full))
        if name in self.open:
            circle = " -> ".join([*self.open[self.open.index(name) :], name])
            raise UserError(f"${{{expression}}} goes round in a circle: {circle}")
        found, value = lookup(self.composed.root, full)
        if not found:
            raise UserError(f"${{{expression}}}: there is no {name!r} in the configuration{self._near(name)}")
        self.open.append(name)
        result = self.resolve(value, tuple(full))
        self.open.pop()
        return result

    def _near(self, name: str) -> str:
        """The nearest key, whether written or a default; `model.lr` finds `model.init_args.lr`."""
        sections = {key: fields_at(field.kind) for key, field in root_fields().items()}
        defaults = [f"{key}.{entry}" for key, fields in sections.items() if fields for entry in fields.named]
        full = {key.replace(".init_args", ""): key for key in [*defaults, *self.composed.origins]}
        match = nearest(name.replace(".init_args", ""), full)
        return f"; did you mean {full[match]!r}?" if match else ""


def lookup(root: Node, keys: Sequence[str | int]) -> tuple[bool, Any]:
    """Whether there is a value at ``keys``, and the value; a key that was not written has its class's default."""
    node: Node | None = root
    kind, default = ROOT, "None"
    for key in keys:
        if node is not None and isinstance(node.value, list):
            if not str(key).isdigit() or int(key) >= len(node.value):
                return False, None
            holder = kind.first("list")
            node, kind = node.value[int(key)], holder.members[0] if holder else ANY
            continue
        known, default, inner = _known(node, kind, str(key))
        written = node.value.get(key) if node is not None and isinstance(node.value, dict) else None
        if written is None and not known:
            return False, None
        node, kind = written, inner
    if node is not None:
        return True, node.plain
    try:
        return True, ast.literal_eval(default)
    except (ValueError, SyntaxError):  # an expression, such as `Settings()`
        return True, default


def _known(node: Node | None, kind: Kind, key: str) -> tuple[bool, str, Kind]:
    """Whether ``key`` may stand below without being written, its default, and what is expected there."""
    if node is not None and is_spec(node.value):
        class_path = class_path_of(node)
        if key == "init_args" and class_path is not None:
            try:
                return True, "{}", group(class_named(class_path.value, kind))
            except UserError:  # the check names it
                pass
        return False, "None", ANY
    fields = fields_at(kind)
    field = fields.named.get(key) if fields else None
    if field is None:
        return False, "None", ANY
    return field.default is not None, field.default or "None", field.kind

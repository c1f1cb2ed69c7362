"""Whether a value fits where it stands: the walk that names every wrong key, class and type below a node."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from genlab.annotations import ANY, Kind
from genlab.config.fields import SPEC, Fields, class_named, fields_at, fields_of, is_class_position, is_spec
from genlab.config.reading import Node, Problem, describe, read_value
from genlab.errors import UserError
from genlab.nearest import nearest
from genlab.signatures import abstract_methods, derives_from
from genlab.source import Definition


def is_interpolated(value: object) -> bool:
    return isinstance(value, str) and "${" in value


def fits(kind: Kind, value: object) -> bool:
    """Whether a plain value is one that ``kind`` takes; quoted numbers are numbers, as for jsonargparse."""
    return any(_fits_one(alternative, value) for alternative in kind.alternatives())


def _fits_one(kind: Kind, value: object) -> bool:
    if kind.name in ("str", "path"):
        return isinstance(value, str)
    if kind.name == "literal":
        return any(type(choice) is type(value) and choice == value for choice in kind.choices) or (
            isinstance(value, str) and not isinstance(read := _read(value), str) and read in kind.choices
        )
    value = _read(value) if isinstance(value, str) and kind.name in ("bool", "int", "float") else value
    if kind.name == "bool":
        return isinstance(value, bool)
    if kind.name in ("int", "float"):
        return isinstance(value, int if kind.name == "int" else (int, float)) and not isinstance(value, bool)
    return kind.name == "any" or (kind.name == "none" and value is None)


def _read(text: str) -> object:
    return read_value(text, "").plain


def value_problems(node: Node, kind: Kind, path: str, given: Collection[str] = ()) -> list[Problem]:
    """Everything wrong with a value and below it.

    Args:
        path: Its dotted key, for the messages.
        given: Dotted keys that are filled elsewhere, hence not missing.
    """
    value = node.value
    if is_interpolated(value):
        return []
    if isinstance(value, dict):
        return _mapping_problems(node, kind, path, given)
    if isinstance(value, list):
        return _list_problems(node, kind, path, given)
    if fits(kind, value):
        return []
    if isinstance(value, str) and is_class_position(kind):  # a bare class path
        return list(spec_problems(Node({"class_path": node}, node.where), kind, path, given))
    return [Problem(node.where, f"{path} is {describe(value)}{_near_choice(kind, value) or f', expected {kind}'}")]


def _mapping_problems(node: Node, kind: Kind, path: str, given: Collection[str]) -> list[Problem]:
    fields = fields_at(kind)
    if is_spec(node.value) or (is_class_position(kind) and fields is None):
        return list(spec_problems(node, kind, path, given))
    if fields is not None:
        return list(key_problems(node, fields, path, given))
    if inner := kind.first("dict"):
        return [problem for key, entry in node.value.items() for problem in value_problems(entry, inner.members[0], f"{path}.{key}", given)]
    if kind.first("any"):
        return [problem for key, entry in node.value.items() for problem in value_problems(entry, ANY, f"{path}.{key}", given)]
    return [Problem(node.where, f"{path} is a mapping, expected {kind}")]


def _list_problems(node: Node, kind: Kind, path: str, given: Collection[str]) -> list[Problem]:
    attempts = [
        [
            problem
            for index, (item, item_kind) in enumerate(zip(node.value, items))
            for problem in value_problems(item, item_kind, f"{path}[{index}]", given)
        ]
        for alternative in kind.alternatives()
        if (items := _item_kinds(alternative, len(node.value))) is not None
    ]
    if not attempts:
        return [Problem(node.where, f"{path} is a list of {len(node.value)}, expected {kind}")]
    return min(attempts, key=len)


def _item_kinds(kind: Kind, count: int) -> list[Kind] | None:
    if kind.name == "tuple":
        return list(kind.members) if len(kind.members) == count else None
    if kind.name in ("list", "any"):
        return [kind.members[0] if kind.members else ANY] * count
    return None


def key_problems(node: Node, fields: Fields, path: str, given: Collection[str] = ()) -> Iterator[Problem]:
    """Unknown keys, wrong values, and required keys that are missing."""
    for key, entry in node.value.items():
        if key in fields.named:
            yield from value_problems(entry, fields.kind(key), f"{path}.{key}".lstrip("."), given)
        elif not fields.open:
            yield Problem(entry.where, unknown_key(str(key), fields, path))
    for key, field in fields.named.items():
        if field.required and key not in node.value and f"{path}.{key}" not in given:
            yield Problem(node.where, f"{fields.owner} needs {key!r}, which has no default: add {path}.{key}")


def unknown_key(key: str, fields: Fields, path: str) -> str:
    """``model.init_args has no 'lrr'; did you mean 'lr'?``, or what there is to choose from."""
    match = nearest(key, fields.named)
    owner = f"{path} ({fields.owner})" if path else fields.owner
    if match:
        return f"{owner} has no {key!r}; did you mean {match!r}?"
    return f"{owner} has no {key!r}; it takes {', '.join(fields.named) or 'nothing'}"


def spec_problems(node: Node, kind: Kind, path: str, given: Collection[str] = ()) -> Iterator[Problem]:
    """What is wrong with ``{class_path: ..., init_args: {...}}``."""
    for key, entry in node.value.items():
        if key not in SPEC and "class_path" in node.value:
            yield Problem(entry.where, f"{path}.{key} stands beside class_path; put it below init_args")
    class_node = node.value.get("class_path")
    if class_node is None:
        yield Problem(node.where, f"{path} has no class_path; it says which class these init_args are for")
        return
    if not isinstance(class_node.value, str):
        yield Problem(
            class_node.where, f"{path}.class_path is {describe(class_node.value)}, expected a class path such as package.module.Class"
        )
        return
    if is_interpolated(class_node.value):
        return
    try:
        definition = class_named(class_node.value, kind)
    except UserError as error:
        yield Problem(class_node.where, f"{path}.class_path: {error}")
        return
    if wrong := list(_class_problems(definition, class_node, kind, path)):
        yield from wrong  # its arguments would be another class's
    else:
        yield from _argument_problems(definition, node, kind, path, given)


def _class_problems(definition: Definition, class_node: Node, kind: Kind, path: str) -> Iterator[Problem]:
    if methods := abstract_methods(definition):
        missing = f"without {', '.join(methods[:3])}"
        yield Problem(class_node.where, f"{path}.class_path: {class_node.value} is abstract ({missing}); name a class that derives from it")
    wanted = [
        alternative.definition for alternative in kind.alternatives() if alternative.name in ("class", "group") and alternative.definition
    ]
    if wanted and not kind.first("callable", "any") and not any(derives_from(definition, ancestor) for ancestor in wanted):
        names = " or ".join(ancestor.name for ancestor in wanted)
        yield Problem(class_node.where, f"{path}.class_path: {class_node.value} is no {names}")


def _argument_problems(definition: Definition, node: Node, kind: Kind, path: str, given: Collection[str]) -> Iterator[Problem]:
    class_node, arguments = node.value.get("class_path"), node.value.get("init_args")
    place = class_node.where if class_node is not None else node.where
    if arguments is None or arguments.value is None:
        arguments = Node({}, place)
    if is_interpolated(arguments.value):
        return
    if not isinstance(arguments.value, dict):
        yield Problem(arguments.where, f"{path}.init_args is {describe(arguments.value)}, expected a mapping of arguments")
        return
    extra = node.value.get("dict_kwargs")
    known = {f"{path}.init_args.{key}" for key in extra.value} if extra is not None and isinstance(extra.value, dict) else set()
    fields = fields_of(definition)
    if kind.first("callable"):  # whoever calls it later gives the rest
        known |= {f"{path}.init_args.{key}" for key in fields.named}
    yield from key_problems(Node(arguments.value, place), fields, f"{path}.init_args", {*given, *known})


def _near_choice(kind: Kind, value: object) -> str:
    choices = [choice for alternative in kind.alternatives() for choice in alternative.choices if isinstance(choice, str)]
    match = nearest(value, choices) if isinstance(value, str) else None
    return f"; did you mean {match!r}?" if match else ""

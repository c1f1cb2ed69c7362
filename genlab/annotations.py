"""What a written annotation such as ``Literal["a", "b"] | None`` allows in a YAML file, read without evaluating it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from genlab.signatures import is_dataclass, mro
from genlab.source import Definition, Module, dotted_parts, resolve


@dataclass(frozen=True)
class Kind:
    """What an argument accepts.

    Args:
        name: ``any none bool int float str path``; ``literal`` (``choices``); ``union`` (``members``); ``list`` (one member, the item);
            ``tuple`` (a member per item); ``dict`` (one member, the value); ``group``: a mapping of the arguments of ``definition``, a
            dataclass; ``class``: ``class_path`` and ``init_args`` of a ``definition``; ``callable``: the same of anything.
    """

    name: str
    members: tuple[Kind, ...] = ()
    choices: tuple[object, ...] = ()
    definition: Definition | None = None

    def alternatives(self) -> Iterator[Kind]:
        """The members of a union, flat; of anything else, itself."""
        if self.name != "union":
            yield self
        for member in self.members if self.name == "union" else ():
            yield from member.alternatives()

    def first(self, *names: str) -> Kind | None:
        """The first alternative of one of these names."""
        return next((kind for kind in self.alternatives() if kind.name in names), None)

    def __str__(self) -> str:
        """As a reader would say it: ``int or null``."""
        kinds = list(dict.fromkeys(self._words()))
        if len(kinds) > 1:
            return f"{', '.join(kinds[:-1])} or {kinds[-1]}"
        return kinds[0]

    def _words(self) -> Iterator[str]:
        for kind in self.alternatives():
            if kind.name == "literal":
                yield from (repr(choice) if choice is not None else "null" for choice in kind.choices)
            elif kind.name == "class" and kind.definition is not None:
                yield f"the class_path of a {kind.definition.name}"
            elif kind.name == "tuple":
                yield f"a list of {len(kind.members)}"
            elif kind.name == "list":
                yield "a list" if kind.members[0].name == "any" else f"a list of {kind.members[0]}"
            else:
                yield _WORDS.get(kind.name, kind.name)


ANY = Kind("any")
NONE = Kind("none")
_WORDS = {"none": "null", "path": "a path", "dict": "a mapping", "group": "a mapping", "callable": "a class_path", "any": "anything"}
_PLAIN = {"bool": "bool", "int": "int", "float": "float", "str": "str", "None": "none", "Path": "path", "PathLike": "path", "_PATH": "path"}
_LISTS = {"list", "List", "Sequence", "MutableSequence", "Iterable", "Collection", "set", "Set", "frozenset", "FrozenSet", "deque"}
_DICTS = {"dict", "Dict", "Mapping", "MutableMapping", "OrderedDict", "defaultdict"}
_TRANSPARENT = {"Annotated", "Final", "ClassVar", "Required", "NotRequired"}
_ANY = {"Any", "object", "type", "Type", "timedelta", "datetime", "date", "Decimal", "complex", "bytes", "range", "UUID", "Tensor"}


@cache
def kind_of(annotation: str | None, module: Module) -> Kind:
    """What an annotation allows; ``any`` where there is none, or where the source does not tell what it means."""
    if annotation is None:
        return ANY
    try:
        return _read(ast.parse(annotation, mode="eval").body, module, 0)
    except SyntaxError:
        return ANY


def group(definition: Definition) -> Kind:
    return Kind("group", definition=definition)


def union(*kinds: Kind) -> Kind:
    return Kind("union", members=kinds) if len(kinds) > 1 else kinds[0]


def _read(node: ast.expr, module: Module, depth: int) -> Kind:
    if depth > 20:  # an alias that names itself
        return ANY
    if isinstance(node, ast.Constant):
        if node.value is None:
            return NONE
        if isinstance(node.value, str):
            return kind_of(node.value, module)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return union(_read(node.left, module, depth + 1), _read(node.right, module, depth + 1))
    if isinstance(node, ast.Subscript):
        return _subscript(node, module, depth)
    if isinstance(node, ast.Name | ast.Attribute):
        return _name(node, module, depth)
    return ANY


def _subscript(node: ast.Subscript, module: Module, depth: int) -> Kind:
    head = (dotted_parts(node.value) or [""])[-1]
    arguments = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if head == "Literal":
        return _literal(arguments, module)
    if head == "Optional":
        return union(_read(arguments[0], module, depth + 1), NONE)
    if head == "Union":
        return union(*(_read(argument, module, depth + 1) for argument in arguments))
    if head in _TRANSPARENT:
        return _read(arguments[0], module, depth + 1)
    if head in _LISTS:
        return Kind("list", (_read(arguments[0], module, depth + 1),))
    if head in ("tuple", "Tuple"):
        if len(arguments) == 2 and isinstance(arguments[1], ast.Constant) and arguments[1].value is Ellipsis:
            return Kind("list", (_read(arguments[0], module, depth + 1),))
        return Kind("tuple", tuple(_read(argument, module, depth + 1) for argument in arguments))
    if head in _DICTS:
        return Kind("dict", (_read(arguments[-1], module, depth + 1),))
    return _read(node.value, module, depth + 1)  # Callable[...], PathLike[str], a generic class


def _literal(arguments: list[ast.expr], module: Module) -> Kind:
    choices: list[object] = []
    for argument in arguments:
        try:
            choices.append(ast.literal_eval(argument))
        except ValueError:  # an enum member, or a name: not to be told from here
            return ANY
    return Kind("literal", choices=tuple(choices))


def _name(node: ast.Name | ast.Attribute, module: Module, depth: int) -> Kind:
    name = dotted_parts(node)[-1] if dotted_parts(node) else ""
    if name in _PLAIN:
        return Kind(_PLAIN[name])
    if name in _ANY:
        return ANY
    if name == "Callable":
        return Kind("callable")
    if name in _LISTS or name in ("tuple", "Tuple"):
        return Kind("list", (ANY,))
    if name in _DICTS:
        return Kind("dict", (ANY,))
    found = resolve(module, node)
    if not isinstance(found, Definition) or found.node is None:
        return ANY
    if isinstance(found.node, ast.ClassDef):
        return _class(found)
    return _read(found.node, found.module, depth + 1) if isinstance(found.node, ast.expr) else ANY


def _class(definition: Definition) -> Kind:
    assert isinstance(definition.node, ast.ClassDef)
    if is_dataclass(definition):
        return group(definition)
    written = {
        (dotted_parts(base) or [""])[-1]
        for entry in mro(definition)
        if entry and isinstance(entry.node, ast.ClassDef)
        for base in entry.node.bases
    }
    if written & {"Enum", "IntEnum", "StrEnum", "LightningEnum"}:  # given by the member's name
        members = [line.targets[0] for line in definition.node.body if isinstance(line, ast.Assign)]
        return union(Kind("literal", choices=tuple(member.id for member in members if isinstance(member, ast.Name))), Kind("str"))
    if written & {"TypedDict", "NamedTuple"}:
        return ANY
    if "Protocol" in written:
        return Kind("callable")
    return Kind("class", definition=definition)

"""What a class or function takes, read from its source: ``signature("lightning.pytorch.Trainer").parameters["max_epochs"]``.

The same answer as ``inspect.signature`` gives, but in milliseconds and without importing torch. Beyond it, ``**kwargs`` that a
constructor hands to its parent are replaced by the parent's parameters.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from genlab.errors import UserError
from genlab.source import Definition, Module, dotted_parts, locate, resolve

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Parameter:
    """One argument.

    Args:
        annotation: Its type as written, or None.
        default: Its default as written, or None where it has none.
        required: Whether it must be given.
        help: Its line in the docstring's ``Args:``, on one line.
        module: Where the annotation's names have their meaning.
        positional: Whether it can be given by position.
    """

    name: str
    annotation: str | None
    default: str | None
    required: bool
    help: str
    module: Module
    positional: bool = True


@dataclass(frozen=True)
class Signature:
    """What a class path takes.

    Args:
        parameters: By name, in order, without ``self``.
        open: Whether other names than these may be accepted: ``**kwargs`` that go where the source does not tell.
        help: First line of the docstring.
    """

    class_path: str
    parameters: dict[str, Parameter]
    open: bool = False
    help: str = ""


def signature(class_path: str) -> Signature:
    """The parameters of a class, function or ``Class.method``.

    Raises:
        UserError: There is no such module or name, or it is neither class nor function; names the nearest that exists.
    """
    return replace(signature_of(constructible(class_path)), class_path=class_path)


def constructible(class_path: str) -> Definition:
    """The class or function that a class path means.

    Raises:
        UserError: As ``signature``.
    """
    found = locate(class_path)
    if isinstance(found, Module):
        raise UserError(f"{class_path!r} is a module, no class: write {class_path}.NAME")
    if found.node is not None and not isinstance(found.node, ast.ClassDef | Function):
        raise UserError(f"{class_path!r} is neither a class nor a function")
    return found


@cache
def signature_of(definition: Definition) -> Signature:
    """``signature`` of what has been found already."""
    node, path = definition.node, f"{definition.module.name}.{definition.name}"
    if isinstance(node, ast.ClassDef):
        line = mro(definition)
        parameters, is_open = _constructor(line, 0)
        help_text = (ast.get_docstring(node) or "").split("\n")[0]
    elif isinstance(node, Function):
        parameters, is_open = _function(definition, node, bound=_is_method(definition, node)), node.args.kwarg is not None
        help_text = (ast.get_docstring(node) or "").split("\n")[0]
    else:  # compiled code
        return Signature(path, {}, open=True)
    return Signature(path, {parameter.name: parameter for parameter in parameters}, is_open, help_text)


def bases(definition: Definition) -> list[Definition | None]:
    """Direct base classes; None for one that the source does not tell."""
    assert isinstance(definition.node, ast.ClassDef)
    found: list[Definition | None] = []
    for base in definition.node.bases:
        expression = base.value if isinstance(base, ast.Subscript) else base
        if (dotted_parts(expression) or [""])[-1] in _EMPTY_BASES:
            continue
        target = resolve(definition.module, expression)
        found.append(target if isinstance(target, Definition) and isinstance(target.node, ast.ClassDef) else None)
    return found


@cache
def mro(definition: Definition) -> tuple[Definition | None, ...]:
    """Method resolution order (C3), ``object`` left out; None where an unknown class would stand."""
    parents = bases(definition)
    lines = [list(mro(parent)) if parent is not None else [None] for parent in parents]
    merged: list[Definition | None] = [definition]
    lines.append(list(parents))
    while lines := [line for line in lines if line]:
        head = next((line[0] for line in lines if not any(line[0] in other[1:] for other in lines)), lines[0][0])
        merged.append(head)
        lines = [[entry for entry in line if entry != head] for line in lines]
    return tuple(merged)


def derives_from(definition: Definition, ancestor: Definition) -> bool:
    """Whether a class has this ancestor. An unknown base, or a function, gets the benefit of the doubt."""
    if not isinstance(definition.node, ast.ClassDef) or definition == ancestor:
        return True
    written = [(dotted_parts(base) or [""])[-1] for base in definition.node.bases]
    if ancestor.name in written:  # spares reading the whole ancestry of a LightningModule
        return True
    return any(base is None or derives_from(base, ancestor) for base in bases(definition))


def is_dataclass(definition: Definition) -> bool:
    return isinstance(definition.node, ast.ClassDef) and _dataclass_options(definition.node) is not None


def abstract_methods(definition: Definition) -> list[str]:
    """Methods that keep a class from being built; empty for concrete classes."""
    if not isinstance(definition.node, ast.ClassDef):
        return []
    line = [entry.node for entry in mro(definition) if entry is not None]
    if not any(_forbids_abstract(node) for node in line if isinstance(node, ast.ClassDef)):
        return []
    left: dict[str, None] = {}
    for node in reversed(line):
        assert isinstance(node, ast.ClassDef)
        for statement in node.body:
            if isinstance(statement, Function) and any((_decorator(d) or "").startswith("abstract") for d in statement.decorator_list):
                left[statement.name] = None
            else:
                for name in _names_bound(statement):
                    left.pop(name, None)
    return list(left)


_EMPTY_BASES = {"object", "ABC", "Generic", "Protocol"}


def _forbids_abstract(node: ast.ClassDef) -> bool:
    written = [(dotted_parts(base) or [""])[-1] for base in node.bases]
    metaclass = [(dotted_parts(word.value) or [""])[-1] for word in node.keywords if word.arg == "metaclass"]
    return "ABC" in written or "ABCMeta" in metaclass


def _names_bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.ClassDef | Function):
        yield statement.name
    elif isinstance(statement, ast.Assign):
        yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
        yield statement.target.id


def _decorator(node: ast.expr) -> str | None:
    """Last part of a decorator's name: ``@dataclasses.dataclass(frozen=True)`` -> "dataclass"."""
    parts = dotted_parts(node.func if isinstance(node, ast.Call) else node)
    return parts[-1] if parts else None


def _is_method(definition: Definition, node: Function) -> bool:
    static = any(_decorator(decorator) == "staticmethod" for decorator in node.decorator_list)
    return "." in definition.name and not static


def _constructor(line: Sequence[Definition | None], start: int) -> tuple[list[Parameter], bool]:
    """What ``line[start]`` takes, and whether it takes more. ``line`` is a method resolution order."""
    for index in range(start, len(line)):
        definition = line[index]
        if definition is None:
            return [], True
        assert isinstance(definition.node, ast.ClassDef)
        function = _own_init(definition.node)
        if function is not None:
            return _with_forwarded(definition, function, line, index)
        options = _dataclass_options(definition.node)
        if options is not None and options.get("init", True):
            return _fields([entry for entry in line[index:] if entry is not None]), None in line[index:]
    return [], False


def _own_init(node: ast.ClassDef) -> Function | None:
    functions = [statement for statement in node.body if isinstance(statement, Function) and statement.name == "__init__"]
    return functions[-1] if functions else None


def _function(definition: Definition, node: Function, bound: bool) -> list[Parameter]:
    """Named parameters of a ``def``, without ``self`` where ``bound``."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    missing = len(positional) - len(arguments.defaults)
    defaults: list[ast.expr | None] = [*[None] * missing, *arguments.defaults]
    helps = argument_help(ast.get_docstring(node) or "")
    if isinstance(definition.node, ast.ClassDef):  # the constructor's own docstring, else the class's
        helps = {**argument_help(ast.get_docstring(definition.node) or ""), **helps}
    rows = [(argument, default, True) for argument, default in zip(positional, defaults)][1 if bound else 0 :]
    rows += [(argument, default, False) for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults)]
    return [
        Parameter(
            argument.arg,
            ast.unparse(argument.annotation) if argument.annotation else None,
            ast.unparse(default) if default is not None else None,
            default is None,
            helps.get(argument.arg, ""),
            definition.module,
            by_position,
        )
        for argument, default, by_position in rows
    ]


def _with_forwarded(
    definition: Definition, function: Function, line: Sequence[Definition | None], index: int
) -> tuple[list[Parameter], bool]:
    """An ``__init__``'s parameters, with those of the parent's that its ``**kwargs`` reach."""
    parameters = _function(definition, function, bound=True)
    if function.args.kwarg is None:
        return parameters, False
    name = function.args.kwarg.arg
    calls = [call for call in _calls(function) if any(word.arg is None and _is_name(word.value, name) for word in call.keywords)]
    is_open, forwarded = _used_otherwise(function, name, calls), False
    for call in calls:
        parent = _called_constructor(definition, call, line, index)
        if parent is None:
            is_open = True
            continue
        forwarded = True
        theirs, parent_open = parent
        explicit = [argument for argument in call.args if not isinstance(argument, ast.Starred)]
        skip = len(explicit) - (0 if _is_super_init(call) else 1)  # `Base.__init__(self, ...)` also passes self
        given = {word.arg for word in call.keywords} | {theirs_.name for theirs_ in [p for p in theirs if p.positional][:skip]}
        known = {parameter.name for parameter in parameters}
        parameters += [parameter for parameter in theirs if parameter.name not in given | known]
        is_open |= parent_open
    return parameters, is_open or not forwarded


def _calls(function: Function) -> list[ast.Call]:
    return [node for node in ast.walk(function) if isinstance(node, ast.Call)]


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_super_init(call: ast.Call) -> bool:
    owner = call.func.value if isinstance(call.func, ast.Attribute) and call.func.attr == "__init__" else None
    return isinstance(owner, ast.Call) and _is_name(owner.func, "super")


def _called_constructor(
    definition: Definition, call: ast.Call, line: Sequence[Definition | None], index: int
) -> tuple[list[Parameter], bool] | None:
    """What the parent's constructor called here takes, or None where it is something else that is called."""
    if _is_super_init(call):
        return _constructor(line, index + 1)
    if isinstance(call.func, ast.Attribute) and call.func.attr == "__init__":
        base = resolve(definition.module, call.func.value)
        if isinstance(base, Definition) and base in line:
            return _constructor(mro(base), 0)
    return None


def _used_otherwise(function: Function, name: str, calls: Sequence[ast.Call]) -> bool:
    """Whether ``**kwargs`` go anywhere but into these calls; guards such as ``if kwargs: raise TypeError`` do not count."""
    guards = [node for node in ast.walk(function) if isinstance(node, ast.If) and all(isinstance(line, ast.Raise) for line in node.body)]
    ignored = {id(node) for guard in guards for part in [guard.test, *guard.body] for node in ast.walk(part)}
    ignored |= {id(word.value) for call in calls for word in call.keywords if word.arg is None}
    return any(isinstance(node, ast.Name) and node.id == name and id(node) not in ignored for node in ast.walk(function))


def _dataclass_options(node: ast.ClassDef) -> dict[str, object] | None:
    """Keywords of the ``@dataclass`` decorator, or None for other classes."""
    for decorator in node.decorator_list:
        if _decorator(decorator) == "dataclass":
            words = decorator.keywords if isinstance(decorator, ast.Call) else []
            return {word.arg: word.value.value for word in words if word.arg and isinstance(word.value, ast.Constant)}
    return None


def _fields(line: Sequence[Definition]) -> list[Parameter]:
    """Fields of a dataclass in the order of its constructor: parents first, a redefined field keeps its place, keyword-only ones last."""
    found: dict[str, Parameter | None] = {}
    for definition in reversed(line):
        if not isinstance(definition.node, ast.ClassDef) or (options := _dataclass_options(definition.node)) is None:
            continue
        helps = argument_help(ast.get_docstring(definition.node) or "")
        keyword_only = options.get("kw_only") is True
        for statement in definition.node.body:
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                continue
            annotation, name = ast.unparse(statement.annotation), statement.target.id
            if re.match(r"(\w+\.)?ClassVar\b", annotation):
                continue
            if re.fullmatch(r"(\w+\.)?KW_ONLY", annotation):
                keyword_only = True
                continue
            default, settings = _field_default(statement.value)
            init_var = re.fullmatch(r"(?:\w+\.)?InitVar\[(.+)\]", annotation)
            by_position = not (keyword_only if settings.get("kw_only") is None else settings["kw_only"])
            parameter = Parameter(
                name, init_var[1] if init_var else annotation, default, default is None, helps.get(name, ""), definition.module, by_position
            )
            found[name] = parameter if settings.get("init", True) else None
    parameters = [parameter for parameter in found.values() if parameter is not None]
    return sorted(parameters, key=lambda parameter: not parameter.positional)


def _field_default(value: ast.expr | None) -> tuple[str | None, dict[str, object]]:
    """Default as source and the other settings of ``field(...)``."""
    if value is None:
        return None, {}
    if not isinstance(value, ast.Call) or _decorator(value) != "field":
        return ast.unparse(value), {}
    words = {word.arg: word.value for word in value.keywords if word.arg}
    settings: dict[str, object] = {name: word.value for name, word in words.items() if isinstance(word, ast.Constant)}
    if "default" in words:
        return ast.unparse(words["default"]), settings
    if "default_factory" in words:
        factory = words["default_factory"]
        return ast.unparse(factory.body) if isinstance(factory, ast.Lambda) else f"{ast.unparse(factory)}()", settings
    return None, settings


def argument_help(docstring: str) -> dict[str, str]:
    """Argument -> its description on one line, from a Google docstring's ``Args:`` (or ``Attributes:``)."""
    found: dict[str, list[str]] = {}
    margin, entry, current = -1, -1, ""
    for line in docstring.expandtabs().splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if margin < 0:
            if re.fullmatch(r"(Args|Arguments|Attributes|Parameters):", text):
                margin, entry, current = indent, -1, ""
            continue
        if text and indent <= margin:
            margin = -1
            if re.fullmatch(r"(Args|Arguments|Attributes|Parameters):", text):
                margin, entry, current = indent, -1, ""
            continue
        entry = indent if text and entry < 0 else entry
        heading = re.match(r"\**(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)", text) if indent == entry else None
        if heading:
            current = heading[1]
            found[current] = [heading[2]]
        elif current and text:
            found[current].append(text)
    return {name: " ".join(lines).strip() for name, lines in found.items()}

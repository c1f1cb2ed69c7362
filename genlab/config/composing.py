"""Several YAML files and the command line become one configuration, merged as LightningCLI (jsonargparse) merges them.

Later ones win and mappings are merged, where these rules go beyond that:

- A new ``class_path`` drops those earlier ``init_args`` that the new class does not have, or has with another type.
- Lists are replaced, except that a list of classes of the same length keeps the earlier arguments of a class at the same place. ``key+``
  appends instead, and a dotted key such as ``--trainer.callbacks.monitor`` changes the last item.
- A mapping for a ``dict`` argument is replaced by a file and extended by a dotted key.
- ``model.lr`` is short for ``model.init_args.lr``; a class path alone stands for ``{class_path: ...}``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from genlab.annotations import ANY, Kind
from genlab.config.experiments import find_config
from genlab.config.fields import ROOT, SPEC, class_named, class_path_of, fields_at, fields_of, implied_class, is_class_position, is_spec
from genlab.config.reading import BrokenConfig, Node, read_file, read_value, write_text
from genlab.config.values import fits, value_problems
from genlab.errors import MissingPath, UserError
from genlab.source import Definition


@dataclass(frozen=True)
class Composed:
    """A merged configuration.

    Args:
        root: The tree, in which every value knows where it was written.
        files: The files it came from, as they were found.
    """

    root: Node
    files: tuple[Path, ...] = ()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as plain values."""
        plain: dict[str, Any] = self.root.plain
        return plain

    @property
    def yaml(self) -> str:
        """The configuration as one YAML file, which means to LightningCLI what the files and the command line mean together."""
        return write_text(self.config)

    @cached_property
    def origins(self) -> dict[str, str]:
        """Dotted key (``trainer.callbacks.0.class_path``) -> ``file.yaml:3`` or ``command line: --key``."""
        return {".".join(map(str, path)): node.where for path, node in self.root.walk() if path}

    def get(self, dotted: str, default: Any = None) -> Any:
        """The value at a dotted key, or ``default`` where it was not written. Interpolations stay as they are."""
        node = self.root
        for key in dotted.split("."):
            if isinstance(node.value, list) and key.isdigit() and int(key) < len(node.value):
                node = node.value[int(key)]
            elif isinstance(node.value, dict) and key in node.value:
                node = node.value[key]
            else:
                return default
        return node.plain


def compose(paths: Sequence[str | Path], overrides: Sequence[tuple[str, str]] = ()) -> Composed:
    """Merges configuration files, then command line values.

    Args:
        paths: Files, or names of shipped experiments (see ``find_config``); later ones win.
        overrides: Key and value as typed, such as ``("model.lr", "1e-4")`` or ``("trainer.callbacks+", "Timer")``. Values are read as YAML.

    Raises:
        UserError: Files that are missing or no configuration; all of them in one message.
    """
    trees, files, broken, missing = [], [], [], []
    for path in paths:
        try:
            files.append(find_config(path))
            trees.append(read_file(files[-1]))
        except MissingPath as error:
            missing.append(str(error))
        except BrokenConfig as error:
            broken += error.problems
    if missing and not broken:
        raise MissingPath("\n".join(missing))
    if broken:
        raise UserError("\n".join([*missing, *map(str, broken)]))
    root = Node({}, "nowhere")
    for tree in [*trees, *(_override(key, text) for key, text in overrides)]:
        root = merge(root, tree, ROOT)
    return Composed(root, tuple(files))


def _override(key: str, text: str) -> Node:
    """``("model.lr", "1")`` -> {model: {lr: 1}}."""
    key = key.removeprefix("--")
    where = f"command line: --{key}"
    node = read_value(text, where)
    for part in reversed(key.split(".")):
        node = Node({part: node}, where, dotted=True)
    return node


def merge(old: Node | None, new: Node, kind: Kind) -> Node:
    """``new`` over ``old`` at a place where ``kind`` is expected."""
    new = _settled(new, kind)
    if old is not None and isinstance(old.value, list) and new.dotted and old.value:
        return Node([*old.value[:-1], merge(old.value[-1], new, _item_kind(kind))], old.where)
    if isinstance(new.value, list):
        return _merge_lists(old, new, _item_kind(kind))
    if isinstance(new.value, str) and is_class_position(kind) and not fits(kind, new.value) and "${" not in new.value:
        return _merge_specs(old, new, kind)
    if not isinstance(new.value, dict):
        return new
    fields = fields_at(kind)
    if is_spec(new.value) or (fields is None and (is_class_position(kind) or (old is not None and is_spec(old.value)))):
        return _merge_specs(old, new, kind)
    if fields is not None:
        return _merge_keys(old, new, fields.kind)
    values = kind.first("dict")  # its values are of one kind; a file replaces the whole mapping
    return _merge_keys(old if new.dotted else None, new, lambda _: values.members[0] if values else ANY)


def _settled(node: Node, kind: Kind) -> Node:
    """The string that was typed, where it reads as something else (``--run.name 42``) and only a string is expected."""
    if node.text is None or isinstance(node.value, str) or not fits(kind, node.text) or kind.first("any"):
        return node
    if isinstance(node.value, dict | list):
        keep = kind.first("list", "tuple") if isinstance(node.value, list) else kind.first("dict", "group", "class", "callable")
    else:
        keep = kind if fits(kind, node.value) else None
    return node if keep else Node(node.text, node.where, node.text)


def _merge_keys(old: Node | None, new: Node, kind_at: Callable[[str], Kind]) -> Node:
    merged: dict[Any, Node] = dict(old.value) if old is not None and isinstance(old.value, dict) else {}
    for key, entry in new.value.items():
        if isinstance(key, str) and key.endswith("+"):
            base = key[:-1]
            merged[base] = _appended(merged.get(base), entry, kind_at(base))
        else:
            merged[key] = merge(merged.get(key), entry, kind_at(key))
    return Node(merged, old.where if old is not None and merged.keys() != new.value.keys() else new.where)


def _item_kind(kind: Kind) -> Kind:
    holder = kind.first("list")
    return holder.members[0] if holder else ANY


def _merge_lists(old: Node | None, new: Node, item: Kind) -> Node:
    earlier: list[Any] = [None] * len(new.value)
    if old is not None and isinstance(old.value, list) and len(old.value) == len(new.value):
        earlier = old.value
    keeps = item.first("class", "callable", "group") is not None
    return Node([merge(before if keeps else None, after, item) for before, after in zip(earlier, new.value)], new.where, new.text)


def _appended(old: Node | None, new: Node, kind: Kind) -> Node:
    before = old.value if old is not None and isinstance(old.value, list) else [] if old is None or old.value is None else [old]
    added = new.value if isinstance(new.value, list) else [new]
    return Node([*before, *(merge(None, entry, _item_kind(kind)) for entry in added)], new.where)


def _as_spec(node: Node, over: Node | None, kind: Kind) -> Node:
    """``Class`` and ``{lr: 1}`` written out as ``{class_path: Class}`` and ``{init_args: {lr: 1}}``."""
    if isinstance(node.value, str):
        return Node({"class_path": node}, node.where)
    if any(key in SPEC for key in node.value):
        return node
    spec = {"init_args": node}
    if not (over is not None and is_spec(over.value)) and (implied := implied_class(kind)):
        spec["class_path"] = Node(implied, node.where)
    return Node(spec, node.where)


def _merge_specs(old: Node | None, new: Node, kind: Kind) -> Node:
    usable = old is not None and (isinstance(old.value, dict) or (isinstance(old.value, str) and not fits(kind, old.value)))
    old = _as_spec(old, None, kind) if old is not None and usable else None
    new = _as_spec(new, old, kind)
    before, after = class_path_of(old), class_path_of(new)
    definition = _class(after or before, kind)
    merged: dict[Any, Node] = {
        **(old.value if old is not None else {}),
        **{key: node for key, node in new.value.items() if key != "init_args"},
    }
    arguments = merged.get("init_args")
    changed = before is not None and after is not None and _class(before, kind) != definition
    fields = fields_of(definition) if definition else None
    if changed and fields and arguments is not None and isinstance(arguments.value, dict):
        keep = {
            key: node
            for key, node in arguments.value.items()
            if (key in fields.named or fields.open) and not value_problems(node, fields.kind(key), "")
        }
        arguments = Node(keep, arguments.where)
    theirs = new.value.get("init_args")
    if theirs is not None and isinstance(theirs.value, dict):
        arguments = _merge_keys(arguments, theirs, fields.kind if fields else lambda _: ANY)
    elif theirs is not None:
        arguments = theirs
    if arguments is not None:
        merged["init_args"] = arguments
    if changed and "dict_kwargs" not in new.value:
        merged.pop("dict_kwargs", None)
    return Node(
        dict(sorted(merged.items(), key=lambda item: SPEC.index(item[0]) if item[0] in SPEC else 9)),
        new.where if after else (old or new).where,
    )


def _class(class_path: Node | None, kind: Kind) -> Definition | None:
    """The class, or None where it cannot be told; ``check`` says why."""
    if class_path is None:
        expected = kind.first("class")
        return expected.definition if expected else None
    try:
        return class_named(class_path.value, kind)
    except UserError:
        return None

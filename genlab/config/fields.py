"""Which keys may stand where: the arguments of the class, dataclass or Trainer that a mapping in the configuration describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from genlab.annotations import ANY, NONE, Kind, group, kind_of, union
from genlab.config.reading import Node
from genlab.errors import UserError
from genlab.signatures import Parameter, abstract_methods, constructible, signature, signature_of
from genlab.source import Definition

SPEC = ("class_path", "init_args", "dict_kwargs")
ROOT = Kind("root")
TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
SUBCOMMANDS = ("fit", "validate", "test", "predict")
_BUILT = {"self", "model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule"}  # what the door passes itself


@dataclass(frozen=True)
class Field:
    """One key of a mapping. ``default`` is source text, None where the key is required."""

    written: Kind | Parameter
    required: bool = False
    default: str | None = "None"

    @cached_property
    def kind(self) -> Kind:
        """What it takes; read only when asked for, since the Trainer's thirty annotations lead through as many files."""
        if isinstance(self.written, Kind):
            return self.written
        kind = kind_of(self.written.annotation, self.written.module)
        return union(kind, NONE) if self.default == "None" else kind


@dataclass(frozen=True)
class Fields:
    """The keys of a mapping; ``open`` ones take others as well."""

    owner: str
    named: Mapping[str, Field]
    open: bool = False

    def kind(self, key: str) -> Kind:
        return self.named[key].kind if key in self.named else ANY


def fields_of(definition: Definition) -> Fields:
    """The arguments of a class or function."""
    found = signature_of(definition)
    return Fields(definition.name, {name: _field(parameter) for name, parameter in found.parameters.items()}, found.open)


def fields_at(kind: Kind) -> Fields | None:
    """The keys of the mapping that a kind allows, or None where its keys are free (``dict``) or unknown."""
    if kind == ROOT:
        return Fields("the configuration", root_fields())
    inner = kind.first("group")
    return fields_of(inner.definition) if inner and inner.definition else None


@cache
def root_fields(subcommand: str | None = None) -> dict[str, Field]:
    """Top-level keys for one of fit, validate, test and predict; for all of them together where None."""
    found = {
        "seed_everything": Field(union(Kind("bool"), Kind("int")), default="0"),  # the door's default
        "model": Field(Kind("class", definition=constructible("lightning.pytorch.core.module.LightningModule")), required=True),
        "data": Field(union(Kind("class", definition=constructible("lightning.pytorch.core.datamodule.LightningDataModule")), NONE)),
        "trainer": Field(group(constructible(TRAINER))),
        "run": Field(group(constructible("genlab.results.RunSettings"))),
    }
    for name in [subcommand] if subcommand in SUBCOMMANDS else SUBCOMMANDS:
        own = signature(f"{TRAINER}.{name}").parameters.items()
        found |= {key: _field(parameter) for key, parameter in own if key not in _BUILT}
    return found


def class_named(class_path: str, kind: Kind) -> Definition:
    """The class that a ``class_path`` means where ``kind`` is expected; a bare ``ModelCheckpoint`` is one of Lightning's callbacks there.

    Raises:
        UserError: There is no such class; names the nearest.
    """
    expected = kind.first("class")
    if "." not in class_path and expected and expected.definition:
        return constructible(f"{_home(expected.definition)}.{class_path}")
    if "." not in class_path:
        raise UserError(f"{class_path!r} is no class path; write MODULE.{class_path}")
    return constructible(class_path)


def implied_class(kind: Kind) -> str | None:
    """The annotated class itself, for ``head: {width: 3}``; but not an empty framework base such as LightningModule."""
    expected = kind.first("class")
    definition = expected.definition if expected else None
    if definition is None or definition.module.name.startswith(("lightning.", "torch.")) or abstract_methods(definition):
        return None
    return f"{definition.module.name}.{definition.name}"


def is_class_position(kind: Kind) -> bool:
    return kind.first("class", "callable") is not None


def is_spec(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value


def class_path_of(node: Node | None) -> Node | None:
    """The node of a specification's ``class_path``, where it is one."""
    entry = node.value.get("class_path") if node is not None and is_spec(node.value) else None
    return entry if entry is not None and isinstance(entry.value, str) else None


def _home(definition: Definition) -> str:
    """Where the short names of a class's children are looked for: ``lightning.pytorch.callbacks`` for a ``Callback``."""
    parts = definition.module.name.split(".")
    return ".".join(parts[:3]) if parts[:2] == ["lightning", "pytorch"] else definition.module.name


def _field(parameter: Parameter) -> Field:
    return Field(parameter, parameter.required, parameter.default)

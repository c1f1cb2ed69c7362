"""Signatures read from source say what ``inspect.signature`` says of the imported class."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from genlab.errors import UserError
from genlab.signatures import Signature, abstract_methods, argument_help, bases, constructible, signature
from genlab.source import locate

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
REAL = [
    "lightning.pytorch.Trainer",
    "lightning.pytorch.trainer.trainer.Trainer",
    "lightning.pytorch.trainer.trainer.Trainer.fit",
    "lightning.LightningModule",
    "lightning.LightningDataModule",
    "lightning.pytorch.demos.boring_classes.BoringModel",
    "lightning.pytorch.demos.boring_classes.BoringDataModule",
    "genlab.results.RunSettings",
    "genlab.training.randomness.keyed_rng",
    "torch.utils.data.DataLoader",
]
PACKAGES = ["lightning.pytorch.callbacks", "lightning.pytorch.loggers", "lightning.pytorch.strategies", "torch.optim", "torch.nn"]


def _class_paths_in(value: Any) -> set[str]:
    """Every full class path of a YAML file's values."""
    if isinstance(value, dict):
        own = {value["class_path"]} if "." in str(value.get("class_path", "")) else set()
        return own.union(*(_class_paths_in(entry) for entry in value.values()))
    return set().union(*(_class_paths_in(entry) for entry in value)) if isinstance(value, list) else set()


def _shipped_class_paths() -> list[str]:
    return sorted(set().union(*(_class_paths_in(yaml.safe_load(path.read_text())) for path in EXPERIMENTS.rglob("*.yaml"))))


def _imported(class_path: str) -> Any:
    """The object itself, for comparison."""
    parts, found = class_path.split("."), None
    for part in parts:
        found = getattr(found, part, None) if found is not None and hasattr(found, part) else None
        found = found if found is not None else importlib.import_module(".".join(parts[: parts.index(part) + 1]))
    return found


def _written(source: str | None) -> str | None:
    return ast.unparse(ast.parse(source, mode="eval")) if source is not None else None


def _assert_same_as_inspect(class_path: str, found: Signature) -> None:
    target = _imported(class_path)
    try:
        real = inspect.signature(target)
    except ValueError:
        return  # compiled: inspect cannot tell either
    parameters = {
        name: parameter
        for name, parameter in real.parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    forwards = any(parameter.kind == parameter.VAR_KEYWORD for parameter in real.parameters.values())
    assert list(found.parameters)[: len(parameters)] == list(parameters)
    assert forwards or (len(found.parameters) == len(parameters) and not found.open)
    for name, parameter in parameters.items():
        assert found.parameters[name].required == (parameter.default is parameter.empty), name
        if isinstance(parameter.default, bool | int | float | str | None):
            try:
                value = ast.literal_eval(found.parameters[name].default or "")
            except (ValueError, SyntaxError):  # a constant's name
                continue
            assert value == parameter.default, name


def _public_classes(package: str) -> list[str]:
    module = importlib.import_module(package)
    classes = {name: entry for name, entry in vars(module).items() if inspect.isclass(entry) and not name.startswith("_")}
    written = Path(str(module.__file__)).read_text()  # lightning._graveyard puts others in at run time
    return [f"{package}.{name}" for name, entry in classes.items() if name in written or package == "torch.nn"]


@pytest.mark.parametrize("class_path", [*REAL, *_shipped_class_paths()])
def test_agrees_with_inspect(class_path: str) -> None:
    _assert_same_as_inspect(class_path, signature(class_path))


@pytest.mark.parametrize("package", PACKAGES)
def test_agrees_with_inspect_for_whole_packages(package: str) -> None:
    for class_path in _public_classes(package):
        if _own_metaclass(_imported(class_path)):
            continue
        try:
            found = signature(class_path)
        except UserError as error:
            pytest.fail(str(error))
        _assert_same_as_inspect(class_path, found)


def _own_metaclass(target: type) -> bool:
    """Whether calling it is not a plain constructor call: enums, named tuples, classes with a ``__new__`` of their own."""
    return "__new__" in {name for entry in target.__mro__[:-1] for name in vars(entry)} or not inspect.getmodule(target)


@pytest.mark.slow
def test_accepts_what_lightning_cli_accepts() -> None:
    """Keys that jsonargparse finds, ``**kwargs`` followed, are all known or the signature is open."""
    from jsonargparse import ArgumentParser

    for class_path in [path for package in PACKAGES[:4] for path in _public_classes(package)]:
        target = _imported(class_path)
        if inspect.isabstract(target) or _own_metaclass(target):
            continue
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(target, "x", fail_untyped=False)
        keys = {action.dest.split(".")[1] for action in parser._actions if action.dest.startswith("x.")}
        found = signature(class_path)
        assert found.open or keys <= set(found.parameters), class_path


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes modules into a folder on the Python path: ``write("pkg/mod.py", source)``."""
    monkeypatch.syspath_prepend(tmp_path)

    def _write(name: str, source: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))

    return _write


def test_follows_reexports_and_runs_nothing(write: Any) -> None:
    write("sig_pkg/__init__.py", "from .inner import Renamed as Public\nfrom .stars import *\nraise SystemExit('imported')\n")
    write("sig_pkg/inner.py", "from sig_pkg.deep.module import Real as Renamed\nraise SystemExit('imported')\n")
    write("sig_pkg/deep/module.py", "class Real:\n    def __init__(self, width: int, *, depth: 'int | None' = None): ...\n")
    write("sig_pkg/stars.py", "class Starred:\n    '''One line.\n\n    More.\n    '''\n    def __init__(self, a=1): ...\n")
    found = signature("sig_pkg.Public")
    assert [(p.name, p.annotation, p.default, p.required) for p in found.parameters.values()] == [
        ("width", "int", None, True),
        ("depth", "'int | None'", "None", False),
    ]
    assert signature("sig_pkg.Starred").help == "One line."
    assert list(signature("sig_pkg.Starred").parameters) == ["a"]


def test_kwargs_are_replaced_by_the_parents_parameters(write: Any) -> None:
    write(
        "sig_kwargs.py",
        """
        from unknown_library import Far

        class Base:
            def __init__(self, first, size: int = 1, name: str = "x"): ...

        class Middle(Base):
            def __init__(self, extra=0, **kwargs):
                super().__init__(3, name="fixed", **kwargs)

        class Guarded(Middle):
            def __init__(self, own=1, **kwargs):
                if kwargs.keys() - {"size"}:
                    raise TypeError("no")
                Middle.__init__(self, **kwargs)

        class Keeps(Base):
            def __init__(self, **kwargs):
                self.kept = kwargs

        class Beyond(Far):
            def __init__(self, a=1, **kwargs):
                super().__init__(**kwargs)

        class Silent(Middle):
            pass

        class Left(Base):
            def __init__(self, left=0, **kwargs):
                super().__init__(**kwargs)

        class Right(Base):
            def __init__(self, right=0, **kwargs):
                super().__init__(**kwargs)

        class Diamond(Left, Right):
            pass
        """,
    )
    assert list(signature("sig_kwargs.Middle").parameters) == ["extra", "size"]
    assert list(signature("sig_kwargs.Guarded").parameters) == ["own", "extra", "size"]
    assert not signature("sig_kwargs.Guarded").open
    assert signature("sig_kwargs.Keeps").open
    assert signature("sig_kwargs.Beyond").open
    assert list(signature("sig_kwargs.Silent").parameters) == ["extra", "size"]
    assert list(signature("sig_kwargs.Diamond").parameters) == ["left", "right", "first", "size", "name"]


def test_dataclasses(write: Any) -> None:
    write(
        "sig_data.py",
        """
        from __future__ import annotations
        import dataclasses
        from dataclasses import dataclass, field
        from typing import ClassVar

        @dataclass(frozen=True)
        class Base:
            '''A group.

            Args:
                size: Width in pixels,
                    at most 512.
                kind (str): Which one.
            '''
            size: int = 4
            kind: str = "a"
            shared: ClassVar[int] = 3
            _: dataclasses.KW_ONLY
            late: bool = False

        @dataclass(frozen=True)
        class Child(Base):
            parts: list[int] = field(default_factory=list)
            hidden: int = field(default=2, init=False)
            kind: str = "b"
        """,
    )
    found = signature("sig_data.Child")
    _assert_same_as_inspect("sig_data.Child", found)
    assert found.parameters["parts"].default == "list()"
    assert signature("sig_data.Base").parameters["size"].help == "Width in pixels, at most 512."
    assert signature("sig_data.Base").parameters["kind"].help == "Which one."


def test_help_of_the_trainer_is_read_from_its_constructor() -> None:
    assert signature("lightning.pytorch.Trainer").parameters["max_epochs"].help.startswith("Stop training once this number of epochs")


def test_argument_help_ends_with_the_section() -> None:
    assert argument_help("X.\n\nArgs:\n    a: One\n      more: yes.\n    b: Two.\n\nReturns:\n    c: no") == {
        "a": "One more: yes.",
        "b": "Two.",
    }


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("lightning.pytorch.callbacks.ModelCheckpiont", "did you mean 'ModelCheckpoint'?"),
        ("lightning.pytorch.callback.ModelCheckpoint", "did you mean 'callbacks'?"),
        ("genlb.methods.X", "did you mean 'genlab'?"),
        ("genlab.results", "is a module, no class"),
        ("lightning.pytorch.Trainer.fitt", "Trainer has no 'fitt'; did you mean 'fit'?"),
        ("genlab.results.__doc__", "has no '__doc__'"),
    ],
)
def test_names_the_nearest(wrong: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        signature(wrong)
    assert said in str(caught.value)


def test_a_module_with_a_syntax_error_is_named(write: Any) -> None:
    write("sig_broken.py", "class A:\n    def __init__(self:\n")
    with pytest.raises(UserError, match=r"sig_broken\.py:2: not valid Python"):
        signature("sig_broken.A")


def test_abstract_classes() -> None:
    assert abstract_methods(constructible("lightning.pytorch.loggers.Logger"))
    assert not abstract_methods(constructible("lightning.pytorch.loggers.CSVLogger"))
    assert not abstract_methods(constructible("lightning.pytorch.Callback"))


def test_bases_are_followed() -> None:
    names = [base.name for base in bases(constructible("lightning.pytorch.callbacks.ModelCheckpoint")) if base]
    assert names == ["Checkpoint"]
    assert locate("lightning.pytorch.callbacks").name == "lightning.pytorch.callbacks"

"""Configurations are merged as LightningCLI merges them, and every mistake is named with its place before torch is imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from genlab.config import Composed, check, compose, explain, find_config, interpolate
from genlab.config.reading import read_value
from genlab.errors import MissingPath, UserError

REPOSITORY = Path(__file__).parents[1]
MODULE = """
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

from lightning import LightningDataModule, LightningModule
from torch.optim import Optimizer


@dataclass(frozen=True)
class Mamba:
    '''Options.'''
    d_state: int = 16
    expand: float = 2.0


class Head:
    def __init__(self, width: int = 3, scale: float = 1.0) -> None: ...


class Wide(Head):
    def __init__(self, depth: int, width: int = 3) -> None: ...


class Base(ABC):
    @abstractmethod
    def run(self) -> None: ...


class Done(Base):
    def __init__(self, n: int = 1) -> None: ...
    def run(self) -> None: ...


class Net(LightningModule):
    def __init__(
        self,
        lr: float = 0.1,
        mamba: Mamba = Mamba(),
        options: Mamba | None = None,
        weights: dict[str, float] | None = None,
        name: str = "x",
        kind: Literal["linear", "mlp"] = "linear",
        sizes: list[int] | None = None,
        span: tuple[int, int] = (0, 1),
        head: Head | None = None,
        heads: list[Head] | None = None,
        base: Base | None = None,
        optimizer: Callable[[Iterable], Optimizer] | None = None,
        cache: Path | None = None,
        deep: bool = False,
    ) -> None:
        super().__init__()


class Other(LightningModule):
    def __init__(self, lr: float = 0.2, name: int = 3, extra: int = 1) -> None:
        super().__init__()


class Plain(LightningModule):
    pass


class Data(LightningDataModule):
    def __init__(self, root: str, num: int = 3) -> None:
        super().__init__()
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Writes a file of the test; the working folder is the test's own, with ``cfgmod`` (MODULE) on the Python path."""
    (tmp_path / "cfgmod.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def _write(name: str, text: str) -> str:
        (tmp_path / name).write_text(textwrap.dedent(text))
        return name

    return _write


NET = "model: {class_path: cfgmod.Net, init_args: {lr: 1e-3, weights: {p: 1.0}, mamba: {d_state: 8}}}\n"


def _said(composed: Composed, subcommand: str = "fit", **options: Any) -> list[str]:
    return [str(problem) for problem in check(composed, subcommand, **options)]


# Reading


SCALARS = """
1e-6 1E5 1. .5 -2.5e+3 1_000 1_0.5 0x1f 010 1:30 .inf -.inf .nan yes off null ~ 2024-01-01 1e 0.3 e5 '3' +1e3 12e03 1e-4.5 -.5e+3 1:30.5
"""


@pytest.mark.parametrize("text", SCALARS.split())
def test_scalars_mean_what_they_mean_to_jsonargparse(text: str) -> None:
    jsonargparse_loaders = pytest.importorskip("jsonargparse._loaders_dumpers")
    expected = yaml.load(text, Loader=jsonargparse_loaders.get_yaml_default_loader())
    assert repr(read_value(text, "").plain) == repr(expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a.yaml:1: the file is empty"),
        ("# nothing\n", "a.yaml:1: the file is empty"),
        ("- a\n- b\n", "a.yaml:1: the file holds a list"),
        ("model:\n\tlr: 3\n", "a.yaml:2: a tab"),
        ("model: {lr: 3\ntrainer: {}\n", "a.yaml:2: not valid YAML"),
        ("trainer:\n  max_epochs: 1\n  devices: 1\n  max_epochs: 2\n", "a.yaml:4: 'max_epochs' is given twice, first in line 2"),
        ("run: !!python/object:os.x {}\n", "a.yaml:1: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
    ],
)
def test_broken_files_are_named(write: Callable[[str, str], str], text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([write("a.yaml", text)])
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_broken_files_are_named_at_once(write: Callable[[str, str], str]) -> None:
    with pytest.raises(UserError) as caught:
        compose([write("a.yaml", ""), write("b.yaml", "x: 1\nx: 2\ny: 1\ny: 2\n"), "none.yaml"])
    assert [part in str(caught.value) for part in ("a.yaml:1", "b.yaml:2", "b.yaml:4", "none.yaml: no such")] == [True] * 4


def test_anchors_and_merge_keys(write: Callable[[str, str], str]) -> None:
    path = write("a.yaml", "run: &r {root: a}\ntrainer:\n  <<: {max_epochs: 3, devices: 1}\n  devices: 2\n")
    assert compose([path]).config["trainer"] == {"max_epochs": 3, "devices": 2}


# Finding


def test_shipped_experiments_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = sorted((REPOSITORY / "experiments").rglob("*.yaml"))
    if not shipped:
        pytest.skip("no experiments are shipped yet")
    name = shipped[0].relative_to(REPOSITORY / "experiments").as_posix()
    monkeypatch.chdir(tmp_path)
    for spelling in (f"experiments/{name}", name, name.removesuffix(".yaml"), str(shipped[0])):
        assert find_config(spelling).resolve() == shipped[0]
    with pytest.raises(MissingPath, match="did you mean experiments/"):
        find_config(name.removesuffix("a.yaml") + ".yaml")


def test_an_own_file_wins_and_a_misspelt_one_is_named(write: Callable[[str, str], str]) -> None:
    write("my_setting.yaml", NET)
    assert find_config("my_setting.yaml") == Path("my_setting.yaml")
    assert find_config("my_setting") == Path("my_setting.yaml")
    with pytest.raises(MissingPath, match=r"my_seting.yaml: no such configuration; did you mean my_setting.yaml\?"):
        find_config("my_seting.yaml")
    with pytest.raises(MissingPath, match="The folder nowhere does not exist"):
        find_config("nowhere/zzzzzz.yaml")


# Merging


def test_values_know_where_they_were_written(write: Callable[[str, str], str]) -> None:
    first = write("a.yaml", "model:\n  class_path: cfgmod.Net\n  init_args:\n    lr: 1e-3\n    name: a\n")
    second = write("b.yaml", "model:\n  init_args: {name: b}\n")
    composed = compose([first, second], [("model.mamba.d_state", "4")])
    assert composed.config == {"model": {"class_path": "cfgmod.Net", "init_args": {"lr": 1e-3, "name": "b", "mamba": {"d_state": 4}}}}
    assert composed.origins["model.init_args.lr"] == "a.yaml:4"
    assert composed.origins["model.init_args.name"] == "b.yaml:2"
    assert composed.origins["model.init_args.mamba.d_state"] == "command line: --model.mamba.d_state"
    assert composed.get("model.init_args.name") == "b"
    assert composed.get("model.init_args.nothing", 7) == 7


def test_the_composed_file_says_the_same(write: Callable[[str, str], str]) -> None:
    overrides = [("model.name", "'1e-3'"), ("model.lr", "1e-7"), ("model.cache", "2024-01-01"), ("model.weights", "{a: 1e5, b: .inf}")]
    composed = compose([write("a.yaml", NET)], overrides)
    assert compose([write("composed.yaml", composed.yaml)]).config == composed.config
    assert composed.get("model.init_args.name") == "1e-3"


OVERLAYS = {
    "net": NET + "trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {monitor: x}}]}\n",
    "args": "model: {init_args: {weights: {q: 2.0}, mamba: {expand: 3}}}\n"
    "trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {save_top_k: 2}}]}\n",
    "short": "model: {lr: 3e-2}\n",
    "other": "model: {class_path: cfgmod.Other, init_args: {extra: 5}}\n",
    "other_bare": "model: cfgmod.Other\n",
    "wide": "model: {init_args: {head: {class_path: cfgmod.Wide, init_args: {depth: 4}}}}\n",
    "head_args": "model: {init_args: {head: {init_args: {width: 9}}}}\n",
    "head": "model: {init_args: {head: {class_path: cfgmod.Head}}}\n",
    "implied": "model: {init_args: {head: {width: 7}, options: {expand: 9}}}\n",
    "append": "trainer: {callbacks+: [{class_path: EarlyStopping, init_args: {monitor: y}}]}\n",
    "append_one": "trainer: {callbacks+: {class_path: Timer}}\n",
    "replace_two": "trainer: {callbacks: [{class_path: Timer}, {class_path: RichProgressBar}]}\n",
    "named": "model: {init_args: {name: forty}}\n",
    "no_options": "model: {init_args: {options: null}}\n",
    "heads": "model: {init_args: {heads: [{class_path: cfgmod.Wide, init_args: {depth: 1}}, cfgmod.Head]}}\n",
    "data": "data: {class_path: cfgmod.Data, init_args: {root: a}}\n",
}
MERGES: list[tuple[list[str], list[tuple[str, str]]]] = [
    (["net", "args"], []),
    (["net", "short"], [("model.name", "42")]),
    (["net", "args", "other"], []),
    (["net", "named", "other"], []),
    (["net", "other_bare"], [("model.extra", "3")]),
    (["net"], [("model.lr", "5"), ("model", "cfgmod.Other")]),
    (["net", "wide", "head_args"], []),
    (["net", "wide", "head_args", "head"], []),
    (["net", "head", "implied"], [("model.head.width", "2")]),
    (["net", "wide"], [("model.head", "cfgmod.Head"), ("model.head.scale", "0.5")]),
    (["net", "append"], [("trainer.callbacks.patience", "9")]),
    (["net", "append", "append_one", "replace_two"], []),
    (["net", "replace_two", "append"], []),
    (["net"], [("trainer.callbacks+", "LearningRateMonitor"), ("trainer.callbacks+", "Timer"), ("trainer.callbacks.verbose", "false")]),
    (["net"], [("trainer.logger", "CSVLogger"), ("trainer.logger.save_dir", "q"), ("trainer.default_root_dir", "2024")]),
    (["net"], [("model.weights.r", "5"), ("model.mamba.d_state", "1"), ("model.options.d_state", "4")]),
    (["net"], [("model.weights", "{z: 1}"), ("model.mamba", "{expand: 4}"), ("model.init_args", "{lr: 3}")]),
    (["net"], [("model.sizes", "[1,2]"), ("model.sizes+", "3"), ("model", "{lr: 4}")]),
    (["net", "implied", "no_options"], []),
    (["net", "heads"], [("model.heads.width", "8")]),
    (["net", "data"], [("data.root", "7"), ("data.num", "4"), ("seed_everything", "3"), ("trainer.max_epochs", "2")]),
    (["net", "data"], [("run.name", "12"), ("run.root", "r"), ("run.allow_unreadable", "true"), ("ckpt_path", "last")]),
    (["net"], [("data", "cfgmod.Data"), ("data.root", "x"), ("trainer.num_nodes", "2"), ("trainer.strategy", "ddp")]),
    (["net"], [("trainer.strategy", "DDPStrategy"), ("trainer.precision", "16-mixed"), ("trainer.limit_train_batches", "0.5")]),
]


def _parse_with_lightning(paths: list[str], overrides: list[tuple[str, str]]) -> Any:
    """What LightningCLI makes of the same command line, without building anything."""
    import jsonargparse
    from lightning.pytorch.cli import LightningCLI

    from genlab.results import RunSettings

    class ParsesOnly(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_class_arguments(RunSettings, "run")

        def _parse_ckpt_path(self) -> None: ...

        def instantiate_classes(self) -> None: ...

        def _run_subcommand(self, subcommand: str) -> None: ...

    jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    arguments = ["fit", *(word for path in paths for word in ("-c", path)), *(f"--{key}={value}" for key, value in overrides)]
    options: dict[str, Any] = {"parser_mode": "omegaconf+", "exit_on_error": False}
    kwargs = options | {name: dict(options) for name in ("fit", "validate", "test", "predict")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["genlab", *arguments])
        cli = ParsesOnly(parser_kwargs=kwargs, auto_configure_optimizers=False, save_config_callback=None, seed_everything_default=0)
    config = cli.config["fit"].as_dict()
    return {key: value for key, value in config.items() if key != "config"}


@pytest.mark.slow
@pytest.mark.parametrize(("names", "overrides"), MERGES)
def test_merges_as_lightning_cli(write: Callable[[str, str], str], names: list[str], overrides: list[tuple[str, str]]) -> None:
    """One file with what was composed means to LightningCLI what the files and the command line mean."""
    paths = [write(f"{name}.yaml", OVERLAYS[name]) for name in names]
    composed = compose(paths, overrides)
    assert _said(composed) == []
    write("composed.yaml", composed.yaml)
    assert _parse_with_lightning(["composed.yaml"], []) == _parse_with_lightning(paths, overrides)


@pytest.mark.slow
def test_interpolation_on_the_command_line_reaches_lightning(write: Callable[[str, str], str]) -> None:
    """jsonargparse loses its way with ``--data.root '${run.root}/x'``; the composed file does not."""
    path = write("a.yaml", OVERLAYS["net"] + OVERLAYS["data"])
    composed = compose([path], [("data.root", "${run.root}/${model.init_args.lr}"), ("run.root", "r")])
    parsed = _parse_with_lightning([write("composed.yaml", composed.yaml)], [])
    assert parsed["data"]["init_args"]["root"] == "r/0.001"
    assert interpolate(composed.get("data.init_args.root"), composed) == "r/0.001"


@pytest.mark.slow
def test_a_saved_configuration_has_no_mistake(write: Callable[[str, str], str]) -> None:
    """``config.yaml`` of a run spells out every default, nulls included."""
    paths = [write(f"{name}.yaml", OVERLAYS[name]) for name in ("net", "args", "wide", "implied", "append", "data")]
    saved = yaml.safe_dump(_parse_with_lightning(paths, [("model.span", "[3, 4]")]))
    assert "span" in saved
    composed = compose([write("config.yaml", saved.replace("!!python/tuple", ""))])
    assert _said(composed) == []


REFUSED = [
    ("trainer.max_epok", "3"),
    ("trainer.max_epochs", "three"),
    ("trainer.callbacks", "[Timerr]"),
    ("trainer.callbacks", "[EarlyStopping]"),
    ("trainer.logger", "Logger"),
    ("trainer.precision", "15"),
    ("model", "cfgmod.Nett"),
    ("model", "cfgmod.Data"),
    ("model.lrr", "1"),
    ("model.lr", "fast"),
    ("model.mamba.dstate", "1"),
    ("model.mamba", "7"),
    ("model.kind", "mpl"),
    ("model.sizes", "[1, a]"),
    ("model.sizes", "3"),
    ("model.span", "[1, 2, 3]"),
    ("model.head", "cfgmod.Wide"),
    ("model.head", "cfgmod.Mamba"),
    ("model.base", "cfgmod.Base"),
    ("model.weights", "{a: b}"),
    ("model.deep", "3"),
    ("data", "cfgmod.Data"),
    ("seed_everything", "many"),
    ("verbose", "true"),
    ("max_epochs", "3"),
]


@pytest.mark.slow
@pytest.mark.parametrize("override", REFUSED)
def test_what_is_refused_lightning_cli_refuses(write: Callable[[str, str], str], override: tuple[str, str]) -> None:
    path = write("net.yaml", NET)
    said = _said(compose([path], [override]))
    assert len(said) == 1
    assert said[0].startswith(f"command line: --{override[0]}: ")
    with pytest.raises((Exception, SystemExit)):
        _parse_with_lightning([path], [override])


# Checking


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (("model.lrr", "1"), "model.init_args (Net) has no 'lrr'; did you mean 'lr'?"),
        (("model.zzz", "1"), "has no 'zzz'; it takes lr, mamba"),
        (("model", "cfgmod.Nett"), "model.class_path: 'cfgmod.Nett' does not exist: module 'cfgmod' has no 'Nett'; did you mean 'Net'?"),
        (("model", "cfgmd.Net"), "there is no module 'cfgmd'"),
        (("model", "cfgmod.Data"), "cfgmod.Data is no LightningModule"),
        (("model.kind", "mpl"), "model.init_args.kind is 'mpl' (str); did you mean 'mlp'?"),
        (("model.kind", "7"), "model.init_args.kind is 7 (int), expected 'linear' or 'mlp'"),
        (("model.lr", "fast"), "model.init_args.lr is 'fast' (str), expected float"),
        (("model.lr", "null"), "model.init_args.lr is null, expected float"),
        (("model.sizes", "[1, a]"), "model.init_args.sizes[1] is 'a' (str), expected int"),
        (("model.span", "[1, 2, 3]"), "expected a list of 2"),
        (("model.head", "cfgmod.Wide"), "Wide needs 'depth', which has no default: add model.init_args.head.init_args.depth"),
        (("model.base", "cfgmod.Base"), "cfgmod.Base is abstract (without run)"),
        (
            ("model.head", "{class_path: cfgmod.Head, width: 3}"),
            "model.init_args.head.width stands beside class_path; put it below init_args",
        ),
        (("trainer.callbacks", "[ModelCheckpiont]"), "did you mean 'ModelCheckpoint'?"),
        (("trainer.precision", "bf16-mixd"), "did you mean 'bf16-mixed'?"),
        (("trainers.max_epochs", "1"), "the configuration has no 'trainers'; did you mean 'trainer'?"),
        (("max_epochs", "1"), "'max_epochs' belongs below trainer: write trainer.max_epochs"),
        (("run.nme", "a"), "did you mean 'name'?"),
        (("model.name", "${trainer.default_rot_dir}"), "did you mean 'trainer.default_root_dir'?"),
        (("model.name", "${model.lr}"), "there is no 'model.lr' in the configuration; did you mean 'model.init_args.lr'?"),
        (("model.name", "${oc.env:GENLAB_NO_SUCH}"), "the environment variable GENLAB_NO_SUCH is not set"),
        (("model.name", "${oc.evn:HOME}"), "there is no resolver 'oc.evn'; did you mean 'oc.env'?"),
        (("model.name", "${model.init_args.name}"), "goes round in a circle"),
    ],
)
def test_one_mistake_one_message(write: Callable[[str, str], str], override: tuple[str, str], said: str) -> None:
    found = _said(compose([write("a.yaml", NET)], [override]))
    assert len(found) == 1
    assert said in found[0]
    assert found[0].startswith("command line: --")


def test_every_mistake_is_told_with_its_line(write: Callable[[str, str], str]) -> None:
    path = write(
        "a.yaml",
        """\
        seed_everything: one
        model:
          class_path: cfgmod.Net
          init_args:
            lrr: 1
            mamba:
              d_stat: 3
            heads:
            - {class_path: cfgmod.Wide}
        data:
          class_path: cfgmod.Data
          init_args: {num: 2.5}
        trainer:
          callbacks:
          - class_path: ModelCheckpoint
            init_args:
              monitr: x
          - class_path: EarlyStopping
          default_root_dir: ${run.rooot}/${oc.env:GENLAB_NO_SUCH}
        """,
    )
    composed = compose([path])
    lines = [problem.where for problem in check(composed, "fit")]
    assert lines == [f"a.yaml:{line}" for line in (1, 5, 7, 9, 12, 11, 17, 18, 19, 19)]
    message = explain(check(composed, "fit"))
    assert message.startswith("10 problems in the configuration; nothing was started.\n  a.yaml:1: seed_everything")


@pytest.mark.parametrize(
    "overrides",
    [
        [("model.optimizer", "{class_path: torch.optim.AdamW, init_args: {lr: 0.1}}")],
        [("model.cache", "x"), ("model.name", "null_and_void"), ("model.deep", "yes"), ("model.span", "[3, 4]")],
        [("model.base.class_path", "cfgmod.Done"), ("model.base.n", "3")],
        [("model.name", "${oc.env:GENLAB_NO_SUCH,data}/${trainer.default_root_dir}/${run.root}")],
        [("model.lr", "${model.init_args.mamba.expand}"), ("model.sizes", "${model.init_args.span}")],
        [("trainer.strategy", "{class_path: DDPStrategy, init_args: {find_unused_parameters: true}}")],
        [("trainer.devices", "[0, 1]"), ("trainer.precision", "32"), ("trainer.max_time", "00:01:00:00"), ("trainer.logger", "false")],
        [("trainer.profiler", "simple"), ("trainer.limit_val_batches", "1.0"), ("trainer.val_check_interval", "0.5")],
        [("model", "cfgmod.Plain")],
    ],
)
def test_what_is_right_is_left_alone(write: Callable[[str, str], str], overrides: list[tuple[str, str]]) -> None:
    assert _said(compose([write("a.yaml", NET)], overrides)) == []


def test_the_subcommand_decides_on_its_own_keys(write: Callable[[str, str], str]) -> None:
    composed = compose([write("a.yaml", NET)], [("verbose", "true")])
    assert _said(composed, "test") == []
    assert len(_said(composed, "fit")) == 1
    assert _said(composed, "fit", extra_keys={"verbose"}) == []


def test_a_model_is_needed_and_given_keys_are_not_missing(write: Callable[[str, str], str]) -> None:
    path = write("a.yaml", "data: {class_path: cfgmod.Data}\n")
    said = _said(compose([path]))
    assert "Data needs 'root'" in said[0]
    assert "a.yaml: there is no model" in said[1]
    assert len(_said(compose([path]), given={"data.init_args.root"})) == 1


def test_a_model_without_constructor_takes_nothing(write: Callable[[str, str], str]) -> None:
    said = _said(compose([write("a.yaml", "model: {class_path: cfgmod.Plain, init_args: {lr: 1}}\n")]))
    assert said == ["a.yaml:1: model.init_args (Plain) has no 'lr'; it takes nothing"]


EXPERIMENTS = REPOSITORY / "experiments"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.rglob("*.yaml")), ids=lambda path: path.relative_to(EXPERIMENTS).as_posix())
def test_shipped_experiments_have_no_mistake(path: Path) -> None:
    """Overlays are checked over an experiment: presets over the one they are named after, trainer settings over any."""
    whole = sorted(EXPERIMENTS.glob("*.yaml"))
    bases = {"presets": [base for base in whole if path.stem.startswith(f"{base.stem}_")][-1:], "trainer": whole[:1]}
    assert _said(compose([*bases.get(path.parent.name, []), path])) == []


# Interpolation


def test_interpolate(write: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_TEST_ROOT", "/data")
    text = NET + "trainer: {default_root_dir: '${run.root}/${seed_everything}', max_epochs: 3}\nseed_everything: 5\n"
    composed = compose([write("a.yaml", text)])
    assert interpolate("${trainer.default_root_dir}/x", composed) == "runs/5/x"
    assert interpolate("${trainer.max_epochs}", composed) == 3
    assert interpolate("${model.init_args.mamba.expand}", composed) == 2.0  # the dataclass's default
    assert interpolate("${oc.env:GENLAB_TEST_ROOT}/a", composed) == "/data/a"
    assert interpolate("${oc.env:GENLAB_NO_SUCH,${run.root}}/a", composed) == "runs/a"
    assert interpolate("${.d_state}", composed, ("model", "init_args", "mamba", "expand")) == 8
    assert interpolate("${..lr}", composed, ("model", "init_args", "mamba", "expand")) == 1e-3
    assert interpolate({"a": ["${seed_everything}", 1]}, composed) == {"a": [5, 1]}
    with pytest.raises(UserError, match=r"there is no 'trainer\.nothing'"):
        interpolate("${trainer.nothing}", composed)


# Cost


def test_nothing_heavy_is_imported(write: Callable[[str, str], str]) -> None:
    lines = ["trainer:", "  callbacks:"]
    for name in (
        "ModelCheckpoint",
        "EarlyStopping",
        "LearningRateMonitor",
        "Timer",
        "RichProgressBar",
        "DeviceStatsMonitor",
        "ModelSummary",
    ):
        arguments = "      init_args: {monitor: val/ap}" if name in ("ModelCheckpoint", "EarlyStopping") else "      init_args: {}"
        lines += [f"    - class_path: lightning.pytorch.callbacks.{name}", arguments]
    lines += ["  logger:", "    class_path: lightning.pytorch.loggers.WandbLogger", "    init_args: {project: genlab}", "  max_epochs: 3"]
    lines += ["model:", "  class_path: cfgmod.Net", "  init_args:", "    lr: 1e-3", "    mamba:", "      d_state: 3"]
    lines += [
        "    sizes:",
        *(f"    - {number}" for number in range(25)),
        "data:",
        "  class_path: cfgmod.Data",
        "  init_args: {root: '${run.root}'}",
    ]
    assert len(lines) >= 55
    path = write("a.yaml", "\n".join(lines) + "\n")
    program = f"""
import sys
import genlab.config
problems = genlab.config.check(genlab.config.compose([{path!r}], [("model.lr", "1e-4")]), "fit")
assert not problems, problems
heavy = set(sys.modules) & {{"torch", "lightning", "numpy", "jsonargparse", "omegaconf", "cfgmod"}}
assert not heavy, heavy
"""
    environment = {"PYTHONPATH": f"{REPOSITORY}:{Path.cwd()}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_repeated_checks_see_changed_files(write: Callable[[str, str], str]) -> None:
    write("grows.py", "from lightning import LightningModule\nclass A(LightningModule):\n    def __init__(self, a=1): ...\n")
    path = write("a.yaml", "model: {class_path: grows.A, init_args: {b: 1}}\n")
    assert len(_said(compose([path]))) == 1
    time.sleep(0.01)
    write("grows.py", "from lightning import LightningModule\nclass A(LightningModule):\n    def __init__(self, a=1, b=1): ...\n")
    assert _said(compose([path])) == []

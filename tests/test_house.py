"""Who may know whom: the import rules of docs/house.md, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("genlab", "datamodules", "callbacks")
GROUND = (
    "genlab.errors",
    "genlab.files",
    "genlab.nearest",
    "genlab.batches",
    "genlab.holes",
    "genlab.weights",
    "genlab.store",
    "genlab.training.randomness",
)

# What a room may import of ours. Libraries are everybody's, but for Lightning's Trainer below.
RULES: dict[str, tuple[str, ...]] = {
    "genlab/methods": (
        *GROUND, "genlab.methods", "genlab.models", "genlab.diffusion", "genlab.vlm", "genlab.losses", "genlab.metrics", "genlab.training",
        "genlab.results", "genlab.reports", "genlab.detection_figures", "genlab.figures", "genlab.sheets",
    ),
    "genlab/models": (*GROUND, "genlab.models"),
    "genlab/diffusion": (*GROUND, "genlab.diffusion", "genlab.models"),
    "genlab/vlm": (*GROUND, "genlab.vlm", "genlab.models"),
    "genlab/losses": (*GROUND, "genlab.losses"),
    "genlab/metrics": (*GROUND, "genlab.metrics"),
    "genlab/comparison": (*GROUND, "genlab.comparison", "genlab.metrics", "genlab.figures", "genlab.reports"),
    "genlab/training": (
        *GROUND, "genlab.training", "genlab.models", "genlab.diffusion", "genlab.vlm", "genlab.metrics", "genlab.figures", "genlab.sheets",
    ),
    "datamodules": (*GROUND, "datamodules"),
    "callbacks": (*GROUND, "callbacks", "genlab.results", "genlab.reports", "genlab.detection_figures", "genlab.figures", "genlab.sheets"),
}  # fmt: skip
WITHOUT_TRAINER = ("genlab/models", "genlab/diffusion", "genlab/vlm", "genlab/losses", "genlab/metrics")
LIGHT = ("genlab/__init__.py", "genlab/__main__.py", "genlab/cli.py", "genlab/help.py", "genlab/config", "genlab/verbs")
HEAVY = (
    "torch",
    "lightning",
    "transformers",
    "diffusers",
    "torchmetrics",
    "torchvision",
    "decord",
    "av",
    "numpy",
    "matplotlib",
    "jsonargparse",
)


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Modules that a file imports; ``from a import b`` counts as ``a.b`` where that is a module of ours, else as ``a``."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                file = ROOT / Path(*node.module.split("."), alias.name)
                found.add(f"{node.module}.{alias.name}" if file.with_suffix(".py").exists() or file.is_dir() else node.module)
    return found


def files(room: str) -> list[Path]:
    path = ROOT / room
    return [path] if path.suffix else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("room", RULES)
def test_rooms_know_whom_they_may(room: str) -> None:
    for path in files(room):
        for name in imports(path):
            ours = name.split(".")[0] in OURS
            allowed = any(name == rule or name.startswith(f"{rule}.") for rule in RULES[room])
            assert not ours or allowed or name == "genlab", f"{path.relative_to(ROOT)} imports {name}"


def test_no_method_imports_another() -> None:
    for path in files("genlab/methods"):
        own = path.relative_to(ROOT / "genlab/methods").parts[0].removesuffix(".py")
        for name in imports(path):
            parts = name.split(".")
            if parts[:2] == ["genlab", "methods"] and len(parts) > 2:
                assert parts[2] == own or own == "baselines", f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", WITHOUT_TRAINER)
def test_parts_do_without_lightning(room: str) -> None:
    for path in files(room):
        assert not [name for name in imports(path) if name.split(".")[0] in ("lightning", "pytorch_lightning")], path


@pytest.mark.parametrize("room", LIGHT)
def test_the_door_is_light(room: str) -> None:
    for path in files(room):
        heavy = [name for name in imports(path, top_level_only=True) if name.split(".")[0] in HEAVY]
        assert not heavy, f"{path.relative_to(ROOT)} imports {heavy} at the top"


def test_no_circles() -> None:
    modules = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for o in OURS for p in (ROOT / o).rglob("*.py")
    }
    graph = {name: {i for i in imports(path, top_level_only=True) if i in modules and i != name} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"import circle: {' -> '.join([*above[above.index(name) :], name])}"
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["fit", "-c", "tiny/demamba", "--model.lrr=1"], ["list"]])
def test_help_and_refusals_never_import_torch(arguments: list[str]) -> None:
    code = f"import sys; from genlab.cli import main; main({arguments!r}); sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT).returncode == 0

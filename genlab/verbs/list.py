"""What there is: methods, experiments, tiny datasets, tiny models. None of them is imported."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

from genlab.config.experiments import shipped_experiments, shipped_root
from genlab.signatures import signature
from genlab.source import read_module

METHODS = (
    "demamba", "msta", "cpr", "spectral_fas", "mllm_defake", "domaingallery", "comfusion", "multimodal_prompt", "interanimate",
    "inpaint_consistency",
)  # fmt: skip
TINY_MODELS = ("clip", "viclip", "sd", "inpaint", "vlm", "judge")
NOT_YET = "not yet"


def main(args: list[str]) -> int:
    """Prints four lists."""
    argparse.ArgumentParser("python -m genlab list", description=__doc__).parse_args(args)
    sections = {
        "Methods": methods(),
        "Experiments (python -m genlab fit -c experiments/NAME)": experiments(),
        "Tiny datasets (--data.root tiny:NAME, or python -m genlab data make NAME --root DIR)": datasets(),
        "Tiny models (tiny:NAME in place of pretrained weights)": tiny_models(),
    }
    for title, entries in sections.items():
        rows = list(entries)
        width = max((len(name) for name, _ in rows), default=0)
        print(f"{title}\n" + "\n".join(f"  {name:<{width}}  {line}".rstrip() for name, line in rows or [("none yet", "")]) + "\n")
    return 0


def methods() -> Iterator[tuple[str, str]]:
    """Each of the ten methods, with the first line of its file."""
    for name in METHODS:
        module = read_module(f"genlab.methods.{name}")
        yield name, NOT_YET if module is None or module.path is None else _first_line(module.path)


def experiments() -> Iterator[tuple[str, str]]:
    """Each shipped configuration, with its header."""
    for name in shipped_experiments():
        with (shipped_root() / "experiments" / name).open(encoding="utf-8") as file:
            line = file.readline().strip()
        yield name, line.removeprefix("#").strip() if line.startswith("#") else ""


def datasets() -> Iterator[tuple[str, str]]:
    """Each dataset of the tiny world, with what its writer says of itself."""
    from datamodules.tinyworld import DATASETS

    for name, writer in DATASETS.items():
        yield name, signature(writer.replace(":", ".")).help


def tiny_models() -> Iterator[tuple[str, str]]:
    """Each tiny model, with its size."""
    import genlab.weights as weights

    for name in TINY_MODELS:
        files = [file for file in (weights.TINY_MODELS / name).rglob("*") if file.is_file()]
        yield name, f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB" if files else NOT_YET


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]

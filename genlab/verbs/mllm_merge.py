"""``genlab mllm merge PATH --out FOLDER``: a model that needs no peft, out of what fine-tuning has left."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from genlab.errors import MissingPath, UserError

METHODS = ("genlab.methods.mllm_defake_sft.MllmDefakeSFT", "genlab.methods.mllm_defake_grpo.MllmDefakeGRPO")
HELP = """Writes a folder of transformers, which transformers serve and the evaluation load, out of a folder of peft's (LoRA, this project's
or another's), a run of mllm_defake_sft or mllm_defake_grpo, or a checkpoint of one."""


def main(args: list[str]) -> int:
    """Merges, and says how the result is served.

    Raises:
        UserError: PATH is none of those, or the folder is there already.
    """
    parser = argparse.ArgumentParser("python -m genlab mllm merge", description=HELP, allow_abbrev=False)
    parser.add_argument("path", type=Path, help="a folder of peft's, a run, or a checkpoint")
    parser.add_argument("--out", "-o", type=Path, required=True, help="the new folder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of its numbers (default float32)")
    given = parser.parse_args(args)
    if given.out.exists():
        raise UserError(f"mllm merge: {given.out} exists already; name another folder with --out, or remove it first.")
    if not given.path.exists():
        raise MissingPath(f"mllm merge: {given.path} is not there. Name a folder of peft's, a run, or a checkpoint.")
    model, processor = _whole(given.path)
    import torch

    from genlab.vlm.tuning import write_folder

    write_folder(model.to(getattr(torch, given.dtype)), processor, given.out)
    size = sum(path.stat().st_size for path in given.out.glob("*.safetensors")) / 1e6
    print(f"{given.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {given.dtype}, {size:.1f} MB")
    print(f"\n  transformers serve {given.out}")
    return 0


def _whole(path: Path) -> tuple[Any, Any]:
    """The model with everything added in, and its processor."""
    from genlab.vlm.tuning import ADAPTER, merged

    if path.is_file():
        return _of_checkpoint(path)
    if (path / ADAPTER).is_file():
        return merged(path)
    if (path / "model" / ADAPTER).is_file():
        return merged(path / "model")
    if (path / "model" / "config.json").is_file() or (path / "config.json").is_file():
        raise UserError(
            f"mllm merge: {path} holds a whole model; there is nothing to merge. Serve the folder, or name a checkpoint of the run."
        )
    raise UserError(f"mllm merge: {path} has neither {ADAPTER} nor model/{ADAPTER}. Name a folder of peft's, a run, or a checkpoint.")


def _of_checkpoint(path: Path) -> tuple[Any, Any]:
    from genlab.lightning_cli import build_parts, read_checkpoint

    held = read_checkpoint(path)
    if held.get("method") not in METHODS:
        raise UserError(f"mllm merge: {path} is a checkpoint of {held.get('method') or 'something else'}, not of a fine-tuned detector.")
    settings = {name: value for name, value in held["hyper_parameters"].items() if not name.startswith("_")}
    method: Any
    method, _ = build_parts({"class_path": held["method"], "init_args": settings}, None)
    method.configure_model()
    method.on_load_checkpoint(held)
    method.load_state_dict(held["state_dict"], strict=False)  # frozen weights come from where training took them
    model = method.network
    return (model.merge_and_unload() if method.lora is not None else model), method.processor

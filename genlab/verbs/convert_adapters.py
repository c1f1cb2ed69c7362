"""``genlab convert adapters CHECKPOINT --out FILE.safetensors``: MSTA's adapters alone, to be swapped on one loaded network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from genlab.errors import UserError

METHOD = "genlab.methods.msta.MSTA"
HELP = """MSTA's adapters out of a checkpoint: a few MB for --model.adapters, in which no network and no optimizer is."""


def main(args: list[str]) -> int:
    """Writes the file.

    Raises:
        UserError: The checkpoint is not one of MSTA, or the file is there already.
    """
    parser = argparse.ArgumentParser("python -m genlab convert adapters", description=HELP, allow_abbrev=False)
    parser.add_argument("file", type=Path, help="a checkpoint of MSTA")
    parser.add_argument("--out", type=Path, required=True, help="the new file, .safetensors")
    given = parser.parse_args(args)
    if given.out.exists():
        raise UserError(f"convert: {given.out} exists already; name another file with --out, or remove it first.")
    from genlab.methods.msta import write_adapters
    from genlab.verbs.strange_weights import read_weights

    checkpoint: dict[str, Any] = read_weights(given.file)
    if checkpoint.get("method") != METHOD:
        raise UserError(f"convert: {given.file} is a checkpoint of {checkpoint.get('method') or 'something else'}, not of MSTA.")
    tensors = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("adapters.")}
    write_adapters(given.out, tensors, checkpoint["hyper_parameters"])
    print(f"{given.out}: {sum(value.numel() for value in tensors.values()):,} parameters, {given.out.stat().st_size / 1e6:.1f} MB")
    print(f"\n  python -m genlab predict -c experiments/msta.yaml --model.adapters {given.out} --data.class_names '[...]' clip.mp4")
    return 0

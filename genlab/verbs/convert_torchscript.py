"""``genlab convert torchscript CHECKPOINT --out FILE.pt``: a trained face anti-spoofing detector as one file that torch alone can run."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from genlab.errors import MissingPath, UserError

METHOD = "genlab.methods.spectral_fas.SpectralFAS"
TOLERANCE = 1e-4
HELP = """A checkpoint of spectral_fas as TorchScript, with normalisation and threshold inside: pictures (B, C, S, S) as they are stored
(colours / 255 in the order of training, then bands) to P(live) (B,) and whether that is called live (B,)."""


def main(args: list[str]) -> int:
    """Writes the file, and compares it with the network that it is made of.

    Raises:
        UserError: The checkpoint is of another method, or has no threshold; or the file is there already.
    """
    parser = argparse.ArgumentParser("python -m genlab convert torchscript", description=HELP, allow_abbrev=False)
    parser.add_argument("file", type=Path, help="a checkpoint of spectral_fas")
    parser.add_argument("--out", type=Path, required=True, help="the new file, .pt")
    parser.add_argument("--image_size", type=int, default=256, help="S that it was trained with (default 256)")
    parser.add_argument(
        "--threshold", type=float, help="P(live) from which on a face is called live; left out, that of the last validation"
    )
    given = parser.parse_args(args)
    if not given.file.is_file():
        raise MissingPath(f"convert: {given.file} is not a file.")
    if given.out.exists():
        raise UserError(f"convert: {given.out} exists already; name another file with --out, or remove it first.")
    if given.image_size < 32:
        raise UserError(f"convert: --image_size {given.image_size} is too small; use the one of training.")
    import torch

    from genlab.files import write_bytes
    from genlab.methods.spectral_fas import SpectralFAS
    from genlab.verbs.strange_weights import read_weights

    found = read_weights(given.file).get("method")
    if found != METHOD:
        raise UserError(f"convert: {given.file} is a checkpoint of {found or 'something else'}, not of spectral_fas.")
    model = SpectralFAS.load_from_checkpoint(given.file, map_location="cpu").eval()
    if given.threshold is not None:
        model.validation_threshold.fill_(given.threshold)
    deployed = model.deployed()
    example = torch.rand(2, len(model.channel_mean), given.image_size, given.image_size)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes are constants here, as they are meant to be
        traced = torch.jit.freeze(torch.jit.trace(deployed, example))
        other = torch.rand(5, *example.shape[1:])
        change = float((traced(other)[0] - deployed(other)[0]).abs().max())
    if change > TOLERANCE:
        raise RuntimeError(f"the exported network differs by {change:.1e}")
    beside = given.out.with_name(f".{given.out.name}.tmp")
    traced.save(str(beside))
    write_bytes(given.out, beside.read_bytes())
    beside.unlink()
    print(f"{given.out}: P(live) within {change:.0e} of the network's, threshold {float(deployed.threshold):.3f}, for pictures of")
    print(f"{len(model.channel_mean)} channels and {given.image_size} pixels: torch.jit.load('{given.out}')(pictures)")
    return 0

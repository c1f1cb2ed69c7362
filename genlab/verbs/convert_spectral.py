"""``genlab convert spectral_fas FILE --out PATH``: the winning team's checkpoints to ours, or with ``--to official`` the way back.

Theirs is ``{"epoch", "model_state_dict"}`` with averaged weights and EfficientNet under the names of the lukemelas port.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError
from genlab.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

B3 = (2, 3, 3, 5, 5, 6, 2)  # blocks of EfficientNet-B3's stages
NET = "net.network."
HELP = "A checkpoint of the official script of spectral_fas becomes one for genlab test and predict; --to official is the way back."


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names -> those of :class:`genlab.models.multi_attention.MultiAttentionDetector`; the unused classifier is dropped."""
    from genlab.models.official_efficientnet import to_timm

    inner = {key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.") and not key.startswith("net._fc.")}
    found = {key: value for key, value in state.items() if not key.startswith("net.")}
    return found | {f"{NET}{key}": value for key, value in to_timm(inner, B3).items()}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back, without the classifier, which the official code does not use."""
    from genlab.models.official_efficientnet import from_timm

    inner = {key.removeprefix(NET): value for key, value in state.items() if key.startswith(NET)}
    found = {key: value for key, value in state.items() if not key.startswith(NET)}
    return found | {f"net.{key}": value for key, value in from_timm(inner, B3).items()}


def main(args: list[str]) -> int:
    """Converts one file.

    Raises:
        UserError: The file holds another network, or the new one is there already.
    """
    parser = argparse.ArgumentParser("python -m genlab convert spectral_fas", description=HELP, allow_abbrev=False)
    parser.add_argument("file", type=Path, help="the checkpoint to read")
    parser.add_argument("--out", type=Path, required=True, help="the new file")
    parser.add_argument("--to", choices=("genlab", "official"), default="genlab", help="whose format to write (default genlab)")
    given = parser.parse_args(args)
    if given.out.exists():
        raise UserError(f"convert: {given.out} exists already; name another file with --out, or remove it first.")
    import torch

    from genlab.verbs.strange_weights import read_weights

    checkpoint = read_weights(given.file)
    content = _official(given.file, checkpoint) if given.to == "official" else _genlab(given.file, checkpoint)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(given.out, buffer.getvalue())
    print(f"written: {given.out}")
    if given.to == "genlab":
        print("It has no threshold: choose it with genlab validate, or name it.\n")
        print(f"  python -m genlab test -c experiments/spectral_fas.yaml --ckpt_path {given.out} --data.root DIR --model.threshold 0.23")
    return 0


def _genlab(file: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    import lightning
    import torch

    from datamodules.spectral_channels import MEAN, STD
    from genlab.methods.spectral_fas import SpectralFAS
    from genlab.models.spectral_backbones import SpectralBackbone

    if not isinstance(checkpoint.get("model_state_dict"), dict):
        raise UserError(f"convert: {file} is no official checkpoint: it has no entry model_state_dict.")
    try:
        weights = from_official(checkpoint["model_state_dict"])
    except KeyError as error:
        raise UserError(f"convert: {file}: {error.args[0]!r} is no part of EfficientNet-B3 as the official code has it.") from error
    model = SpectralFAS(backbone=SpectralBackbone(weights=None))
    model.configure_model()
    found = model.detector.load_state_dict(weights, strict=False)
    if found.missing_keys or found.unexpected_keys:
        raise UserError(f"convert: {file} does not fit: {', '.join([*found.missing_keys, *found.unexpected_keys][:3])}.")
    assert model.average is not None
    model.average.load_state_dict(model.detector.state_dict())  # the file has averaged weights alone
    model.channel_mean.copy_(torch.tensor(MEAN))
    model.channel_std.copy_(torch.tensor(STD))
    content: dict[str, Any] = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": lightning.__version__}
    content |= {"state_dict": model.state_dict(), "hparams_name": "kwargs", "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(content)
    return content


def _official(file: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    state = checkpoint.get("state_dict")
    own = {key.removeprefix("average."): value for key, value in (state or {}).items() if key.startswith("average.")}
    own = own or {key.removeprefix("network."): value for key, value in (state or {}).items() if key.startswith("network.")}
    if not own:
        raise UserError(f"convert: {file} is no checkpoint of spectral_fas.")
    try:
        return {"epoch": checkpoint.get("epoch", 0), "model_state_dict": to_official(own)}
    except KeyError as error:
        raise UserError(f"convert: {file}: its backbone is not EfficientNet-B3, which is all that the official code knows.") from error

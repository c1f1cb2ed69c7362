"""``genlab convert demamba FILE --out PATH``: a checkpoint of the official code to ours, or with ``--to official`` the way back.

It says which parameters it used, which it dropped, which it could not find, and how to run the result. Files are read as weights
alone: nothing in a stranger's file gets to run.
"""

from __future__ import annotations

import argparse
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError
from genlab.files import write_bytes
from genlab.nearest import did_you_mean
from genlab.verbs.strange_weights import read_weights

if TYPE_CHECKING:
    from genlab.models.official_demamba import FromOfficial

METHODS = ("demamba",)
FEW_SHOT = ("cpr", "coop", "cocoop", "tip_adapter_f")  # theirs is in convert_few_shot.py
OFFICIAL_FRAMES, OFFICIAL_IMAGE_SIZE, PRESET_ZONE_SIZE = 8, 224, 1
NAMES = {"xclip": "X-CLIP", "clip": "CLIP"}
HELP = """A checkpoint of the official DeMamba code, {"epoch", "model_state_dict"}, becomes one for genlab test and predict; --to official
is the way back. Parameters that the official code has but never uses are dropped one way, and made of zeros the other way.
Also: convert adapters (MSTA's out of a checkpoint), torchscript (of spectral_fas), consolidate (one file of a sharded checkpoint)."""


def main(args: list[str]) -> int:
    """Converts one file and reports what became of its parameters.

    Raises:
        UserError: The file is not what it should be, or the result would overwrite a file.
    """
    if args and args[0] == "consolidate":
        from genlab.verbs.consolidate import main as consolidate

        return consolidate(args[1:])
    if args and args[0] == "spectral_fas":
        from genlab.verbs.convert_spectral import main as spectral

        return spectral(args[1:])
    if args and args[0] == "torchscript":
        from genlab.verbs.convert_torchscript import main as torchscript

        return torchscript(args[1:])
    if args and args[0] == "adapters":
        from genlab.verbs.convert_adapters import main as adapters

        return adapters(args[1:])
    if args and args[0] in FEW_SHOT:
        from genlab.verbs import convert_few_shot

        return convert_few_shot.main(args)
    parser = argparse.ArgumentParser("python -m genlab convert", description=HELP, allow_abbrev=False)
    parser.add_argument("method", help=", ".join([*METHODS, "spectral_fas", *FEW_SHOT]))
    parser.add_argument("file", type=Path, help="the checkpoint to read")
    parser.add_argument("--out", type=Path, required=True, help="the new file, or an existing folder to put it into")
    parser.add_argument("--to", choices=("genlab", "official"), default="genlab", help="whose format to write (default genlab)")
    parser.add_argument(
        "--num_frames", type=int, default=OFFICIAL_FRAMES, help="frames per clip, which an official file does not tell (default 8)"
    )
    given = parser.parse_args(args)
    if given.method not in METHODS:
        known = [*METHODS, "spectral_fas", *FEW_SHOT, "adapters", "torchscript", "consolidate"]
        hint = did_you_mean(given.method, known) or "."
        raise UserError(f"convert: there is no converter for {given.method!r}{hint} There are {', '.join(known)}.")
    if given.num_frames < 1:
        raise UserError(f"convert: --num_frames {given.num_frames} is too few; use 1 or more.")
    out = given.out
    if out.is_dir():
        out = out / f"{given.file.stem}{'.pth' if given.to == 'official' else '.ckpt'}"
    if out.exists():
        raise UserError(f"convert: {out} exists already; name another file with --out, or remove it first.")
    checkpoint = read_weights(given.file)
    try:
        if given.to == "official":
            demamba_to_official(checkpoint, out)
        else:
            demamba_to_genlab(checkpoint, out, given.num_frames)
    except UserError as error:
        raise UserError(f"convert: {given.file}: {error}") from error
    return 0


def demamba_to_genlab(checkpoint: Mapping[str, Any], out: Path, num_frames: int) -> None:
    """Writes ``out``, a checkpoint with everything that one of :class:`genlab.methods.demamba.DeMamba` has, and prints the report."""
    from genlab.models.official_demamba import from_official

    if "model_state_dict" not in checkpoint:
        hint = " It is GenLab's own already; the way back is --to official." if "method" in checkpoint else ""
        raise UserError(f"no official checkpoint: it has no entry model_state_dict, but {', '.join(map(str, list(checkpoint)[:5]))}.{hint}")
    found = from_official(_tensors(checkpoint["model_state_dict"], "model_state_dict"))
    _save(genlab_checkpoint(found, num_frames, _epoch(checkpoint)), out)
    grid, zone = f"{found.grid} x {found.grid}", f"{found.zone_size} x {found.zone_size}"
    print(f"{NAMES[found.variant]} variant: {found.layers} layers, {grid} tokens of {found.width} channels, zones of {zone}")
    _report("used", found.used)
    _report("dropped, since the official code never uses them", found.dropped)
    _report("missed", [])
    if found.unknown:
        _report("unknown and left out; if the model that was trained needs them, scores will differ", found.unknown)
    print(f"written: {out}")
    print(f"The file does not tell the number of frames: {num_frames} (--num_frames).")
    print("The pretrained weights that the configuration names must be there too; the backbone's sizes come from them.\n")
    print(f"  python -m genlab test {' '.join(configuration(found, num_frames))} --ckpt_path {out} --data.root DIR")


def genlab_checkpoint(found: FromOfficial, num_frames: int, epoch: int) -> dict[str, Any]:
    """The content of a checkpoint of :class:`genlab.methods.demamba.DeMamba` that runs as the official code does."""
    import lightning

    from genlab.methods.demamba import DeMamba
    from genlab.models.clip import CLIP
    from genlab.models.xclip import XCLIP

    backbone = XCLIP() if found.variant == "xclip" else CLIP()
    model = DeMamba(backbone, num_frames=num_frames, zone_size=found.zone_size, zone_order="official", mamba=found.mamba, f1_official=True)
    checkpoint: dict[str, Any] = {"epoch": epoch, "global_step": 0, "pytorch-lightning_version": lightning.__version__}
    checkpoint |= {"state_dict": found.weights, "hparams_name": "kwargs", "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    return checkpoint


def configuration(found: FromOfficial, num_frames: int) -> list[str]:
    """Arguments of the command line that builds the converted model."""
    from genlab.models.official_demamba import OFFICIAL_MAMBA

    names = ["demamba", "presets/demamba_official", *(["presets/demamba_clip"] if found.variant == "clip" else [])]
    words = [word for name in names for word in ("-c", f"experiments/{name}.yaml")]
    differing = {"zone_size": (found.zone_size, PRESET_ZONE_SIZE), "num_frames": (num_frames, OFFICIAL_FRAMES)}
    differing |= {f"mamba.{f.name}": (getattr(found.mamba, f.name), getattr(OFFICIAL_MAMBA, f.name)) for f in fields(OFFICIAL_MAMBA)}
    words += [f"--model.{key}={str(a).lower() if isinstance(a, bool) else a}" for key, (a, b) in differing.items() if a != b]
    return words + ([f"--data.image_size={found.image_size}"] if found.image_size != OFFICIAL_IMAGE_SIZE else [])


def demamba_to_official(checkpoint: Mapping[str, Any], out: Path) -> None:
    """Writes ``out`` in the official format, and prints the report with what the official code will do otherwise."""
    from genlab.methods.demamba import DeMamba
    from genlab.models.official_demamba import to_official
    from genlab.training.base import class_path

    if checkpoint.get("method") != class_path(DeMamba):
        hint = " It is in the official format already." if "model_state_dict" in checkpoint else ""
        found = f"method: {checkpoint['method']}" if "method" in checkpoint else ", ".join(map(str, list(checkpoint)[:5]))
        raise UserError(f"no checkpoint of genlab.methods.demamba.DeMamba ({found}).{hint}")
    weights = _tensors(checkpoint.get("state_dict"), "state_dict")
    settings = dict(checkpoint.get("hyper_parameters") or {})
    if not any(name.startswith("backbone.") for name in weights):  # partial tuning: they are where they were
        weights |= _frozen_backbone(settings)
    converted = to_official(weights)
    _save({"epoch": _epoch(checkpoint), "model_state_dict": converted.weights}, out)
    print(f"{NAMES[converted.variant]} variant")
    _report("used", converted.used)
    _report("created as zeros, since the official code has them; they change no score", converted.created)
    _report("missed", [])
    print(f"written: {out}")
    for line in departures(settings, converted.variant):
        print(f"warning: {line}")
    zone_size, num_frames = settings.get("zone_size", "?"), settings.get("num_frames", "?")
    print(f"The official model needs the sizes of this one: zones ('fusing ratio') of {zone_size} x {zone_size}, {num_frames} frames.")


def departures(settings: Mapping[str, Any], variant: str) -> list[str]:
    """Where the official code will compute something else than the model did in training."""
    mamba = (settings.get("mamba") or {}).get("init_args", {})
    backbone = (settings.get("backbone") or {}).get("init_args", {})
    usual = {"xclip": "cls", "clip": "mean"}[variant]
    checks = {
        "zone_order": (settings.get("zone_order", "paper"), "official"),
        "mamba.bidirectional": (mamba.get("bidirectional", "time"), "channel"),
        "backbone.global_feature": (backbone.get("global_feature", usual), usual),
    }
    return [
        f"the model was trained with {key}: {was}, the official code runs as with {official}; its scores will differ"
        for key, (was, official) in checks.items()
        if was not in (official, "none")  # a direction that is not there is made of zeros
    ]


def _frozen_backbone(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Frozen weights are not in checkpoints; they come from where the method took them."""
    from genlab.models.clip import CLIP
    from genlab.models.xclip import XCLIP
    from genlab.training.base import class_path

    known = {class_path(kind): kind for kind in (XCLIP, CLIP)}
    chosen = settings.get("backbone") or {"class_path": class_path(XCLIP), "init_args": {}}
    if chosen["class_path"] not in known:
        raise UserError(f"the official code knows DeMamba on X-CLIP and on CLIP only, the checkpoint is of {chosen['class_path']}.")
    backbone = known[chosen["class_path"]](**chosen["init_args"]).build()
    return {f"backbone.{name}": value for name, value in backbone.state_dict().items()}


def _tensors(state: Any, name: str) -> dict[str, Any]:
    import torch

    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{name} is no dict of tensors; was the whole model saved in place of model.state_dict()?")
    return dict(state)


def _epoch(checkpoint: Mapping[str, Any]) -> int:
    epoch = checkpoint.get("epoch", 0)
    return epoch if isinstance(epoch, int) else 0


def _save(content: Mapping[str, Any], out: Path) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_bytes(out, buffer.getvalue())


def _report(title: str, names: Iterable[str]) -> None:
    """A count, and the names with layers of the same kind and their weights and biases together."""
    names = list(names)
    kinds = Counter(re.sub(r"\.(weight|bias)$", "", re.sub(r"\.\d+\.", ".*.", name)) for name in names)
    print(f"{title}: {len(names)}")
    for kind, count in kinds.items():
        print(f"  {kind}" + (f" ({count})" if count > 1 else ""))

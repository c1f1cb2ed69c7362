"""Files of the official CPR, CoOp, CoCoOp and Tip-Adapter-F code, to and from our parameter names.

Nothing of a file is executed: tensors and plain values alone are read.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.errors import MissingPath, UserError

LAYERS = ("query", "key", "value", "proj", "out", "norm1")
CTX = "prompt_learner.ctx"
# Rebuilt from class names and backbone, or the backbone's own.
DROPPED = ("prompt_learner.token_", "text_encoder.", "token_prefix", "token_suffix")


def cpr_from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained parameters of a ``best_CoOp_text_prompt_*shots.pt``, in float32.

    Raises:
        UserError: Parameters are missing.
    """
    out = {CTX: state[CTX]} if CTX in state else {}
    out |= {f"adapter.{key}": value for key, value in state.items() if key.partition(".")[0] in LAYERS}
    _whole(out, [CTX, *(f"adapter.{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias"))], "CPR")
    return {key: value.float() for key, value in out.items()}


def cpr_to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official names of our trained parameters."""
    return {key.removeprefix("adapter."): value for key, value in state.items() if key == CTX or key.startswith("adapter.")}


def coop_from_official(state: Mapping[str, Tensor], conditional: bool = False) -> dict[str, Tensor]:
    """``ctx`` of CoOp and, ``conditional``, the meta-net of CoCoOp; buffers of tokens are left out."""
    out = {
        f"prompt_learner.{key}" if key == "ctx" else key: value
        for key, value in state.items()
        if key == "ctx" or key.startswith("meta_net.")
    }
    meta = [f"meta_net.linear{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")] if conditional else []
    _whole(out, [CTX, *meta], "CoCoOp" if conditional else "CoOp")
    return {key: value.float() for key, value in out.items() if key == CTX or conditional}


def coop_to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official names of our trained parameters."""
    return {key.removeprefix("prompt_learner."): value for key, value in state.items() if key == CTX or key.startswith("meta_net.")}


def _whole(found: Mapping[str, Tensor], wanted: list[str], method: str) -> None:
    if missing := [key for key in wanted if key not in found]:
        raise UserError(f"this is no checkpoint of the official {method} code: {', '.join(missing[:3])} are missing.")


def read_official(path: Path) -> Any:
    """What a ``.pt`` or ``.pth.tar`` file holds; the ``state_dict`` of one that has more.

    Raises:
        MissingPath: It is not there.
        UserError: It holds more than tensors and plain values.
    """
    if not path.is_file():
        raise MissingPath(f"{path} does not exist.")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read as tensors and plain values: {str(error).splitlines()[0][:160]}.") from error
    return held["state_dict"] if isinstance(held, dict) and "state_dict" in held else held


def read_text_weights(path: Path, width: int, classes: int) -> Tensor:
    """A ``text_weights_cupl_t.pt`` of the official CPR code, (D, C) in half precision -> (C, D) in float32.

    Raises:
        UserError: It is of another backbone or of other classes.
    """
    held = read_official(path)
    if not isinstance(held, Tensor) or held.ndim != 2:
        raise UserError(f"{path} holds no matrix; a file of text weights is one tensor (D, classes).")
    if held.shape[0] != width:
        raise UserError(
            f"{path} has text weights of width {held.shape[0]}, the backbone has {width}: they belong to another backbone (the official "
            "files to RN50, 1024). Use that one, or leave model.text_weights out to embed the texts anew."
        )
    if held.shape[1] != classes:
        raise UserError(f"{path} has text weights of {held.shape[1]} classes, the dataset has {classes}.")
    return torch.nn.functional.normalize(held.float().T, dim=-1)

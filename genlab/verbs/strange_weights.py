"""Checkpoints of other people's code: read as tensors and plain values alone, so that nothing in them gets to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genlab.errors import MissingPath, UserError


def read_weights(path: Path) -> dict[str, Any]:
    """The dict that a file of tensors and plain values holds, on the CPU.

    Raises:
        MissingPath: There is no such file.
        UserError: It is broken, or holds objects that would have to run code to be read.
    """
    import pickle

    import torch

    if not path.is_file():
        raise MissingPath(f"convert: {path} is not a file. Give the checkpoint, such as results/last.pth.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"convert: {path} is no file of tensors and plain values, and anything else is not read, since it could run code: "
            f"{_reason(error)}. Where you trust it, write it anew: torch.save({{'epoch': 0, 'model_state_dict': model.state_dict()}}, ...)."
        ) from error
    except Exception as error:  # damaged bytes make the unpickler fail in any way there is
        raise UserError(f"convert: {path} cannot be read; is it whole? ({_reason(error)}) Copy or download it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"convert: {path} holds a {type(content).__name__}, not a checkpoint.")
    return content


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(".: ")

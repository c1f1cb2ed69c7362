"""Where pretrained weights come from: a folder, a file, a hub id, or a tiny model that ships with GenLab (``tiny:NAME``).

Nothing is downloaded unasked. A hub id is looked for in ``$GENLAB_WEIGHTS/<id>`` and in the Hugging Face cache; only
``GENLAB_DOWNLOAD=1`` lets the hub be asked.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, Protocol

from genlab.errors import MissingPath, UserError
from genlab.files import write_bytes
from genlab.store import content_key

log = logging.getLogger(__name__)

TINY_MODELS = Path(__file__).parent / "tiny_models"
PARTS = "parts.json"  # of a tiny model that shares files with others: file -> {"from": file of another model, "prefix": of its tensors}
NOT_PARTS = (PARTS, "recipe.json")


class FromPretrained(Protocol):
    """A model class of transformers or diffusers."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **options: Any) -> Any: ...


def resolve(name: str) -> str:
    """Folder, file or hub id that ``from_pretrained`` understands.

    Args:
        name: A path, ``tiny:NAME``, or a hub id ``owner/model``.

    Raises:
        MissingPath: ``tiny:NAME`` names no shipped model, or ``name`` looks like a path and is not there.
        UserError: ``name`` is empty.
    """
    if not name:
        raise UserError("weights: the name is empty; give a folder, a hub id such as openai/clip-vit-base-patch16, or tiny:NAME.")
    if name.startswith("tiny:"):
        folder = TINY_MODELS / name.removeprefix("tiny:")
        if not folder.is_dir():
            known = sorted(f"tiny:{p.name}" for p in TINY_MODELS.glob("*") if p.is_dir()) or ["none yet"]
            raise MissingPath(f"weights: there is no tiny model {name!r}; shipped with GenLab: {', '.join(known)}.")
        return str(assemble(folder) if (folder / PARTS).is_file() else folder)
    if Path(name).exists():
        return name
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or "\\" in name:
        raise MissingPath(f"weights: {Path(name).expanduser()} does not exist. Give a folder in Hugging Face's format, or a hub id.")
    if own := os.environ.get("GENLAB_WEIGHTS"):
        folder = Path(own) / name
        if folder.is_dir():
            return str(folder)
    return name


def assemble(folder: Path) -> Path:
    """A tiny model that shares files with others, whole, in the cache: those are shipped once."""
    parts: dict[str, dict[str, str]] = json.loads((folder / PARTS).read_text())
    own = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in NOT_PARTS]
    key = content_key(parts, folder, [folder.parent / part["from"] for part in parts.values()])
    cache = Path(os.environ.get("GENLAB_CACHE") or Path.home() / ".cache" / "genlab") / "weights"
    whole = cache / f"{folder.name}-{key[:12]}"
    if whole.is_dir():
        return whole
    beside = cache / f".{whole.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        for path in own:
            write_bytes(beside / path.relative_to(folder), path.read_bytes())
        for name, part in parts.items():
            source = folder.parent / part["from"]
            write_bytes(beside / name, _tensors(source, part["prefix"]) if "prefix" in part else source.read_bytes())
        with contextlib.suppress(OSError):  # another process was faster
            beside.rename(whole)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return whole


def _tensors(file: Path, prefix: str) -> bytes:
    """A safetensors file with those tensors of another one whose names begin with ``prefix``, which is taken off."""
    from safetensors.torch import load_file, save

    return save({name.removeprefix(prefix): value for name, value in load_file(file).items() if name.startswith(prefix)}, {"format": "pt"})


def load_pretrained(model_class: type[FromPretrained], name: str, **options: Any) -> Any:
    """``model_class.from_pretrained``, in float32, offline unless ``GENLAB_DOWNLOAD=1``, and with every weight accounted for.

    Raises:
        MissingPath: The weights are not on this machine; the message says which folder to fill, and how.
        UserError: The files lack parameters of the model (they would stay random), or hold another model.
    """
    source = resolve(name)
    download = os.environ.get("GENLAB_DOWNLOAD", "") not in ("", "0")
    try:
        model, info = model_class.from_pretrained(source, local_files_only=not download, output_loading_info=True, **options)
    except OSError as error:
        folder = Path(os.environ.get("GENLAB_WEIGHTS", "weights")) / name
        raise MissingPath(
            f"weights: {name} is not on this machine (looked in {folder} and the Hugging Face cache). Set GENLAB_DOWNLOAD=1 to let the "
            f"hub be asked, or on a machine with network run 'hf download {name} --local-dir {folder}' and set "
            f"GENLAB_WEIGHTS={folder.parents[1] if name.count('/') == 1 else folder.parent}. ({str(error).splitlines()[0]})"
        ) from error
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
    if missing or info.get("mismatched_keys"):
        raise UserError(
            f"weights: {source} does not hold a whole {model_class.__name__}: {len(missing)} of its parameters are missing "
            f"({', '.join(missing[:3])} ...). Is it another model?"
        )
    log.info("weights: %s from %s", model_class.__name__, source)
    return model.float()

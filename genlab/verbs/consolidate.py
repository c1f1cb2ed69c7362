"""``genlab convert consolidate RUN``: a sharded checkpoint (FSDP, DeepSpeed) becomes one file, which is loaded to prove that it can be.

The shards of DeepSpeed are pickles, and reading them may run code: consolidate runs of your own only. The result holds tensors and plain
values, as every checkpoint of GenLab.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import MissingPath, UserError
from genlab.files import write_bytes
from genlab.results import RunFolder

if TYPE_CHECKING:
    from genlab.training.base import Method

TRAINING = frozenset({"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "random_states"})
DEEPSPEED = frozenset({  # what it writes beside what it is given
    "module", "buffer_names", "optimizer", "param_shapes", "frozen_param_shapes", "frozen_param_fragments", "shared_params", "lr_scheduler",
    "data_sampler", "random_ltd", "sparse_tensor_module_names", "skipped_steps", "global_steps", "global_samples", "dp_world_size",
    "mp_world_size", "checkpoint_parallel_dimensions", "ds_config", "ds_version",
})  # fmt: skip
DEEPSPEED_FOLDER, FSDP_FILE = "checkpoint", ".metadata"
HELP = """One file of a run's sharded checkpoint: its weights in float32, its method and settings; no optimizer. It is loaded into the
method and compared before the command ends well. Use it with --ckpt_path FILE. Reading DeepSpeed's shards may run code that is in them."""


def main(args: list[str]) -> int:
    """Writes the file and loads it.

    Raises:
        UserError: No sharded checkpoint, shards that are incomplete, or weights that do not make up the method.
    """
    parser = argparse.ArgumentParser("python -m genlab convert consolidate", description=HELP, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a run folder, or a sharded checkpoint (a folder) itself")
    parser.add_argument("--checkpoint", default="last", help="of a run folder: last (default) or best")
    parser.add_argument("--out", type=Path, default=None, help="the new file (default: RUN/checkpoints/<checkpoint>-consolidated.ckpt)")
    given = parser.parse_args(args)
    shards = find_shards(given.run, given.checkpoint)
    out = given.out or shards.with_name(f"{shards.name.removesuffix('.ckpt')}-consolidated.ckpt")
    if out.exists():
        raise UserError(f"convert consolidate: {out} exists already; name another file with --out, or remove it first.")

    import torch

    content = read_shards(shards)
    frozen = load(content).is_frozen
    content["state_dict"] = {key: value for key, value in content["state_dict"].items() if not frozen(key)}  # FSDP's shards have them too
    buffer = io.BytesIO()
    torch.save(content, buffer)
    count = prove(content, buffer)
    write_bytes(out, buffer.getvalue())
    print(f"written: {out}\nloaded into {content['method']}: {count} tensors, all equal to the shards', none missing.")
    return 0


def find_shards(run: Path, which: str) -> Path:
    """The folder of a sharded checkpoint that the user means.

    Raises:
        MissingPath: There is none.
        UserError: It is one file already.
    """
    path = run
    if (run / "run.json").is_file():
        folder = RunFolder(run)
        path = folder.last_checkpoint if which == "last" else folder.checkpoints / str(folder.record.get("best", "best.ckpt"))
    if path.is_file():
        raise UserError(f"convert consolidate: {path} is one file already; use it with --ckpt_path {path}.")
    if not (path / DEEPSPEED_FOLDER).is_dir() and not (path / FSDP_FILE).is_file():
        raise MissingPath(f"convert consolidate: {path} is no sharded checkpoint. Give a run folder, or such as RUN/checkpoints/last.ckpt.")
    return path


def read_shards(shards: Path) -> dict[str, Any]:
    """The whole weights and what the checkpoint says of the method.

    Raises:
        UserError: Files are missing or damaged, or it is not a checkpoint of GenLab's.
    """
    from torch.distributed.checkpoint.api import CheckpointException  # not even an Exception

    silence = io.StringIO()
    try:
        with contextlib.redirect_stdout(silence):  # the libraries print how far they are
            if (shards / DEEPSPEED_FOLDER).is_dir():
                whole = _from_deepspeed(shards)
            else:
                from lightning.fabric.utilities.load import _load_distributed_checkpoint

                whole = _load_distributed_checkpoint(shards)
    except (CheckpointException, OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        said = str(error).strip().splitlines()[-1][:200] if str(error).strip() else ""
        raise UserError(f"convert consolidate: the shards in {shards} are not whole: {type(error).__name__}: {said}") from error
    if "method" not in whole:
        raise UserError(f"convert consolidate: {shards} does not say which method it is of; is it a checkpoint of GenLab's?")
    weights = whole.get("state_dict") or whole.get("model") or {}
    kept = {key: value for key, value in whole.items() if key not in TRAINING and key != "model" and not key.startswith("optimizer_")}
    return kept | {"state_dict": {name: value.clone() for name, value in weights.items()}}


def _from_deepspeed(shards: Path) -> dict[str, Any]:
    """Weights out of the optimizer's fp32 copies, which DeepSpeed's own script puts together, and what was saved beside them."""
    import torch
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    files = sorted((shards / DEEPSPEED_FOLDER).glob("*model_states.pt"))
    if not files:
        raise FileNotFoundError(f"no *model_states.pt in {shards / DEEPSPEED_FOLDER}")
    beside = torch.load(files[0], map_location="cpu", weights_only=False)
    weights = get_fp32_state_dict_from_zero_checkpoint(str(shards), DEEPSPEED_FOLDER)
    return {key: value for key, value in beside.items() if key not in DEEPSPEED} | {"state_dict": dict(weights)}


def load(content: Mapping[str, Any] | io.BytesIO) -> Method:
    """The method with the weights of a checkpoint, as any user would load it.

    Raises:
        UserError: They do not fit.
    """
    import torch

    if not isinstance(content, io.BytesIO):
        file = io.BytesIO()
        torch.save(content, file)
        return load(file)
    content.seek(0)
    module, _, name = str(torch.load(content, weights_only=True, map_location="cpu")["method"]).rpartition(".")
    content.seek(0)
    return getattr(importlib.import_module(module), name).load_from_checkpoint(content, map_location="cpu", weights_only=True)


def prove(content: Mapping[str, Any], file: io.BytesIO) -> int:
    """Loads the file, compares every tensor, and returns how many there are.

    Raises:
        UserError: Something is missing or differs.
    """
    import torch

    model = load(file)
    state = model.state_dict()
    wrong = [key for key, value in content["state_dict"].items() if not torch.equal(state[key], value)]
    wrong += [key for key, parameter in model.named_parameters() if parameter.requires_grad and key not in content["state_dict"]]
    if wrong:
        raise UserError(f"convert consolidate: {len(wrong)} parameters differ or are missing ({', '.join(wrong[:3])}).")
    return len(content["state_dict"])

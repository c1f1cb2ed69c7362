"""``genlab convert cpr|coop|cocoop|tip_adapter_f FILE --out PATH``: trained parts of official few-shot code to ours and back.

Only what was trained is carried over. Token embeddings and the text tower, which official files hold too, come from the backbone;
CPR's visual prototypes, which they do not hold, are computed from the training pictures when they are needed.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError
from genlab.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = {
    "cpr": "genlab.methods.cpr.CPR",
    "coop": "genlab.methods.baselines.coop.CoOp",
    "cocoop": "genlab.methods.baselines.cocoop.CoCoOp",
    "tip_adapter_f": "genlab.methods.baselines.tip_adapter.TipAdapterF",
}
CONFIGS = {"cpr": "cpr", "coop": "baselines/coop", "cocoop": "baselines/cocoop", "tip_adapter_f": "baselines/tip_adapter_f"}
HELP = "A checkpoint of the official code becomes one for genlab test and predict; --to official is the way back."


def main(args: list[str]) -> int:
    """Converts one file.

    Raises:
        UserError: The file is not what it should be, or the result would overwrite a file.
    """
    parser = argparse.ArgumentParser("python -m genlab convert", description=HELP, allow_abbrev=False)
    parser.add_argument("method", choices=CLASSES)
    parser.add_argument("file", type=Path, help="the checkpoint to read")
    parser.add_argument("--out", type=Path, required=True, help="the new file")
    parser.add_argument("--to", choices=("genlab", "official"), default="genlab", help="whose format to write (default genlab)")
    parser.add_argument("--values", type=Path, help="tip_adapter_f: the values_<K>shots.pt beside its keys, one-hot labels")
    given = parser.parse_args(args)
    if given.out.exists():
        raise UserError(f"convert: {given.out} exists already; name another file with --out, or remove it first.")
    from genlab.models.official_few_shot import read_official

    try:
        held = read_official(given.file)
        content = _official(given.method, held) if given.to == "official" else _genlab(given.method, held, given.values)
    except UserError as error:
        raise UserError(f"convert: {given.file}: {error}") from error
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(given.out, buffer.getvalue())
    print(f"written: {given.out}")
    if given.to == "genlab":
        for name, value in content["state_dict"].items():
            print(f"  {name} {tuple(value.shape)}")
        sizes = _sizes(given.method, content["state_dict"])
        print(f"\n  python -m genlab test -c experiments/{CONFIGS[given.method]}.yaml {sizes} --ckpt_path {given.out} --data.root DIR")
    return 0


def _genlab(method: str, held: Any, values: Path | None) -> dict[str, Any]:
    import lightning

    from genlab.models import official_few_shot as official

    if method == "tip_adapter_f":
        state = _cache(held, values)
    elif not isinstance(held, dict):
        raise UserError(f"it holds a {type(held).__name__}, no state dict.")
    else:
        state = official.cpr_from_official(held) if method == "cpr" else official.coop_from_official(held, conditional=method == "cocoop")
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": state,
        "method": CLASSES[method],
    }


def _cache(held: Any, values: Path | None) -> dict[str, Tensor]:
    import torch

    from genlab.models.official_few_shot import read_official

    if values is None:
        raise UserError("keys alone do not tell whose pictures they are; give the labels beside them: --values values_<K>shots.pt.")
    labels = read_official(values)
    if not isinstance(held, torch.Tensor) or not isinstance(labels, torch.Tensor) or held.ndim != 2 or labels.ndim != 2:
        raise UserError("keys and values are a matrix each, (pictures, width) and (pictures, classes).")
    if len(held) != len(labels):
        raise UserError(f"there are {len(held)} keys and {len(labels)} values; they belong to different files.")
    return {"keys": held.detach().float(), "values": labels.float()}


def _official(method: str, held: Any) -> Any:
    from genlab.models import official_few_shot as official

    if not isinstance(held, dict):
        raise UserError(f"it holds a {type(held).__name__}, no checkpoint of GenLab.")
    if method == "tip_adapter_f":
        if "keys" not in held:
            raise UserError("it has no keys; is it of Tip-Adapter-F?")
        return held["keys"]
    found = official.cpr_to_official(held) if method == "cpr" else {"state_dict": official.coop_to_official(held), "epoch": 0}
    if not found.get("state_dict", found):
        raise UserError(f"it has no parameters of {method}.")
    return found


def _sizes(method: str, state: dict[str, Any]) -> str:
    """Options that make the configuration as large as the file."""
    ctx = state.get("prompt_learner.ctx")
    if ctx is None:
        return ""
    words = [f"--model.n_ctx={ctx.shape[-2]}", *(["--model.ctx_init=null"] if method == "cocoop" else [])]
    return " ".join([*words, *(["--model.class_specific=true"] if ctx.ndim == 3 else [])])

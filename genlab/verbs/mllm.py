"""``genlab mllm ACTION``: work around multimodal LLMs that detect generated pictures; each action is a module of its own."""

from __future__ import annotations

import importlib

from genlab.errors import UserError
from genlab.nearest import did_you_mean

ACTIONS = {
    "merge": "a model folder out of a LoRA folder, a run or a checkpoint: mllm merge PATH --out FOLDER",
}
HELP = "usage: python -m genlab mllm ACTION [options]\n\n{actions}\n\n  python -m genlab mllm ACTION --help   what it takes"


def main(args: list[str]) -> int:
    """Runs ``genlab.verbs.mllm_<action>``."""
    if not args or args[0] in ("-h", "--help"):
        print(HELP.format(actions="\n".join(f"  {name:<8}  {line}" for name, line in ACTIONS.items())))
        return 0
    if args[0] not in ACTIONS:
        raise UserError(f"mllm: there is no action {args[0]!r}{did_you_mean(args[0], ACTIONS) or '.'} There are {', '.join(ACTIONS)}.")
    code: int = importlib.import_module(f"genlab.verbs.mllm_{args[0]}").main(args[1:])
    return code

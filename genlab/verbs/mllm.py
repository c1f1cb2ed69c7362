"""``genlab mllm ACTION``: what there is to do with MLLM detectors beside ``test`` and ``predict``; each action is a module of its own."""

from __future__ import annotations

import importlib

from genlab.errors import UserError
from genlab.nearest import did_you_mean

ACTIONS = {
    "dry-run": ("genlab.verbs.mllm_dry_run", "how many calls a test would make, and what they would cost; nothing is sent"),
    "rescore": ("genlab.verbs.mllm_rescore", "read the kept replies of a run anew, with another parser or fusion; nothing is sent"),
    "calibrate": ("genlab.verbs.mllm_calibrate", "fit the fusion of prompts on a run over pictures whose truth is known"),
    "merge": ("genlab.verbs.mllm_merge", "a model folder out of a LoRA folder, a run or a checkpoint: mllm merge PATH --out FOLDER"),
    "compare": ("genlab.verbs.mllm_compare", "one table: prompts, fusion, traditional detectors, people"),
}


def main(args: list[str]) -> int:
    """Runs an action.

    Raises:
        UserError: There is no such action.
    """
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, ACTIONS))
        lines = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in ACTIONS.items())
        print(f"usage: python -m genlab mllm ACTION [options]\n\n{lines}\n\nOptions of an action: python -m genlab mllm ACTION --help.")
        return 0
    if args[0] not in ACTIONS:
        raise UserError(f"mllm: there is no action {args[0]!r}{did_you_mean(args[0], ACTIONS) or '.'} There are {', '.join(ACTIONS)}.")
    return int(importlib.import_module(ACTIONS[args[0]][0]).main(args[1:]))

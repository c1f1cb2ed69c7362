"""``genlab mllm calibrate RUN --out FILE``: fits the fusion of prompts on a run over pictures whose truth is known. No model is asked."""

from __future__ import annotations

import argparse
from pathlib import Path

from genlab.errors import UserError


def main(args: list[str]) -> int:
    """Writes the calibration, for ``CalibratedFusion``.

    Raises:
        UserError: The run has no labelled pictures, or of one class alone.
    """
    parser = argparse.ArgumentParser("python -m genlab mllm calibrate", description="Fits the fusion of prompts.", allow_abbrev=False)
    parser.add_argument("run", type=Path, help="folder of a test with answers.jsonl, over other pictures than those to be judged later")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON to write")
    given = parser.parse_args(args)
    if given.out.suffix != ".json" or given.out.is_dir():
        raise UserError(f"mllm calibrate: --out {given.out}; name a .json file.")

    from genlab.methods.mllm_defake.records import read_answers
    from genlab.vlm.fusing import Calibration

    labelled = [(facts["label"], each) for facts, each in read_answers(given.run) if each is not None and facts["label"] is not None]
    whole = [(label, each) for label, each in labelled if not any(answer.failed for answer in each.answers)]
    if not whole:
        raise UserError(f"mllm calibrate: {given.run} holds no judged pictures with a label; it takes a test, not a prediction.")
    prompts = [answer.prompt for answer in whole[0][1].answers]
    items = [[(answer.verdict, answer.p_fake) for answer in each.answers] for _, each in whole]
    fitted = Calibration.fit(prompts, items, [label for label, _ in whole], [each.digest for _, each in whole])
    fitted.write(given.out)
    weights = ", ".join(f"{name} {weight:+.3f}" for name, weight in zip(prompts, fitted.weights))
    print(f"{given.out}: fitted on {len(whole)} pictures; bias {fitted.bias:+.3f}, {weights}")
    print(f"python -m genlab test -c ... --model.fusion genlab.vlm.fusing.CalibratedFusion --model.fusion.init_args.file {given.out}")
    return 0

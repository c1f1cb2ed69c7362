"""``genlab mllm rescore RUN``: reads the kept replies of a test or prediction anew. No model is asked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from genlab.errors import UserError
from genlab.files import write_bytes, write_csv, write_json

MODES = ("majority", "at_least", "logodds")


def main(args: list[str]) -> int:
    """Writes ``<run>/rescored-<parser>/`` (predictions.csv, answers.jsonl, comparison.csv, official tables) and prints the table.

    Raises:
        UserError: The run has no replies, or options do not go together.
    """
    parser = argparse.ArgumentParser(
        "python -m genlab mllm rescore", description="Reads kept replies anew; no model is asked.", allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="folder of a test or prediction, with answers.jsonl")
    parser.add_argument("--parser", choices=("strict", "official"), default="strict", help="how replies are read (default strict)")
    parser.add_argument(
        "--fusion",
        choices=(*MODES, "question"),
        help="numeric fusion, or the kept reply to the fusing question; default: that of the run",
    )
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="fusion by a file of mllm calibrate instead")
    parser.add_argument("--quorum", type=int, default=3, help="verdicts that a numeric fusion takes (default 3)")
    parser.add_argument("--m", type=int, default=3, help="of at_least: how many must say fake (default 3)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: <run>/rescored-<parser>")
    given = parser.parse_args(args)
    if given.quorum < 1 or given.m < 1:
        raise UserError(f"mllm rescore: --quorum {given.quorum} --m {given.m}; both are at least 1.")
    if given.calibration is not None and given.fusion is not None:
        raise UserError("mllm rescore: give --fusion or --calibration, not both.")

    from genlab.methods.mllm_defake.records import answer_lines, judges_of, official_tables, prediction, read_answers
    from genlab.metrics.judges import comparison
    from genlab.reports import console_table
    from genlab.vlm.fusing import CalibratedFusion
    from genlab.vlm.fusion import Fusion, NumericFusion
    from genlab.vlm.judging import Reader
    from genlab.vlm.verdicts import StrictParser

    answers = read_answers(given.run)
    reader = Reader(given.parser, StrictParser.load())
    asked = any(judgement is not None and judgement.fusing is not None for _, judgement in answers)
    if given.fusion == "question" and not asked:
        raise UserError(f"mllm rescore: {given.run} holds no replies to the fusing question; use --fusion majority.")
    fusion: Fusion | None = fusion_of(given.run) if given.fusion is None else None
    if given.calibration is not None:
        fusion = CalibratedFusion(str(given.calibration), given.quorum)
    elif given.fusion not in ("question", None) or (fusion is None and not asked):
        fusion = NumericFusion(given.fusion or "majority", quorum=given.quorum, m=given.m)
    samples = [
        (Known(**facts), None if judgement is None else again(judgement, facts["id"], reader, fusion)) for facts, judgement in answers
    ]
    out = given.out or (given.run if given.run.is_dir() else given.run.parent) / f"rescored-{given.parser}"
    write_csv(out / "predictions.csv", [prediction(each.id, each.label, each.generator, judgement) for each, judgement in samples])
    for name, content in {"answers.jsonl": answer_lines(samples), **official_tables(samples)}.items():
        write_bytes(out / name, content)
    labels = {each.id: each.label for each, judgement in samples if judgement is not None and each.label is not None}
    if labels:
        rows = comparison(judges_of([(each.id, judgement) for each, judgement in samples if judgement is not None]), labels, "fused")
        write_csv(out / "comparison.csv", rows)
        write_json(out / "rescored.json", {"run": str(given.run), "parser": given.parser, "fusion": repr(fusion) if fusion else "question"})
        print(console_table([{key: row[key] for key in SHOWN if key in row} for row in rows], f"{given.run}, parser {given.parser}"))
    print(f"{len(samples)} pictures, no calls: {out}")
    return 0


SHOWN = (
    "judge",
    "n",
    "accuracy_strict",
    "accuracy_answered",
    "accuracy_low",
    "accuracy_high",
    "refusal_rate",
    "balanced_accuracy",
    "kappa",
    "mcnemar_p",
)


def fusion_of(run: Path) -> Any:
    """The numeric or calibrated fusion that a run was configured with; None where it asked a question, or does not say."""
    import yaml

    from genlab.vlm.fusing import CalibratedFusion
    from genlab.vlm.fusion import NumericFusion

    file = (run if run.is_dir() else run.parent) / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    chosen = ((config.get("model") or {}).get("init_args") or {}).get("fusion") or {}
    kind = {each.__name__: each for each in (NumericFusion, CalibratedFusion)}.get(str(chosen.get("class_path", "")).rpartition(".")[2])
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in (chosen.get("init_args") or {}).items()
    }
    return kind(**options) if kind is not None else None


class Known:
    """What a line of answers.jsonl says of a picture beside its judgement."""

    def __init__(self, id: str, label: int | None, generator: str) -> None:
        self.id, self.label, self.generator = id, label, generator


def again(judgement: Any, name: str, reader: Any, fusion: Any) -> Any:
    """A judgement with its replies read anew; ``fusion`` None keeps the fusing question's reply as the verdict."""
    from genlab.vlm.fusing import CalibratedFusion
    from genlab.vlm.fusion import Fused
    from genlab.vlm.judging import Judgement, fuse_numbers

    answers = [reader.again(each) for each in judgement.answers]
    fusing = reader.again(judgement.fusing) if judgement.fusing is not None else None
    if fusion is not None:
        if isinstance(fusion, CalibratedFusion):
            fusion.fitted.check([each.prompt for each in answers])
            fusion.fitted.refuse(name, judgement.digest)
        return Judgement(answers, fuse_numbers(fusion, answers), None, judgement.digest)
    fused = Fused(fusing.verdict, fusing.p_fake, fusing.status) if fusing is not None else judgement.fused
    return Judgement(answers, fused, fusing, judgement.digest)

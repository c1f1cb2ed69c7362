"""Judgements as rows and files: ``predictions.csv``, ``answers.jsonl``, and the table of the released code, in which 1 = real."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from genlab.errors import MissingPath, UserError
from genlab.metrics.judges import Judged
from genlab.vlm.judging import Judgement, from_record
from genlab.vlm.verdicts import Word

CODES: dict[Word, int | None] = {"real": 0, "fake": 1, "unknown": None}
OFFICIAL: dict[Word, int] = {"real": 1, "fake": 0, "unknown": -1}
ANSWERS = "answers.jsonl"


class Known(Protocol):
    """What is known of a picture beside its judgement."""

    @property
    def id(self) -> str: ...
    @property
    def label(self) -> int | None: ...
    @property
    def generator(self) -> str: ...


def prediction(name: str, label: int | None, generator: str, judgement: Judgement | None) -> dict[str, Any]:
    """A row of ``predictions.csv``. ``score`` is P(fake) of the fusion; where it has none, 1, 0 or, of no verdict, 0.5."""
    row: dict[str, Any] = {"id": name, "label": "" if label is None else label, "score": "", "status": "unreadable"}
    if judgement is None:
        return row
    fused = judgement.fused
    if judgement.status == "ok":
        row["score"] = fused.p_fake if fused.p_fake is not None else {"fake": 1.0, "real": 0.0, "unknown": 0.5}[fused.verdict]
    row |= {"status": judgement.status, "generator": generator, "verdict": fused.verdict, "reason": fused.reason}
    row["confidence"] = "" if fused.p_fake is None or fused.verdict == "unknown" else max(fused.p_fake, 1 - fused.p_fake)
    for each in (*judgement.answers, *([judgement.fusing] if judgement.fusing else [])):
        row |= {each.prompt: each.verdict, f"{each.prompt}_status": each.status}
        row |= {f"{each.prompt}_p_fake": "" if each.p_fake is None else each.p_fake, f"{each.prompt}_p_source": each.p_source}
        row[f"{each.prompt}_reply"] = each.text
    return row


def judges_of(judged: Sequence[tuple[str, Judgement]]) -> list[Judged]:
    """Each prompt, and last the fusion, as judges of the pictures; those that failed are left out."""
    names = list(dict.fromkeys(answer.prompt for _, judgement in judged for answer in judgement.answers))
    found = []
    for name in names:
        own = {i: answer for i, judgement in judged for answer in judgement.answers if answer.prompt == name and not answer.failed}
        p_fake = {i: answer.p_fake for i, answer in own.items() if answer.p_fake is not None}
        found.append(Judged(name, "prompt", {i: CODES[answer.verdict] for i, answer in own.items()}, p_fake))
    whole = {i: judgement.fused for i, judgement in judged if judgement.status == "ok"}
    p_fake = {i: fused.p_fake for i, fused in whole.items() if fused.p_fake is not None}
    return [*found, Judged("fused", "fusion", {i: CODES[fused.verdict] for i, fused in whole.items()}, p_fake)]


def answer_lines(judged: Sequence[tuple[Known, Judgement | None]]) -> bytes:
    """``answers.jsonl``: a line per picture with every reply; ``judgement`` is null for one that cannot be read."""
    lines = [
        json.dumps(
            {
                "id": sample.id,
                "label": sample.label,
                "generator": sample.generator,
                "judgement": None if judgement is None else judgement.record(),
            },
            ensure_ascii=False,
            sort_keys=True,
        )
        for sample, judgement in judged
    ]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def read_answers(run: Path) -> list[tuple[dict[str, Any], Judgement | None]]:
    """What :func:`answer_lines` wrote: id, label and generator, and the judgement.

    Args:
        run: The file, or the folder of an evaluation.

    Raises:
        MissingPath: There is none.
        UserError: It is another file.
    """
    path = run / ANSWERS if run.is_dir() else run
    if not path.is_file():
        raise MissingPath(f"{path} is not there; name the folder of a test or prediction that has ended, which holds {ANSWERS}.")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="surrogateescape").split("\n"), 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            judgement = from_record(record["judgement"]) if record["judgement"] is not None else None
            found.append(({key: record[key] for key in ("id", "label", "generator")}, judgement))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a line of {ANSWERS} ({error!r}).") from error
    return found


def official_tables(judged: Sequence[tuple[Known, Judgement | None]]) -> dict[str, bytes]:
    """``official_<prompt>.csv`` of labelled pictures: path, label, pred, response as the released code has them (1 = real)."""
    rows: dict[str, list[tuple[str, int, int, str]]] = {}
    for sample, judgement in judged:
        if judgement is None or sample.label is None:
            continue
        for each in (*judgement.answers, *([judgement.fusing] if judgement.fusing else [])):
            if not each.failed:
                rows.setdefault(each.prompt, []).append((sample.id, 1 - sample.label, OFFICIAL[each.verdict], each.text))
    return {f"official_{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}.csv": official_csv(each) for name, each in rows.items()}


def official_csv(rows: Sequence[tuple[str, int, int, str]]) -> bytes:
    """The table of the released code, byte by byte as pandas writes it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "pred", "response"))
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")

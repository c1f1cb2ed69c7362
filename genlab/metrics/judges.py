"""Tables of judges (prompts, a fusion, detectors, people) that say real, fake or nothing of the same pictures. Label 1 = fake."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from genlab.metrics.verdicts import kappa, mcnemar, score_metrics, verdict_metrics, wilson

Kind = Literal["prompt", "fusion", "traditional", "human"]
SHOWN = ("accuracy_strict", "accuracy_answered", "refusal_rate", "balanced_accuracy", "accuracy_real", "accuracy_fake", "macro_f1", "mcc")


@dataclass(frozen=True)
class Judged:
    """What one judge says.

    Args:
        name: In tables.
        kind: What it is.
        verdicts: Picture's id -> 1 = fake, 0 = real, None = no verdict. Pictures that it was not shown are not there.
        p_fake: Picture's id -> P(fake), where it has one.
    """

    name: str
    kind: Kind
    verdicts: Mapping[str, int | None]
    p_fake: Mapping[str, float] = field(default_factory=dict)


def judge_row(judge: Judged, labels: Mapping[str, int], reference: Judged | None = None) -> dict[str, Any]:
    """Counts, metrics and intervals of a judge over the pictures that it was shown; against the reference, Cohen's kappa and McNemar's p.

    Kappa is over the pictures that both have a verdict on; McNemar's test over all that both were shown, no verdict counting as wrong.
    """
    ids = [each for each in labels if each in judge.verdicts]
    truth, said = [labels[each] for each in ids], [judge.verdicts[each] for each in ids]
    found = verdict_metrics(truth, said)
    low, high = found["wilson95"]
    row: dict[str, Any] = {"kind": judge.kind, "judge": judge.name, "n": len(ids)} | {key: found[key] for key in SHOWN}
    row |= {"accuracy_low": low, "accuracy_high": high}
    scored = [each for each in ids if each in judge.p_fake]
    if scored and len({labels[each] for each in scored}) == 2:
        row |= score_metrics([labels[each] for each in scored], [judge.p_fake[each] for each in scored])
        row["n_scored"] = len(scored)
    if reference is not None and reference is not judge:
        shared = [each for each in ids if each in reference.verdicts]
        ours, theirs = ([each.verdicts[i] for i in shared] for each in (judge, reference))
        both = [(a, b) for a, b in zip(ours, theirs) if a is not None and b is not None]
        right = [(a == labels[i], b == labels[i]) for a, b, i in zip(ours, theirs, shared)]
        row["kappa"] = kappa([a for a, _ in both], [b for _, b in both]) if both else None
        row["n_kappa"] = len(both)
        row["mcnemar_p"] = mcnemar(right.count((True, False)), right.count((False, True)))
    return row


def comparison(judges: Sequence[Judged], labels: Mapping[str, int], reference: str) -> list[dict[str, Any]]:
    """A row per judge, by kind: prompts, fusion, traditional detectors, humans (mean, best, worst, then each)."""
    against = next((each for each in judges if each.name == reference), None)
    rows = []
    for kind in ("prompt", "fusion", "traditional", "human"):
        own = [judge_row(each, labels, against) for each in judges if each.kind == kind]
        rows += _people(own) + own if kind == "human" and len(own) > 1 else own
    return rows


def _people(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, best and worst of several people, by the share of all pictures that they get right."""
    columns = (*SHOWN, "kappa")
    known = {key: [row[key] for row in rows if row.get(key) is not None] for key in columns}
    mean = {key: statistics.fmean(values) for key, values in known.items() if values}
    order = sorted(rows, key=lambda row: (row["accuracy_strict"], row["judge"]))
    best, worst = ({**row, "judge": f"{word} of {len(rows)} people"} for row, word in ((order[-1], "best"), (order[0], "worst")))
    return [{"kind": "human", "judge": f"mean of {len(rows)} people", **mean}, best, worst]


def generator_rows(judge: Judged, labels: Mapping[str, int], groups: Mapping[str, str]) -> list[dict[str, Any]]:
    """Per generator: share of its pictures that are called fake, with Wilson's interval; refusals; balanced accuracy with all real ones."""
    reals = [judge.verdicts[each] for each, label in labels.items() if label == 0 and each in judge.verdicts]
    answered = [verdict for verdict in reals if verdict is not None]
    specificity = answered.count(0) / len(answered) if answered else 0.0
    rows = []
    for group in sorted({groups[each] for each, label in labels.items() if label == 1}):
        said = [judge.verdicts[i] for i, label in labels.items() if label == 1 and groups[i] == group and i in judge.verdicts]
        known = [verdict for verdict in said if verdict is not None]
        recall = known.count(1) / len(known) if known else 0.0
        low, high = wilson(known.count(1), len(known))
        facts = {"judge": judge.name, "generator": group, "n": len(said), "recall": recall, "recall_low": low, "recall_high": high}
        refusals = 1 - len(known) / len(said) if said else 0.0
        rows.append({**facts, "refusal_rate": refusals, "balanced_accuracy": (recall + specificity) / 2 if known else 0.0})
    return rows


def risk_coverage(judge: Judged, labels: Mapping[str, int]) -> list[dict[str, float]]:
    """What share of pictures is judged, and how many of them wrongly, if the least sure verdicts are withheld first."""
    judged = [i for i in labels if i in judge.p_fake and judge.verdicts.get(i) is not None]
    known = [(round(abs(judge.p_fake[i] - 0.5), 9), judge.verdicts[i] != labels[i]) for i in judged]
    known.sort(key=lambda pair: -pair[0])
    total = sum(i in judge.verdicts for i in labels)
    rows, wrong = [], 0
    for count, (sure, is_wrong) in enumerate(known, 1):
        wrong += is_wrong
        if count == len(known) or known[count][0] < sure:  # equally sure ones are withheld together
            rows.append({"threshold": sure, "coverage": count / total, "risk": wrong / count})
    return rows


def matched(names: Sequence[str], ids: Sequence[str]) -> dict[str, str]:
    """Name -> id of the same picture: equal, or one ends with the other's path and no second one does. What has no match is left out."""
    known = set(ids)
    endings: dict[str, list[str]] = {}
    for each in ids:
        parts = each.split("/")
        for i in range(len(parts)):
            endings.setdefault("/".join(parts[i:]), []).append(each)
    found: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        longest = ["/".join(parts[i:]) for i in range(len(parts))]
        candidates = [name] if name in known else endings.get(name) or [each for each in longest if each in known][:1]
        if len(candidates) == 1:
            found[name] = candidates[0]
    return found

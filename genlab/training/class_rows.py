"""Rows of ``predictions.csv`` of classifiers that name one of several classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

TOP = 5  # classes named in a prediction


def class_rows(
    ids: Sequence[str], labels: Tensor, readable: Tensor, chances: Tensor, names: Sequence[str], predicting: bool, among: str = ""
) -> list[dict[str, Any]]:
    """A row per sample: what it was called and with which probability; in predictions the runners-up too.

    Args:
        ids: Of the samples.
        labels: (B,).
        readable: (B,) bool; others get neither score nor name.
        chances: (B, C) probabilities.
        names: Of the classes.
        predicting: There is no true label.
        among: Name of the set, where several are evaluated.
    """
    best = chances.topk(min(TOP, len(names)), 1)
    rows: list[dict[str, Any]] = []
    for i, ok in enumerate(readable.tolist()):
        row: dict[str, Any] = {"id": ids[i], "label": names[int(labels[i])] if not predicting else ""}
        row |= {"score": float(best.values[i, 0]) if ok else "", "status": "ok" if ok else "unreadable"}
        if among:
            row["set"] = among
        row["called"] = names[int(best.indices[i, 0])] if ok else ""
        for place in range(1, best.indices.shape[1] if predicting else 1):
            row |= {f"called_{place + 1}": names[int(best.indices[i, place])] if ok else ""}
            row |= {f"score_{place + 1}": float(best.values[i, place]) if ok else ""}
        rows.append(row)
    return rows

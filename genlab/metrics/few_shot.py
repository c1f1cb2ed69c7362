"""Numbers of few-shot classification: accuracy of base and new classes together, and averages over datasets (CoCoOp, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

BINS = 15


def harmonic_mean(base: float, new: float) -> float:
    """2 b n / (b + n); 0 where both are 0."""
    return 2 * base * new / (base + new) if base + new else 0.0


def average_over_datasets(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of ``base`` and ``new``, and both averages of the harmonic mean.

    ``harmonic_of_means`` is what papers print; ``mean_of_harmonics`` is another number.
    """
    base, new = (sum(row[name] for row in rows) / len(rows) for name in ("base", "new"))
    each = [harmonic_mean(row["base"], row["new"]) for row in rows]
    return {"base": base, "new": new, "harmonic_of_means": harmonic_mean(base, new), "mean_of_harmonics": sum(each) / len(each)}


def classification_metrics(num_classes: int, more: Sequence[str] = ()) -> nn.ModuleDict:
    """Accuracy over all pictures (``acc``), its mean over classes (``acc_macro``), the calibration error (``ece``) and further accuracies.

    Args:
        num_classes: C.
        more: Names of accuracies of other predictions for the same pictures, such as ``acc_nnr``.
    """
    metrics = {
        "acc": MulticlassAccuracy(num_classes, average="micro"),
        "acc_macro": MulticlassAccuracy(num_classes, average="macro"),
        "ece": MulticlassCalibrationError(num_classes, n_bins=BINS),
    }
    return nn.ModuleDict(metrics | {name: MulticlassAccuracy(num_classes, average="micro") for name in more})

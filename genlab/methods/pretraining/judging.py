"""What a judge sees in pictures that a model made, compared with what they should show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from genlab.errors import UserError
from genlab.models.judge import Judge
from genlab.weights import load_pretrained


class Judged:
    """Accuracy per attribute, in [0, 1], in the eyes of a :class:`genlab.models.judge.Judge`. It is part of no loss and no checkpoint.

    Args:
        judge: Folder or ``tiny:NAME``.
        classes: Attribute -> names of its classes, as the datamodule's labels number them. Those that the judge does not know are ignored.
        device: Where the pictures are.
        only: Attribute -> classes: pictures with other labels are not counted.

    Raises:
        UserError: The judge has other classes than the data, or knows none of its attributes.
    """

    def __init__(
        self, judge: str, classes: Mapping[str, list[str]], device: torch.device, only: Mapping[str, list[str]] | None = None
    ) -> None:
        self.judge: Judge = load_pretrained(cast(Any, Judge), judge).requires_grad_(False).eval().to(device)
        self.classes, self.only = classes, only or {}
        columns = [name for name in self.judge.classes if name in classes]
        if not columns:
            raise UserError(f"data.labels: the judge tells {', '.join(self.judge.classes)}; name some of these columns.")
        for name in columns:
            if strange := sorted(set(classes[name]) - set(self.judge.classes[name])):
                raise UserError(f"data.labels: the judge does not know {name} {strange[0]!r}; it knows {self.judge.classes[name]}.")
        if unknown := sorted(name for name, values in self.only.items() if not set(values) <= set(classes.get(name, ()))):
            raise UserError(f"model.judge_only: {unknown[0]} is no label with these classes; name the column in data.labels.")
        self.accuracy = {name: MeanMetric().to(device) for name in columns}

    @torch.no_grad()
    def update(self, image: Tensor, labels: Mapping[str, Tensor]) -> list[dict[str, str]]:
        """(B, 3, H, W) in [0, 1] -> what the judge says of each picture, attribute -> class; counts how often that is the label."""
        counted = torch.ones(len(image), dtype=torch.bool, device=image.device)
        for name, values in self.only.items():
            allowed = torch.tensor([self.classes[name].index(value) for value in values], device=image.device)
            counted &= torch.isin(labels[name], allowed)
        with torch.autocast(image.device.type, enabled=False):
            said = {name: values for name, values in self.judge.say(image.float()).items() if name in self.accuracy}
        for name, values in said.items():
            known = counted & (labels[name] >= 0)
            if known.any():
                truth = [self.classes[name][i] for i in labels[name][known].tolist()]
                heard = [value for value, count in zip(values, known.tolist()) if count]
                right = torch.tensor([a == b for a, b in zip(heard, truth)], dtype=torch.float32, device=image.device)
                self.accuracy[name].update(right)
        return [dict(zip(said, each)) for each in zip(*said.values())]

    def compute(self) -> dict[str, Tensor]:
        """Attribute -> accuracy."""
        return {name: metric.compute() for name, metric in self.accuracy.items()}


def judged(judge: str | None, datamodule: Any, only: Mapping[str, list[str]] | None, device: torch.device) -> Judged | None:
    """The judge for one evaluation, with fresh counts; ``None`` where none is asked for.

    Raises:
        UserError: The datamodule has no labels.
    """
    if judge is None:
        return None
    classes = getattr(datamodule, "classes", None)
    if not classes:
        raise UserError("data.labels: the judge needs columns to compare with, such as [shape, colour, background].")
    return Judged(judge, classes, device, only)

"""A judge's answers are counted against the data's labels, and only where they are asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from genlab.errors import UserError
from genlab.methods.pretraining.judging import Judged, judged
from genlab.models.judge import Judge

CLASSES = {"shape": ["circle", "square", "star"], "colour": ["blue", "red"]}
CPU = torch.device("cpu")


def pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(12, 3, 16, 16, generator=generator) * torch.rand(12, 3, 1, 1, generator=generator)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    torch.manual_seed(0)
    judge = Judge(CLASSES, (4, 8), 16)
    with torch.no_grad():  # answers that differ from picture to picture
        for head, logits in zip(judge.heads, judge.eval()(pictures()).values()):
            head.bias -= logits.mean(0)
    judge.save_pretrained(tmp_path / "judge")
    return str(tmp_path / "judge")


def test_accuracy_by_hand(folder: str) -> None:
    """The data numbers its classes in another order, has fewer, and one label that the judge knows nothing of."""
    classes = {"shape": ["star", "circle", "square"], "colour": ["red", "blue"], "objects": ["1", "2"]}
    image = pictures()
    said = Judge.from_pretrained(folder).say(image)
    assert all(len(set(values)) > 1 for values in said.values())
    labels = {name: torch.tensor([classes[name].index(value) for value in values]) for name, values in said.items()}
    labels["objects"] = torch.tensor([0] * 8 + [1] * 4)
    labels["shape"][8:] = (labels["shape"][8:] + 1) % 3  # wrong, but of two objects: not counted
    labels["shape"][0] = (labels["shape"][0] + 1) % 3
    labels["colour"][1] = -1  # no label
    labels["colour"][2:4] = 1 - labels["colour"][2:4]
    counted = Judged(folder, classes, CPU, {"objects": ["1"]})
    heard = [
        *counted.update(image[:5], {name: values[:5] for name, values in labels.items()}),
        *counted.update(image[5:], {name: values[5:] for name, values in labels.items()}),
    ]
    assert heard == [{"shape": shape, "colour": colour} for shape, colour in zip(said["shape"], said["colour"])]
    result = counted.compute()
    assert {name: value.item() for name, value in result.items()} == pytest.approx({"shape": 7 / 8, "colour": 5 / 7})


def test_data_that_the_judge_cannot_judge_is_refused(folder: str) -> None:
    with pytest.raises(UserError, match="name some of these columns"):
        Judged(folder, {"motion": ["up"]}, CPU)
    with pytest.raises(UserError, match="does not know shape 'moon'"):
        Judged(folder, {"shape": ["circle", "moon"]}, CPU)
    with pytest.raises(UserError, match="judge_only: objects"):
        Judged(folder, CLASSES, CPU, {"objects": ["1"]})
    with pytest.raises(UserError, match="needs columns"):
        judged(folder, SimpleNamespace(classes={}), None, CPU)
    assert judged(None, SimpleNamespace(classes={}), None, CPU) is None

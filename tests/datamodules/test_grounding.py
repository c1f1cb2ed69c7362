"""Grounding JSONL as training data: which line comes when, boxes in reduced pictures, and what is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.grounding import Grounding, placed
from datamodules.sampling import ChunkSampler, Draw, chunked_order
from datamodules.tinyworld import make
from genlab.errors import MissingPath, UserError
from tests.golden_files import golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("mllm_defake", "sampler"))
def test_reference_order(path: Path) -> None:
    meta, _ = load_golden(path)
    for case in meta["cases"]:
        sizes = case["n"], case["batch_size"], case["repeat_count"], case["mini_repeat_count"], case["seed"]
        for epoch in (0, 1):
            assert chunked_order(*sizes, epoch).tolist() == case[f"epoch{epoch}"]


def test_every_rank_has_its_share_of_every_chunk() -> None:
    whole = list(ChunkSampler(11, 4, 2, seed=1))
    assert len(whole) == 16 and whole[:4] == whole[4:8] and set(whole[8:12]).isdisjoint(whole[:4])
    ranks = [list(ChunkSampler(11, 4, 2, 1, rank, 2)) for rank in (0, 1)]
    for first in (0, 2, 4, 6):
        step = {draw.index for rank in ranks for draw in rank[first : first + 2]}
        assert step == {draw.index for draw in whole[2 * first : 2 * first + 4]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two real and two generated pictures of 40 x 20 pixels."""
    lines = []
    for number in range(4):
        name = f"{number}.png"
        Image.fromarray(np.full((20, 40, 3), 50 * number, np.uint8)).save(tmp_path / name)
        said = "<think><ref-object><bbox> melts.</think><verdict>generated</verdict>" if number % 2 else "<verdict>real</verdict>"
        turns = [{"role": "system", "content": "Look."}, {"role": "user", "content": "<image>Judge this."}]
        line: dict[str, Any] = {"messages": [*turns, {"role": "assistant", "content": said}], "images": [name]}
        if number % 2:
            box = {"bbox": [[0, 0, 0.5, 1]], "bbox_type": "norm1"} if number == 3 else {"bbox": [[10, 5, 20, 20]]}
            line["objects"] = {"ref": ["hand"]} | box
        lines.append(json.dumps(line))
    (tmp_path / "grounding_train.jsonl").write_text("\n".join(lines))
    return tmp_path


def samples(root: Path, stage: str = "fit", **options: Any) -> list[dict[str, Any]]:
    data = Grounding(str(root), **({"val_share": 0.0} | options))
    data.setup(stage)
    dataset = data.datasets["train" if stage == "fit" else stage]
    return [dataset[Draw(i, 0)] for i in range(len(dataset))]


def test_boxes_go_with_the_reduced_picture(root: Path) -> None:
    found = samples(root, max_side=20, picture="last")
    assert [each["label"] for each in found] == [0, 1, 0, 1] and found[0]["image"].shape == (3, 10, 20)
    assert found[1]["boxes"] == [(5, 2.5, 10, 10)] and found[3]["boxes"] == [(0, 0, 10, 10)] and found[1]["refs"] == ["hand"]
    assert found[0]["turns"] == [("system", "Look."), ("user", "Judge this.<image>")]
    assert placed("a <image> b", "first") == "<image>a  b" and placed("no picture", "last") == "no picture"


def test_the_next_of_its_label_stands_in_for_an_unreadable_picture(root: Path) -> None:
    (root / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = samples(root)
    assert [each["id"] for each in found] == ["0.png", "3.png", "2.png", "3.png"]
    assert [each["substituted"] for each in found] == [False, True, False, False]
    (tested,) = [each for each in samples(root, "test", test="grounding_train.jsonl") if not each["readable"]]
    assert tested["id"] == "1.png" and tested["label"] == 1, "in evaluation it is said"
    (root / "3.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"no picture .* can be read"):
        samples(root)


def test_validation_lines_are_held_out(root: Path) -> None:
    data = Grounding(str(root), val_share=0.5)
    data.setup("fit")
    train, val = ({line.picture for line in data.datasets[name].lines} for name in ("train", "val"))
    assert len(train) == len(val) == 2 and not train & val
    assert data.protocol["n_val"] == 2


def test_own_pictures_are_asked_about(root: Path) -> None:
    (mine,) = samples(root, "predict", predict_paths=[str(root / "2.png")])
    assert mine["label"] == -1 and mine["turns"][-1] == ("user", "<image>Judge this.") and mine["target"] == ""
    (other,) = samples(root, "predict", predict_paths=[str(root / "2.png")], question="Real?", train="none.jsonl")
    assert other["turns"] == [("user", "<image>Real?")]


def test_what_is_missing_is_named(root: Path) -> None:
    (root / "2.png").unlink()
    with pytest.raises(MissingPath, match=r"1 of 4 pictures are not there, such as .*2\.png"):
        samples(root)
    with pytest.raises(MissingPath, match=r"grounding_test\.jsonl"):
        samples(root, "test")
    with pytest.raises(MissingPath, match="not a folder"):
        samples(root / "nowhere")
    with pytest.raises(UserError, match=r"data\.val_share: 1\.0 is no share"):
        Grounding(str(root), val_share=1.0)


def test_the_plain_world_is_told_apart_by_light(tmp_path: Path) -> None:
    world = make("plain_defake", tmp_path / "world", progress=False, train=2, test=2)
    found = samples(world, "test")
    assert len(found) == 8 and sum(each["label"] for each in found) == 4
    for each in found:
        assert (each["image"].float().amin(0).min() > 120) == (each["label"] == 0)
        for left, top, right, bottom in each["boxes"]:
            assert each["image"][:, int(top) : int(bottom), int(left) : int(right)].float().mean() < 100
    blind = samples(world, train="grounding_blind.jsonl")
    assert len(blind) == 8 and {each["target"] for each in blind} == {"<verdict>real</verdict>", "<verdict>generated</verdict>"}

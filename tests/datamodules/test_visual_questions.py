"""Questions about pictures: true, balanced, read back as written, and what is said of broken folders."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.questions_index import items, note, preview
from datamodules.sampling import Draw
from datamodules.tinyworld import make
from datamodules.tinyworld.questions import KINDS, asked_scene, questions
from datamodules.tinyworld.scene import BACKGROUNDS, Scene, render
from datamodules.visual_questions import VisualQuestions
from genlab.errors import UserError


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("questions", tmp_path_factory.mktemp("questions") / "questions", progress=False, pictures=12, held_out=4)


def truth(scene: Scene, question: str) -> str:
    """The answer, worked out from the words of the question alone."""
    things = [f"a {thing.colour} {thing.shape}" for thing in scene.objects]
    if question.startswith("how many"):
        return ["none", "one", "two"][len(things)]
    if question.startswith("what"):
        return scene.objects[0].shape if "shape" in question else scene.objects[0].colour
    place = BACKGROUNDS["A"][scene.background]
    if question.startswith("where"):
        return place
    words = question.rstrip("?").removeprefix("is there ").removeprefix("is anything ").removeprefix("is this ")
    right = words == place or any(set(words.split()) <= set(thing.split()) for thing in things)
    return "yes" if right else "no"


def test_answers_are_true_and_who_does_not_look_is_right_half_of_the_time() -> None:
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    both: Counter[tuple[str, str]] = Counter()  # kinds that are answered alike: no answer may tell another one
    for number in range(1200):
        scene = asked_scene(0, "train", number)
        asked = questions(scene, 0, "train", number)
        assert [each.kind for each in asked[:4]] == list(KINDS) and len(asked) in (6, 7)
        both.update(pair for pair in combinations(KINDS, 2) if len({each.answer for each in asked if each.kind in pair}) == 1)
        for each in asked:
            assert each.answer == truth(scene, each.question), (scene, each)
            if each.kind in KINDS:
                by_kind[each.kind][each.answer] += 1
                by_question[each.question][each.answer] += 1
    assert all(counts == {"yes": 600, "no": 600} for counts in by_kind.values())
    assert all(540 < both[pair] < 660 for pair in combinations(KINDS, 2)), both
    shares = {question: counts["yes"] / counts.total() for question, counts in by_question.items() if counts.total() > 100}
    assert len(shares) >= 20 and all(0.35 < share < 0.65 for share in shares.values()), shares


def test_same_seed_same_files_and_pictures_are_those_asked_about(asked: Path, tmp_path: Path) -> None:
    again = make("questions", tmp_path / "again", progress=False, pictures=12, held_out=4)
    files = [path.relative_to(asked) for path in sorted(asked.rglob("*")) if path.is_file()]
    assert len(files) == 12 + 2 * 4 + 3 + 1
    assert all((again / name).read_bytes() == (asked / name).read_bytes() for name in files)
    data = VisualQuestions(str(asked), eval_batch_size=4)
    data.setup("test")
    (batch,) = list(data.test_dataloader())
    for i, number in enumerate(batch["index"].tolist()):
        scene = asked_scene(0, "test", number)
        assert np.array_equal(batch["image"][i].permute(1, 2, 0).numpy(), render(scene, 64))
        said = list(zip(batch["kind"][i], batch["question"][i], batch["answer"][i]))
        assert said == [(each.kind, each.question, each.answer) for each in questions(scene, 0, "test", number)]


def test_training_draws_questions_by_epoch_and_occurrence(asked: Path) -> None:
    data = VisualQuestions(str(asked), turns=3, flip=0.5, shift=3, batch_size=4)
    data.setup("fit")
    dataset = data.datasets["train"]
    first, same, later, twice = (dataset[draw] for draw in (Draw(5, 0), Draw(5, 0), Draw(5, 1), Draw(5, 0, 1)))
    assert first["question"] == same["question"] and np.array_equal(first["image"], same["image"]) and len(first["question"]) == 3
    assert first["question"] != later["question"] != twice["question"] != first["question"]
    whole = {each.text: each.answer for each in dataset.samples[5].questions}
    assert all(whole[q] == a for q, a in zip(later["question"], later["answer"]))
    assert {"yes", "no", "how many objects are there?"} <= set(data.texts())


def own(root: Path, *lines: object) -> Path:
    for split in ("train", "validation"):
        (root / split).mkdir(parents=True)
        Image.new("RGB", (40, 20), "red").save(root / split / "a.jpg")
        kept = lines if split == "train" else ({"file_name": "a.jpg", "question": "red?", "answer": "yes"},)
        (root / split / "metadata.jsonl").write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in kept))
    return root


GOOD = {"file_name": "a.jpg", "question": "is it red?", "answer": "yes"}


def test_own_pictures_keep_their_proportions_and_are_shown_with_their_question(tmp_path: Path) -> None:
    root = own(tmp_path, GOOD, {"file_name": "a.jpg", "question": "what is it?", "answer": "red", "kind": "colour"})
    data = VisualQuestions(str(root), max_side=20, batch_size=1)
    data.setup("fit")
    (batch,) = list(data.train_dataloader())
    assert batch["image"][0].shape == (3, 10, 20) and sorted(batch["kind"][0]) == ["", "colour"]
    shown = [item for item in items(root, "questions") if item.split == "train"]
    assert [(item.group, note(item)) for item in shown] == [("all", "is it red? yes"), ("colour", "what is it? red")]
    assert preview(shown[0])[0].size == (40, 20)


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        ([GOOD, {"file_name": "a.jpg", "question": "x"}], {}, "metadata.jsonl:2: not a JSON object .* question and answer"),
        ([{**GOOD, "file_name": "gone.jpg"}], {}, "metadata.jsonl:1: gone.jpg"),
        ([], {}, "is empty"),
        ([GOOD], {"batch_size": 2}, "more than the 1 pictures"),
        ([GOOD], {"turns": 0}, "data.turns: 0 is too small"),
        ([GOOD], {"flip": 1.5}, "flip is a probability"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, lines: list[object], options: dict[str, object], said: str) -> None:
    root = own(tmp_path, *lines)
    with pytest.raises(UserError, match=said):
        data = VisualQuestions(str(root), **({"batch_size": 1} | options))  # type: ignore[arg-type]
        data.setup("fit")
        data.train_dataloader()
    with pytest.raises(UserError, match=r"has no test/metadata\.jsonl; its splits: train/, validation/"):
        VisualQuestions(str(own(tmp_path / "more", GOOD))).setup("test")

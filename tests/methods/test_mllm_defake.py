"""The method as a run: rows, metrics, and a second run that asks nothing."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from PIL import Image

from datamodules.defake_images import DefakeImages
from genlab.errors import UserError
from genlab.methods.mllm_defake import MllmDefake
from genlab.methods.mllm_defake.page import Sample, in_pages, markdown, sample_page, thumbnail
from genlab.vlm.budget import Budget
from genlab.vlm.conversations import SIX
from genlab.vlm.decorators import Examples
from genlab.vlm.engines import OpenAIEndpoint
from genlab.vlm.fusion import Fused, NumericFusion
from genlab.vlm.judging import Answer, Judgement
from tests.vlm.fault_server import FaultServer, serving


def evaluate(server: FaultServer, root: Path, tmp_path: Path) -> tuple[MllmDefake, dict[str, Any]]:
    engine = OpenAIEndpoint("m", server.url, "GENLAB_NO_KEY")
    model = MllmDefake(engine, ("simple", "structural_analysis"), fusion=NumericFusion(quorum=1))
    trainer = L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, barebones=False
    )
    (metrics,) = trainer.test(model, DefakeImages(str(root), batch_size=4), verbose=False)
    return model, dict(metrics)


def test_a_run_scores_what_it_could_read_and_a_second_one_asks_nothing(tmp_path: Path) -> None:
    for name, shade in (("real/a", 200), ("real/b", 210), ("fake/sdxl/c", 30)):
        path = tmp_path / "set" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (shade,) * 3).save(path)
    (tmp_path / "set/real/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with serving([]) as server:  # says "real" to everything
        model, metrics = evaluate(server, tmp_path / "set", tmp_path)
        asked = len(server.bodies)
        again, repeated = evaluate(server, tmp_path / "set", tmp_path)
        assert len(server.bodies) == asked
    # "simple", the subject and the verdict of each picture; the list of parts names no picture and is asked once
    assert asked == 3 * 3 + 1
    assert metrics["test/fused/accuracy_strict"] == repeated["test/fused/accuracy_strict"] > 0.66
    assert (metrics["test/fused/balanced_accuracy"], metrics["test/simple/mcnemar_p"]) == (0.5, 1.0)
    assert {sample.id for sample, judgement in model.judged if judgement is None} == {"real/broken.png"}
    assert model.run_files([]) == again.run_files([])
    assert not any(b"sdxl" in body for body in server.bodies)  # paths say what is true


def test_a_refused_key_is_one_message(tmp_path: Path) -> None:
    """Out of several questions that are under way."""
    for name in ("real/a", "fake/b"):
        path = tmp_path / "set" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(path)
    with serving([401] * 20) as server, pytest.raises(UserError, match="refuses the key"):
        evaluate(server, tmp_path / "set", tmp_path)


def test_own_pictures_are_called(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "mine.png")
    with serving(["It is fake."] * 20) as server:
        model = MllmDefake(OpenAIEndpoint("m", server.url, "GENLAB_NO_KEY"), ("simple",), fusion=NumericFusion(quorum=1))
        trainer = L.Trainer(
            default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
        )
        (found,) = trainer.predict(model, DefakeImages(str(tmp_path), predict_paths=[str(tmp_path / "mine.png")]))  # type: ignore[misc]
    (row,) = found["rows"]
    assert model.predict_text([row]) == "fake" and model.predict_text([row, row]) is None
    assert row["verdict"] == "fake" and row["score"] == 1.0 and row["label"] == "" and row["simple_reply"] == "It is fake."


def small_set(root: Path, count: int = 2) -> Path:
    for name, shade in (("real", 200), ("fake", 30)):
        for number in range(count):
            path = root / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (shade, number, 0)).save(path)
    return root


def silent(folder: Path) -> L.Trainer:
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return L.Trainer(default_root_dir=folder, accelerator="cpu", **options)


def test_a_spent_budget_is_a_status_and_the_rest_is_judged_when_it_is_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = small_set(tmp_path / "set", 3)
    statuses = []
    with serving([]) as server:
        for calls in (4, 8):
            engine = OpenAIEndpoint("m", server.url, "GENLAB_NO_KEY", max_connections=1, budget=Budget(max_calls=calls))
            model = MllmDefake(engine, ("simple",), fusion=NumericFusion(quorum=1))
            silent(tmp_path).test(model, DefakeImages(str(root), batch_size=2), verbose=False)
            statuses.append([judgement.status for _, judgement in model.judged if judgement is not None])
    assert statuses == [["ok"] * 4 + ["budget"] * 2, ["ok"] * 6]
    assert "2 of 6 pictures are not judged" in caplog.text and len(server.bodies) == 6


def test_examples_are_not_among_the_judged(tmp_path: Path) -> None:
    """Told by content, before anything is asked."""
    root = small_set(tmp_path / "set")
    (tmp_path / "mine.png").write_bytes((root / "fake/1.png").read_bytes())
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    with serving([]) as server:
        model = MllmDefake(OpenAIEndpoint("m", server.url), examples=Examples(str(tmp_path / "other.png"), str(tmp_path / "mine.png")))
        assert [prompt.name for prompt in model.prompts] == list(SIX)
        with pytest.raises(UserError, match=r"fake/1\.png, which is to be judged, is one of the examples"):
            silent(tmp_path).test(model, DefakeImages(str(root)), verbose=False)
    assert not server.bodies


def test_prompts_that_cannot_be_columns_are_refused(tmp_path: Path) -> None:
    record = {"format_version": "3", "name": "score", "conversations": [{"payload": [["user", "?"]], "response_var_name": "result"}]}
    (tmp_path / "p.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="cannot be called score"):
        MllmDefake(OpenAIEndpoint("m"), (str(tmp_path / "p.json"),))


def test_five_hundred_pictures_are_a_page_of_less_than_15_mb() -> None:
    """Thumbnails of noise, which hardly compress, and long replies; what is more goes onto further pages."""
    call = {"id": "verdict", "reply": "reason " * 140, "finish": "stop", "prompt_tokens": 1, "completion_tokens": 1}
    answers = [Answer(name, "fake", "ok", calls=[call]) for name in SIX]
    judgement = Judgement(answers, Fused("fake", None, "ok"), None, "")
    picture = io.BytesIO()
    Image.effect_noise((300, 300), 80).convert("RGB").save(picture, "PNG")
    small = thumbnail(picture.getvalue(), [[10, 10, 90, 90]], judgement)
    with Image.open(io.BytesIO(small)) as shown:
        assert shown.size == (256, 256)
    pages = in_pages([(Sample(f"fake/{i}.png", 1, "sdxl", small), judgement) for i in range(1100)])
    assert [len(page) for page in pages][:2] == [len(pages[0])] * 2 and sum(map(len, pages)) == 1100 and len(pages[0]) <= 500
    assert 1_000_000 < len(sample_page("x", pages[0])) < 15_000_000
    assert [len(page) for page in in_pages([(Sample(str(i), 1, ""), None) for i in range(501)])] == [500, 1]


def test_markdown_keeps_replies_in_their_cells() -> None:
    call = {"id": "verdict", "reply": "a | b\n<script>x</script> `c` fake", "finish": "stop", "prompt_tokens": 1, "completion_tokens": 1}
    judged = [
        (Sample(f"{name}.png", label, "x"), Judgement([Answer("simple", "fake", "ok", calls=[call])], Fused("fake", None, "ok"), None, ""))
        for name, label in (("a", 1), ("b", 0))
    ]
    text = markdown(judged).decode()
    assert "## Wrong: 1" in text and "## Right: 1" in text and "<script>" not in text
    (wrong,) = [line for line in text.splitlines() if "b.png" in line]
    assert len(re.findall(r"(?<!\\)\|", wrong)) == 5 and "a \\| b &lt;script&gt;" in wrong


def test_boxes_are_drawn_on_the_picture() -> None:
    answers = [Answer("regional_analysis", "fake", "ok", region=[0, 0, 32, 32])]
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(file, "PNG")
    plain, boxed = (thumbnail(file.getvalue(), boxes, judged) for boxes, judged in (
        ([], None), ([[40, 40, 60, 60]], Judgement(answers, Fused("fake", None, "ok"), None, "")),
    ))  # fmt: skip
    with Image.open(io.BytesIO(plain)) as one, Image.open(io.BytesIO(boxed)) as other:
        assert one.getpixel((0, 64)) == (255, 255, 255)
        blue, red = other.getpixel((0, 64)), other.getpixel((160, 200))
    assert isinstance(blue, tuple) and isinstance(red, tuple) and blue[2] > blue[0] + 60 and red[0] > red[2] + 60

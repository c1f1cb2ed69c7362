"""The method as a run: rows, metrics, and a second run that asks nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from PIL import Image

from datamodules.defake_images import DefakeImages
from genlab.errors import UserError
from genlab.methods.mllm_defake import MllmDefake
from genlab.vlm.engines import OpenAIEndpoint
from genlab.vlm.fusion import NumericFusion
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
    assert row["verdict"] == "fake" and row["score"] == 1.0 and row["label"] == "" and row["simple_reply"] == "It is fake."

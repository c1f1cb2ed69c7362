"""The study: the functional form's numbers at any batch size, nothing done twice, tables that say what is so."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.inpainting import GeneratedHoles, Inpainting
from datamodules.tinyworld import make
from genlab.errors import UserError
from genlab.holes import patch_seed
from genlab.methods.inpaint_consistency import Gate, InpaintConsistency, SecondHoles
from genlab.methods.inpaint_consistency.outcome import Outcome, read_human_scores
from genlab.metrics.consistency import ReInpaintingConsistency, reinpaint
from genlab.models.inpainters import Constant, Harmonic, Inpainter, Mean, Noise, OpenCV
from genlab.models.inpainters_external import Precomputed
from genlab.reports import Report
from tests.methods.counting_inpainter import Counting


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("inpainting", tmp_path_factory.mktemp("study") / "inpainting", progress=False, pictures=5, size=32)


def study(folder: Path, root: Path, batch_size: int = 2, data: dict[str, Any] | None = None, **model: Any) -> InpaintConsistency:
    """Runs a small study in ``folder``."""
    options: dict[str, Any] = {"distances": ["l1", "ssim"], "k": 3, "base_seed": 4}
    method = InpaintConsistency(**options | model)
    trainer = L.Trainer(
        default_root_dir=folder, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.test(method, datamodule=Inpainting(str(root), size=32, batch_size=batch_size, **data or {}), verbose=False)
    return method


def table(folder: Path, name: str = "rows.csv") -> list[dict[str, str]]:
    """Rows without what a clock says."""
    with (folder / name).open(newline="") as file:
        return [{key: value for key, value in row.items() if "second" not in key and key != "s a filling"} for row in csv.DictReader(file)]


def test_any_batch_size_gives_the_numbers_of_the_functional_form(root: Path, tmp_path: Path) -> None:
    def inpainters(size: int) -> dict[str, list[Inpainter]]:
        f1: list[Inpainter] = [Harmonic(20), Noise(), OpenCV("telea")]
        f2: list[Inpainter] = [Harmonic(20), Noise()]
        for each in [*f1, *f2]:
            each.batch_size = size
        return {"f1": f1, "f2": f2}

    found = study(tmp_path / "a", root, 2, **inpainters(4))
    study(tmp_path / "b", root, 5, **inpainters(1))
    assert table(tmp_path / "a") == table(tmp_path / "b") and len(table(tmp_path / "a")) == 5 * (3 + 3 * 2 * 3)
    data = Inpainting(str(root), size=32, batch_size=5)
    data.setup("test")
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    metric = ReInpaintingConsistency(["l1", "ssim"], per_image=True)
    made = reinpaint(Noise(), Harmonic(20), batch["image"], batch["hole"], 3, base_seed=4, indices=batch["index"].tolist())
    metric.update(made.first, made.second, original=batch["image"], ids=batch["index"])
    expected = metric.compute()
    outcome = found.outcome
    assert outcome is not None and outcome.ids == [f"images/{n:05d}.png" for n in range(5)]
    assert np.allclose(outcome.per_picture("noise", "harmonic20"), expected["per_image/l1"], rtol=1e-12)
    assert outcome.score("noise", "harmonic20", "ssim") == pytest.approx(float(expected["ssim"]), rel=1e-12)
    logged = found.trainer.callback_metrics["test/noise>harmonic20/l1"]
    assert float(logged) == pytest.approx(float(expected["l1"]), rel=1e-6)
    (row,) = (row for row in outcome.leaderboard("harmonic20") if row["inpainter"] == "noise")
    for ours, theirs in {"std over k": "l1_std", "first l1": "original_first/l1", "second l1": "original_second/l1"}.items():
        assert row[ours] == pytest.approx(float(expected[theirs]), rel=1e-9), ours


def test_nothing_is_filled_twice(root: Path, tmp_path: Path) -> None:
    def counting(name: str) -> Counting:
        return Counting(str(tmp_path / name))

    study(tmp_path / "run", root, f1=[counting("f1")], f2=[counting("f2")], data={"n_images": 3})
    first = table(tmp_path / "run")
    assert (len(counting("f1").filled), len(counting("f2").filled)) == (3, 9)
    study(tmp_path / "run", root, f1=[counting("f1")], f2=[counting("f2")], data={"n_images": 3})
    assert table(tmp_path / "run") == first and (len(counting("f1").filled), len(counting("f2").filled)) == (3, 9), "all was there"
    both: list[Inpainter] = [counting("f2"), Harmonic(5)]
    study(tmp_path / "run", root, f1=[counting("f1")], f2=both, data={"n_images": 3}, distances=["l1"])
    assert (len(counting("f1").filled), len(counting("f2").filled)) == (3, 18), "first results stay, other distances need second ones"
    study(tmp_path / "run", root, f1=[counting("f1")], f2=[counting("f2")])
    assert (len(counting("f1").filled), len(counting("f2").filled)) == (5, 24), "two more pictures; seeds are those of the whole list"
    study(tmp_path / "run", root, f1=[counting("f1")], f2=[counting("f2")], data={"n_images": 1}, fresh=True)
    assert len(counting("f2").filled) == 27


def test_repeats_can_be_added(root: Path, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    study(tmp_path / "run", root, f1=[Mean()], f2=[Counting(log)], k=2)
    study(tmp_path / "run", root, f1=[Mean()], f2=[Counting(log)], k=4)
    study(tmp_path / "at once", root, f1=[Mean()], f2=[Counting(str(tmp_path / "other"))], k=4)
    assert len(Counting(log).filled) == 5 * 4 and table(tmp_path / "run") == table(tmp_path / "at once")


def test_tables_show_what_is_so(root: Path, tmp_path: Path) -> None:
    found = study(tmp_path, root, f1=[Harmonic(50), Constant(), Noise()], f2=[Harmonic(50), Constant()], sanity=True, k=4)
    outcome = found.outcome
    assert outcome is not None
    board = outcome.leaderboard("harmonic50", outcome.honest)
    scores = [row["D l1"] for row in board]
    assert scores == sorted(scores) and board[0]["inpainter"] == "harmonic50"
    assert all(row["low"] <= row["D l1"] <= row["high"] for row in board)
    by_name = {row["inpainter"]: row for row in board}
    assert by_name["constant"]["detail"] < 1e-6 < by_name["harmonic50"]["detail"] < 1 < by_name["noise"]["detail"]
    (said,) = outcome.warnings("harmonic50")  # SSIM takes what lies beside unchanged noise for well foretold; L1 does not
    assert "the baseline noise has a better D ssim than harmonic50." in said
    assert any("does not tell the inpainters apart" in said for said in outcome.warnings("constant"))
    noise = [row for row in outcome.sanity("harmonic50") if row["spoiled by"].startswith("noise") and row["distance"] == "l1"]
    assert [row["spoiled by"] for row in noise] == ["noise0.05", "noise0.1", "noise0.2"]
    assert noise[0]["worse by"] < noise[1]["worse by"] < noise[2]["worse by"] and noise[2]["noticed"] == "yes"
    agreed = {(row["F2"], row["distance"]): row for row in outcome.rank_agreement(outcome.honest)}
    assert agreed["harmonic50", "l1"]["tau"] == 1.0 and math.isnan(agreed["constant", "l1"]["tau"])
    page = Report("x")
    found.add_to_report(page)
    html = page.write(tmp_path / "x.html").read_text()
    for name in outcome.ids:
        assert html.count(f">{name}</td>") == 1, "every picture once in the table"


def outcome(scores: dict[str, list[float]], reference: dict[str, list[float]], column: str = "l1") -> Outcome:
    """An outcome of one F2, one distance and one repeat."""
    n = len(next(iter(scores.values())))
    names = list(scores)
    rows: list[dict[str, Any]] = []
    for i in range(n):
        facts = {"id": f"{i}", "index": i, "group": "all", "hole1": 0.3, "picture": f"{i}"}
        for name in names:
            extra = {"leak": 0.0, "seconds": 0.1, "detail": 0.1}
            rows.append({"pass": 1, "f1": name, "d": {column: reference[name][i]}, **extra, **facts})
            row = {"pass": 2, "f1": name, "f2": "judge", "k": 0, "valid": True, "d": {column: scores[name][i]}, "hole2": 0.2}
            heat = "AAAAAAAAAAAAAAAAAAAAAA=="[:24]  # 2 x 2 x 2 zeros in float16
            rows.append({**row, "original": {column: 0.0}, "leak": 0.0, "seconds": 0.1, "heat": heat, **facts})
    return Outcome.of(rows, names, ["judge"], 1)


def test_a_degenerate_winner_is_named() -> None:
    found = outcome(
        {"good": [0.3, 0.4], "flat": [0.1, 0.2], "bad": [0.5, 0.6]}, {"good": [0.1, 0.1], "flat": [0.5, 0.4], "bad": [0.3, 0.3]}
    )
    found.baselines = ["flat"]
    (said,) = found.warnings("judge")
    assert "Degenerate winner with judge: the baseline flat has a better D l1 than good, bad. A better score is not" in said
    (row,) = found.rank_agreement(found.honest)
    assert row["tau"] == pytest.approx(-1 / 3)
    assert row["ordered otherwise than by the pictures themselves"] == "flat above good; flat above bad"
    assert [row["p"] for row in found.paired("judge", found.honest)] == [1 / 2000, 1 / 2000]


def test_agreement_with_people(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text("method,image,score\na,0,3\na,1,5\nb,0,2\nb,1,1\nc,0,1\nunknown,0,9\n")
    human = read_human_scores(path, ["a", "b", "c", "d"])
    assert human["methods"] == {"a": 4.0, "b": 1.5, "c": 1.0}
    for column, sign in (("l1", 1), ("ssim", -1)):
        values = {"a": [0.1, 0.2], "b": [0.3, 0.1], "c": [0.4, 0.5], "d": [0.0, 0.0]}
        found = outcome({name: [sign * x for x in each] for name, each in values.items()}, values, column)
        (row,) = found.human_agreement(human)
        assert (row["kendall"], row["pairwise"], row["methods"], row["pictures"]) == (1.0, 1.0, 3, 2)
        assert row["pairs alike within a picture"] == 0.5
    for text, said in {"method,rating\na,1\n": "needs a header", "method,score\na,x\nb,1\n": r"people\.csv:2: score is 'x'"}.items():
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            read_human_scores(path, ["a", "b"])
    path.write_text("method,score\na,1\nz,2\n")
    with pytest.raises(UserError, match="at least two of those judged"):
        read_human_scores(path, ["a", "b"])


def test_finished_pictures_of_several_methods(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "results" / name).mkdir(parents=True)
        for n in range(5):
            with Image.open(root / "images" / f"{n:05d}.png") as file:
                shown = file.convert("RGB") if name == "one" else Image.new("RGB", file.size, "red")
            shown.save(tmp_path / "results" / name / f"{n:05d}.png")
    found = study(tmp_path / "run", root, f1=[Mean()], f2=[Harmonic(20)], results=str(tmp_path / "results")).outcome
    assert found is not None and found.f1 == ["mean", "one", "two"]
    assert float(found.first["one"]["l1"].max()) == 0.0 < float(found.first["mean"]["l1"].min())
    (tmp_path / "results" / "two" / "00003.png").unlink()
    with pytest.raises(UserError, match=r"two has no picture for images/00003\.png"):
        study(tmp_path / "run", root, f1=[Mean()], f2=[Harmonic(20)], results=str(tmp_path / "results"))
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "results" / "two" / "00003.png")
    again = study(tmp_path / "run", root, f1=[Mean()], f2=[Harmonic(20)], results=str(tmp_path / "results")).outcome
    assert again is not None and again.per_picture("two", "harmonic20")[3] != found.per_picture("two", "harmonic20")[3], "another picture"


def test_gates_and_what_cannot_be_judged(root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"f1": [Harmonic(20), Noise()], "f2": [Harmonic(20)], "k": 1, "data": {"n_images": 1}}
    assert study(tmp_path, root, gate=Gate(1.0), **options).failed_check == ""
    assert study(tmp_path, root, gate=Gate(0.0, "ssim"), **options).failed_check == ""
    failed = study(tmp_path, root, gate=Gate(1e-4, method="noise"), **options).failed_check
    assert failed.startswith("gate: l1 was to be at most 0.0001; noise>harmonic20 has 0.")
    for wrong, said in (
        ({"f1": [Mean(), Mean()]}, "two inpainters are called mean"),
        ({"f1": []}, "no inpainter is named"),
        ({"f2": [Precomputed("x")]}, "cannot fill a second time"),
        ({"k": 0}, "too few"),
        ({"gate": Gate(1.0, method="lama")}, "lama is not judged"),
        ({"f1": [Mean(name="a>b")]}, "cannot be an inpainter's name"),
        ({"results": str(tmp_path / "nowhere")}, "has no folder in it"),
    ):
        with pytest.raises(UserError, match=said):
            InpaintConsistency(distances=["l1"], **wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"gate\.distance: psnr is not measured"):
        study(tmp_path, root, gate=Gate(1.0, "psnr"), **options)
    with pytest.raises(UserError, match="second_holes"):
        SecondHoles(ratio=1.5)
    with pytest.raises(UserError, match="nothing to train"):
        L.Trainer(logger=False, accelerator="cpu", default_root_dir=tmp_path).fit(
            InpaintConsistency(distances=["l1"]), Inpainting(str(root))
        )


def test_unreadable_pictures_and_impossible_holes_are_counted(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for n in range(4):
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{n}.png")
    (tmp_path / "photos" / "1.png").write_bytes((tmp_path / "photos" / "1.png").read_bytes()[:200])
    (tmp_path / "masks").mkdir()
    for n in range(4):
        share = {0: 0.3, 1: 0.3, 2: 1.0, 3: 0.0}[n]
        mask = np.zeros((40, 48), np.uint8)
        mask[: round(40 * share)] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{n}.png")
    found = study(tmp_path / "run", tmp_path / "photos", f1=[Mean()], f2=[Harmonic(5)], k=1, data={"masks": str(tmp_path / "masks")})
    assert found.outcome is not None and (found.outcome.ids, found.outcome.skipped) == (["0.png"], 2)
    batch = next(iter(found.trainer.datamodule.test_dataloader()))  # type: ignore[attr-defined]
    assert {name: bool(ok) for name, ok in zip(batch["id"], batch["readable"])}.get("1.png", False) is False
    thin = study(
        tmp_path / "thin", tmp_path / "photos", f1=[Mean()], f2=[Harmonic(5)], k=2, data={"holes": GeneratedHoles("thin", 0.1, 0.1)}
    )
    assert thin.outcome is not None and thin.outcome.shares == pytest.approx([round(0.1 * 32 * 32) / 32**2] * 3)
    assert patch_seed(4, 0, 0) != patch_seed(4, 0, 1) and torch.isfinite(torch.tensor(thin.outcome.score("mean", "harmonic5")))

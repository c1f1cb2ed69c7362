"""``genlab mllm``: estimates, replies read anew, fitted fusion, the comparison; and what users get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from genlab.cli import main
from genlab.files import read_csv, write_csv
from genlab.methods.mllm_defake.page import Sample
from genlab.methods.mllm_defake.records import answer_lines, official_csv, prediction
from genlab.vlm.fusion import NumericFusion
from genlab.vlm.judging import Answer, Judgement, fuse_numbers
from tests.vlm.bright_and_dark import picture, write_set
from tests.vlm.fault_server import serving

REPLIES = {  # what prompts said of pictures by number: strict, official
    "simple": ["It is real.", "Not real: it is generated.", "I cannot help with real people.", "generated"],
    "defect_query": ["real", "generated", "real", "It is not generated."],
}


def answered(prompt: str, reply: str, p_fake: float | None = None) -> Answer:
    call = {"id": "verdict", "reply": reply, "finish": "stop", "prompt_tokens": 7, "completion_tokens": 3}
    return Answer(prompt, "unknown", "no_verdict", "none", p_fake, "tokens" if p_fake is not None else "", [call])


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a test over four pictures: two real, two generated."""
    folder = tmp_path / "run/test-defake"
    judged: list[tuple[Sample, Judgement | None]] = []
    for number in range(4):
        answers = [answered(name, replies[number]) for name, replies in REPLIES.items()]
        fused = fuse_numbers(NumericFusion(quorum=1), answers)
        judged.append(
            (
                Sample(f"{'fake' if number % 2 else 'real'}/{number:03d}.png", number % 2, "sdxl"),
                Judgement(answers, fused, None, f"d{number}"),
            )
        )
    judged.append((Sample("real/broken.png", 0, "real"), None))
    folder.mkdir(parents=True)
    (folder / "answers.jsonl").write_bytes(answer_lines(judged))
    fusion = {"class_path": "genlab.vlm.fusion.NumericFusion", "init_args": {"mode": "majority", "quorum": 1, "weights": None}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"fusion": fusion}}}))
    return folder


def test_replies_are_read_anew_with_either_parser(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mllm", "rescore", str(finished)]) == 0
    assert "no calls" in capsys.readouterr().out
    rows = {row["id"]: row for row in read_csv(finished / "rescored-strict/predictions.csv")}
    assert [rows[name]["simple"] for name in sorted(rows)] == ["fake", "fake", "real", "unknown", ""]
    assert rows["real/002.png"]["simple_status"] == "refusal" and rows["real/002.png"]["verdict"] == "real"  # the run's quorum is 1
    assert rows["fake/003.png"]["defect_query"] == "real" and rows["real/broken.png"]["status"] == "unreadable"
    assert main(["mllm", "rescore", str(finished), "--parser", "official"]) == 0
    rows = {row["id"]: row for row in read_csv(finished / "rescored-official/predictions.csv")}
    assert [rows[name]["simple"] for name in sorted(rows)[:4]] == ["fake", "fake", "real", "real"]
    assert rows["fake/003.png"]["defect_query"] == "fake"
    table = (finished / "rescored-official/official_simple.csv").read_text().splitlines()
    assert table[0] == "path,label,pred,response" and table[2] == "fake/001.png,0,0,Not real: it is generated."
    again = {row["judge"]: row for row in read_csv(finished / "rescored-official/comparison.csv")}
    assert float(again["simple"]["accuracy_strict"]) == 1.0


def test_fusion_can_be_another_one(finished: Path) -> None:
    assert main(["mllm", "rescore", str(finished), "--fusion", "majority", "--quorum", "2"]) == 0
    rows = {row["id"]: row for row in read_csv(finished / "rescored-strict/predictions.csv")}
    assert (rows["real/002.png"]["verdict"], rows["real/002.png"]["reason"]) == ("unknown", "quorum")


def test_a_fitted_fusion_refuses_the_pictures_that_it_has_seen(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mllm", "rescore", str(finished), "--out", str(tmp_path / "read")]) == 0
    assert main(["mllm", "calibrate", str(tmp_path / "read"), "--out", str(tmp_path / "c.json")]) == 0
    assert json.loads((tmp_path / "c.json").read_text())["fitted_on"] == ["d0", "d1", "d2", "d3"]
    assert main(["mllm", "rescore", str(finished), "--calibration", str(tmp_path / "c.json")]) == 2
    assert "fitted on real/000.png" in capsys.readouterr().err


def test_one_table_of_all(finished: Path, tmp_path: Path) -> None:
    """Rows by kind; figures of the detector and of the people by hand."""
    assert main(["mllm", "rescore", str(finished), "--out", str(tmp_path / "read")]) == 0
    scores = {"set/real/000.png": 0.1, "set/fake/001.png": 0.9, "set/real/002.png": 0.8, "set/fake/003.png": 0.7}
    rows = [{"id": name, "label": int("fake" in name), "score": score, "status": "ok"} for name, score in scores.items()]
    write_csv(tmp_path / "predictions.csv", rows)
    people = ["id,person,answer", "real/000.png,ann,real", "fake/001.png,ann,fake", "real/002.png,ann,real", "fake/003.png,ann,generated"]
    people += ["real/000.png,bob,1", "fake/001.png,bob,1", "real/002.png,bob,1", "fake/003.png,bob,unknown"]
    (tmp_path / "people.csv").write_text("\n".join(people) + "\n")
    (tmp_path / "carl.json").write_text(json.dumps({"pointer": 2, "decisions": {"x\\real\\000.png": 1, "x\\fake\\001.png": 0}}))
    data = write_set(tmp_path / "set", 4)
    for number in (1, 3):
        (data / f"fake/{number:03d}.png").write_bytes(picture("test", number, 1))
    out = tmp_path / "table.html"
    more = ["--root", str(data), "--edges", "--frequency", "--fit_root", str(write_set(tmp_path / "fit", 6, "fit"))]
    humans = ["--humans", str(tmp_path / "people.csv"), "--humans", str(tmp_path / "carl.json")]
    arguments = [str(tmp_path / "read"), "--detector", f"DeMamba={tmp_path / 'predictions.csv'}", *humans, *more, "--out", str(out)]
    assert main(["mllm", "compare", *arguments]) == 0
    table = read_csv(tmp_path / "table.csv")
    found = {row["judge"]: row for row in table}
    kinds = [row["kind"] for row in table]
    assert kinds == sorted(kinds, key=["prompt", "fusion", "traditional", "human"].index)
    assert {"simple", "defect_query", "fused", "DeMamba", "edges", "frequency", "ann", "bob", "carl", "mean of 3 people"} <= found.keys()
    detector = found["DeMamba"]
    assert (float(detector["accuracy_strict"]), float(detector["auroc_fake"])) == (0.75, 0.75)
    # the fusion says real, fake, real and nothing (a tie): both speak of three pictures, and agree on two
    assert (int(detector["n_kappa"]), float(detector["kappa"])) == (3, pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9)))
    assert float(found["ann"]["accuracy_strict"]) == 1.0 and float(found["ann"]["kappa"]) == 1.0
    assert float(found["bob"]["accuracy_strict"]) == 0.25 and float(found["carl"]["accuracy_strict"]) == 1.0
    assert float(found["mean of 3 people"]["accuracy_strict"]) == pytest.approx(0.75)
    assert float(found["worst of 3 people"]["accuracy_strict"]) == 0.25
    assert "DeMamba" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], ""),
        (["rescor"], "did you mean"),
        (["rescore", "absent"], "is not there"),
        (["rescore", "RUN", "--fusion", "question"], "no replies to the fusing question"),
        (["rescore", "RUN", "--quorum", "0"], "at least 1"),
        (["calibrate", "RUN", "--out", "c.txt"], r"name a .json"),
        (["compare", "RUN", "--edges"], "--root"),
        (["compare", "RUN", "--detector", "x=absent.csv"], "is not there"),
        (["compare", "RUN", "--detector", "x=other.csv"], "labelled 1, in the run 0"),
        (["compare", "RUN", "--humans", "broken.csv"], "id and answer"),
        (["compare", "RUN", "--humans", "twice.csv"], "a second time"),
        (["dry-run", "-c", "tiny/demamba"], "MllmDefake"),
    ],
)
def test_mistakes_are_said(
    finished: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("id,label,score,status\nreal/000.png,1,0.5,ok\n")
    (tmp_path / "broken.csv").write_text("a,b\n1,2\n")
    (tmp_path / "twice.csv").write_text("id,answer\nreal/000.png,real\nreal/000.png,fake\n")
    code = main(["mllm", *(str(finished) if word == "RUN" else word for word in arguments)])
    said = capsys.readouterr()
    assert code == (2 if message else 0)
    assert message.replace("did you mean", "rescore") in said.err


def test_a_dry_run_counts_what_a_run_then_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Calls of the estimate = requests of the run; after it there is nothing left to ask. Nothing is sent by the estimate."""
    root = write_set(tmp_path / "set", 2)
    (tmp_path / "prices.yaml").write_text("m: {input: 1.0, output: 10.0, image_tokens: 100}\n")

    def own(body: bytes, before: int) -> Any:
        return f"{abs(hash(body))} is real"

    with serving(own) as server:
        more = ["--model.engine.init_args.model=m", f"--model.engine.init_args.base_url={server.url}", f"--data.root={root}"]
        more += [
            "--data.split=null",
            f"--run.root={tmp_path / 'runs'}",
            "-c",
            "trainer/cpu",
            f"--model.engine.budget.prices={tmp_path / 'prices.yaml'}",
        ]
        assert main(["mllm", "dry-run", "-c", "tiny/mllm_defake", *more]) == 0
        said = capsys.readouterr().out
        assert not server.bodies
        assert main(["test", "-c", "tiny/mllm_defake", *more]) == 0
        asked = len(server.bodies)
        capsys.readouterr()
        assert main(["mllm", "dry-run", "-c", "tiny/mllm_defake", *more]) == 0
        after = capsys.readouterr().out
    assert asked == 4 * 9 and f"calls {asked}" in " ".join(said.split())  # P1 P2 P3 1 each, P5 3, P6 2 more, the fusion 1
    assert "dollars, at most" in said
    assert "calls 0" in " ".join(after.split()) and f"answered before {asked}" in " ".join(after.split())


def test_tables_are_those_of_the_released_code(tmp_path: Path) -> None:
    """Read back from its own file, line breaks and quotes in replies included, and written byte for byte."""
    from tests.golden_files import ROOT

    path = ROOT / "mllm_defake/cache_sample.csv"
    rows = [(row["path"], int(row["label"]), int(row["pred"]), row["response"]) for row in read_csv(path)]
    assert len(rows) == 23 and official_csv(rows) == path.read_bytes()


def test_scores_of_verdicts_without_a_probability() -> None:
    from genlab.vlm.fusion import Fused

    scores = [prediction("a", 1, "", Judgement([], Fused(word, None, "ok"), None, ""))["score"] for word in ("fake", "real", "unknown")]  # type: ignore[arg-type]
    assert scores == [1.0, 0.0, 0.5]
    assert prediction("a", None, "", None) == {"id": "a", "label": "", "score": "", "status": "unreadable"}

"""Tables of judges by hand: who is compared with whom over which pictures."""

from __future__ import annotations

import pytest

from genlab.metrics.judges import Judged, comparison, generator_rows, judge_row, matched, risk_coverage

LABELS = {"a": 1, "b": 1, "c": 0, "d": 0}
GROUPS = {"a": "sdxl", "b": "dalle", "c": "real", "d": "real"}
FUSED = Judged("fused", "fusion", {"a": 1, "b": None, "c": 0, "d": 1}, {"a": 0.9, "c": 0.2, "d": 0.6})


def test_no_verdict_is_wrong_for_mcnemar_and_absent_for_kappa() -> None:
    other = Judged("p", "prompt", {"a": 1, "b": 1, "c": 1, "d": 0})
    row = judge_row(other, LABELS, FUSED)
    assert (row["n"], row["accuracy_strict"], row["n_kappa"]) == (4, 0.75, 3)
    assert row["kappa"] == pytest.approx((1 / 3 - 5 / 9) / (1 - 5 / 9))  # a, c, d: 1 1 0 against 1 0 1
    assert row["mcnemar_p"] == 1.0  # right alone: b and d of the one, c of the other
    assert "kappa" not in judge_row(FUSED, LABELS, FUSED)
    alone = judge_row(FUSED, LABELS)
    assert (alone["accuracy_answered"], alone["refusal_rate"], alone["auroc_fake"]) == (pytest.approx(2 / 3), 0.25, 1.0)


def test_who_was_not_shown_a_picture_is_not_asked_about_it() -> None:
    row = judge_row(Judged("x", "human", {"a": 1, "z": 0}), LABELS, FUSED)
    assert (row["n"], row["accuracy_strict"], row["n_kappa"]) == (1, 1.0, 1)


def test_people_have_a_mean_a_best_and_a_worst() -> None:
    people = [Judged(name, "human", dict(zip("abcd", said))) for name, said in (("ann", (1, 1, 0, 0)), ("bob", (0, 0, 1, 0)))]
    rows = comparison([*people, FUSED], LABELS, "fused")
    assert [row["judge"] for row in rows] == ["fused", "mean of 2 people", "best of 2 people", "worst of 2 people", "ann", "bob"]
    assert [row["accuracy_strict"] for row in rows[1:4]] == [0.625, 1.0, 0.25]


def test_generators_are_balanced_with_all_real_pictures() -> None:
    rows = {row["generator"]: row for row in generator_rows(FUSED, LABELS, GROUPS)}
    assert (rows["sdxl"]["recall"], rows["sdxl"]["balanced_accuracy"]) == (1.0, 0.75)
    assert (rows["dalle"]["refusal_rate"], rows["dalle"]["recall"]) == (1.0, 0.0)


def test_least_sure_verdicts_are_withheld_first() -> None:
    rows = risk_coverage(FUSED, LABELS)
    assert [(row["coverage"], row["risk"]) for row in rows] == [(0.25, 0.0), (0.5, 0.0), (0.75, pytest.approx(1 / 3))]
    assert not risk_coverage(Judged("x", "prompt", {"a": 1}), LABELS)


def test_pictures_are_matched_by_the_ends_of_their_paths() -> None:
    ids = ["real/a.png", "fake/sdxl/b.png", "fake/dalle/b.png"]
    assert matched(["real/a.png", "x/y/fake/sdxl/b.png", "a.png", "b.png", "dalle/b.png", "c.png"], ids) == {
        "real/a.png": "real/a.png", "x/y/fake/sdxl/b.png": "fake/sdxl/b.png", "a.png": "real/a.png", "dalle/b.png": "fake/dalle/b.png",
    }  # fmt: skip

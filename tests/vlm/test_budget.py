"""What may be spent, across restarts; and what requests are estimated to cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genlab.errors import UserError
from genlab.vlm.budget import Budget, Ledger, OverBudget, Price, read_prices, tokens_about, tokens_at_most
from genlab.vlm.engines import Reply
from tests.vlm.fault_server import answer, serving
from tests.vlm.test_engines import ask

QUESTION = [{"role": "user", "content": "x" * 90}]  # 100 tokens at most


@pytest.fixture
def prices(tmp_path: Path) -> str:
    (tmp_path / "prices.yaml").write_text("m: {input: 1.0, output: 10.0, cached: 0.5, image_tokens: 765}\n")
    return str(tmp_path / "prices.yaml")


def test_costs_by_hand() -> None:
    price = Price(input=2.0, output=10.0, cached=1.0)
    assert price.cost(1000, 100, cached_tokens=400) == pytest.approx((600 * 2 + 400 * 1 + 100 * 10) / 1e6)
    assert Price(2.0, 10.0).cost(1000, 0, 400) == pytest.approx(2e-3)


def test_estimates_are_above_what_tokens_can_be() -> None:
    assert tokens_at_most(QUESTION) == 100
    assert tokens_about(QUESTION) == 5 + 23
    assert tokens_at_most([{"role": "user", "content": "é"}]) == 12  # bytes, not characters


def test_a_call_that_could_pass_the_budget_is_not_made(tmp_path: Path, prices: str) -> None:
    """Most a call can cost: 100 * 1 + 50 * 10 = 600 millionths; what it does cost: 20 * 1 + 5 * 10 = 70."""
    ledger = Ledger(tmp_path / "calls.jsonl", Budget(usd=1300e-6, prices=prices), "m")
    first, tokens = ledger.ask("a", QUESTION, 50)
    ledger.ask("b", QUESTION, 50)
    with pytest.raises(OverBudget):
        ledger.ask("c", QUESTION, 50)  # two are under way
    ledger.settle(first, "a", tokens, Reply("real", "stop", 20, 5))
    assert ledger.spent == pytest.approx(670e-6)
    ledger.ask("c", QUESTION, 50)
    ledger.close()
    with (tmp_path / "calls.jsonl").open("a") as file:
        file.write('{"event": "answ')  # a kill in the middle of a line
    again = Ledger(tmp_path / "calls.jsonl", Budget(usd=1300e-6, prices=prices), "m")
    assert (again.calls, again.spent) == (3, pytest.approx(1270e-6))  # those that a kill cut off may have been paid
    with pytest.raises(OverBudget):
        again.ask("d", QUESTION, 50)
    again.settle(2, "b", 100, Reply(finish="error", error="HTTP 500"))
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines() if not line.endswith("answ")]
    assert [line["event"] for line in lines] == ["asked", "asked", "answered", "asked", "answered"]
    assert Ledger(tmp_path / "calls.jsonl", None, "m").spent == pytest.approx(670e-6)


def test_estimates_learn_from_what_servers_count(tmp_path: Path, prices: str) -> None:
    ledger = Ledger(None, Budget(usd=1.0, prices=prices), "m")
    call, tokens = ledger.ask("a", QUESTION, 0)
    ledger.settle(call, "a", tokens, Reply("real", "stop", 3 * tokens, 0))
    before = ledger.spent
    ledger.ask("b", QUESTION, 0)
    assert ledger.spent - before == pytest.approx(3 * tokens / 1e6)


def test_a_run_stops_in_order_and_pays_for_the_rest_later(tmp_path: Path) -> None:
    questions = [str(i) for i in range(6)]
    with serving([answer("real")] * 9) as server:
        replies, _ = ask(server, tmp_path / "r.sqlite", questions, budget=Budget(max_calls=4), max_connections=2)
        assert len(server.bodies) == 4
        assert sorted(reply.error for reply in replies) == ["", "", "", "", "budget", "budget"]
        again, engine = ask(server, tmp_path / "r.sqlite", questions, budget=Budget(max_calls=9))
    assert engine.requests == 2 and not any(reply.error for reply in again)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not there"),
        ("other: {input: 1, output: 1}", "no price of 'm'"),
        ("m: {input: much}", "are numbers"),
        ("m: 3", "are numbers"),
    ],
)
def test_broken_price_tables_are_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_prices(tmp_path / "p.yaml", "m")


@pytest.mark.parametrize("options", [{"usd": 1.0}, {"max_calls": -1}])
def test_a_budget_that_cannot_hold_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"engine\.budget"):
        Budget(**options)

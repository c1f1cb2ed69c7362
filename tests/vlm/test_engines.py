"""The endpoint's client against a server that misbehaves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genlab.errors import UserError
from genlab.store import RowStore
from genlab.vlm.engines import OpenAIEndpoint, Reply
from tests.vlm.fault_server import FaultServer, answer, serving


def ask(server: FaultServer, path: Path, questions: list[str], **options: Any) -> tuple[list[Reply], OpenAIEndpoint]:
    engine = OpenAIEndpoint("m", server.url, "GENLAB_TEST_KEY", **options)

    async def all_of_them() -> list[Reply]:
        engine.open(RowStore(path))
        try:
            return await asyncio.gather(*(engine.ask([{"role": "user", "content": text}]) for text in questions))
        finally:
            await engine.close()

    return asyncio.run(all_of_them()), engine


@pytest.mark.parametrize(
    ("outcome", "requests", "text", "error"),
    [
        ((429, 0.1), 2, "real", ""),
        (500, 2, "real", ""),
        (503, 2, "real", ""),
        ("!reset", 2, "real", ""),
        ("!hang", 2, "real", ""),
        (400, 1, "", "HTTP 400"),
        (404, 1, "", "HTTP 404"),
        (422, 1, "", "HTTP 422"),
        ("!broken", 1, "", "not JSON"),
        ({**answer("x"), "choices": []}, 1, "", "no choices"),
        (answer(None), 1, "", ""),
        ({"error": {"code": "content_filter", "message": "no"}}, 1, "", ""),
    ],
)
def test_each_fault_has_its_outcome(tmp_path: Path, outcome: Any, requests: int, text: str, error: str) -> None:
    with serving([outcome]) as server:
        (reply,), _ = ask(server, tmp_path / "r.sqlite", ["?"], timeout=1.0)
    assert len(server.bodies) == requests
    assert reply.text == text
    assert error in reply.error
    assert bool(reply.error) == bool(error)
    stored = [row for _, row in RowStore(tmp_path / "r.sqlite").rows()]
    assert len(stored) == (not error)  # errors are never kept


def test_limits_merges_and_never_asks_again(tmp_path: Path) -> None:
    questions = [str(i) for i in range(12)] * 2
    with serving([], latency=0.05) as server:
        replies, engine = ask(server, tmp_path / "r.sqlite", questions, max_connections=4)
        again, second = ask(server, tmp_path / "r.sqlite", questions, max_connections=4)
    assert (len(server.bodies), engine.requests, second.requests) == (12, 12, 0)
    assert server.most == 4
    assert again == replies


def test_a_refused_key_stops_and_stays_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_TEST_KEY", "sk-very-secret-0123")
    with serving([401]) as server, pytest.raises(UserError, match="GENLAB_TEST_KEY") as caught:
        ask(server, tmp_path / "r.sqlite", ["?"])
    assert server.keys == {"Bearer sk-very-secret-0123"}  # it was sent, and the server repeated it
    assert "secret" not in str(caught.value)
    assert all(b"secret" not in file.read_bytes() for file in tmp_path.iterdir())


KILLED = """
import asyncio, sys
from genlab.store import RowStore
from genlab.vlm.engines import OpenAIEndpoint
engine = OpenAIEndpoint("m", sys.argv[1], "GENLAB_TEST_KEY", max_connections=4)
async def main():
    engine.open(RowStore(sys.argv[2]))
    await asyncio.gather(*(engine.ask([{"role": "user", "content": str(i)}]) for i in range(60)))
asyncio.run(main())
"""


@pytest.mark.slow
def test_kill_9_repeats_at_most_what_was_in_flight(tmp_path: Path) -> None:
    with serving([], latency=0.02) as server:
        for killed_at in (5, 23, 41):
            process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(tmp_path / "r.sqlite")])
            while len(server.bodies) < killed_at and process.poll() is None:
                server.arrived.wait(0.05)
            process.kill()
            process.wait()
        replies, _ = ask(server, tmp_path / "r.sqlite", [str(i) for i in range(60)])
    assert [reply.text for reply in replies] == ["real"] * 60
    assert 60 <= len(server.bodies) <= 60 + 3 * 4

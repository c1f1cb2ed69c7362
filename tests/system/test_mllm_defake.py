"""MLLM fake-image detection through the command line: killed and started again, with a key, served by transformers, shown by a browser."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genlab.store import RowStore
from genlab.training.randomness import keyed_rng
from genlab.vlm.conversations import call_key
from tests.system.programs import environment, run
from tests.vlm.bright_and_dark import picture, tuned_model, write_set
from tests.vlm.fault_server import serving

pytestmark = [pytest.mark.system, pytest.mark.slow]

CONNECTIONS, KILLS, PICTURES = 8, 20, 40
CONFIG = """
seed_everything: 0
model:
  class_path: genlab.methods.mllm_defake.MllmDefake
  init_args:
    engine:
      class_path: genlab.vlm.engines.OpenAIEndpoint
      init_args: {{model: m, base_url: "{url}", max_connections: {connections}, timeout: {timeout}, max_tokens: 16, api_key_env: MLLM_KEY}}
    prompts: [{prompts}]
    fusion:
      class_path: genlab.vlm.fusion.NumericFusion
      init_args: {{quorum: 1}}
data:
  class_path: datamodules.defake_images.DefakeImages
  init_args: {{root: "{root}"}}
trainer: {{accelerator: cpu, logger: false, enable_progress_bar: false}}
"""
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\u202e </pre></article> fake"


def config(folder: Path, url: str, root: Path, prompts: str = "simple", timeout: float = 30.0) -> str:
    path = folder / "mllm.yaml"
    path.write_text(CONFIG.format(url=url, root=root, prompts=prompts, timeout=timeout, connections=CONNECTIONS))
    return str(path)


def misbehave(body: bytes, before: int) -> Any:
    """What a request gets, by its content: faults that pass at the second attempt, ones that stay, and texts."""
    digest = hashlib.sha256(body).hexdigest()
    kind = int(digest[:8], 16) % 12
    if before == 0 and kind < 4:
        return ((429, 0.05), 500, "!reset", "!hang")[kind]
    if kind == 4:
        return "!broken"
    return {5: "", 6: HOSTILE}.get(kind, f"{digest[:6]}, so it is {'real' if kind % 2 else 'generated'}.")


def key_of(body: bytes) -> str:
    record = json.loads(body)
    messages, model = record.pop("messages"), record.pop("model")
    return call_key(messages, model, record, 0)


def _command(arguments: list[str], cwd: Path, env: dict[str, str]) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with (cwd / name).open("w") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(cwd)
    os.environ |= env
    from genlab.cli import main

    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def forked(*arguments: str, cwd: Path, **env: str) -> Any:
    """The command line in a process that is forked off one which has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["genlab.lightning_cli", "genlab.methods.mllm_defake", "datamodules.defake_images", __name__])
    process = context.Process(target=_command, args=(list(arguments), cwd, env))
    process.start()
    return process


def command(*arguments: str, cwd: Path, expect: int = 0, **env: str) -> tuple[str, str]:
    """Runs it to its end; what it says on stdout and on stderr."""
    process = forked(*arguments, cwd=cwd, **env)
    process.join(300)
    said = (cwd / "stdout").read_text(), (cwd / "stderr").read_text()
    assert process.exitcode == expect, said
    return said


def results(folder: Path) -> dict[str, bytes]:
    found = next(folder.glob("runs/*/*/test-defake"))
    return {
        path.name: path.read_bytes()
        for path in [*found.glob("*.csv"), *found.glob("*.jsonl")]
        if path.name not in ("metrics.csv", "calls.jsonl")
    }


def test_killed_at_twenty_moments_it_asks_nothing_twice_and_tells_the_same(tmp_path: Path) -> None:
    """About 200 calls; what is stored is never asked again, tables are those of one run byte for byte."""
    root, prompts = write_set(tmp_path / "set", PICTURES // 2), "simple, common_sense_reasoning, structural_analysis"
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    rng = keyed_rng("moments of killing")
    with serving(misbehave) as server:
        killed, arguments = tmp_path / "killed", ["test", "-c", config(tmp_path / "killed", server.url, root, prompts, timeout=2.0)]
        store = None
        for _ in range(KILLS):
            start = len(server.bodies)
            kept = set() if store is None else {key for key, _ in RowStore(store).rows()}
            moment = start + int(rng.integers(1, 13))
            process = forked(*arguments, cwd=killed)
            while len(server.bodies) < moment and process.is_alive():
                server.arrived.wait(0.005)
            process.kill()
            process.join()
            assert process.exitcode == -9, (killed / "stderr").read_text()
            assert not kept & {key_of(body) for body in server.bodies[start:]}
            store = next(killed.glob("runs/*/*/test-defake/replies.sqlite"))
        kept = {key for key, _ in RowStore(store).rows()}
        start = len(server.bodies)
        assert 0 < len(kept) < 200
        command(*arguments, cwd=killed, expect=3)  # some replies are no JSON, whatever one does
        asked = {key_of(body) for body in server.bodies[start:]}
        assert asked and not kept & asked
        answered = Counter(body for i, body in enumerate(server.bodies) if _is_text(misbehave(body, server.bodies[:i].count(body))))
    with serving(misbehave) as server:
        command("test", "-c", config(tmp_path / "whole", server.url, root, prompts, timeout=2.0), cwd=tmp_path / "whole", expect=3)
        assert len(set(server.bodies)) >= 150  # those after a broken reply are never asked
    assert sum(answered.values()) - len(answered) <= KILLS * CONNECTIONS
    whole = results(tmp_path / "whole")
    assert results(killed) == whole and {"predictions.csv", "answers.jsonl", "official_simple.csv"} <= whole.keys()


def _is_text(outcome: Any) -> bool:
    return isinstance(outcome, str) and not outcome.startswith("!")


def test_a_signal_stops_in_order_and_the_rest_is_asked_later(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", 30)
    with serving([], latency=0.05) as server:
        arguments = ["test", "-c", config(tmp_path, server.url, root)]
        process = forked(*arguments, cwd=tmp_path)
        while len(server.bodies) < 10 and process.is_alive():
            server.arrived.wait(0.005)
        os.kill(process.pid, signal.SIGTERM)
        process.join(120)
        assert process.exitcode == 75 and 10 <= len(server.bodies) < 60
        command(*arguments, cwd=tmp_path)
        assert len(server.bodies) == len(set(server.bodies)) == 60


def test_the_key_is_written_nowhere(tmp_path: Path) -> None:
    """Though the server repeats it in errors and in replies, and the run fails with a traceback."""
    key = "sk-very-secret-0123456789"
    root = write_set(tmp_path / "set", 2)

    def repeats(body: bytes, before: int) -> Any:
        return 500 if before == 0 else f"Your key is {key}. It is real."

    outputs = []
    with serving(repeats) as server:
        arguments = ["-c", config(tmp_path, server.url, root), "--debug"]
        outputs.append(run("test", *arguments, cwd=tmp_path, MLLM_KEY=key, OPENAI_LOG="debug"))
        outputs.append("".join(command("predict", *arguments, str(root / "real"), cwd=tmp_path, MLLM_KEY=key)))
        assert server.keys == {f"Bearer {key}"}
    with serving([401] * 20) as server:
        refused = ["-c", config(tmp_path, server.url, root), "--run.name=refused", "--debug"]
        outputs.append("".join(command("test", *refused, cwd=tmp_path, expect=2, MLLM_KEY=key)))
        more = [f"--model.engine.init_args.api_key_env={key}"]
        outputs.append("".join(command("test", *refused[:-1], *more, cwd=tmp_path, expect=2)))
    assert "Traceback" in outputs[2] and "set $MLLM_KEY" in outputs[2]
    assert not [output for output in outputs[:3] if key in output]
    assert "is no name of a variable" in outputs[3]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]  # what both starts said is among them
    assert len(files) > 15
    assert not [path for path in files if key.encode() in path.read_bytes()]
    assert "[key]" in (next(tmp_path.glob("runs/*/seed0/test-defake")) / "answers.jsonl").read_text()


def test_the_page_of_hostile_replies_stays_text(tmp_path: Path) -> None:
    """Scripts in replies, file names and generators do not run; the page loads nothing and complains of nothing."""
    root = tmp_path / "set"
    for label, name in ((0, "real/<img src=x onerror=alert(2)>.png"), (1, 'fake/"><script>alert(3)/a.png'), (1, "fake/plain/b.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture("hostile", 0, label))
    with serving([HOSTILE] * 50) as server:
        command("test", "-c", config(tmp_path, server.url, root, "simple, regional_analysis"), cwd=tmp_path)
    page = next(tmp_path.glob("runs/*/*/test-defake/report.html"))
    text = page.read_text()
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", text)
    assert "<img src=x" not in text and "&lt;img src=x onerror=alert(1)&gt;" in text
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium is not None, "the page is tried in Chromium; install it"
    browser = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--enable-logging=stderr", "--v=0"]
    shown = subprocess.run([*browser, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "3 of 3" in shown.stdout  # our own script ran
    assert "<title>mllm: test</title>" in shown.stdout and shown.stdout.count("<article") == 3
    assert not re.search(r":CONSOLE[(:]", shown.stderr), shown.stderr
    assert len(re.findall(r"<script", shown.stdout)) == 2


# ---- a real server


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned_model(tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="module")
def served(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``transformers serve`` on the CPU with the trained model."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "hub").mkdir()  # without a cache folder its list of models fails
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tuned), "--device", "cpu", "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--default-seed", "0"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment(HF_HOME=str(folder)), stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                    break
                except OSError:
                    assert process.poll() is None, (folder / "log").read_text()
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(30)


def forwarding(url: str) -> Any:
    """Outcomes that are a real server's."""

    def ask(body: bytes, before: int) -> Any:
        request = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    return ask


def test_a_served_model_judges_is_not_asked_twice_and_survives_a_kill(served: str, tuned: Path, tmp_path: Path) -> None:
    """Through a proxy that counts: all right, nothing at the second start, at most what was in flight once more after a kill."""
    root = write_set(tmp_path / "set", 24)
    more = [f"--model.engine.init_args.model={tuned}"]
    with serving(forwarding(served)) as server:
        arguments = ["test", "-c", config(tmp_path, server.url, root), *more]
        process = forked(*arguments, cwd=tmp_path)
        while len(server.bodies) < 20 and process.is_alive():
            server.arrived.wait(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -9
        command(*arguments, cwd=tmp_path)
        asked = len(server.bodies)
        assert 48 <= asked <= 48 + CONNECTIONS
        command(*arguments, cwd=tmp_path)
        assert len(server.bodies) == asked
    found = json.loads(next(tmp_path.glob("runs/*/*/test-defake/results.json")).read_text())
    assert found["metrics"]["test/simple/accuracy_strict"] >= 0.95
    assert found["metrics"]["test/prompt_tokens"] > 0


def test_one_picture_prints_one_word(served: str, tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "mine, dark.png").write_bytes(picture("mine", 0, 1))
    arguments = ["predict", "-c", config(tmp_path, served, tmp_path), f"--model.engine.init_args.model={tuned}", "mine, dark.png"]
    assert command(*arguments, cwd=tmp_path)[0] == "fake\n"
    folder = next(tmp_path.glob("runs/*/*/predict-defake"))
    assert all((folder / name).stat().st_size for name in ("predictions.csv", "answers.jsonl", "report.html"))


def test_what_a_real_server_refuses_is_an_error_row(served: str, tmp_path: Path) -> None:
    """It serves one model and knows no other name."""
    root = write_set(tmp_path / "set", 1)
    output, _ = command("test", "-c", config(tmp_path, served, root), cwd=tmp_path, expect=3)
    assert "2 of 2 samples have no score" in output
    assert "HTTP 4" in next(tmp_path.glob("runs/*/*/test-defake/predictions.csv")).read_text()

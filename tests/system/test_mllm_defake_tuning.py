"""From pictures to a report: fine-tuned, served by ``transformers serve``, evaluated through its endpoint."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from datamodules.tinyworld import make
from genlab.errors import USER_ERROR
from genlab.files import read_csv
from genlab.weights import resolve
from tests.system.forked import run_forked
from tests.system.programs import environment, run

pytestmark = [pytest.mark.system, pytest.mark.slow]


def test_fine_tuned_served_and_evaluated(tmp_path: Path) -> None:
    fit = ["--data.train=grounding_train.jsonl", "--trainer.max_steps=250", "--trainer.val_check_interval=250"]
    run("fit", "-c", "tiny/mllm_defake_sft", *fit, "--trainer.enable_progress_bar=false", cwd=tmp_path)
    folder = tmp_path / "runs/tiny/mllm_defake_sft/seed0"
    assert (folder / "media/val_step000250.png").is_file() and (folder / "report.html").is_file()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder / "model"), "--device", "cpu"]
    serve += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port), "--default-seed", "0"]
    log = (tmp_path / "serve.log").open("w")
    server = subprocess.Popen(serve, env=environment(HF_HOME=str(tmp_path / "hf")), stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while not is_up(port):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "serve.log").read_text()
            time.sleep(0.5)
        asked = [f"--model.engine.model={folder / 'model'}", "--model.engine.max_tokens=96", "--model.prompts=[grounded]"]
        asked += ["--model.fusion=genlab.vlm.fusion.NumericFusion", "--model.fusion.quorum=1", "--data.root=tiny:plain_defake"]
        run("test", "-c", "tiny/mllm_defake", *asked, cwd=tmp_path, BASE_URL=f"http://127.0.0.1:{port}/v1")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        log.close()
    (found,) = tmp_path.glob("runs/tiny/mllm_defake/seed0/test-*")
    metrics = json.loads((found / "results.json").read_text())["metrics"]
    assert metrics["test/fused/accuracy_strict"] >= 0.9 and (found / "report.html").is_file()
    replies = [row["grounded_reply"] for row in read_csv(found / "predictions.csv")]
    assert len(replies) == 80 and sum("<verdict>" in reply for reply in replies) >= 72


def is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_zero_2_is_ddp_and_zero_3_is_refused(method: str, tmp_path: Path) -> None:
    root = make("plain_defake", tmp_path / "world", progress=False, train=8, test=1)
    options = [f"--data.root={root}", "--data.batch_size=4", "--trainer.max_steps=3", "--trainer.limit_val_batches=0"]
    options += ["--model.weights=tiny:vlm", "--model.max_new_tokens=6", "--trainer.enable_progress_bar=false", "--trainer.devices=2"]
    if method == "grpo":
        options += ["--model.group=2", "--model.reward={class_path: tests.system.parity.ForLetters}"]
    fit, weights = ["fit", "-c", f"tiny/mllm_defake_{method}", *options], {}
    for name, strategy in (("zero", zero(2)), ("ddp", "ddp")):
        run_forked(*fit, f"--trainer.strategy={strategy}", f"--run.name={name}", processes=2, cwd=tmp_path)
        weights[name] = load_file(tmp_path / f"runs/tiny/mllm_defake_{method}/{name}/model/model.safetensors")
    start = load_file(Path(resolve("tiny:vlm")) / "model.safetensors")
    moved = [name for name, value in weights["ddp"].items() if not torch.equal(value, start[name].float())]
    assert moved and not any("visual" in name for name in moved)
    for name, value in weights["ddp"].items():
        torch.testing.assert_close(weights["zero"][name].float(), value, atol=2e-4, rtol=1e-3, msg=name)
    refused = run_forked(*fit, f"--trainer.strategy={zero(3)}", processes=2, cwd=tmp_path, expect=USER_ERROR)
    assert "cannot run under ZeRO-3" in refused


def zero(stage: int) -> str:
    options = {"stage": stage, "exclude_frozen_parameters": True}
    return json.dumps({"class_path": "tests.system.cpu_deepspeed.CPUDeepSpeed", "init_args": options})

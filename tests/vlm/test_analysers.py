"""Who takes captions apart: a server is asked until it says the same twice, a local model once; BLIP describes pictures."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from genlab.errors import UserError
from genlab.vlm.analysers import Blip, Endpoint, LocalModel, Rules
from genlab.vlm.concepts import Analysis, by_rules
from genlab.weights import TINY_MODELS

KEY = "a-secret-of-the-test"


class Server:
    """Says one answer after the other."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.keys: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.keys.append(self.headers["Authorization"])
                text = outer.answers[min(len(outer.keys), len(outer.answers)) - 1]
                message = {"role": "assistant", "content": text}
                reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
                body = json.dumps({**reply, "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KEY_OF_THE_TEST", KEY)
    found = Server()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_a_server_is_asked_until_it_agrees_with_itself_and_its_answers_are_kept(server: Server, tmp_path: Path) -> None:
    server.answers = [
        "What?", "Foreground: a dog\nBackground: sea\nAction: None", "Foreground: dog\nBackground: sea\nAction: None",
        "Foreground: dog\nBackground: sea\nAction: None",
    ]  # fmt: skip
    analyser = Endpoint("m", server.url, "KEY_OF_THE_TEST")
    assert analyser.analyse("a dog at the sea") == Analysis("dog", "sea") and len(server.keys) == 4
    assert analyser.analyse("a dog at the sea") == Analysis("dog", "sea") and len(server.keys) == 4, "kept"
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()) and KEY not in repr(analyser)
    server.answers = ["I would rather not."]
    with pytest.raises(UserError, match=r"no answer of 10 has the lines"):
        analyser.analyse("a cat")
    assert len(server.keys) == 14


def test_a_server_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1: connection refused"):
        Endpoint("m", "http://127.0.0.1:9/v1").analyse("a dog")


def test_a_local_model_that_says_something_else_is_refused(tmp_path: Path) -> None:
    """A random one: its answer is no three lines, and is quoted."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(TINY_MODELS / "vlm")
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not three lines"):
        LocalModel(str(tmp_path)).analyse("a dog")
    assert LocalModel(str(tmp_path)).name == str(tmp_path) and Rules().analyse("a dog on a mat") == by_rules("a dog on a mat")


def test_blip_describes_a_picture(tmp_path: Path) -> None:
    """A random one: it says some of its words."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "dog", "cat", "sea"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"), bos_token="[DEC]")
    BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(tmp_path)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(words), "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(text_config={**text, "encoder_hidden_size": 16}, vision_config={**tower, "image_size": 16, "patch_size": 8})
    BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    said = Blip(str(tmp_path)).caption(Image.new("RGB", (20, 30), (200, 10, 10)))
    assert set(said.split()) <= {"dog", "cat", "sea"}

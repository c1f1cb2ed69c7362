"""Sentences about classes from a server that speaks OpenAI's protocol, a real one in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from genlab.errors import UserError
from genlab.verbs.data import main
from genlab.verbs.descriptions import split_sentences


class Answers(BaseHTTPRequestHandler):
    """Repeats what it is asked about; the first request of all finds it busy."""

    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)  # type: ignore[attr-defined]
        if asked["model"] != "small":
            return self.say(404, {"error": "no such model"})
        if len(self.server.asked) == 1:  # type: ignore[attr-defined]
            return self.say(429, {})
        text = f"1. **Asked**: {asked['messages'][0]['content']} It was asked with seed {asked['seed']}.\n- ok"
        self.say(200, {"choices": [{"message": {"content": text}}]})

    def say(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After", "0.01")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    made = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    made.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()


def test_a_local_model_describes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small Llama from a folder: the same seed gives the same answer, a chat template is used where there is one."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from genlab.vlm.text import LocalText

    torch.manual_seed(0)
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(["<end>", *sorted(letters)])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = "{% for m in messages %}Q: {{ m['content'] }} A:{% endfor %}"
    fast.save_pretrained(tmp_path / "lm")
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=0,
        bos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "lm")
    engine = LocalText(str(tmp_path / "lm"), max_tokens=12)
    one = engine.complete("What is an owl?", 1)
    assert one == engine.complete("What is an owl?", 1) != engine.complete("What is an owl?", 2)
    assert "owl" not in one, "the answer alone"
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    names = tmp_path / "names.txt"
    names.write_text("owl\n")
    words = ["--classes", str(names), "--out", str(tmp_path / "said.json"), "--model", str(tmp_path / "lm"), "--answers", "1"]
    with pytest.raises(UserError, match="nothing usable about 'owl'"):  # random letters are no sentences
        main(["prepare", "descriptions", *words])


def test_classes_are_described_once(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    names, out = tmp_path / "names.txt", tmp_path / "sentences.json"
    names.write_text("sea_or lake\n\nowl\n")
    url = f"http://127.0.0.1:{server.server_port}/v1"
    words = [
        "prepare",
        "descriptions",
        "--classes",
        str(names),
        "--out",
        str(out),
        "--endpoint",
        url,
        "--model",
        "small",
        "--kind",
        "place",
    ]
    assert main([*words, "--answers", "1"]) == 0
    found = json.loads(out.read_text())
    assert list(found) == ["owl", "sea or lake"] or list(found) == ["sea or lake", "owl"]
    assert "It was asked with seed 0." in found["owl"]
    assert "Asked: Describe what a sea or lake, a type of place looks like." in found["sea or lake"]
    asked = len(server.asked)
    assert asked == 2 * 5 + 1, "the busy server was asked again"
    found["owl"] = ["By hand."]
    out.write_text(json.dumps(found))
    names.write_text("owl\nsea_or lake\n")
    assert main([*words, "--answers", "1"]) == 0 and json.loads(out.read_text())["owl"] == ["By hand."]
    out.unlink()
    assert main([*words, "--answers", "1"]) == 0 and len(server.asked) == asked, "answers are kept"


def test_actions_are_described_in_space_and_time(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    """Two files that MSTA's datamodule reads by the names of the classes; answers are asked for once."""
    from datamodules.action_descriptions import read_descriptions

    names = tmp_path / "names.txt"
    names.write_text("shoot_bow\njump\n")
    url = f"http://127.0.0.1:{server.server_port}/v1"
    words = ["prepare", "descriptions", "--classes", str(names), "--out", str(tmp_path / "mine.json"), "--endpoint", url]
    assert main([*words, "--model", "small", "--actions", "2"]) == 0
    asked = len(server.asked)
    for kind, form in (("spatial", "A video about "), ("temporal", "A video of jump generally involves the following step: ")):
        found = read_descriptions(tmp_path / f"mine.{kind}.json", ["shoot_bow", "jump"], 2)
        assert all(len(each) == 2 for each in found) and found[1][0].startswith(form) and found[1][0].endswith(".")
    (tmp_path / "mine.spatial.json").unlink()
    assert main([*words, "--model", "small", "--actions", "2"]) == 0 and len(server.asked) == asked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--endpoint", "URL", "--model", "large"], "refuses with 404.*no such model.*--model"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--model", "small"], "cannot be reached.*Is the server running"),
        ([], "name a model: --endpoint URL --model NAME"),
    ],
)
def test_mistakes(server: ThreadingHTTPServer, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "names.txt").write_text("owl\n")
    words = [word.replace("URL", f"http://127.0.0.1:{server.server_port}/v1") for word in words]
    with pytest.raises(UserError, match=message):
        main(["prepare", "descriptions", "--classes", str(tmp_path / "names.txt"), "--out", str(tmp_path / "x.json"), *words])
    assert not (tmp_path / "x.json").exists()


def test_sentences() -> None:
    text = "Sure:\n1. A forest is *green*. It has many trees.\n- Trees stand close together\n2) Its ground is dark and covered with leaves!"
    assert split_sentences(text) == ["A forest is green.", "It has many trees.", "Its ground is dark and covered with leaves!"]

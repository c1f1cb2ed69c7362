"""Engines that answer a prompt with text: an endpoint that speaks OpenAI's protocol, or a local language model."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from typing import Any, Protocol

from genlab.errors import UserError
from genlab.weights import load_pretrained, resolve

PATIENCE, ATTEMPTS = 120.0, 4  # seconds for an answer, and how often a busy endpoint is asked


class TextEngine(Protocol):
    """Prompts to answers."""

    name: str
    """What answers depend on besides the prompt; part of the key under which they are kept."""

    def complete(self, prompt: str, seed: int) -> str: ...


class Endpoint:
    """Any server with ``/chat/completions`` as OpenAI has it (vLLM, llama.cpp, Ollama ...). The key is read from ``$OPENAI_API_KEY``.

    Args:
        url: Up to and with ``/v1``.
        model: As the server calls it.
        max_tokens: Of an answer.
        temperature: Of sampling.
    """

    def __init__(self, url: str, model: str, max_tokens: int = 200, temperature: float = 0.99) -> None:
        self.url, self.model, self.max_tokens, self.temperature = url.rstrip("/"), model, max_tokens, temperature
        self.name = f"{model} {max_tokens} {temperature}"

    def complete(self, prompt: str, seed: int) -> str:
        """The answer.

        Raises:
            UserError: The server cannot be reached, refuses, or answers otherwise than its protocol says.
        """
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "seed": seed}
        body |= {"max_tokens": self.max_tokens, "temperature": self.temperature}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        for attempt in range(ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                    return str(json.load(response)["choices"][0]["message"]["content"])
            except urllib.error.HTTPError as error:
                if error.code in (429, 500, 502, 503) and attempt + 1 < ATTEMPTS:
                    time.sleep(float(error.headers.get("Retry-After") or 2**attempt))
                    continue
                said = error.read().decode(errors="replace")[:200]
                raise UserError(f"{self.url} refuses with {error.code}: {said}. Look at --model and OPENAI_API_KEY.") from error
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                raise UserError(f"{self.url} cannot be reached ({error}). Is the server running? The URL ends with /v1.") from error
            except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
                raise UserError(f"{self.url} does not answer as OpenAI's protocol says ({error!r}).") from error
        raise AssertionError("the last attempt returns or raises")


class LocalText:
    """A causal language model on this machine, through transformers.

    Args:
        weights: Hub id or folder.
        max_tokens: Of an answer.
        temperature: Of sampling.
    """

    def __init__(self, weights: str, max_tokens: int = 200, temperature: float = 0.99) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = load_pretrained(AutoModelForCausalLM, weights).eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(resolve(weights), local_files_only=True)
        self.max_tokens, self.temperature = max_tokens, temperature
        self.name = f"{weights} {max_tokens} {temperature}"

    def complete(self, prompt: str, seed: int) -> str:
        """The answer; the same seed gives the same one."""
        import torch

        if self.tokenizer.chat_template:
            chat = [{"role": "user", "content": prompt}]
            prompt = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(prompt, return_tensors="pt").to(self.model.device)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            out = self.model.generate(
                **ids,
                max_new_tokens=self.max_tokens,
                do_sample=True,
                temperature=self.temperature,
                pad_token_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id,
            )
        return str(self.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))

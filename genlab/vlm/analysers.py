"""Who takes a caption apart: rules, a language model on this machine, or any OpenAI-compatible server. And who captions: BLIP.

Settings are small frozen dataclasses, named in the YAML by their class path. Nothing paid is ever needed; a key comes from the environment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from genlab.errors import MissingPath, UserError
from genlab.files import cache_folder
from genlab.store import RowStore
from genlab.vlm.concepts import ATTEMPTS, Analysis, agreed, by_rules, instruction, parse_answer
from genlab.weights import load_pretrained, resolve

if TYPE_CHECKING:
    from PIL.Image import Image

CAPTION_TOKENS = 50  # at most, as in the released code


class Analyser:
    """Settings of an analyser, for frozen dataclasses to derive from."""

    @property
    def name(self) -> str:
        """Names it and its model, in what is kept of its answers."""
        raise NotImplementedError(f"{type(self).__name__} must define name.")

    def analyse(self, caption: str) -> Analysis:
        """A caption in parts."""
        raise NotImplementedError(f"{type(self).__name__} must define analyse.")


@dataclass(frozen=True)
class Rules(Analyser):
    """Fixed rules of ours, see :func:`genlab.vlm.concepts.by_rules`."""

    @property
    def name(self) -> str:
        return "rules"

    def analyse(self, caption: str) -> Analysis:
        return by_rules(caption)


@dataclass(frozen=True)
class LocalModel(Analyser):
    """An instruct model of transformers, greedily: it is asked once, since it would say the same again.

    Args:
        weights: Hub id or folder of a causal language model with a chat template, such as Qwen/Qwen2.5-1.5B-Instruct.
    """

    weights: str = "Qwen/Qwen2.5-1.5B-Instruct"

    @property
    def name(self) -> str:
        return self.weights

    def analyse(self, caption: str) -> Analysis:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(resolve(self.weights), local_files_only=True)
        except (OSError, ValueError) as error:
            raise MissingPath(f"analyser: {self.weights} has no tokenizer on this machine ({str(error).splitlines()[0]}).") from error
        model = load_pretrained(cast(Any, AutoModelForCausalLM), self.weights).eval()
        question = [{"role": "user", "content": instruction(caption)}]
        given = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            out = model.generate(**given, max_new_tokens=100, do_sample=False)
        answer = tokenizer.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        parsed = parse_answer(answer)
        if parsed is None:
            raise UserError(f"analyser: {self.weights} said {answer[:80]!r}, not three lines. Take another, or fill in data.concepts.")
        return parsed


@dataclass(frozen=True)
class Endpoint(Analyser):
    """A server with ``/chat/completions``, as the paper has it, of any maker. Asked up to ten times, until it says the same twice running.

    Args:
        model: As the server calls it.
        base_url: Up to and with ``/v1``; left out, ``$BASE_URL``, else ``http://127.0.0.1:8000/v1``.
        api_key_env: The environment variable that holds the key, where one is needed.
        timeout: Seconds for one attempt.
    """

    model: str
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    timeout: float = 30.0

    @property
    def name(self) -> str:
        return self.model

    def analyse(self, caption: str) -> Analysis:
        from genlab.vlm.engines import OpenAIEndpoint

        engine = OpenAIEndpoint(
            self.model, self.base_url, self.api_key_env, timeout=self.timeout, max_retries=0, max_tokens=100, temperature=1.0
        )
        with asyncio.Runner() as runner:
            engine.open(RowStore(cache_folder() / "concepts" / "answers.sqlite"))
            troubles: list[str] = []

            def answers() -> Iterator[str | None]:
                for attempt in range(ATTEMPTS):
                    engine.params["seed"] = attempt
                    reply = runner.run(engine.ask([{"role": "user", "content": instruction(caption)}], attempt))
                    if reply.error and "no reply within" not in reply.error:
                        raise UserError(f"analyser: {engine.base_url}: {reply.error}. Is the server there, and the model {self.model}?")
                    troubles.append(reply.error)
                    yield None if reply.error else reply.text

            try:
                return agreed(answers())
            finally:
                runner.run(engine.close())


@dataclass(frozen=True)
class Blip:
    """The captioner (Li et al., arXiv 2201.12086), greedily and without a text to begin with.

    Args:
        weights: Hub id or folder of a ``BlipForConditionalGeneration`` and its processor.
    """

    weights: str = "Salesforce/blip-image-captioning-large"

    def caption(self, picture: Image) -> str:
        """What it says."""
        from transformers import BlipForConditionalGeneration, BlipProcessor

        folder = resolve(self.weights)
        model = load_pretrained(cast(Any, BlipForConditionalGeneration), self.weights).eval()
        processor: Any = BlipProcessor.from_pretrained(folder, local_files_only=True)
        with torch.no_grad():
            out = model.generate(**processor(picture, return_tensors="pt"), max_length=CAPTION_TOKENS, num_beams=1, do_sample=False)
        return str(processor.decode(out[0], skip_special_tokens=True)).strip()

"""Asks a model on this machine: any image-text-to-text model through the classes of transformers, several questions in a batch."""

from __future__ import annotations

import asyncio
import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from genlab.errors import UserError
from genlab.store import RowStore, content_key
from genlab.vlm.asking import Engine, Reply, SystemRole
from genlab.vlm.conversations import Message
from genlab.vlm.data_urls import from_data_url
from genlab.weights import load_pretrained, resolve

SMALL = 1 << 24  # bytes; larger files stand in keys with size and time


@dataclass
class _Waiting:
    """A question in the queue."""

    messages: list[Message]
    params: dict[str, Any]
    reply: asyncio.Future[Reply]


class LocalModel(Engine):
    """An image-text-to-text model of transformers (Qwen2-VL, InternVL, LLaVA ...), without a server.

    Questions that are under way together are answered in batches, padded on the left; at temperature 0 the text is that of single ones but
    for rounding. With a temperature each is drawn by itself, from ``seed``.

    Args:
        weights: Hub id or folder with model and processor; ``tiny:vlm`` for a small one.
        adapter: Folder of a peft adapter (LoRA) that is laid over it.
        batch_size: Questions answered together.
        max_tokens: Of a reply.
        temperature: Of sampling; 0 is greedy.
        seed: Of sampling.
        top_logprobs: Likeliest tokens to keep at each place, for confidences; 0 keeps none.
        device: ``auto``: the GPU where there is one.
        dtype: ``auto``: bfloat16 on a GPU, else float32.
        system_role: ``user`` gives system messages as the user's, ``merge`` puts their text before the user's next message.
    """

    def __init__(
        self,
        weights: str,
        adapter: str | None = None,
        batch_size: int = 8,
        max_tokens: int = 1000,
        temperature: float = 0.0,
        seed: int = 0,
        top_logprobs: int = 20,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        system_role: SystemRole = "keep",
    ) -> None:
        if batch_size < 1 or max_tokens < 1 or top_logprobs < 0:
            raise UserError(f"engine: {batch_size=} {max_tokens=} {top_logprobs=}; the first two are at least 1, the last 0.")
        params: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "top_logprobs": top_logprobs}
        super().__init__(weights, params, 4 * batch_size, None, system_role)  # so that a batch is ready when one is done
        self.adapter, self.batch_size, self.top_logprobs, self.device, self.dtype = adapter, batch_size, top_logprobs, device, dtype
        self._network: Any = None
        self._identity = ""

    @property
    def identity(self) -> str:
        """Weights count by content: a model that was trained on under the same name is another one."""
        if not self._identity:
            self._identity = f"local:{self.model}:{self.dtype}:{content_key(*_contents(self.model), *_contents(self.adapter))}"
        return self._identity

    def open(self, store: RowStore, calls: Path | None = None) -> None:
        super().open(store, calls)
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    async def close(self) -> None:
        await super().close()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._worker = None

    async def _request(self, key: str, messages: list[Message], params: dict[str, Any]) -> Reply:
        if self._worker is None:
            self._worker = asyncio.ensure_future(self._work())
        self.requests += 1
        call, tokens = self.ledger.ask(key, messages, params["max_tokens"])
        one = _Waiting(messages, params, asyncio.get_running_loop().create_future())
        await self._waiting.put(one)
        reply = await one.reply
        self.ledger.settle(call, key, tokens, reply)
        return reply

    async def _work(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            await asyncio.sleep(0)  # whoever is about to ask gets into the batch
            while not self._waiting.empty() and len(batch) < self.batch_size:
                batch.append(self._waiting.get_nowait())
            try:
                replies = await asyncio.to_thread(self._answer_all, batch)
            except Exception as error:  # handed to whoever asked
                for one in batch:
                    one.reply.set_exception(error)
                continue
            for one, reply in zip(batch, replies):
                one.reply.set_result(reply)

    def _answer_all(self, batch: Sequence[_Waiting]) -> list[Reply]:
        greedy = all(not one.params["temperature"] for one in batch)
        parts = [batch] if greedy else [[one] for one in batch]
        return [reply for part in parts for reply in self._generate(part)]

    def load(self) -> tuple[Any, Any]:
        """The model and its processor, loaded once.

        Raises:
            UserError: They are not there, or there is no chat template.
        """
        if self._network is None:
            import torch
            from transformers import AutoModelForImageTextToText, AutoProcessor

            device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
            dtype = ("bfloat16" if device.startswith("cuda") else "float32") if self.dtype == "auto" else self.dtype
            model: Any = load_pretrained(AutoModelForImageTextToText, self.model)
            if self.adapter is not None:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, resolve(self.adapter)).merge_and_unload()
            processor = AutoProcessor.from_pretrained(resolve(self.model), local_files_only=True)
            self._network = model.to(device, getattr(torch, dtype)).eval(), processor
        return self._network

    def _generate(self, batch: Sequence[_Waiting]) -> list[Reply]:
        import torch

        from genlab.vlm.masking import question_batch

        start = time.monotonic()
        model, processor = self.load()
        chats, pictures = zip(*(as_chat(one.messages) for one in batch))
        asked = question_batch(processor, chats, pictures).to(model.device)
        asked = asked.to(model.dtype) if hasattr(asked, "to") else asked
        params = batch[0].params
        tokenizer: Any = getattr(processor, "tokenizer", processor)
        ends = _ends(model)
        options: dict[str, Any] = {"do_sample": bool(params["temperature"]), "max_new_tokens": params["max_tokens"]}
        if params["temperature"]:
            options |= {"temperature": params["temperature"], "top_k": 0, "top_p": 1.0}
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(params["seed"])
            made: Any = model.generate(
                **asked, **options, pad_token_id=pad, return_dict_in_generate=True, output_logits=bool(self.top_logprobs)
            )
        length = asked["input_ids"].shape[1]
        seconds = (time.monotonic() - start) / len(batch)
        replies = []
        for row in range(len(batch)):
            ids = made.sequences[row, length:].tolist()
            count = next((i for i, token in enumerate(ids) if token in ends), len(ids))
            text = str(tokenizer.decode(ids[:count], skip_special_tokens=True))
            steps = [step[row] for step in made.logits[:count]] if self.top_logprobs else []
            replies.append(
                Reply(
                    text,
                    "stop" if count < len(ids) else "length",
                    int(asked["attention_mask"][row].sum()),
                    count,
                    round(seconds, 4),
                    tokens=_with_logprobs(tokenizer, ids[:count], steps, self.top_logprobs),
                )
            )
        return replies


def as_chat(messages: list[Message]) -> tuple[list[Message], list[Image.Image]]:
    """Messages of the endpoint's form -> those of chat templates, and the pictures in order."""
    chat: list[Message] = []
    pictures: list[Image.Image] = []
    for message in messages:
        content = message["content"]
        parts: list[Message] = [{"type": "text", "text": content}] if isinstance(content, str) else []
        for part in () if isinstance(content, str) else content:
            if part["type"] == "text":
                parts.append({"type": "text", "text": part["text"]})
            else:
                with Image.open(io.BytesIO(from_data_url(part["image_url"]["url"]))) as picture:
                    pictures.append(picture.convert("RGB"))
                parts.append({"type": "image"})
        chat.append({"role": message["role"], "content": parts})
    return chat, pictures


def _with_logprobs(tokenizer: Any, ids: list[int], steps: Sequence[Any], top: int) -> list[Any]:
    """``[text, logprob, [[text, logprob], ...]]`` of each token; a text is what the token adds to the reply."""
    found: list[Any] = []
    before = ""
    for i, logits in enumerate(steps):
        logprobs = logits.float().log_softmax(-1)
        values, tokens = logprobs.topk(min(top, len(logprobs)))
        so_far = str(tokenizer.decode(ids[: i + 1], skip_special_tokens=False))
        others = [[str(tokenizer.decode([int(t)])), float(v)] for v, t in zip(values, tokens) if math.isfinite(float(v))]
        found.append([so_far[len(before) :], float(logprobs[ids[i]]), others])
        before = so_far
    return found


def _ends(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [] if ends is None else [ends])


def _contents(weights: str | None) -> list[Any]:
    """What tells weights apart: small files by content, large ones by size and time."""
    if weights is None:
        return [None]
    path = Path(resolve(weights))
    if not path.exists():  # a hub id in the cache, which holds what the id says
        return [weights]
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    small = [file for file in files if file.stat().st_size < SMALL]
    large = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file not in small]
    return [json.dumps(large), *small]

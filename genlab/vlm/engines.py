"""Asks an OpenAI-compatible endpoint about pictures: many requests at once, repeated only where that helps, answers kept."""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import time
from dataclasses import asdict, dataclass
from typing import Any

import openai

from genlab.errors import UserError
from genlab.store import RowStore
from genlab.vlm.conversations import Message, call_key

RETRIED = (408, 409, 429)  # and 5xx, time-outs, lost connections
LONGEST = 60.0  # seconds between two attempts


@dataclass(frozen=True)
class Reply:
    """What came back.

    Args:
        text: Empty where the server sent none.
        finish: The server's reason to stop; ``content_filter`` for a refused request; ``error`` where there is no reply.
        prompt_tokens: As the server counts; 0 where it does not.
        completion_tokens: Likewise.
        seconds: From the first attempt to the reply.
        error: Why there is no reply.
    """

    text: str = ""
    finish: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    error: str = ""


class OpenAIEndpoint:
    """A server with ``/chat/completions`` (OpenAI, vLLM, ``transformers serve`` ...).

    Args:
        model: As the server calls it.
        base_url: Up to and with ``/v1``; None: ``$BASE_URL``, else ``http://127.0.0.1:8000/v1``.
        api_key_env: The environment variable that holds the key. The key itself is never an option, nor written anywhere.
        max_connections: Requests in flight at most.
        rpm: Requests a minute at most; None: no limit.
        timeout: Seconds for one attempt.
        max_retries: Attempts after the first.
        max_tokens: Of a reply.
        temperature: Of sampling; 0 is greedy.
        seed: Sent along.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        max_connections: int = 10,
        rpm: int | None = None,
        timeout: float = 120.0,
        max_retries: int = 6,
        max_tokens: int = 1000,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        if max_connections < 1 or timeout <= 0 or max_retries < 0 or (rpm is not None and rpm < 1):
            raise UserError(f"engine: {max_connections=} {timeout=} {max_retries=} {rpm=}; counts are at least 1, retries 0.")
        self.model, self.api_key_env, self.max_connections, self.rpm = model, api_key_env, max_connections, rpm
        self.base_url = base_url or os.environ.get("BASE_URL") or "http://127.0.0.1:8000/v1"
        self.timeout, self.max_retries = timeout, max_retries
        self.params: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        self.store: RowStore | None = None
        self.requests = 0
        self._client: openai.AsyncOpenAI | None = None

    def open(self, store: RowStore) -> None:
        """Before the first question; within one event loop until :meth:`close`."""
        self.store, self._client, self._next = store, None, 0.0
        self._free = asyncio.Semaphore(self.max_connections)
        self._running: dict[str, asyncio.Task[Reply]] = {}

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
        self._client = None

    async def ask(self, messages: list[Message], sample: int = 0) -> Reply:
        """The kept reply, or the server's; the same question is asked once, also while it is under way.

        Raises:
            UserError: The server refuses the key.
        """
        assert self.store is not None, "open() has not run"
        key = call_key(messages, self.model, self.params, sample)
        if row := self.store.get(key):
            return Reply(**row)
        if key not in self._running:
            self._running[key] = asyncio.ensure_future(self._fetch(key, messages))
        try:
            return await asyncio.shield(self._running[key])
        finally:
            if key in self._running and self._running[key].done():
                del self._running[key]

    async def _fetch(self, key: str, messages: list[Message]) -> Reply:
        async with self._free:
            reply = await self._request(messages)
        if not reply.error:
            assert self.store is not None
            self.store.put(key, asdict(reply))
        return reply

    async def _request(self, messages: list[Message]) -> Reply:
        start = time.monotonic()
        for attempt in range(self.max_retries + 1):
            await self._turn()
            self.requests += 1
            wait = 0.0
            try:
                answer = await self._connected().chat.completions.create(
                    model=self.model,
                    messages=messages,  # type: ignore[arg-type]
                    **self.params,
                )
                return _reply(answer, time.monotonic() - start)
            except openai.APIStatusError as error:
                if error.status_code in (401, 403):
                    raise UserError(
                        f"engine: {self.base_url} refuses the key (HTTP {error.status_code}); set ${self.api_key_env} to a valid one."
                    ) from None  # the server's text may repeat the key
                if error.code == "content_filter":
                    return Reply(finish="content_filter", seconds=time.monotonic() - start)
                if error.status_code not in RETRIED and error.status_code < 500:
                    return Reply(finish="error", error=f"HTTP {error.status_code}")
                why, wait = f"HTTP {error.status_code}", _retry_after(error.response.headers.get("retry-after"))
            except openai.APIResponseValidationError:
                return Reply(finish="error", error="the reply is not what the protocol says")
            except openai.APITimeoutError:
                why = f"no reply within {self.timeout:g} s"
            except openai.APIConnectionError:
                why = "connection refused or lost"
            except ValueError:  # JSON that ends too early
                return Reply(finish="error", error="the reply is not JSON")
            if attempt < self.max_retries:
                await asyncio.sleep(max(wait, min(LONGEST, 0.5 * 2**attempt) * random.uniform(0.5, 1)))
        return Reply(finish="error", error=f"{why}, {self.max_retries + 1} times")

    async def _turn(self) -> None:
        """Waits for this request's place in the minute."""
        if self.rpm is not None:
            now = time.monotonic()
            self._next = max(self._next, now)
            wait, self._next = self._next - now, self._next + 60 / self.rpm
            await asyncio.sleep(wait)

    def _connected(self) -> openai.AsyncOpenAI:
        if self._client is None:
            key = os.environ.get(self.api_key_env) or "none"  # local servers want none, the client wants one
            self._client = openai.AsyncOpenAI(api_key=key, base_url=self.base_url, timeout=self.timeout, max_retries=0)
        return self._client


def _reply(answer: Any, seconds: float) -> Reply:
    choices = getattr(answer, "choices", None)
    if not choices:
        return Reply(finish="error", error="the reply has no choices")
    usage = answer.usage
    counts = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
    return Reply(choices[0].message.content or "", choices[0].finish_reason or "stop", *counts, seconds)


def _retry_after(value: str | None) -> float:
    """Seconds, from a number or a date; 0 from anything else."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(str(value)).timestamp() - time.time())
    except ValueError:
        return 0.0

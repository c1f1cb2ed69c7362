"""Asks an OpenAI-compatible endpoint about pictures: many requests at once, repeated only where that helps, answers kept."""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai

from genlab.errors import UserError
from genlab.store import RowStore
from genlab.vlm.asking import Engine, Reply, SystemRole
from genlab.vlm.budget import Budget, tokens_about
from genlab.vlm.conversations import Message

RETRIED = (408, 409, 429)  # and 5xx, time-outs, lost connections
LONGEST = 60.0  # seconds between two attempts


class OpenAIEndpoint(Engine):
    """A server with ``/chat/completions`` (OpenAI, vLLM, ``transformers serve`` ...).

    Args:
        model: As the server calls it.
        base_url: Up to and with ``/v1``; None: ``$BASE_URL``, else ``http://127.0.0.1:8000/v1``.
        api_key_env: The environment variable that holds the key. The key itself is never an option, nor written anywhere.
        max_connections: Requests in flight at most.
        rpm: Requests a minute at most; None: no limit.
        tpm: Tokens a minute at most, as estimated before they are sent; None: no limit.
        timeout: Seconds for one attempt.
        max_retries: Attempts after the first.
        max_tokens: Of a reply.
        temperature: Of sampling; 0 is greedy; None sends none, and the server takes its own.
        seed: Sent along; None sends none.
        top_logprobs: Likeliest tokens to ask for at each place, for confidences; OpenAI's servers give 20 at most. 0 asks for none.
        system_role: ``user`` sends system messages as the user's, ``merge`` puts their text before the user's next message; for models
            without a system role, such as LLaVA-CoT and QVQ.
        budget: What may be spent.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        max_connections: int = 10,
        rpm: int | None = None,
        tpm: int | None = None,
        timeout: float = 120.0,
        max_retries: int = 6,
        max_tokens: int = 1000,
        temperature: float | None = 0.0,
        seed: int | None = 0,
        top_logprobs: int = 0,
        system_role: SystemRole = "keep",
        budget: Budget | None = None,
    ) -> None:
        if max_connections < 1 or timeout <= 0 or max_retries < 0 or any(each is not None and each < 1 for each in (rpm, tpm)):
            raise UserError(f"engine: {max_connections=} {timeout=} {max_retries=} {rpm=} {tpm=}; counts are at least 1, retries 0.")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", api_key_env):  # not repeated: it may be a key
            raise UserError("engine.api_key_env is no name of a variable. Put the key into the environment, and give the variable's name.")
        sampling = {"temperature": temperature, "seed": seed}
        params: dict[str, Any] = {"max_tokens": max_tokens} | {name: value for name, value in sampling.items() if value is not None}
        if top_logprobs:
            params |= {"logprobs": True, "top_logprobs": top_logprobs}
        super().__init__(model, params, max_connections, budget, system_role)
        self.api_key_env, self.rpm, self.tpm, self.timeout, self.max_retries = api_key_env, rpm, tpm, timeout, max_retries
        self.base_url = base_url or os.environ.get("BASE_URL") or "http://127.0.0.1:8000/v1"
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise UserError(
                "engine.base_url (or $BASE_URL) is http(s)://HOST[:PORT]/v1, without a user, a password or a query; keys go into "
                f"${api_key_env}."
            )
        self._client: openai.AsyncOpenAI | None = None

    def open(self, store: RowStore, calls: Path | None = None) -> None:
        super().open(store, calls)
        self._client, self._next = None, 0.0

    async def close(self) -> None:
        await super().close()
        if self._client is not None:
            await self._client.close()
        self._client = None

    async def _request(self, key: str, messages: list[Message], params: dict[str, Any]) -> Reply:
        start = time.monotonic()
        reply = Reply(finish="error", error="not asked")
        for attempt in range(self.max_retries + 1):
            await self._turn(messages, params)
            call, tokens = self.ledger.ask(key, messages, params["max_tokens"])
            self.requests += 1
            try:
                reply, again, wait = await self._attempt({"model": self.model, "messages": messages, **params}, start)
            except UserError:
                self.ledger.settle(call, key, tokens, Reply(finish="error", error="key refused"))
                raise
            self.ledger.settle(call, key, tokens, reply)
            if not again:
                return reply
            if attempt < self.max_retries:
                await asyncio.sleep(max(wait, min(LONGEST, 0.5 * 2**attempt) * random.uniform(0.5, 1)))
        return Reply(finish="error", error=f"{reply.error}, {self.max_retries + 1} times")

    async def _attempt(self, body: dict[str, Any], start: float) -> tuple[Reply, bool, float]:
        """What came back, whether to ask again, and after how many seconds at least.

        Raises:
            UserError: The server refuses the key.
        """
        try:
            # The body as it is, the reply as JSON: building the library's typed objects took longer than the rest together.
            answer = await self._connected().post("/chat/completions", body=body, cast_to=object)
            return self._reply(answer, time.monotonic() - start), False, 0.0
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise UserError(
                    f"engine: {self.base_url} refuses the key (HTTP {error.status_code}); set ${self.api_key_env} to a valid one."
                ) from None  # the server's text may repeat the key
            if error.code == "content_filter":
                return Reply(finish="content_filter", seconds=time.monotonic() - start), False, 0.0
            failed = Reply(finish="error", error=f"HTTP {error.status_code}")
            again = error.status_code in RETRIED or error.status_code >= 500
            return failed, again, _retry_after(error.response.headers.get("retry-after"))
        except openai.APITimeoutError:
            return Reply(finish="error", error=f"no reply within {self.timeout:g} s"), True, 0.0
        except openai.APIConnectionError:
            return Reply(finish="error", error="connection refused or lost"), True, 0.0
        except ValueError:  # JSON that ends too early
            return Reply(finish="error", error="the reply is not JSON"), False, 0.0

    async def _turn(self, messages: list[Message], params: dict[str, Any]) -> None:
        """Waits for this request's place in the minute."""
        share = 60 / self.rpm if self.rpm else 0.0
        if self.tpm:
            share = max(share, 60 * (tokens_about(messages) + params["max_tokens"]) / self.tpm)
        if share:
            now = time.monotonic()
            self._next = max(self._next, now)
            wait, self._next = self._next - now, self._next + share
            await asyncio.sleep(wait)

    def _connected(self) -> openai.AsyncOpenAI:
        if self._client is None:
            key = os.environ.get(self.api_key_env) or "none"  # local servers want none, the client wants one
            self._client = openai.AsyncOpenAI(api_key=key, base_url=self.base_url, timeout=self.timeout, max_retries=0)
        return self._client

    def _reply(self, answer: Any, seconds: float) -> Reply:
        try:
            choices = answer["choices"]
            if not choices:
                return Reply(finish="error", error="the reply has no choices")
            text, finish = choices[0]["message"].get("content") or "", choices[0].get("finish_reason") or "stop"
            usage = answer.get("usage") or {}
            counts = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
            cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
            given = (choices[0].get("logprobs") or {}).get("content") or []
            tokens = [[t["token"], t["logprob"], [[o["token"], o["logprob"]] for o in t.get("top_logprobs") or ()]] for t in given]
            if not isinstance(text, str) or not isinstance(finish, str):
                raise TypeError
        except (KeyError, TypeError, AttributeError, IndexError):
            return Reply(finish="error", error="the reply is not what the protocol says")
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair can be written nowhere
        if key := os.environ.get(self.api_key_env):  # a server may repeat it
            text = text.replace(key, "[key]")
            tokens = [] if any(key in str(token) for token in tokens) else tokens
        return Reply(text, finish, *counts, seconds, cached_tokens=cached, tokens=tokens)


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

"""What all engines do: look a question up among the kept replies, ask it once, keep the reply, stay within connections and budget."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from genlab.errors import UserError
from genlab.store import RowStore
from genlab.vlm.budget import Budget, Ledger, OverBudget
from genlab.vlm.confidence import Token
from genlab.vlm.conversations import Message, call_key

SystemRole = Literal["keep", "user", "merge"]


@dataclass(frozen=True)
class Reply:
    """What came back.

    Args:
        text: Empty where the server sent none.
        finish: The server's reason to stop; ``content_filter`` for a refused request; ``error`` where there is no reply, ``budget`` where
            it was not asked for.
        prompt_tokens: As the server counts; 0 where it does not.
        completion_tokens: Likewise.
        seconds: From the first attempt to the reply.
        error: Why there is no reply.
        cached_tokens: Of the prompt, those that the server had in its cache.
        tokens: The reply's tokens ``[text, logprob, [[text, logprob], ...]]`` with the likeliest ones at their places; empty where the
            server gives none.
    """

    text: str = ""
    finish: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    error: str = ""
    cached_tokens: int = 0
    tokens: list[Any] = field(default_factory=list)

    def logprobs(self) -> list[Token]:
        """The tokens as :func:`genlab.vlm.confidence.confidence` takes them."""
        return [Token(text, logprob, [(str(other), float(p)) for other, p in top]) for text, logprob, top in self.tokens]


class Engine:
    """Who is asked. An engine of your own: derive from this and define ``_request``.

    Args:
        model: Its name; part of the key under which replies are kept.
        params: Of sampling; likewise.
        max_connections: Questions under way at most.
        budget: What may be spent.
        system_role: ``user`` sends system messages as the user's, ``merge`` puts their text before the next message of the user.
    """

    def __init__(
        self, model: str, params: dict[str, Any], max_connections: int, budget: Budget | None = None, system_role: SystemRole = "keep"
    ) -> None:
        self.model, self.params, self.max_connections, self.budget, self.system_role = model, params, max_connections, budget, system_role
        self.store: RowStore | None = None
        self.requests = 0

    @property
    def identity(self) -> str:
        """Names the model in keys of replies."""
        return self.model

    def open(self, store: RowStore, calls: Path | None = None) -> None:
        """Before the first question; within one event loop until :meth:`close`.

        Args:
            store: Where replies are kept.
            calls: The file in which every call is noted, see :class:`Ledger`.
        """
        self.store = store
        self.ledger = Ledger(calls, self.budget, self.model)
        self._free = asyncio.Semaphore(self.max_connections)
        self._running: dict[str, asyncio.Task[Reply]] = {}

    async def close(self) -> None:
        self.ledger.close()

    def question(self, messages: list[Message], sample: int, temperature: float | None) -> tuple[str, list[Message], dict[str, Any]]:
        """Key, messages as they are sent, and parameters of a question."""
        params = self.params
        if temperature is not None:
            params = {**params, "temperature": temperature, "seed": params.get("seed", 0) + sample}
        sent = with_system(messages, self.system_role)
        return call_key(sent, self.identity, params, sample), sent, params

    async def ask(self, messages: list[Message], sample: int = 0, temperature: float | None = None) -> Reply:
        """The kept reply, or a new one; the same question is asked once, also while it is under way.

        Args:
            sample: Another number is another question: repeated sampling.
            temperature: Other than the engine's.

        Raises:
            UserError: The server refuses the key.
        """
        assert self.store is not None, "open() has not run"
        key, sent, params = self.question(messages, sample, temperature)
        if row := self.store.get(key):
            return Reply(**row)
        if key not in self._running:
            self._running[key] = asyncio.ensure_future(self._fetch(key, sent, params))
            self._running[key].add_done_callback(_retrieved)
        try:
            return await asyncio.shield(self._running[key])
        finally:
            if key in self._running and self._running[key].done():
                del self._running[key]

    async def _fetch(self, key: str, messages: list[Message], params: dict[str, Any]) -> Reply:
        async with self._free:
            try:
                reply = await self._request(key, messages, params)
            except OverBudget:
                return Reply(finish="budget", error="budget")
        if not reply.error:
            assert self.store is not None
            self.store.put(key, asdict(reply))
        return reply

    async def _request(self, key: str, messages: list[Message], params: dict[str, Any]) -> Reply:
        """The reply, after ``ledger.ask`` and with ``ledger.settle`` around each attempt.

        Raises:
            OverBudget: As ``ledger.ask`` says.
            UserError: The server refuses the key.
        """
        raise NotImplementedError(f"{type(self).__name__} must define _request.")


def _retrieved(task: asyncio.Task[Reply]) -> None:
    """A refused key is one message, not one more per request under way."""
    if not task.cancelled():
        task.exception()


def with_system(messages: list[Message], how: SystemRole) -> list[Message]:
    """The messages for models that know no system role; see :class:`Engine`."""
    if how == "keep":
        return messages
    found: list[Message] = []
    before = ""
    for message in messages:
        if message["role"] != "system":
            if before and message["role"] == "user":
                first, *rest = message["content"]
                message = {"role": "user", "content": [{"type": "text", "text": f"{before}\n\n{first['text']}"}, *rest]}
                before = ""
            found.append(message)
        elif how == "user":
            found.append({"role": "user", "content": [{"type": "text", "text": message["content"]}]})
        else:
            before = f"{before}\n\n{message['content']}".strip()
    if before:
        raise UserError("prompt: a system message comes after the last message of the user, which engine.system_role merge cannot place.")
    return found

"""What calls cost, what may be spent, and the book that is kept of every call of a run, so that a limit holds across restarts."""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from genlab.errors import MissingPath, UserError
from genlab.vlm.conversations import Message
from genlab.vlm.data_urls import DATA_URL, from_data_url

MILLION = 1_000_000
PATCH = 28  # pixels of a side that one picture token stands for, in Qwen2-VL and its kin


@dataclass(frozen=True)
class Price:
    """Of a model, in US dollars per million tokens.

    Args:
        input: Of what is sent.
        output: Of what comes back.
        cached: Of input that the server had in its cache; None: as ``input``.
        image_tokens: What a picture counts at most; None: one token per 28 x 28 pixels.
    """

    input: float
    output: float
    cached: float | None = None
    image_tokens: int | None = None

    def cost(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """Dollars for so many tokens; the cached ones are among the prompt's."""
        cached = self.input if self.cached is None else self.cached
        fresh = prompt_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * cached + completion_tokens * self.output) / MILLION


@dataclass(frozen=True)
class Budget:
    """What a run may spend; nothing is sent that could pass it. Calls of earlier, stopped starts in the same run folder count.

    Args:
        max_calls: Requests, repeated ones too; None: no limit.
        usd: Dollars; None: no limit. Needs ``prices``.
        prices: YAML, a line per model: ``gpt-4o: {input: 2.5, output: 10, cached: 1.25, image_tokens: 1445}``, in dollars per million.
    """

    max_calls: int | None = None
    usd: float | None = None
    prices: str | None = None

    def __post_init__(self) -> None:
        if (self.max_calls is not None and self.max_calls < 0) or (self.usd is not None and self.usd < 0):
            raise UserError(f"engine.budget: max_calls is {self.max_calls}, usd {self.usd}; neither is below 0.")
        if self.usd is not None and self.prices is None:
            raise UserError("engine.budget.usd needs engine.budget.prices, a YAML file with the model's price per million tokens.")

    def price(self, model: str) -> Price | None:
        """The model's price; None without a table.

        Raises:
            UserError: The table lacks the model, or is none.
        """
        return None if self.prices is None else read_prices(Path(self.prices), model)


class OverBudget(Exception):
    """The next call could pass the budget."""


def read_prices(path: Path, model: str) -> Price:
    """A model's line of a price table.

    Raises:
        MissingPath: There is no such file.
        UserError: It lacks the model, or the line is no price.
    """
    import yaml

    if not path.is_file():
        raise MissingPath(f"prices: {path} is not there; a line per model: gpt-4o: {{input: 2.5, output: 10}}, dollars per million tokens.")
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        line = table[model]
        numbers: dict[str, Any] = {key: value if value is None else float(value) for key, value in line.items()}
        return Price(**numbers)
    except KeyError:
        raise UserError(f"{path}: no price of {model!r}; there are {', '.join(map(str, table)) or 'none'}.") from None
    except (yaml.YAMLError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: {model}: input and output are numbers, dollars per million tokens ({error}).") from error


def tokens_at_most(messages: list[Message], image_tokens: int | None = None) -> int:
    """An upper estimate of a request's tokens: every byte of text counts as one, every picture by its pixels (or ``image_tokens``).

    Tokens of byte-level vocabularies are never shorter than a byte; ten a message are for the marks around it.
    """
    text, pictures = contents(messages)
    return 10 * len(messages) + sum(len(each.encode()) for each in text) + _picture_tokens(pictures, image_tokens)


def tokens_about(messages: list[Message], image_tokens: int | None = None) -> int:
    """A likely number of a request's tokens: four characters of text each, pictures as in :func:`tokens_at_most`."""
    text, pictures = contents(messages)
    return 5 * len(messages) + sum(math.ceil(len(each) / 4) for each in text) + _picture_tokens(pictures, image_tokens)


def contents(messages: list[Message]) -> tuple[list[str], list[str]]:
    """The texts and the pictures' data URLs of messages."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    text = [message["content"] for message in messages if isinstance(message["content"], str)]
    return (
        text + [part["text"] for part in parts if part["type"] == "text"],
        [part["image_url"]["url"] for part in parts if part["type"] == "image_url"],
    )


def _picture_tokens(urls: list[str], image_tokens: int | None) -> int:
    if image_tokens is not None:
        return int(image_tokens) * len(urls)
    total = 0
    for url in urls:
        if DATA_URL.match(url):
            with Image.open(io.BytesIO(from_data_url(url))) as picture:
                total += math.ceil(picture.width / PATCH) * math.ceil(picture.height / PATCH) + 2
    return total


class Ledger:
    """Every call of a run, two lines each in ``calls.jsonl``: when it is sent, and when it is answered.

    A call without a second line, cut off by a kill, counts with the most it can have cost.

    Args:
        path: The file; None keeps the book in memory.
        budget: What may be spent.
        model: Its price is looked up.

    Attributes:
        calls: Sent so far, over all starts.
        spent: Dollars so far, those under way with the most they can cost.
        prompt_tokens: Of all replies so far.
        completion_tokens: Likewise.
    """

    def __init__(self, path: Path | None, budget: Budget | None, model: str) -> None:
        self.budget = budget or Budget()
        self.price = self.budget.price(model)
        self.calls, self._settled = 0, 0.0
        self.prompt_tokens = self.completion_tokens = 0
        self._open: dict[int, float] = {}
        self._exceeds = 1.0  # how far real counts have been above the estimate
        self._file: int | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._read(path)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                os.write(self._file, b"\n")  # a kill may leave half a line

    @property
    def spent(self) -> float:
        return self._settled + sum(self._open.values())

    def _read(self, path: Path) -> None:
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                entry = json.loads(line)
                self._take(entry)
            except (ValueError, KeyError, TypeError):
                continue

    def _take(self, entry: dict[str, Any]) -> None:
        if entry["event"] == "asked":
            self.calls = max(self.calls, int(entry["call"]))
            self._open[int(entry["call"])] = float(entry["most"])
        else:
            self._open.pop(int(entry["call"]), None)
            self._settled += float(entry["cost"])
            self.prompt_tokens += int(entry["prompt_tokens"])
            self.completion_tokens += int(entry["completion_tokens"])

    def ask(self, key: str, messages: list[Message], max_tokens: int) -> tuple[int, int]:
        """Notes that a request is about to be sent; its number, and the tokens it may have.

        Raises:
            OverBudget: It could pass the budget.
        """
        limit = self.budget
        if limit.max_calls is not None and self.calls + 1 > limit.max_calls:
            raise OverBudget
        tokens, most = 0, 0.0
        if self.price is not None:
            tokens = tokens_at_most(messages, self.price.image_tokens)
            most = self.price.cost(math.ceil(tokens * self._exceeds), max_tokens)
            if limit.usd is not None and self.spent + most > limit.usd:
                raise OverBudget
        self.calls += 1
        self._open[self.calls] = most
        self._write({"event": "asked", "call": self.calls, "key": key, "most": most})
        return self.calls, tokens

    def settle(self, call: int, key: str, tokens: int, reply: Any) -> None:
        """Notes what came of a request; one that failed costs nothing."""
        del self._open[call]
        cost = 0.0
        if self.price is not None and not reply.error:
            cost = self.price.cost(reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens)
            self._exceeds = max(self._exceeds, reply.prompt_tokens / max(tokens, 1))
        self._settled += cost
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        facts = {name: value for name, value in asdict(reply).items() if name not in ("text", "tokens")}
        self._write({"event": "answered", "call": call, "key": key, "cost": cost, **facts})

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is not None:
            os.write(self._file, json.dumps(entry).encode() + b"\n")

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None

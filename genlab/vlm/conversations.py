"""Prompt files: JSON of format version 3, as the authors publish theirs; a file asks one or several questions, in order.

Each conversation is one call. Its reply is kept under a variable, which later ones may name; ``result`` is the answer.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import json
import logging
import string
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from genlab.errors import MissingPath, UserError
from genlab.vlm.data_urls import DATA_URL, data_url, from_data_url
from genlab.vlm.decorators import BUILT_IN, Decorator, Examples, shots

log = logging.getLogger(__name__)

Message = dict[str, Any]
PROMPTS = Path(__file__).with_name("prompts")
SIX = ("defect_query", "regional_analysis", "common_sense_reasoning", "few_shot_combined", "structural_analysis", "stereotype_matching")
PRESET = ("image_url", "_image_path", "label")
Roi = Literal["energy", "dinov2", "adaptive", "pyramid"]
LABELS = {1: "real", 0: "fake"}  # official convention


@dataclass(frozen=True)
class Conversation:
    """One call: what runs before, what is said, and where the reply goes."""

    id: str
    decorators: tuple[str, ...]
    payload: tuple[tuple[str, ...], ...]
    response_var_name: str


@dataclass(frozen=True)
class Prompt:
    """A prompt file.

    Args:
        name: Of the file; results are named after it.
        conversations: In order.
        decorators: The functions that conversations name.
        allow_label: Whether a text may name the truth (``{label}``).
    """

    name: str
    conversations: tuple[Conversation, ...]
    decorators: dict[str, Decorator] = field(default_factory=dict)
    allow_label: bool = False

    def ask(
        self, image: bytes, path: str = "", label: Any = None, variables: dict[str, Any] | None = None
    ) -> Generator[list[Message], str, str]:
        """Yields the messages of each call, is sent the reply, and returns the answer.

        Args:
            image: A picture file's bytes; they are sent as they are.
            path: For decorators; never sent unless a text names it.
            label: 1 = real, 0 = fake, as the prompt format has it; needed only by decorators and with ``allow_label``.
            variables: Known from the start; what decorators and replies set is added.
        """
        known = not isinstance(label, str) and label in LABELS
        variables = {} if variables is None else variables
        variables |= {"image_url": data_url(image), "_image_path": path, "label": LABELS[label] if known else "unknown"}
        for conversation in self.conversations:
            for name in conversation.decorators:
                self.decorators[name](variables)
            variables[conversation.response_var_name] = yield [
                message for line in conversation.payload if (message := _message(line, variables))
            ]
        return str(variables["result"])


def _message(line: tuple[str, ...], variables: dict[str, Any]) -> Message | None:
    role, *slots = line
    if role not in ("system", "user", "assistant"):
        return None
    text, *images = (slot.format(**variables) for slot in slots[:2])
    if role != "user":
        return {"role": role, "content": text}
    parts: list[Message] = [{"type": "text", "text": text}]
    return {"role": role, "content": [*parts, *({"type": "image_url", "image_url": {"url": url}} for url in images)]}


# ---- loading


def load_prompt(
    prompt: str | Path,
    decorators: dict[str, Decorator] | None = None,
    decorator_modules: Iterable[str] = (),
    allow_label: bool = False,
    roi: Roi | None = None,
    examples: Examples | None = None,
) -> Prompt:
    """Reads a prompt file and renders it once, dry, so that what is wrong shows before any call.

    Args:
        prompt: A file, or the name of a shipped one.
        decorators: Functions by the name that files use, beside ``roi.energy``.
        decorator_modules: Modules that a file may name functions of; no other module is imported.
        allow_label: Let texts name the truth.
        roi: What ``roi.*`` of the file is exchanged for; None leaves it.

    Raises:
        MissingPath: No such file or name.
        UserError: Another format, an unknown decorator or variable, or no ``result``.
    """
    path = Path(prompt) if str(prompt).endswith(".json") else PROMPTS / f"{prompt}.json"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in PROMPTS.glob("*.json")))
        raise MissingPath(f"prompt: {path} is not there. Name a .json file, or one of {shipped}.")
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}).") from error
    return parse_prompt(record, str(path), decorators, decorator_modules, allow_label, roi, examples)


def parse_prompt(
    record: Any,
    where: str,
    decorators: dict[str, Decorator] | None = None,
    decorator_modules: Iterable[str] = (),
    allow_label: bool = False,
    roi: Roi | None = None,
    examples: Examples | None = None,
) -> Prompt:
    """As :func:`load_prompt`, from what the file holds."""
    if not isinstance(record, dict) or record.get("format_version") != "3":
        found = record.get("format_version") if isinstance(record, dict) else record
        raise UserError(f'{where}: format_version is {found!r}; only "3" can be read.')
    try:
        conversations = tuple(
            Conversation(
                str(each.get("id", i)),
                tuple(f"roi.{roi}" if roi and name.startswith("roi.") else name for name in each.get("decorators") or ()),
                tuple(tuple(str(item) for item in line) for line in each["payload"]),
                str(each["response_var_name"]),
            )
            for i, each in enumerate(record["conversations"])
        )
        name = str(record["name"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where}: conversations need payload and response_var_name, the file a name (missing or wrong: {error})."
        ) from error
    if any(len(line) < 2 for each in conversations for line in each.payload):
        raise UserError(f"{where}: a payload line is [role, text] or [role, text, image_url].")
    if not any(each.response_var_name == "result" for each in conversations):
        raise UserError(f"{where}: no conversation has response_var_name result; the last reply that is called so is the answer.")
    roles = {line[0] for each in conversations for line in each.payload} - {"system", "user", "assistant"}
    if roles:
        log.warning("%s: messages of %s are not sent; roles are system, user, assistant.", where, ", ".join(sorted(roles)))
    if not allow_label and any(name == "label" for each in conversations for name in _names(each, where)):
        raise UserError(f"{where}: a text names {{label}}, which is the truth. Take it out, or set allow_label.")
    known = {**BUILT_IN, **(shots(examples) if examples else {}), **(decorators or {})}
    functions = {each: _decorator(each, known, decorator_modules, where) for one in conversations for each in one.decorators}
    found = Prompt(name, conversations, functions, allow_label)
    _dry(found, where)
    return found


def _names(conversation: Conversation, where: str) -> list[str]:
    try:
        slots = [slot for line in conversation.payload for slot in line[1:3]]
        fields = [name for slot in slots for _, name, _, _ in string.Formatter().parse(slot) if name is not None]
    except ValueError as error:
        raise UserError(f"{where}: conversation {conversation.id}: {error}; a literal brace is written twice.") from error
    for name in fields:
        if not name.isidentifier():  # attributes and items of variables would let a file look around in the process
            raise UserError(f"{where}: conversation {conversation.id}: {{{name}}} is no variable; write literal braces twice.")
    return fields


def _decorator(name: str, known: dict[str, Decorator], modules: Iterable[str], where: str) -> Decorator:
    if name in known:
        return known[name]
    module, _, function = name.rpartition(".")
    if module not in set(modules):
        raise UserError(
            f"{where}: decorator {name!r} is not known. Built in: {', '.join(sorted(known))}; "
            f"to run your own, list its module in decorator_modules."
        )
    return getattr(importlib.import_module(module), function)


def _dry(prompt: Prompt, where: str) -> None:
    """Renders everything once with a picture of one pixel."""
    for each in prompt.conversations:
        _names(each, where)
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    asked = prompt.ask(buffer.getvalue())
    try:
        next(asked)
        while True:
            asked.send("-")
    except StopIteration:
        return
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except KeyError as error:
        raise UserError(f"{where}: {error} is named before anything sets it. Known at the start: {', '.join(PRESET)}.") from error


# ---- keys


def call_text(messages: list[Message], model: str, params: dict[str, Any], sample: int) -> str:
    """The canonical JSON of a call; pictures stand as the SHA-256 of their bytes, whatever MIME type they are sent with."""

    def digested(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: digested(each) for key, each in value.items()}
        if isinstance(value, list):
            return [digested(each) for each in value]
        if isinstance(value, str) and DATA_URL.match(value):
            return _digest(value)
        return value

    record = {"v": 1, "model": model, "messages": digested(messages), "params": params, "sample": sample}
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@functools.lru_cache(maxsize=64)
def _digest(url: str) -> str:
    """Of a picture's bytes; each is asked about several times in a row."""
    return f"sha256:{hashlib.sha256(from_data_url(url)).hexdigest()}"


def call_key(messages: list[Message], model: str, params: dict[str, Any], sample: int) -> str:
    """Under which a reply is kept: SHA-256 of :func:`call_text`, in hex."""
    return hashlib.sha256(call_text(messages, model, params, sample).encode()).hexdigest()

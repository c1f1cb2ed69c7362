"""Which tokens of a conversation a model is trained to say: those of the assistant's texts and their end tokens, and no others.

Chat templates mark turns in their own ways, and processors put hundreds of tokens in the place of a picture; nearly none of them tells
which tokens are the assistant's. `answer_spans` finds its texts in what a template writes, by writing the conversation once more with marks
in their places; `answer_labels` carries them over to the tokens of the processor, pictures included. So it works for any template and any
processor of transformers with a fast tokenizer.

A conversation is a list of messages, ``{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "..."}]}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genlab.errors import UserError

if TYPE_CHECKING:
    from transformers import BatchFeature, ProcessorMixin

IGNORED = -100  # the label that cross-entropy leaves out
MARK = "\u2402mark\u2402"  # stands in for a text; no template and no data set has it

Message = dict[str, Any]
Conversation = list[Message]
Picture = Tensor
"""(3, H, W), uint8 or float in 0..255."""


def user(text: str, pictures: int = 0) -> Message:
    """A turn of the user's: pictures first, then the text."""
    return {"role": "user", "content": [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]}


def assistant(text: str) -> Message:
    """A turn of the assistant's."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def chat_text(processor: ProcessorMixin, conversation: Conversation, ask: bool = False) -> str:
    """The conversation as the template writes it, one placeholder per picture.

    Args:
        ask: It ends where the assistant's next text begins.

    Raises:
        UserError: There is no chat template.
    """
    if not getattr(processor, "chat_template", None):
        raise UserError("weights: the processor has no chat template; put chat_template.jinja into the model's folder.")
    return str(processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=ask))


def answer_spans(processor: ProcessorMixin, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and where the assistant's texts are in it: ``(first, end)`` characters, in order.

    A template that writes no end token after the conversation's last text gets the tokenizer's: a model has to learn to stop.

    Raises:
        UserError: The template changes the assistant's texts, so that what is to be learned is not there.
    """
    whole = chat_text(processor, conversation)
    marks = [f"{MARK}{number}{MARK}" if message["role"] == "assistant" else "" for number, message in enumerate(conversation)]
    marked = chat_text(processor, [assistant(mark) if mark else message for mark, message in zip(marks, conversation)])
    spans: list[tuple[int, int]] = []
    built = ""
    for number, mark in enumerate(marks):
        if not mark:
            continue
        before, found, marked = marked.partition(mark)
        built += before
        text = _text(conversation[number])
        said = next((form for form in (text, text.strip(), text.rstrip()) if whole.startswith(built + form)), None)
        if not found or said is None:
            raise _changed(number, text)
        spans.append((len(built), len(built) + len(said)))
        built += said
    if built + marked != whole:
        raise _changed(len(conversation) - 1, _text(conversation[-1]))
    if spans and not whole[spans[-1][1] :].strip():
        whole = whole[: spans[-1][1]] + _tokenizer(processor).eos_token + whole[spans[-1][1] :]
    return whole, spans


def _changed(number: int, text: str) -> UserError:
    return UserError(
        f"weights: the chat template does not write the assistant's text as it is (turn {number + 1}: {text[:60]!r}). "
        "Training needs a template that does; put another chat_template.jinja into the model's folder."
    )


def _text(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def _tokenizer(processor: ProcessorMixin) -> Any:
    return getattr(processor, "tokenizer", processor)


def answer_labels(processor: ProcessorMixin, text: str, spans: Sequence[tuple[int, int]], tokens: Sequence[int]) -> list[int]:
    """Labels of the tokens that the processor made of a text: their own ids within the spans and for the end token behind each, else -100.

    A token that is partly the assistant's is the assistant's: SentencePiece joins the space before a word to it.

    Args:
        text: Of `answer_spans`, with one placeholder per picture.
        tokens: The processor's ids for it, without padding: with many tokens in each picture's place.

    Raises:
        UserError: The tokens are not those of the text.
    """
    tokenizer = _tokenizer(processor)
    written = tokenizer(text, return_offsets_mapping=True, add_special_tokens=_adds_special(tokenizer, text))
    ids, offsets = written["input_ids"], written["offset_mapping"]
    special = set(tokenizer.all_special_ids) | {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    wanted = [False] * len(ids)
    for start, end in spans:
        inside = [i for i, (first, last) in enumerate(offsets) if first < end and last > start and first < last]
        for i in inside:
            wanted[i] = True
        place = next((i for i, (first, _) in enumerate(offsets) if first >= end), len(ids))
        blank = place  # white space before the end token has to be said as well
        while blank < len(ids) and ids[blank] not in special and not text[offsets[blank][0] : offsets[blank][1]].strip():
            blank += 1
        if blank < len(ids) and ids[blank] in special:
            wanted[place : blank + 1] = [True] * (blank + 1 - place)
    positions = _places(ids, list(tokens), placeholders(processor))
    labels = [IGNORED] * len(tokens)
    for i, at in enumerate(positions):
        if wanted[i] and at is not None:
            labels[at] = tokens[at]
    return labels


def _adds_special(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer's start token is still to be added; templates often write it themselves, and so do processors then."""
    return not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))


def placeholders(processor: ProcessorMixin) -> set[int]:
    """Ids of the tokens in whose place the processor puts pictures."""
    tokenizer = _tokenizer(processor)
    names = [getattr(processor, name, None) for name in ("image_token", "video_token")]
    found = {tokenizer.convert_tokens_to_ids(str(name)) for name in names if name}
    return {token for token in found if token is not None}


def _places(short: list[int], long: list[int], placeholders: set[int]) -> list[int | None]:
    """Where each token of ``short`` is in ``long``, which has other tokens, one or more, for each placeholder; ``None`` for those.

    The stretches between placeholders are looked for in order, each as early as it comes; the last one ends ``long``.
    """
    places: list[int | None] = [None] * len(short)
    stretches: list[tuple[int, int]] = []
    start = 0
    for i, token in enumerate([*short, None]):
        if token is None or token in placeholders:
            stretches.append((start, i))
            start = i + 1
    at = 0
    for number, (first, end) in enumerate(stretches):
        piece = short[first:end]
        last = number == len(stretches) - 1
        if number == 0:
            candidates = [0]
        elif last:
            candidates = [len(long) - len(piece)]
        else:
            candidates = list(range(at + 1, len(long) - len(piece) + 1))
        found = next((c for c in candidates if c >= at and long[c : c + len(piece)] == piece), None)
        if found is None or (last and found + len(piece) != len(long)):
            raise UserError("weights: the processor makes other tokens of a conversation than its tokenizer; answers cannot be told apart.")
        places[first:end] = list(range(found, found + len(piece)))
        at = found + len(piece)
    return places


def training_batch(processor: ProcessorMixin, conversations: Sequence[Conversation], pictures: Sequence[Sequence[Picture]]) -> BatchFeature:
    """What the model is trained on: the processor's tensors, and ``labels`` (B, L).

    Args:
        pictures: Of each conversation, in the order of its placeholders.
    """
    written = [answer_spans(processor, conversation) for conversation in conversations]
    batch = _process(processor, [text for text, _ in written], pictures, padding_side="right")
    labels = torch.full_like(batch["input_ids"], IGNORED)
    for row, (text, spans) in enumerate(written):
        real = batch["attention_mask"][row].bool()
        found = answer_labels(processor, text, spans, batch["input_ids"][row][real].tolist())
        labels[row][real] = torch.tensor(found, device=labels.device)
    batch["labels"] = labels
    return batch


def question_batch(processor: ProcessorMixin, conversations: Sequence[Conversation], pictures: Sequence[Sequence[Picture]]) -> BatchFeature:
    """What the model is asked to go on with: padded on the left, so that every row ends where its answer begins."""
    texts = [chat_text(processor, conversation, ask=True) for conversation in conversations]
    return _process(processor, texts, pictures, padding_side="left")


def _process(processor: Any, texts: list[str], pictures: Sequence[Sequence[Picture]], padding_side: str) -> BatchFeature:
    tokenizer = _tokenizer(processor)
    images = [list(each) for each in pictures] if any(len(each) for each in pictures) else None
    return processor(
        text=texts, images=images, padding=True, padding_side=padding_side, return_tensors="pt",
        add_special_tokens=all(_adds_special(tokenizer, text) for text in texts),
    )  # fmt: skip

"""One picture, all prompts: asks, reads the replies, says how sure they are, fuses the verdicts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

from genlab.errors import UserError
from genlab.vlm.asking import Engine, Reply
from genlab.vlm.confidence import confidence
from genlab.vlm.conversations import Message, Prompt
from genlab.vlm.fusing import CalibratedFusion, FusingQuestion
from genlab.vlm.fusion import Fused, Fusion, NumericFusion
from genlab.vlm.verdicts import StrictParser, Verdict, Word, parse_official

ParserName = Literal["strict", "official"]


@dataclass(frozen=True)
class Answer:
    """What came of one prompt about one picture.

    Args:
        prompt: Its name.
        verdict: ``real``, ``fake``, ``unknown``.
        status: ``ok``, or why there is no verdict; what failed, where there is no reply.
        rule: Of the parser, that answered.
        p_fake: P(fake), where it is known.
        p_source: ``tokens`` (log-probabilities of the reply's own), ``sampling`` (share of fake among repeated replies), or nothing.
        calls: Each conversation: ``id, reply, finish, prompt_tokens, completion_tokens``.
        region: What was cut out, (left, top, right, bottom) in pixels; None where nothing was.
        failed: Whether there is no reply.
    """

    prompt: str
    verdict: Word
    status: str
    rule: str = "none"
    p_fake: float | None = None
    p_source: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    region: list[int] | None = None
    failed: bool = False

    @property
    def text(self) -> str:
        """The last reply; empty where there is none."""
        return str(self.calls[-1]["reply"]) if self.calls else ""


@dataclass(frozen=True)
class Judgement:
    """All answers about one picture, and their fusion.

    Args:
        answers: One a prompt.
        fused: The verdict on the picture.
        fusing: The answer to the fusing question, where that was asked.
        digest: SHA-256 of the file.
    """

    answers: list[Answer]
    fused: Fused
    fusing: Answer | None
    digest: str

    @property
    def status(self) -> str:
        """``ok``, ``budget`` where a call was not paid for, ``error`` where one failed."""
        failed = [each.status for each in (*self.answers, *([self.fusing] if self.fusing else [])) if each.failed]
        return "ok" if not failed else "budget" if "budget" in failed else "error"

    def record(self) -> dict[str, Any]:
        """As JSON has it; :func:`from_record` is the way back."""
        fused = {"verdict": self.fused.verdict, "p_fake": self.fused.p_fake, "reason": self.fused.reason}
        answers, fusing = [asdict(each) for each in self.answers], asdict(self.fusing) if self.fusing else None
        return {"status": self.status, "digest": self.digest, **fused, "answers": answers, "fusing": fusing}


def from_record(record: dict[str, Any]) -> Judgement:
    """The judgement that :meth:`Judgement.record` wrote."""
    fused = Fused(record["verdict"], record["p_fake"], record["reason"])
    fusing = Answer(**record["fusing"]) if record["fusing"] else None
    return Judgement([Answer(**each) for each in record["answers"]], fused, fusing, record["digest"])


@dataclass(frozen=True)
class Reader:
    """Reads replies.

    Args:
        how: ``strict``, or ``official``: the released code's.
        strict: The strict parser.
    """

    how: ParserName
    strict: StrictParser

    def __call__(self, text: str, finish: str) -> Verdict:
        if finish == "content_filter":
            return Verdict("unknown", "refusal", "none")
        if self.how == "official":
            word = parse_official(text)
            return Verdict(word, "ok" if word != "unknown" else "no_verdict", "official")
        verdict = self.strict(text)
        return verdict._replace(status="truncated") if verdict.verdict == "unknown" and finish == "length" else verdict

    def again(self, answer: Answer) -> Answer:
        """An answer that was kept, read anew."""
        if answer.failed or not answer.calls:
            return answer
        last = answer.calls[-1]
        verdict = self(last["reply"], last["finish"])
        return Answer(**{**asdict(answer), **verdict._asdict()})


class Judge:
    """Asks an engine about pictures.

    Args:
        engine: Open.
        prompts: Each has its own name.
        reader: Reads replies.
        fusion: Makes one verdict of all.
        samples: How often a prompt's last question is asked again where the engine gives no log-probabilities; 0: never.
        sampling_temperature: Of these.
        allow_label: Let prompts see the truth.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        reader: Reader,
        fusion: Fusion,
        samples: int = 0,
        sampling_temperature: float = 1.0,
        allow_label: bool = False,
    ) -> None:
        self.engine, self.prompts, self.reader, self.fusion = engine, prompts, reader, fusion
        self.samples, self.sampling_temperature, self.allow_label = samples, sampling_temperature, allow_label

    async def __call__(self, file: bytes, name: str, label: int) -> Judgement:
        """The judgement on a picture.

        Args:
            file: The picture file's bytes, sent as they are.
            name: For messages and decorators; never sent.
            label: 1 = fake; used only with ``allow_label``.

        Raises:
            UserError: The server refuses the key, or a calibrated fusion has been fitted on the picture.
        """
        digest = hashlib.sha256(file).hexdigest()
        if isinstance(self.fusion, CalibratedFusion):
            self.fusion.fitted.refuse(name, digest)
        truth = 1 - label if self.allow_label else None  # prompts have 1 = real
        answers = await asyncio.gather(*(self._answer(prompt, file, name, truth, {}) for prompt in self.prompts))
        fused, fusing = await self.fuse(answers, file, name)
        return Judgement(list(answers), fused, fusing, digest)

    async def fuse(self, answers: Sequence[Answer], file: bytes, name: str) -> tuple[Fused, Answer | None]:
        """The fused verdict, and the answer to the fusing question where there is one."""
        if not isinstance(self.fusion, FusingQuestion):
            return fuse_numbers(self.fusion, answers), None
        usable = {each.prompt: each.text for each in answers if each.verdict != "unknown"}
        prompt, variables = self.fusion.about(usable)
        if any(each.failed for each in answers) or len(variables) < self.fusion.quorum:
            return Fused("unknown", None, "quorum"), None
        fusing = await self._answer(prompt, file, name, None, variables)
        return Fused(fusing.verdict, fusing.p_fake, fusing.status), fusing

    async def _answer(self, prompt: Prompt, file: bytes, name: str, truth: int | None, variables: dict[str, Any]) -> Answer:
        asked: Generator[list[Message], str, str] = prompt.ask(file, name, truth, variables)
        messages, result = await asyncio.to_thread(_advance, asked, None)  # decorators look at pictures, meanwhile others are asked
        calls: list[dict[str, Any]] = []
        for conversation in prompt.conversations:
            reply = await self.engine.ask(messages)
            region = variables.get("roi_box")
            answer = partial(Answer, prompt.name, calls=calls, region=region)
            if reply.error:
                return answer(verdict="unknown", status=reply.error, failed=True)
            calls.append(_call(conversation.id, reply))
            if reply.finish == "content_filter":
                return answer(verdict="unknown", status="refusal")
            following, result = await asyncio.to_thread(_advance, asked, reply.text)
            if result is not None:
                verdict = self.reader(result, reply.finish)
                p_fake, source = await self._confidence(messages, reply)
                return answer(verdict=verdict.verdict, status=verdict.status, rule=verdict.rule, p_fake=p_fake, p_source=source)
            messages = following
        raise AssertionError("the last conversation ends the prompt")

    async def _confidence(self, messages: list[Message], reply: Reply) -> tuple[float | None, str]:
        if reply.tokens:
            p = confidence(reply.logprobs(), self.reader.strict).p_fake
            return p, "tokens" if p is not None else ""
        if not self.samples:
            return None, ""
        temperature = self.sampling_temperature
        replies = await asyncio.gather(*(self.engine.ask(messages, i, temperature) for i in range(1, self.samples + 1)))
        words = [self.reader(each.text, each.finish).verdict for each in replies if not each.error]
        known = [word for word in words if word != "unknown"]
        return (known.count("fake") / len(known), "sampling") if known else (None, "")


def _advance(asked: Generator[list[Message], str, str], reply: str | None) -> tuple[list[Message], str | None]:
    """The next question, or the answer, which is what the prompt ends with."""
    try:
        return (next(asked) if reply is None else asked.send(reply)), None
    except StopIteration as end:
        return [], str(end.value)


def fuse_numbers(fusion: Fusion, answers: Sequence[Answer]) -> Fused:
    """Fusion that asks nothing."""
    items = [(each.verdict, each.p_fake) for each in answers]
    if isinstance(fusion, CalibratedFusion):
        return fusion.fitted(items, fusion.quorum)
    if isinstance(fusion, NumericFusion):
        return fusion(items)
    raise UserError(f"fusion: {type(fusion).__name__} cannot be applied to verdicts alone; use NumericFusion or CalibratedFusion.")


def _call(name: str, reply: Reply) -> dict[str, Any]:
    counts = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    return {"id": name, "reply": reply.text, "finish": reply.finish, **counts}

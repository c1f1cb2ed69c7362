"""Explainable fake-image detection by questioning a multimodal LLM (Ji et al., arXiv 2504.14245). Label 1 = fake; nothing is trained.

Each picture is shown with several prompts; each reply is read as real, fake or unknown, and the verdicts are fused.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from genlab.batches import Evaluated
from genlab.errors import UserError
from genlab.metrics.verdicts import mcnemar, verdict_metrics
from genlab.store import RowStore
from genlab.vlm.conversations import load_prompt
from genlab.vlm.engines import OpenAIEndpoint, Reply
from genlab.vlm.fusion import NumericFusion
from genlab.vlm.verdicts import StrictParser, Verdict, parse_official

PROMPTS = ("defect_query", "regional_analysis", "common_sense_reasoning", "structural_analysis", "stereotype_matching")
CODES = {"real": 0, "fake": 1, "unknown": None}
LOGGED = ("accuracy_answered", "accuracy_strict", "refusal_rate", "balanced_accuracy", "macro_f1", "mcc")


class MllmDefake(L.LightningModule):
    """Questions an MLLM about each picture, and fuses its verdicts.

    Args:
        engine: Who is asked.
        prompts: Shipped names, or files of format version 3. The paper's six less the two-shot one, which needs example pictures.
        parser: ``strict``, or ``official``: the released code's, which misreads negations and refusals.
        fusion: How verdicts become one. The paper asks a seventh question; a majority needs none.
        replies: The file that replies are kept in; None: ``replies.sqlite`` in the run's folder.
        decorator_modules: Modules that prompt files may name functions of.
        allow_label: Let prompts name the truth; for studies of leakage only.
    """

    needs_checkpoint = False

    def __init__(
        self,
        engine: OpenAIEndpoint,
        prompts: tuple[str, ...] = PROMPTS,
        parser: Literal["strict", "official"] = "strict",
        fusion: NumericFusion | None = None,
        replies: str | None = None,
        decorator_modules: tuple[str, ...] = (),
        allow_label: bool = False,
    ) -> None:
        super().__init__()
        self.engine, self.parser, self.fusion, self.replies = engine, parser, fusion or NumericFusion(), replies
        self.strict, self.allow_label = StrictParser.load(), allow_label
        self.prompts = [load_prompt(name, None, decorator_modules, allow_label) for name in prompts]
        names = [prompt.name for prompt in self.prompts]
        if not names or len(set(names)) < len(names):
            raise UserError(f"model.prompts: {', '.join(names) or 'none'}; give at least one, each once.")
        self.rows: list[dict[str, Any]] = []

    def on_test_start(self) -> None:
        if self.trainer.world_size > 1:
            raise UserError("trainer.devices: questions are asked by one process; set devices to 1 and raise engine.max_connections.")
        self.rows, self.loop = [], asyncio.Runner()
        self.store = RowStore(Path(self.replies) if self.replies else Path(self.trainer.default_root_dir) / "replies.sqlite")
        self.engine.open(self.store)

    def on_predict_start(self) -> None:
        self.on_test_start()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Evaluated:
        rows = self.loop.run(self._judge_all(batch))
        self.rows += rows
        return {"rows": rows}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Evaluated:
        return self.test_step(batch, batch_idx)

    async def _judge_all(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        try:
            async with asyncio.TaskGroup() as group:
                facts = zip(batch["id"], batch["label"], batch["group"], batch["file"])
                tasks = [group.create_task(self._judge(*each)) for each in facts]
        except ExceptionGroup as several:
            refused = several.subgroup(UserError)
            if refused is None:
                raise
            raise refused.exceptions[0] from None  # one message, such as that the key is refused
        return [task.result() for task in tasks]

    async def _judge(self, name: str, label: int, generator: str, file: bytes | None) -> dict[str, Any]:
        labelled = self.trainer.state.fn != TrainerFn.PREDICTING
        row: dict[str, Any] = {"id": name, "label": label if labelled else "", "score": "", "status": "unreadable"}
        if file is None:
            return row
        asked = await asyncio.gather(*(self._answer(i, file, name, label) for i in range(len(self.prompts))))
        fused = self.fusion([(verdict.verdict, None) for verdict, _ in asked])
        failed = any(reply.error for _, reply in asked)
        row |= {"score": "" if fused.p_fake is None or failed else fused.p_fake, "status": "error" if failed else "ok"}
        row |= {"generator": generator, "verdict": fused.verdict, "reason": fused.reason}
        for prompt, (verdict, reply) in zip(self.prompts, asked):
            row |= {f"{prompt.name}": verdict.verdict, f"{prompt.name}_status": reply.error or verdict.status}
            row |= {f"{prompt.name}_reply": reply.text}
        return row

    async def _answer(self, number: int, file: bytes, name: str, label: int) -> tuple[Verdict, Reply]:
        asked = self.prompts[number].ask(file, name, 1 - label if self.allow_label else None)  # prompts have 1 = real
        messages = next(asked)
        while True:
            reply = await self.engine.ask(messages)
            if reply.error:
                return Verdict("unknown", "error", "none"), reply
            if reply.finish == "content_filter":
                return Verdict("unknown", "refusal", "none"), reply
            try:
                messages = asked.send(reply.text)
            except StopIteration as end:
                return self._read(end.value, reply.finish), reply

    def _read(self, text: str, finish: str) -> Verdict:
        if self.parser == "official":
            word = parse_official(text)
            return Verdict(word, "ok" if word != "unknown" else "no_verdict", "official")
        verdict = self.strict(text)
        return verdict._replace(status="truncated") if verdict.verdict == "unknown" and finish == "length" else verdict

    def on_test_epoch_end(self) -> None:
        """Logs each judge's metrics (``test/<prompt>/...``, ``test/fused/...``) and McNemar's p of each prompt against the fusion."""
        rows = [row for row in self.rows if row["status"] == "ok"]
        labels = [row["label"] for row in rows]
        said = {prompt.name: [CODES[row[prompt.name]] for row in rows] for prompt in self.prompts}
        said["fused"] = [CODES[row["verdict"]] for row in rows]
        right = {name: [a == b for a, b in zip(each, labels)] for name, each in said.items()}
        for name, verdicts in said.items():
            found = verdict_metrics(labels, verdicts)
            low, high = found["wilson95"]
            values = {key: found[key] for key in LOGGED} | {"accuracy_low": low, "accuracy_high": high}
            if name != "fused":
                pairs = list(zip(right[name], right["fused"]))
                values["mcnemar_p"] = mcnemar(pairs.count((True, False)), pairs.count((False, True)))
            self.log_dict({f"test/{name}/{key}": torch.tensor(float(value)) for key, value in values.items()})
        self.log("test/requests", torch.tensor(float(self.engine.requests)))
        self._close()

    def on_predict_epoch_end(self) -> None:
        self._close()

    def _close(self) -> None:
        self.loop.run(self.engine.close())
        self.loop.close()
        self.store.close()

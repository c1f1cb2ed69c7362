"""Explainable fake-image detection by questioning a multimodal LLM (Ji et al., arXiv 2504.14245). Label 1 = fake; nothing is trained.

Each picture is shown with several prompts; each reply is read as real, fake or unknown, and the verdicts are fused.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from genlab.batches import Evaluated
from genlab.errors import UserError
from genlab.methods.mllm_defake.page import Sample, fill_page, in_pages, markdown, sample_page, thumbnail
from genlab.methods.mllm_defake.records import answer_lines, judges_of, official_tables, prediction
from genlab.metrics.judges import judge_row
from genlab.reports import Report
from genlab.store import RowStore
from genlab.vlm.asking import Engine
from genlab.vlm.conversations import SIX, Prompt, Roi, load_prompt
from genlab.vlm.decorators import Examples
from genlab.vlm.fusing import CalibratedFusion, FusingQuestion
from genlab.vlm.fusion import Fusion
from genlab.vlm.judging import Judge, Judgement, ParserName, Reader
from genlab.vlm.verdicts import StrictParser

log = logging.getLogger(__name__)

TWO_SHOT = "few_shot_combined"
LOGGED = ("accuracy_answered", "accuracy_strict", "refusal_rate", "balanced_accuracy", "macro_f1", "mcc", "accuracy_low", "accuracy_high")
RESERVED = {"id", "label", "score", "status", "generator", "verdict", "reason", "confidence", "fused", "fusion"}
IF_THERE = ("auroc_fake", "ece10", "brier", "kappa", "mcnemar_p")


class MllmDefake(L.LightningModule):
    """Questions an MLLM about each picture, and fuses its verdicts.

    Args:
        engine: Who is asked.
        prompts: Shipped names, or files of format version 3; None: the paper's six, less the two-shot one where there are no ``examples``.
        examples: A photograph and a generated picture of your own, for prompts that show examples.
        roi: Another way to cut out the region than prompts name; ``dinov2`` needs weights. None leaves theirs.
        parser: ``strict``, or ``official``: the released code's, which misreads negations and refusals.
        fusion: How verdicts become one; None: the paper's seventh question. :class:`genlab.vlm.fusion.NumericFusion`, a majority or other
            numbers, and :class:`genlab.vlm.fusing.CalibratedFusion` ask nothing.
        samples: How often a prompt's last question is asked again for its confidence where the engine gives no log-probabilities; 0: never.
        sampling_temperature: Of these.
        replies: The file that replies are kept in; None: ``replies.sqlite`` in the run's folder.
        decorator_modules: Modules that prompt files may name functions of.
        allow_label: Let prompts name the truth; for studies of leakage only.
    """

    needs_checkpoint = False

    def __init__(
        self,
        engine: Engine,
        prompts: tuple[str, ...] | None = None,
        examples: Examples | None = None,
        roi: Roi | None = None,
        parser: ParserName = "strict",
        fusion: Fusion | None = None,
        samples: int = 0,
        sampling_temperature: float = 1.0,
        replies: str | None = None,
        decorator_modules: tuple[str, ...] = (),
        allow_label: bool = False,
    ) -> None:
        super().__init__()
        if samples < 0 or sampling_temperature <= 0:
            raise UserError(f"model: {samples=} {sampling_temperature=}; samples is 0 or more, the temperature above 0.")
        self.engine, self.fusion, self.replies, self.examples = engine, fusion or FusingQuestion(), replies, examples
        self.samples, self.sampling_temperature, self.allow_label = samples, sampling_temperature, allow_label
        if prompts is None:
            prompts = tuple(name for name in SIX if examples is not None or name != TWO_SHOT)
            if examples is None:
                log.warning("five of the six prompts are asked: %s shows two pictures of your own, see model.examples.", TWO_SHOT)
        self.prompts = [load_prompt(name, None, decorator_modules, allow_label, roi, examples) for name in prompts]
        names = [prompt.name for prompt in self.prompts]
        if not names or len(set(names)) < len(names):
            raise UserError(f"model.prompts: {', '.join(names) or 'none'}; give at least one, each once.")
        if reserved := RESERVED & {*names}:
            raise UserError(f"model.prompts: a prompt cannot be called {min(reserved)}; change the name in its file.")
        if isinstance(self.fusion, CalibratedFusion):
            self.fusion.fitted.check(names)
        self.asked: list[Prompt] = [*self.prompts, *([self.fusion.loaded] if isinstance(self.fusion, FusingQuestion) else [])]
        self.reader = Reader(parser, StrictParser.load())
        self.judge = Judge(engine, self.prompts, self.reader, self.fusion, samples, sampling_temperature, allow_label)
        self.shown = set(examples.digests()) if examples else set()
        self.judged: list[tuple[Sample, Judgement | None]] = []

    @property
    def protocol(self) -> dict[str, Any]:
        """What must agree for two results to be comparable."""
        decorators = sorted({name for prompt in self.asked for each in prompt.conversations for name in each.decorators})
        return {
            "model": self.engine.model,
            "sampling": self.engine.params,
            "prompts": [prompt.name for prompt in self.prompts],
            "decorators": decorators,
            "parser": self.reader.how,
            "fusion": repr(self.fusion),
            "samples": self.samples,
        }

    def on_test_start(self) -> None:
        if self.trainer.world_size > 1:
            raise UserError("trainer.devices: questions are asked by one process; set devices to 1 and raise engine.max_connections.")
        data = getattr(self.trainer, "datamodule", None)
        if self.examples is not None and data is not None and hasattr(data, "contents"):
            contents = data.contents({len(file) for file in self.examples.files()})
            for digest in self.shown & contents.keys():
                raise UserError(f"model.examples: {contents[digest]}, which is to be judged, is one of the examples; take another picture.")
        self.judged, self.loop = [], asyncio.Runner()
        folder = Path(self.trainer.default_root_dir)
        self.store = RowStore(Path(self.replies) if self.replies else folder / "replies.sqlite")
        self.engine.open(self.store, folder / "calls.jsonl")

    def on_predict_start(self) -> None:
        self.on_test_start()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Evaluated:
        try:
            done = self.loop.run(self._judge_all(batch))
        except UserError:
            self._shut()
            raise
        labelled = self.trainer.state.fn != TrainerFn.PREDICTING
        rows = []
        for i, judgement in enumerate(done):
            boxes = batch["regions"][i]
            sample = Sample(batch["id"][i], batch["label"][i] if labelled else None, batch["group"][i] if labelled else "")
            if batch["file"][i] is not None:
                sample = sample.with_picture(thumbnail(batch["file"][i], boxes, judgement))
            self.judged.append((sample, judgement))
            rows.append(prediction(sample.id, sample.label, sample.generator, judgement))
        return {"rows": rows}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Evaluated:
        return self.test_step(batch, batch_idx)

    async def _judge_all(self, batch: dict[str, Any]) -> list[Judgement | None]:
        try:
            async with asyncio.TaskGroup() as group:
                facts = zip(batch["id"], batch["label"], batch["file"])
                tasks = [group.create_task(self._judge(*each)) for each in facts]
        except ExceptionGroup as several:
            refused = several.subgroup(UserError)
            if refused is None:
                raise
            raise refused.exceptions[0] from None  # one message, such as that the key is refused
        return [task.result() for task in tasks]

    async def _judge(self, name: str, label: int, file: bytes | None) -> Judgement | None:
        return None if file is None else await self.judge(file, name, label)

    def on_test_epoch_end(self) -> None:
        """Logs each judge's metrics (``test/<prompt>/...``, ``test/fused/...``); of prompts, kappa and McNemar's p against the fusion."""
        ok = [(sample, judgement) for sample, judgement in self.judged if judgement is not None and judgement.status == "ok"]
        labels = {sample.id: int(sample.label or 0) for sample, _ in ok}
        judges = judges_of([(sample.id, judgement) for sample, judgement in ok])
        for judge in judges:
            row = judge_row(judge, labels, judges[-1])
            values = {key: row[key] for key in LOGGED} | {key: row[key] for key in IF_THERE if row.get(key) is not None}
            self.log_dict({f"test/{judge.name}/{key}": torch.tensor(float(value)) for key, value in values.items()})
        ledger = self.engine.ledger
        spent: dict[str, float] = {
            "requests": self.engine.requests,
            "prompt_tokens": ledger.prompt_tokens,
            "completion_tokens": ledger.completion_tokens,
        }
        if ledger.price is not None:
            spent["cost_usd"] = ledger.spent
        self.log_dict({f"test/{key}": torch.tensor(float(value)) for key, value in spent.items()})
        self._close()

    def on_predict_epoch_end(self) -> None:
        self._close()

    def _close(self) -> None:
        unpaid = sum(judgement is not None and judgement.status == "budget" for _, judgement in self.judged)
        if unpaid:
            log.warning(
                "the budget (%s) is spent: %d of %d pictures are not judged. Raise it and run the same command; nothing is asked twice.",
                self.engine.budget,
                unpaid,
                len(self.judged),
            )
        self._shut()

    def _shut(self) -> None:
        self.loop.run(self.engine.close())
        self.loop.close()
        self.store.close()

    # ---- what is left in the run folder

    def run_files(self, rows: list[dict[str, Any]]) -> dict[str, bytes]:
        """``answers.jsonl`` with all replies, tables in the released code's form, ``report.md``, and further pages of samples."""
        ordered = self._ordered()
        files = {"answers.jsonl": answer_lines(ordered), "report.md": markdown(ordered), **official_tables(ordered)}
        for number, part in enumerate(in_pages(ordered)[1:], 2):
            files[f"samples-{number}.html"] = sample_page(f"Samples, page {number}", part)
        return files

    def add_to_report(self, report: Report) -> None:
        warnings = getattr(getattr(self.trainer, "datamodule", None), "warnings", [])
        fill_page(report, self._ordered(), self.asked, warnings, self.engine.ledger)

    def predict_text(self, rows: list[dict[str, Any]]) -> str | None:
        """Of a single picture, the word alone; None leaves it to the table."""
        return str(rows[0].get("verdict") or rows[0]["status"]) if len(rows) == 1 else None

    def _ordered(self) -> list[tuple[Sample, Judgement | None]]:
        return sorted(self.judged, key=lambda pair: pair[0].id)

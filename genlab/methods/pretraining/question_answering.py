"""Trains a vision-language model to answer questions about pictures (supervised fine-tuning; Liu et al., arXiv 2304.08485, Sec. 4.2).

The network reads a chat, picture first, and is trained to say what the assistant says in it, token by token: cross-entropy on the
assistant's texts and their end tokens alone (genlab/vlm/masking.py). All questions of a training picture are turns of one chat, so that
the picture is read once; in evaluation each question is a chat of its own, and the answer is the most likely one, word for word.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torchmetrics import MeanMetric, Metric

from genlab.batches import Evaluated, QuestionBatch, Strip
from genlab.errors import UserError
from genlab.methods.pretraining.base import Pretraining
from genlab.training.schedules import warm_cosine
from genlab.vlm.masking import Conversation, assistant, question_batch, training_batch, user
from genlab.vlm.small_qwen import SmallQwen, byte_tokenizer, learn_byte_tokenizer, merges_of
from genlab.vlm.tuning import VISION_TOWERS
from genlab.weights import load_pretrained, resolve

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
    from torch import Tensor

CLOSED = ("yes", "no")


class QuestionAnswering(Pretraining):
    """A vision-language model of transformers (``AutoModelForImageTextToText``), trained on questions and answers.

    Measured is the share of right answers, ``yes_no`` and ``open``, and that of every kind of question that the data names. An answer is
    right if it is the expected one but for case, white space and a full stop.

    Args:
        network: Sizes of a Qwen2-VL built afresh, with a tokenizer learned from the training questions.
        weights: Folder, hub id or ``tiny:NAME`` to start from or to evaluate, with its processor; ``network`` is not used then.
        vocab_size: Largest size of the learned tokenizer.
        vocabulary: Further texts to learn it from: what will be said in later fine-tuning.
        max_new_tokens: Longest answer.
        train_vision: Trains the picture tower too; off, it and the projection stay as they are.
        lr: Peak learning rate of AdamW; it rises over ``warmup`` steps, then falls to 0 on a cosine until the last step of the trainer.
        warmup: Steps.
        weight_decay: Of AdamW, on matrices.
    """

    cannot_run_under: ClassVar[dict[str, str]] = {
        "FSDP": "answers of different lengths take different numbers of forward passes, each of which would wait for all processes.",
        "ZeRO-3": "answers of different lengths take different numbers of forward passes, each of which would wait for all processes.",
    }

    def __init__(
        self,
        network: SmallQwen | None = None,
        weights: str | None = None,
        vocab_size: int = 512,
        vocabulary: list[str] | None = None,
        max_new_tokens: int = 12,
        train_vision: bool = True,
        lr: float = 1e-3,
        warmup: int = 100,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.needs_checkpoint = weights is None
        self.sizes = network or SmallQwen()
        self.model: Any = None
        self.processor: Any = None
        self.metrics: dict[str, Metric] = {}

    # The network. Its size depends on the vocabulary, so it is built from the data's questions, from a checkpoint, or from ``weights``.

    def configure_model(self) -> None:
        if self.model is not None:
            return
        if self.hparams.weights is not None:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            model = load_pretrained(AutoModelForImageTextToText, self.hparams.weights)
            self._use(model, AutoProcessor.from_pretrained(resolve(self.hparams.weights), local_files_only=True))
        elif self._trainer is not None and self.trainer.training:
            texts = [*self._texts(), *(self.hparams.vocabulary or []), "user", "assistant", "system"]
            self._use(*self.sizes.build(learn_byte_tokenizer(texts, self.hparams.vocab_size)))

    def _texts(self) -> list[str]:
        try:
            return list(self.trainer.datamodule.texts())  # type: ignore[attr-defined]
        except AttributeError as error:
            raise UserError(
                "data: a tokenizer is learned from questions, which need a datamodule such as datamodules.visual_questions.VisualQuestions."
            ) from error

    def _use(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        if not self.hparams.train_vision:
            self.freeze_part(next(f"model.{name}" for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in VISION_TOWERS))

    @property
    def network(self) -> Any:
        if self.model is None:
            raise UserError("model.weights: there is no network yet; give weights, or a checkpoint.")
        return self.model

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.hparams.weights is None:
            checkpoint["merges"] = merges_of(self.processor.tokenizer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        merges = checkpoint.get("merges")
        if merges is not None and self.model is None:
            self._use(*self.sizes.build(byte_tokenizer(merges)))
        elif merges is not None and merges != merges_of(self.processor.tokenizer):
            raise UserError(
                "ckpt_path: the checkpoint has another vocabulary than the questions give. Continue with the data it began with."
            )
        super().on_load_checkpoint(checkpoint)

    # Training.

    def training_step(self, batch: QuestionBatch, batch_idx: int) -> Tensor:
        chats = [self._chat(questions, answers) for questions, answers in zip(batch["question"], batch["answer"])]
        inputs = training_batch(self.processor, chats, [[image] for image in batch["image"]]).to(self.device)
        loss = self.network(**inputs).loss
        return self.log_losses({"loss": loss}, batch_size=len(chats))

    @staticmethod
    def _chat(questions: Sequence[str], answers: Sequence[str]) -> Conversation:
        """The picture goes with the first question."""
        return [turn for i, (q, a) in enumerate(zip(questions, answers)) for turn in (user(q, pictures=int(i == 0)), assistant(a))]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings, steps = self.hparams, int(self.trainer.estimated_stepping_batches)
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, settings.lr, betas=(0.9, 0.98), eps=1e-6)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, settings.warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Evaluation.

    @torch.inference_mode()
    def answer(self, images: Sequence[Tensor], questions: Sequence[str]) -> list[str]:
        """The greedy answer to each question about the picture at its place, (3, H, W) uint8."""
        model = self.network
        inputs = question_batch(self.processor, [[user(text, 1)] for text in questions], [[image] for image in images]).to(self.device)
        said = model.generate(**inputs, max_new_tokens=self.hparams.max_new_tokens, do_sample=False)
        return [text.strip() for text in self.processor.batch_decode(said[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)]

    def start_evaluation(self) -> None:
        self.metrics = {}

    def finish_evaluation(self, stage: str) -> None:
        names = set(self.metrics)
        if self.trainer.world_size > 1:  # a rank may have met kinds that another has not, and all must compute the same metrics
            met: list[set[str]] = [set()] * self.trainer.world_size
            torch.distributed.all_gather_object(met, names)
            names = names.union(*met)
        values = {f"{stage}/{name}": self._metric(name).compute() for name in sorted(names)}
        self.log_dict(values, prog_bar=stage == "val")

    def _metric(self, name: str) -> Metric:
        return self.metrics.setdefault(name, MeanMetric().to(self.device))

    def evaluate(self, batch: QuestionBatch, pictures: bool) -> Evaluated:
        asked = [(i, k) for i, questions in enumerate(batch["question"]) for k in range(len(questions))]
        answers = self.answer([batch["image"][i] for i, _ in asked], [batch["question"][i][k] for i, k in asked])
        rows: list[dict[str, Any]] = []
        for (i, k), said in zip(asked, answers):
            expected, kind = batch["answer"][i][k], batch["kind"][i][k]
            right = _plain(said) == _plain(expected)
            names = ["yes_no" if _plain(expected) in CLOSED else "open", *([kind] if kind else [])]
            for name in names:
                self._metric(name).update(float(right))
            row = {"id": f"{batch['id'][i]}#{k}", "label": expected, "score": float(right), "status": "ok"}
            rows.append(row | {"said": said, "kind": kind, "question": batch["question"][i][k]})
        out: Evaluated = {"rows": rows}
        if pictures:
            out["strips"] = self._strips(batch, rows)
        return out

    @staticmethod
    def _strips(batch: QuestionBatch, rows: Sequence[dict[str, Any]]) -> list[Strip]:
        strips: list[Strip] = []
        for image, name in list(zip(batch["image"], batch["id"]))[:16]:
            own = [row for row in rows if str(row["id"]).rsplit("#", 1)[0] == name]
            said = " / ".join(f"{row['question']} {row['said']}{'' if row['score'] else ' (wrong)'}" for row in own)
            strips.append({"id": name, "caption": said, "frames": image.permute(1, 2, 0)[None].cpu().numpy(), "heat": None})
        return strips

    def export(self, folder: Path) -> None:
        """Writes the folder that ``AutoModelForImageTextToText`` and ``AutoProcessor`` read, in fp16, chat template included."""
        copy.deepcopy(self.network).cpu().half().save_pretrained(folder)
        self.processor.save_pretrained(folder)


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()

"""What fine-tuning of detectors that explain has in common: the network and what of it is trained, inputs, evaluation, and the folder.

A subclass has its own ``training_step``. Evaluation asks for the most likely reply and measures its verdict, its form and its boxes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from genlab.batches import Evaluated, GroundedBatch
from genlab.errors import UserError
from genlab.training.base import Method
from genlab.training.schedules import warm_cosine, warm_linear
from genlab.vlm.drawing import drawn_reply
from genlab.vlm.grounded import Style, fill_target, read_regions, read_verdict, style_of
from genlab.vlm.masking import Conversation, assistant, question_batch
from genlab.vlm.rewards import form_reward
from genlab.vlm.scoring import Expected
from genlab.vlm.tuning import ADAPTER, LoRA, attach_lora, decode, evaluating, load_for_tuning, vision_parts, write_folder
from genlab.weights import resolve

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

log = logging.getLogger(__name__)

FOLDER = "model"
WAITS = "replies of different lengths take different numbers of forward passes, each of which would wait for all processes."
SHOWN = 16  # samples of a sheet


class DetectorTuning(Method):
    """A vision-language model of transformers, tuned whole or by LoRA; picture tower and projector stay as they are.

    At the end of training rank zero writes ``<run>/model/``: a folder of transformers, or with LoRA one of peft.
    """

    cannot_run_under: ClassVar[dict[str, str]] = {
        "FSDP": "replies of different lengths take different numbers of forward passes, each of which would wait for all processes.",
        "ZeRO-3": "replies of different lengths take different numbers of forward passes, each of which would wait for all processes.",
    }
    schedule: ClassVar[Literal["cosine", "linear"]] = "cosine"

    def __init__(self, lora: LoRA | None) -> None:
        super().__init__()
        self.lora = lora  # under the command line hparams have a mapping in its place
        self.needs_checkpoint = False  # the weights are a model already
        self.model: Any = None
        self.processor: Any = None
        self.style: Style = "qwen"
        self.stop: set[int] = set()
        self.metrics: dict[str, MeanMetric] = {}

    # ---- the network

    def configure_model(self) -> None:
        if self.model is not None:
            return
        h = self.hparams
        model, self.processor = load_for_tuning(h.weights)
        self.style = h.regions or style_of(self.processor)
        ends = model.generation_config.eos_token_id
        self.stop = set(ends if isinstance(ends, list) else [ends]) - {None} or {self._tokenizer.eos_token_id}
        frozen = [] if h.train_vision else vision_parts(model)
        if h.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.lora is not None:
            if h.train_vision:
                raise UserError("model.train_vision: LoRA leaves the picture tower alone; set train_vision to false, or lora to null.")
            base = Path(resolve(h.weights))
            if (base / ADAPTER).is_file():
                raise UserError(
                    f"model.weights: {base} holds LoRA, which another LoRA cannot build on. Merge it first: "
                    f"python -m genlab mllm merge {base} --out FOLDER"
                )
            self.model = attach_lora(model, self.lora, str(base.absolute()) if base.exists() else h.weights)
            frozen = [f"base_model.model.{name}" for name in frozen]
        else:
            self.model = model
        for name in frozen:
            self.freeze_part(f"model.{name}")

    @property
    def network(self) -> Any:
        """The network; it is built by `configure_model`."""
        if self.model is None:
            raise UserError("model.weights: there is no network yet; give a trainer the method, or call configure_model.")
        return self.model

    def is_frozen(self, key: str) -> bool:
        """With LoRA all but LoRA."""
        if super().is_frozen(key):
            return True
        return self.lora is not None and key.startswith("model.") and ".lora_" not in key

    @property
    def _tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        h, steps = self.hparams, int(self.trainer.estimated_stepping_batches)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": h.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], h.lr, betas=tuple(h.betas))
        warmup, factor = round(h.warmup * steps), warm_cosine if self.schedule == "cosine" else warm_linear
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- inputs

    def expected(self, batch: GroundedBatch) -> list[Expected]:
        """What is known of each picture, as the model is to say it."""
        found = []
        for i, image in enumerate(batch["image"]):
            size = self._seen(image)
            x, y = size[0] / image.shape[2], size[1] / image.shape[1]
            boxes = [(a * x, b * y, c * x, d * y) for a, b, c, d in batch["boxes"][i]]
            written = [tuple(round(v) for v in box) for box in boxes] if self.hparams.rescale_boxes else boxes
            target = fill_target(batch["target"][i], batch["refs"][i], written, size, self.style)
            found.append(Expected(target, boxes, size, bool(batch["label"][i] == 1), self.style))
        return found

    def _seen(self, image: Tensor) -> tuple[int, int]:
        """Width and height of the picture in which boxes are told: as it is, or as the model sees it."""
        height, width = int(image.shape[1]), int(image.shape[2])
        if not self.hparams.rescale_boxes or self.style == "internvl":  # thousandths need no scaling
            return width, height
        return seen_size(self.processor, width, height)

    def questions(self, batch: GroundedBatch) -> list[Conversation]:
        """The chats up to the reply."""
        return [conversation(turns) for turns in batch["turns"]]

    def prompts(self, batch: GroundedBatch) -> dict[str, Tensor]:
        """Inputs of the chats, padded on the left."""
        found = question_batch(self.processor, self.questions(batch), [[image] for image in batch["image"]])
        return {name: value.to(self.device) for name, value in found.items() if isinstance(value, Tensor)}

    def answers(self, batch: GroundedBatch) -> list[Conversation]:
        """The chats with what is to be said."""
        return [[*asked, assistant(each.target)] for asked, each in zip(self.questions(batch), self.expected(batch))]

    # ---- evaluation

    @torch.no_grad()
    def reply(self, batch: GroundedBatch) -> tuple[list[str], list[bool]]:
        """The most likely reply to each chat, and whether it came to an end within ``max_new_tokens``."""
        inputs = self.prompts(batch)
        with evaluating(self.model):
            said = self.model.generate(**inputs, max_new_tokens=self.hparams.max_new_tokens, do_sample=False)
        tokens = said[:, inputs["input_ids"].shape[1] :]
        ended = torch.isin(tokens, torch.tensor(sorted(self.stop), device=tokens.device)).any(1)
        return decode(self.processor, tokens, self.stop), ended.tolist()

    def extra_measures(self, said: str, expected: Expected) -> dict[str, float]:
        """Further numbers of a reply, by the name of their metric."""
        return {}

    def evaluate(self, batch: GroundedBatch, labelled: bool = True) -> Evaluated:
        rows: list[dict[str, Any]] = []
        good = [i for i in range(len(batch["id"])) if batch["readable"][i]]
        replies, expected = iter(zip(*self.reply(_only(batch, good))) if good else ()), self.expected(batch)
        texts: dict[int, str] = {}
        for i, name in enumerate(batch["id"]):
            row: dict[str, Any] = {"id": name, "label": int(batch["label"][i]) if labelled else "", "score": "", "status": "unreadable"}
            rows.append(row)
            if i not in good:
                continue
            said, ended = next(replies)
            texts[i] = said
            verdict, known = read_verdict(said), expected[i]
            score = {"generated": 1.0, "real": 0.0}.get(verdict, 0.5)
            row |= {"score": score, "status": "ok", "verdict": verdict or "unknown", "reply": said}
            if not labelled:
                continue
            row["iou"] = known.iou(said, "best")
            values = {
                "accuracy": float(verdict == known.verdict), "unknown": float(not verdict), "form": form_reward(said),
                f"accuracy_{known.verdict}": float(verdict == known.verdict), "cut_off": float(not ended),
            }  # fmt: skip
            values |= {"iou": row["iou"]} if known.boxes else {}
            for metric, value in (values | self.extra_measures(said, known)).items():
                self._metric(metric).update(value)
        strips = []
        for i in good[:SHOWN]:
            image, true = batch["image"][i], batch["boxes"][i]
            caption = {1: "generated", 0: "real"}.get(int(batch["label"][i]) if labelled else -1, "")
            drawn = drawn_reply(image, texts[i], self._shown(texts[i], expected[i], image), true)
            strips.append({"id": batch["id"][i], "caption": caption, "frames": drawn, "heat": None})
        return {"rows": rows, "strips": strips}  # type: ignore[typeddict-item]

    def _shown(self, said: str, expected: Expected, image: Tensor) -> list[Any]:
        """Boxes of a reply in pixels of the picture."""
        x, y = image.shape[2] / expected.size[0], image.shape[1] / expected.size[1]
        boxes = [region.box for region in read_regions(said, expected.size, self.style) if region.box is not None]
        return [(a * x, b * y, c * x, d * y) for a, b, c, d in boxes]

    def _metric(self, name: str) -> MeanMetric:
        return self.metrics.setdefault(name, MeanMetric().to(self.device))

    def _start(self) -> None:
        self.metrics = {}

    def _finish(self, stage: str) -> None:
        names = set(self.metrics)
        if self.trainer.world_size > 1:  # a rank may have met only real pictures, and all must compute the same metrics
            met: list[set[str]] = [set()] * self.trainer.world_size
            torch.distributed.all_gather_object(met, names)
            names = names.union(*met)
        self.log_dict({f"{stage}/{name}": self._metric(name).compute() for name in sorted(names)}, prog_bar=stage == "val")

    def on_validation_start(self) -> None:
        self._start()

    def on_test_start(self) -> None:
        self._start()

    def validation_step(self, batch: GroundedBatch, batch_idx: int) -> Evaluated:
        return self.evaluate(batch)

    def test_step(self, batch: GroundedBatch, batch_idx: int) -> Evaluated:
        return self.evaluate(batch)

    def predict_step(self, batch: GroundedBatch, batch_idx: int) -> Evaluated:
        return self.evaluate(batch, labelled=False)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    # ---- the folder

    def on_train_end(self) -> None:
        """Writes the folder; under ZeRO-1 and -2 every rank has the whole model."""
        if self.trainer.is_global_zero:
            folder = self.export(Path(self.trainer.default_root_dir) / FOLDER)
            merge = f"python -m genlab mllm merge {folder} --out MODEL; " if self.lora is not None else ""
            log.info("%s is written; to serve it: %stransformers serve %s", folder, merge, "MODEL" if merge else folder)

    def export(self, folder: Path) -> Path:
        """Writes a folder of transformers, or with LoRA one of peft, with the processor."""
        self.configure_model()
        return write_folder(self.model, self.processor, folder)


def conversation(turns: Sequence[tuple[str, str]]) -> Conversation:
    """Turns with ``<image>`` in their texts as messages whose parts stand in that order."""
    found: Conversation = []
    for role, text in turns:
        before, picture, after = text.partition("<image>")
        parts: list[dict[str, Any]] = [{"type": "text", "text": before}] if before or not picture else []
        if picture:
            parts += [{"type": "image"}, *([{"type": "text", "text": after}] if after else [])]
        found.append({"role": role, "content": parts})
    return found


def seen_size(processor: Any, width: int, height: int) -> tuple[int, int]:
    """Width and height of a picture after Qwen's processor has resized it.

    Raises:
        UserError: It is another processor.
    """
    images = processor.image_processor
    size = getattr(images, "size", None) or {}
    least, most = (size.get(key) if hasattr(size, "get") else getattr(size, key, None) for key in ("shortest_edge", "longest_edge"))
    if not hasattr(images, "patch_size") or not hasattr(images, "merge_size") or least is None or most is None:
        raise UserError("model.rescale_boxes: this processor does not resize as Qwen's does; set rescale_boxes to false.")
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    high, wide = smart_resize(height, width, images.patch_size * images.merge_size, least, most)
    return int(wide), int(high)


def _only(batch: GroundedBatch, places: Sequence[int]) -> GroundedBatch:
    return {name: [value[i] for i in places] if isinstance(value, list) else value[list(places)] for name, value in batch.items()}  # type: ignore[return-value, index]

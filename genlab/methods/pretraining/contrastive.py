"""Contrastive pretraining of a picture or video tower and a text tower (CLIP: Radford et al., arXiv 2103.00020, Fig. 3).

Within a batch, a sample's embedding must be closer to that of its own caption than to those of the others, and the other way round. Two
things make it learn in minutes what takes large batches otherwise: batches of whole groups whose members are hard to tell apart
(``keep_groups`` of the datamodule), and leaving out captions of other samples that are true of this one too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from genlab.batches import CaptionedBatch, Evaluated, Strip
from genlab.errors import UserError
from genlab.methods.pretraining.base import Pretraining
from genlab.methods.pretraining.tokenizer import learn_tokenizer, merges_of, tokenizer_from
from genlab.metrics.captions import CaptionRetrieval, StateSpread, true_captions
from genlab.models.towers import CLIPSettings, Towers, TowerSettings
from genlab.training.gathering import gather_list, gather_rows
from genlab.training.randomness import keyed_rng
from genlab.training.schedules import warm_cosine

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

SCALE_LIMIT = 100.0  # of the published model


def contrastive_loss(samples: Tensor, texts: Tensor, scale: Tensor | float, true: Tensor) -> Tensor:
    """Symmetric InfoNCE: the mean of the cross-entropies of finding the caption of a sample and the sample of a caption.

    Args:
        samples: (B, E), of any length; cosines are compared.
        texts: (B, E); text i belongs to sample i.
        scale: 1 / temperature.
        true: (B, B) bool, [i, j]: text j is true of sample i. Beside the diagonal, such pairs are no negatives.
    """
    logits = scale * F.normalize(samples.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
    own = torch.arange(len(logits), device=logits.device)
    false_negatives = true.to(logits.device) & (own[:, None] != own)
    logits = logits.masked_fill(false_negatives, float("-inf"))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def swap(caption: str, word: str, other: str) -> str | None:
    """The caption with ``other`` in the place where ``word`` comes first; ``None`` where it does not come."""
    swapped, count = re.subn(rf"\b{re.escape(word)}\b", lambda _: other, caption, count=1)
    return swapped if count else None


def without(ids: Sequence[int], phrases: Sequence[Sequence[int]]) -> list[int]:
    """Tokens without those of the phrases, each of one or more tokens in a row; the pieces of a phrase stay where they come alone."""
    left: list[int] = []
    for token in ids:
        left.append(token)
        for phrase in phrases:
            if left[-len(phrase) :] == list(phrase):
                del left[-len(phrase) :]
                break
    return left


class Contrastive(Pretraining):
    """Trains the two towers of a CLIP-like network on captioned pictures or clips.

    It is measured on held-out samples: ``top1_of_100``, does a sample find its caption among a hundred, its whole group among them; for
    every label column, does it find its caption among those with another class's word in the place of its own; and
    ``<column>_spread``, by how much such a word moves the text tower's hidden states. Captions that do not name every column are left out.

    Args:
        towers: Settings of the network; left out, a CLIP for pictures of 64 pixels.
        weights: Folder, hub id or ``tiny:NAME`` to start from or to evaluate; ``None`` builds the network afresh, with a tokenizer learned
            from the training captions.
        vocab_size: Largest size of that tokenizer.
        max_length: Tokens of a caption at the most, for that tokenizer.
        ignored_words: Words that say nothing ("a", "photo", "of") when captions are compared for what is true of a sample too.
        phrases: Label column -> class -> how captions say it, where that is not the name of the class ("fading": "on a fading wall").
        opposites: Pairs of classes of one column that are measured by themselves too, as ``<column>_pairs``: which of the two is it?
        lr: Peak learning rate of AdamW; it rises over ``warmup`` steps and then falls to 0 on a cosine until the last step of the trainer.
        warmup: Steps.
        weight_decay: Of AdamW, on matrices.
        seed: Of the order of frames where ``<column>_shuffled`` measures clips whose frames are out of order.
    """

    cannot_run_under: ClassVar[dict[str, str]] = {
        "ZeRO-1": "DeepSpeed hands out parameters row by row, and the temperature is a single number.",
        "ZeRO-2": "DeepSpeed hands out parameters row by row, and the temperature is a single number.",
        "ZeRO-3": "DeepSpeed hands out parameters row by row, and the temperature is a single number.",
    }

    def __init__(
        self,
        towers: TowerSettings | None = None,
        weights: str | None = None,
        vocab_size: int = 2048,
        max_length: int = 32,
        ignored_words: list[str] | None = None,
        phrases: dict[str, dict[str, str]] | None = None,
        opposites: list[list[str]] | None = None,
        lr: float = 1e-3,
        warmup: int = 100,
        weight_decay: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.needs_checkpoint = weights is None
        self.settings = towers or CLIPSettings()
        self.towers: Towers | None = None
        # Not a ModuleDict: a label column may be called as one of its methods ("type").
        self.metrics: dict[str, Metric] = {}

    # The network. Its size depends on the vocabulary, so it is built from the data's captions, from a checkpoint, or from ``weights``.

    def configure_model(self) -> None:
        if self.towers is not None:
            return
        if self.hparams.weights is not None:
            self._use(self.settings.load(self.hparams.weights))
        elif self._trainer is not None and self.trainer.training:
            self._use(self.settings.build(learn_tokenizer(self._captions(), self.hparams.vocab_size, self.hparams.max_length)))

    def _use(self, towers: Towers) -> None:
        self.towers = towers
        ignored = self.hparams.ignored_words
        self.ignored = [ids for ids in self._ids(ignored) if ids] if ignored else []

    def _captions(self) -> list[str]:
        try:
            return list(self.trainer.datamodule.datasets["train"].captions)  # type: ignore[attr-defined]
        except (AttributeError, KeyError) as error:
            raise UserError(
                "data: a tokenizer is learned from captions, which need a datamodule such as datamodules.captioned_images.CaptionedImages."
            ) from error

    @property
    def network(self) -> Towers:
        if self.towers is None:
            raise UserError("model.weights: there is no network yet; give weights, or a checkpoint.")
        return self.towers

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        tokenizer = self.network.tokenizer
        checkpoint["tokenizer"] = {"merges": merges_of(tokenizer), "max_length": tokenizer.model_max_length}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        held = checkpoint.get("tokenizer")
        if held is not None and self.towers is None:
            self._use(self.settings.build(tokenizer_from(held["merges"], held["max_length"])))
        elif held is not None and held["merges"] != merges_of(self.network.tokenizer):
            raise UserError(
                "ckpt_path: the checkpoint has another vocabulary than the captions give. Continue with the data it began with."
            )
        super().on_load_checkpoint(checkpoint)

    # Training.

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text without the special ones; as many as the network reads beside those."""
        tokenizer = self.network.tokenizer
        return tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=tokenizer.model_max_length - 2)["input_ids"]

    def words(self, captions: Sequence[str]) -> list[list[int]]:
        """What captions are compared by: their tokens without those of ignored words."""
        return [without(ids, self.ignored) for ids in self._ids(captions)]

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Captions -> (B, E)."""
        return self.network.encode_text(self.network.tokenize(list(captions)).to(self.device))

    def forward(self, batch: CaptionedBatch) -> tuple[Tensor, Tensor]:
        """Embeddings of the samples and of their captions, (B, E) each."""
        return self.network.encode(self._pixels(batch)), self.encode_text(batch["caption"])

    def _pixels(self, batch: CaptionedBatch) -> Tensor:
        kind = self.network.kind
        for name in (kind, "caption"):
            if name not in batch:
                raise UserError(f"data: the network reads {kind}s and captions, the batches have no {name}. Use captioned {kind}s.")
        return batch[kind]

    def training_step(self, batch: CaptionedBatch, batch_idx: int) -> Tensor:
        samples, texts = (gather_rows(rows) for rows in self(batch))  # those of all ranks tell each other apart
        true = true_captions(gather_list(self.words(batch["caption"])))
        scene = batch["labels"].get("scene")  # what shows the same, whatever its caption leaves out
        if scene is not None:
            scene = gather_rows(scene)
            true |= ((scene[:, None] == scene) & (scene >= 0)).cpu()
        scale = self.network.scale().clamp(max=SCALE_LIMIT)
        loss = contrastive_loss(samples, texts, scale, true)
        self.log("train/scale", scale.detach())
        return self.log_losses({"loss": loss}, batch_size=len(batch["caption"]))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings, steps = self.hparams, int(self.trainer.estimated_stepping_batches)
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},  # biases, norms, temperature
        ]
        optimizer = torch.optim.AdamW(groups, settings.lr, betas=(0.9, 0.98), eps=1e-6)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, settings.warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Evaluation.

    def start_evaluation(self) -> None:
        known = getattr(getattr(self.trainer, "datamodule", None), "classes", {})
        # Of a single class there is nothing to ask.
        self.classes: dict[str, list[str]] = {name: values for name, values in known.items() if name != "scene" and len(values) > 1}
        self.metrics = {"top1_of_100": CaptionRetrieval(100, self.network.tokenizer.model_max_length)}
        width = self._width()
        for column, values in self.classes.items():
            self.metrics[column] = MeanMetric()
            self.metrics[f"{column}_spread"] = StateSpread(width)
            if self.network.kind == "video":
                self.metrics[f"{column}_shuffled"] = MeanMetric()
            if self._pairs(values):
                self.metrics[f"{column}_pairs"] = MeanMetric()
        for metric in self.metrics.values():
            metric.to(self.device)

    def _width(self) -> int:
        return int(self.network.text_states(self.network.tokenize(["a"]).to(self.device)).shape[-1])

    def _pairs(self, classes: list[str]) -> dict[int, int]:
        """Class -> its opposite, as positions in ``classes``."""
        pairs = [pair for pair in self.hparams.opposites or [] if set(pair) <= set(classes)]
        numbers = [(classes.index(one), classes.index(other)) for one, other in pairs]
        return dict(numbers) | {other: one for one, other in numbers}

    def _phrase(self, column: str, number: int) -> str:
        name = self.classes[column][number]
        return (self.hparams.phrases or {}).get(column, {}).get(name, name)

    def finish_evaluation(self, stage: str) -> None:
        values = {f"{stage}/{name}": metric.compute() for name, metric in self.metrics.items()}
        self.log_dict(values, prog_bar=stage == "val")

    def _update(self, metric: str, *values: Any) -> None:
        self.metrics[metric].update(*values)

    def evaluate(self, batch: CaptionedBatch, pictures: bool) -> Evaluated:
        samples, texts = self(batch)
        samples, texts = F.normalize(samples.float(), dim=-1), F.normalize(texts.float(), dim=-1)
        scores = (samples * texts).sum(-1).tolist()
        rows = [{"id": name, "label": "", "score": score, "status": "ok"} for name, score in zip(batch["id"], scores)]
        shuffled = self._shuffled(batch) if self.network.kind == "video" else None
        whole = [i for i in range(len(rows)) if all(self._swapped(batch, i, column) for column in self.classes)]
        if whole:
            words = self.words([batch["caption"][i] for i in whole])
            self._update("top1_of_100", samples[whole], texts[whole], words, batch["group"][whole], batch["index"][whole])
        for column in self.classes:
            said = self._answers(batch, column, whole, samples, shuffled)
            for i, number in said.items():
                rows[i] |= {column: self.classes[column][int(batch["labels"][column][i])], f"{column}_said": self.classes[column][number]}
        out: Evaluated = {"rows": rows}
        if pictures:
            out["strips"] = self._strips(batch, rows)
        return out

    def _swapped(self, batch: CaptionedBatch, i: int, column: str) -> list[str] | None:
        """Caption i with each class of the column in turn; ``None`` where it does not say the column."""
        number = int(batch["labels"][column][i])
        phrases = [self._phrase(column, k) for k in range(len(self.classes[column]))]
        swapped = [swap(batch["caption"][i], phrases[number], phrase) for phrase in phrases] if number >= 0 else []
        return [text for text in swapped if text is not None] or None

    def _answers(self, batch: CaptionedBatch, column: str, whole: list[int], samples: Tensor, shuffled: Tensor | None) -> dict[int, int]:
        """Updates the metrics of a column, and returns for each sample with a whole caption the class that it was taken for."""
        count, pairs = len(self.classes[column]), self._pairs(self.classes[column])
        candidates = [text for i in whole for text in self._swapped(batch, i, column) or []]
        if not candidates:
            return {}
        texts = F.normalize(self.encode_text(candidates).float(), dim=-1).unflatten(0, (len(whole), count))
        numbers = batch["labels"][column][whole]
        similar = torch.einsum("be,bce->bc", samples[whole], texts)
        self._update(column, (similar.argmax(1) == numbers).float())
        if shuffled is not None:
            self._update(f"{column}_shuffled", (torch.einsum("be,bce->bc", shuffled[whole], texts).argmax(1) == numbers).float())
        paired = [(row, number, pairs[number]) for row, number in enumerate(numbers.tolist()) if number in pairs]
        if paired:
            self._update(f"{column}_pairs", torch.tensor([float(similar[r, own] > similar[r, other]) for r, own, other in paired]))
        for i in whole:
            self._update(f"{column}_spread", self._states_from_word_on(self._swapped(batch, i, column) or []))
        return dict(zip(whole, similar.argmax(1).tolist()))

    def _states_from_word_on(self, texts: list[str]) -> Tensor:
        """Hidden states of texts that differ in one phrase, at the places from its first token to the end token, (S, L, D).

        Places are counted from the end, since phrases may be of several tokens. Where captions are cut before the phrase, the tower reads
        the same text each time; then it is the end token alone.
        """
        ids = [[*each, self.network.tokenizer.eos_token_id] for each in self._ids(texts)]
        start = next((place for place, tokens in enumerate(zip(*ids)) if len(set(tokens)) > 1), len(ids[0]) - 1)
        tokens = self.network.tokenize(texts)
        states = self.network.text_states(tokens.to(self.device)).float()
        length = min(len(each) for each in ids) - start
        ends = torch.tensor([len(each) for each in ids])[:, None] + 1 - length + torch.arange(length)  # + 1: the start token
        return states[torch.arange(len(texts))[:, None], ends]

    def _shuffled(self, batch: CaptionedBatch) -> Tensor:
        """Embeddings of the clips with their frames out of order, (B, E)."""
        video = self._pixels(batch)
        frames = video.shape[1]
        orders = [keyed_rng(self.hparams.seed, "frames", name).permutation(frames).tolist() for name in batch["id"]]
        mixed = torch.stack([clip[order] for clip, order in zip(video, orders)])
        return F.normalize(self.network.encode(mixed).float(), dim=-1)

    def _strips(self, batch: CaptionedBatch, rows: list[dict[str, Any]]) -> list[Strip]:
        strips: list[Strip] = []
        for pixels, caption, row in list(zip(self._pixels(batch), batch["caption"], rows))[:16]:
            frames = pixels if pixels.ndim == 4 else pixels[None]
            wrong = [
                f"{column}: {row[f'{column}_said']}" for column in self.classes if column in row and row[column] != row[f"{column}_said"]
            ]
            said = f"{caption} ({row['score']:.2f}){', taken for ' + ', '.join(wrong) if wrong else ''}"
            array = (frames.float().permute(0, 2, 3, 1) * 255 + 0.5).byte().cpu().numpy()
            strips.append({"id": row["id"], "caption": said, "frames": array, "heat": None})
        return strips

    def export(self, folder: Path) -> None:
        """Writes the folder that the network's own ``from_pretrained`` reads, in fp16, tokenizer included."""
        self.network.export(folder)

"""Spectral face anti-spoofing with supervised contrastive learning (arXiv 2405.18853, CVPR workshops 2024): live face or attack?

From colours and reconstructed spectral bands. Label 1 = live, sigmoid(logit) = P(live).

L = L_c + lambda L_scl: focal loss of the classifier, and a supervised contrastive loss of the embedding against a cross-batch memory. Each
step takes the gradient at the adaptively perturbed weights (SAM). The paper could be read in part only; numbers are those of its released
code, and what neither states is marked so in docs/spectral_fas.md.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from genlab.batches import Evaluated, Shown, SpectralBatch, Strip
from genlab.detection_figures import det_curve, embedding_map
from genlab.errors import UserError
from genlab.figures import png
from genlab.losses.region_independence import RegionIndependence
from genlab.losses.supcon import CrossBatchMemory, mean_over_ranks
from genlab.metrics.acer import AttackMetrics, Rule, best_threshold
from genlab.models.multi_attention import BorderMask, DeployedDetector, Detected, MultiAttentionDetector
from genlab.models.spectral_backbones import SpectralBackbone
from genlab.training.averaging import update_average, update_statistics, warm_decay
from genlab.training.base import Method
from genlab.training.randomness import keyed_torch_generator
from genlab.training.sam import frozen_statistics, perturbed
from genlab.training.schedules import epoch_lr

log = logging.getLogger(__name__)

PLATEAU = 200  # steps at the loss of a collapsed embedding before it is said
MAPPED = 2000  # samples of the embedding map


def mixup_partners(labels: Tensor, generator: torch.Generator) -> Tensor:
    """(B,) for each sample one of its own class, by a permutation within the class."""
    partners = torch.arange(len(labels))
    for label in labels.unique().tolist():
        members = (labels.cpu() == label).nonzero().flatten()
        partners[members] = members[torch.randperm(len(members), generator=generator)]
    return partners.to(labels.device)


def mixed(x: Tensor, partners: Tensor, share: float) -> Tensor:
    """share x_i + (1 - share) x_partner(i)."""
    return share * x + (1 - share) * x[partners]


def full(x: Tensor) -> Tensor:
    """Half precision as float32; others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Losses(NamedTuple):
    """Scalars: the sum, its terms, and the contrastive loss less the least it can be."""

    loss: Tensor
    terms: dict[str, Tensor]
    above_least: Tensor


class SpectralFAS(Method):
    """Multi-attention detector on faces of any number of channels.

    Args:
        channels: Of a picture: three colours and 30 bands make 33.
        backbone: Network and where its weights come from.
        maps: Attention maps.
        middle: Width of local and global vectors.
        embedding: Width of the contrastive embedding.
        border_mask: Which rim of the attention maps is blackened; official: the first row and column at 8 x 8.
        dropout: Probability that a map's findings are left out of a step.
        scl_weight: lambda. Paper: 10; 0 is the focal loss alone.
        scl_warmup_steps: Over which lambda rises from 0. Random backbones collapse without: use 500. Official code: 0, pretrained.
        temperature: tau. Paper: 0.07.
        memory: Slots of the cross-batch memory.
        xbm_enqueue: ``first``: a step's first pass writes into the memory; ``both``: both do, as in the official code.
        focal_gamma: Of the focal loss.
        focal_alpha: Weight of live faces, 1 - alpha of attacks; below 0: none.
        mixup: Mix pictures within their class.
        region_weight: Of the original detector's region-independence loss; the official code does not use it.
        rho: Size of the perturbation; 0 is one pass without.
        optimizer: ``sgd``, or ``adamw`` for networks from scratch.
        lr: At its peak; falls to ``lr_floor`` on half a cosine, epoch by epoch.
        lr_floor: At the end.
        lr_restart_quirk: Run the last epoch at ``lr`` again, as the official code does by accident; its weights are the ones it submits.
        momentum: Of SGD.
        weight_decay: On all parameters.
        ema_decay: Of the running mean of the parameters that evaluation uses, smaller at first; 0 is none.
        ema_statistics: Statistics of its batch norms: those of the network in training (official), or running means of those too.
        threshold: P(live) from which on a face is called live; ``null`` takes the one of least ACER on the validation set.
        threshold_rule: Of several on the grid of hundredths: the middle of the first run of best ones, or the ``first`` (official).
        seed: Of mixup.
    """

    shown = Shown("live", "attack", "type", flipped=True)
    cannot_run_under: ClassVar[dict[str, str]] = {
        "FSDP": "its two passes and the running mean of the weights take them whole.",
        "ZeRO-1": "two backward passes make one step.",
        "ZeRO-2": "two backward passes make one step.",
        "ZeRO-3": "two backward passes make one step.",
    }
    channel_mean: Tensor
    channel_std: Tensor
    validation_threshold: Tensor
    ema_updates: Tensor

    def __init__(
        self,
        channels: int = 33,
        backbone: SpectralBackbone | None = None,
        maps: int = 8,
        middle: int = 256,
        embedding: int = 1024,
        border_mask: BorderMask = "official",
        dropout: float = 0.5,
        scl_weight: float = 10.0,
        scl_warmup_steps: int = 0,
        temperature: float = 0.07,
        memory: int = 1200,
        xbm_enqueue: Literal["first", "both"] = "first",
        focal_gamma: float = 2.0,
        focal_alpha: float = 0.5,
        mixup: bool = True,
        region_weight: float = 0.0,
        rho: float = 0.5,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 0.01,
        lr_floor: float = 1e-4,
        lr_restart_quirk: bool = False,
        momentum: float = 0.9,
        weight_decay: float = 5e-3,
        ema_decay: float = 0.995,
        ema_statistics: Literal["network", "mean"] = "network",
        threshold: float | None = None,
        threshold_rule: Rule = "middle",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.automatic_optimization = False  # two passes a step
        for name, value in {"rho": rho, "scl_weight": scl_weight, "dropout": dropout, "ema_decay": ema_decay}.items():
            if value < 0 or (name in ("dropout", "ema_decay") and value >= 1):
                raise UserError(f"model.{name}: {value} is out of range.")
        if threshold is not None and not 0 <= threshold <= 1:
            raise UserError(f"model.threshold: {threshold} is no P(live) in [0, 1].")
        self.backbone_settings = backbone or SpectralBackbone()
        self.network: MultiAttentionDetector | None = None
        self.average: nn.Module | None = None
        self.metrics = nn.ModuleDict()
        self._stuck = 0
        self._mapped: list[tuple[np.ndarray, str]] = []

    def configure_model(self) -> None:
        if self.network is not None:
            return
        h = self.hparams
        self.network = MultiAttentionDetector(
            self.backbone_settings.build(h.channels), h.channels, h.maps, h.middle, h.embedding, h.border_mask, h.dropout
        )
        self.network.head_mlp.requires_grad_(h.scl_weight > 0)  # nothing else trains it
        self.xbm = CrossBatchMemory(h.memory, h.embedding, h.temperature)
        self.regions = RegionIndependence(h.maps, int(cast(int, self.network.net.early_width))) if h.region_weight else None
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval() if h.ema_decay else None
        self.register_buffer("channel_mean", torch.zeros(h.channels))
        self.register_buffer("channel_std", torch.ones(h.channels))
        self.register_buffer("validation_threshold", torch.tensor(math.nan))
        self.register_buffer("ema_updates", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> SpectralFAS:
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self

    @property
    def detector(self) -> MultiAttentionDetector:
        """The network that is trained."""
        assert self.network is not None, "configure_model() has not run"
        return self.network

    def on_fit_start(self) -> None:
        super().on_fit_start()
        mean, std = self._data().statistics
        self._fits(len(mean))
        self.channel_mean.copy_(mean)
        self.channel_std.copy_(std)

    def _data(self) -> Any:
        data = getattr(self._trainer, "datamodule", None)
        if not hasattr(data, "types"):
            raise UserError("data: spectral faces come from datamodules.hyspefas.HySpeFAS, or a datamodule with its attributes.")
        return data

    def _fits(self, channels: int) -> None:
        if channels != self.hparams.channels:
            raise UserError(
                f"model.channels: {self.hparams.channels}, but data.colour and data.bands give pictures of {channels} channels. "
                f"Set --model.channels {channels}."
            )

    def normalised(self, batch: SpectralBatch) -> Tensor:
        """(B, C, H, W), each channel by its mean and deviation over the training set."""
        self._fits(batch["image"].shape[1])
        return (batch["image"] - self.channel_mean[:, None, None]) / self.channel_std[:, None, None]

    def forward(self, x: Tensor) -> Detected:
        """(B, C, H, W), normalised, through the network that evaluation uses."""
        return (self.average if self.average is not None else self.detector)(x)

    # Training

    def losses(self, out: Detected, batch: SpectralBatch, write: bool) -> Losses:
        """L_c + lambda L_scl of a pass; weighted by ``factor`` of mean 1 where the datamodule re-balances so."""
        h, labels = self.hparams, batch["label"]
        weights = batch["factor"] / mean_over_ranks(batch["factor"].mean())
        focal = sigmoid_focal_loss(full(out.logits), labels.to(full(out.logits)), h.focal_alpha, h.focal_gamma)
        terms = {"focal": (weights * focal).mean()}
        loss, above = terms["focal"], torch.zeros_like(terms["focal"])
        if h.scl_weight:
            terms["scl"], least = self.xbm(full(out.embedding), labels, write, weights)
            rising = min(1.0, (self.global_step + 1) / h.scl_warmup_steps) if h.scl_warmup_steps else 1.0
            loss, above = loss + rising * h.scl_weight * terms["scl"], (terms["scl"] - least).detach()
        if self.regions is not None:
            coarse = out.coarse
            coarse = (coarse - coarse.mean((2, 3), keepdim=True)) / (coarse.std((2, 3), keepdim=True, unbiased=False) + 1e-8)
            terms["regions"] = self.regions(coarse, out.attention, labels == 0)
            loss = loss + h.region_weight * terms["regions"]
        return Losses(loss, terms, above)

    def training_step(self, batch: SpectralBatch, batch_idx: int) -> dict[str, Tensor]:
        h, optimizer = self.hparams, cast(Any, self.optimizers())
        for group in optimizer.param_groups:  # at every step: a resumed epoch has no start
            group["lr"] = epoch_lr(self.current_epoch, self._epochs(), h.lr, h.lr_floor, h.lr_restart_quirk)
        x = self.normalised(batch)
        if h.mixup:
            generator = keyed_torch_generator(h.seed, "mixup", self.global_step, self.global_rank)
            share = float(torch.rand((), generator=generator))
            x = mixed(x, mixup_partners(batch["label"], generator), share)
        found = self.losses(self.detector(x), batch, write=True)
        optimizer.zero_grad()
        self.manual_backward(found.loss)
        if h.rho:
            with perturbed(self.detector.parameters(), h.rho), frozen_statistics(self.detector):
                second = self.losses(self.detector(x), batch, write=h.xbm_enqueue == "both")
                optimizer.zero_grad()
                self.manual_backward(second.loss)
        optimizer.step()
        if self.average is not None:
            self.ema_updates += 1
            decay = warm_decay(int(self.ema_updates), h.ema_decay)
            update_average(self.average, self.detector, decay)
            update_statistics(self.average, self.detector, 0.0 if h.ema_statistics == "network" else decay)
        self._watch(found)
        self.log("train/scl_above_least", found.above_least, batch_size=len(x))
        self.log("train/unreadable", batch["substituted"].float().sum(), on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True)
        detached = {"loss": found.loss.detach()} | {name: value.detach() for name, value in found.terms.items()}
        return {"loss": self.log_losses(detached, batch_size=len(x))}

    def _epochs(self) -> int:
        """Of the whole training; where steps alone are limited, as many as they make."""
        if self.trainer.max_epochs is not None and self.trainer.max_epochs > 0:
            return self.trainer.max_epochs
        return max(math.ceil(self.trainer.max_steps / max(int(self.trainer.num_training_batches), 1)), 1)

    def _watch(self, found: Losses) -> None:
        """Says once when the embeddings have become equal: the contrastive loss then is the logarithm of the filled slots."""
        if "scl" not in found.terms or self._stuck > PLATEAU:
            return
        plateau = math.log(max(int(self.xbm.filled) - 1, 2))
        self._stuck = self._stuck + 1 if abs(float(found.terms["scl"].detach()) / plateau - 1) < 0.01 else 0
        if self._stuck == PLATEAU:
            self._stuck += 1
            log.warning(
                "train/loss_scl has been within 1%% of %.2f for %d steps: all embeddings are equal. Start from pretrained weights, set "
                "model.scl_warmup_steps (500), or make model.rho smaller.", plateau, PLATEAU,
            )  # fmt: skip

    def configure_optimizers(self) -> torch.optim.Optimizer:
        h, trained = self.hparams, [p for p in self.detector.parameters() if p.requires_grad]
        if h.optimizer == "adamw":
            return torch.optim.AdamW(trained, h.lr, weight_decay=h.weight_decay)
        return torch.optim.SGD(trained, h.lr, h.momentum, weight_decay=h.weight_decay)

    # Evaluation

    def _metric(self, stage: str) -> AttackMetrics:
        return cast(AttackMetrics, self.metrics[stage])

    def on_validation_start(self) -> None:
        self.metrics["val"] = AttackMetrics(self._data().types).to(self.device)

    def on_test_start(self) -> None:
        self.decision_threshold()
        self.metrics["test"] = AttackMetrics(self._data().types).to(self.device)
        self._mapped = []

    def validation_step(self, batch: SpectralBatch, batch_idx: int) -> Evaluated:
        return self._evaluate(batch, "val", batch_idx == 0)

    def test_step(self, batch: SpectralBatch, batch_idx: int) -> Evaluated:
        return self._evaluate(batch, "test", batch_idx == 0)

    def predict_step(self, batch: SpectralBatch, batch_idx: int) -> Evaluated:
        return self._evaluate(batch, None, True)

    def deployed(self) -> DeployedDetector:
        """What is needed to use this detector and nothing else: the averaged network, where there is one.

        Raises:
            UserError: The checkpoint has no threshold.
        """
        network = self.average if self.average is not None else self.detector
        return DeployedDetector(network, self.channel_mean, self.channel_std, self.decision_threshold()).eval()

    def decision_threshold(self) -> float:
        """From which on P(live) is called live: ``threshold``, or that of the latest validation.

        Raises:
            UserError: The checkpoint has seen no validation.
        """
        if self.hparams.threshold is not None:
            return float(self.hparams.threshold)
        if math.isnan(float(self.validation_threshold)):
            raise UserError(
                "model.threshold: the checkpoint was saved before any validation, so there is none to decide by. Take a later checkpoint, "
                "or name one: --model.threshold 0.5. It is never chosen on the test set."
            )
        return float(self.validation_threshold)

    def _evaluate(self, batch: SpectralBatch, stage: str | None, pictures: bool) -> Evaluated:
        out, readable = self(self.normalised(batch)), batch["readable"]
        scores = out.logits.double().sigmoid()
        threshold = 0.5 if stage == "val" else self.decision_threshold()
        if stage is not None:
            known = readable & (batch["label"] >= 0)
            kinds = [kind for kind, ok in zip(batch["type"], known.tolist()) if ok]
            self._metric(stage).update(scores[known], batch["label"][known], kinds, batch["index"][known])
        rows: list[dict[str, Any]] = []
        for i, (score, ok) in enumerate(zip(scores.tolist(), readable.tolist())):
            label = int(batch["label"][i])
            row = {"id": batch["id"][i], "label": label if label >= 0 else "", "score": score if ok else ""}
            row |= {"status": "ok" if ok else "unreadable", "type": batch["type"][i]}
            if stage != "val":
                row |= {"called": ("live" if score >= threshold else "attack") if ok else "", "threshold": threshold}
            rows.append(row)
        if stage == "test" and len(self._mapped) < MAPPED:
            vectors = out.embedding.float().cpu().numpy()
            self._mapped += [(vectors[i], batch["type"][i] or "unknown") for i in readable.nonzero().flatten().tolist()]
        return {"rows": rows, "strips": self._strips(batch, out, rows)} if pictures else {"rows": rows}

    def _strips(self, batch: SpectralBatch, out: Detected, rows: list[dict[str, Any]]) -> list[Strip]:
        """Each face with where the maps look."""
        strips: list[Strip] = []
        looked = out.attention.float().sum(1).cpu().numpy()
        for picture, heat, row in list(zip(batch["shown"], looked, rows))[:16]:
            if row["status"] == "ok" and picture.numel():
                frame = picture.permute(1, 2, 0).cpu().numpy()[None]
                called = f": called {row['called']}" if row.get("called") else ""
                truth = f", is {row['type']}" if row["type"] else ""
                caption = f"P(live) = {row['score']:.3f}{called}{truth}"
                strips.append({"id": row["id"], "caption": caption, "frames": frame, "heat": heat[None], "sides": ("", "attention")})
        return strips

    def on_validation_epoch_end(self) -> None:
        metric = self._metric("val")
        gathered = metric.compute()
        found = best_threshold(gathered[0].numpy(), gathered[1].numpy())
        threshold = found.middle if self.hparams.threshold_rule == "middle" else found.first
        if not self.trainer.sanity_checking:
            self.validation_threshold.fill_(threshold)
        self._log("val", metric.values(gathered, threshold) | {"threshold": threshold})
        metric.reset()

    def on_test_epoch_end(self) -> None:
        metric = self._metric("test")
        gathered, threshold = metric.compute(), self.decision_threshold()
        labels = set(gathered[1].tolist())
        if labels:
            if len(labels) == 1:
                there = "live faces" if 1.0 in labels else "attacks"
                log.warning("test: there are %s alone; the rate of the other class is 1 by definition.", there)
            self._log("test", metric.values(gathered, threshold) | {"threshold": threshold})
        metric.reset()

    def _log(self, stage: str, values: dict[str, float]) -> None:
        self.log_dict({f"{stage}/{name}": torch.tensor(value, dtype=torch.float64) for name, value in values.items()})

    def run_files(self, rows: list[dict[str, Any]]) -> dict[str, bytes]:
        """Files of a test or prediction beside the usual ones, by name: the challenge's submission ``result.txt`` (``NNNN.mat 1`` for live,
        unreadable ones count as attacks), the trade-off of errors, and the map of embeddings."""
        files: dict[str, bytes] = {}
        if rows and "called" in rows[0]:
            files["result.txt"] = "".join(f"{row['id']} {int(row['called'] == 'live')}\n" for row in rows).encode()
        scored = [row for row in rows if row["status"] == "ok" and row["label"] != ""]
        if len({row["label"] for row in scored}) == 2:
            scores, labels, types = ([row[name] for row in scored] for name in ("score", "label", "type"))
            files["media/det.png"] = png(det_curve(scores, labels, types))
        if len(self._mapped) > 2:
            vectors, names = zip(*self._mapped)
            files["media/embeddings.png"] = png(embedding_map(np.stack(vectors), names))
        return files

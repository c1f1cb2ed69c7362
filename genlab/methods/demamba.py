"""DeMamba: is this video real or generated? (Chen et al., arXiv 2405.19707.) Label 1 = fake, sigmoid(logit) = P(fake).

A backbone turns a clip into tokens (B, T, G, G, C) and a global vector (B, C). The tokens of each zone of R x R, over all frames,
run as one sequence through a bidirectional Mamba block (Sec. 4.2); the P zone means and the global vector feed a linear classifier.
Where the official code does otherwise than the paper says, the default is the paper's; ``experiments/presets/demamba_official.yaml``
switches to the code's behaviour.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import CatMetric

from genlab.batches import Evaluated, Strip, VideoBatch
from genlab.errors import UserError
from genlab.metrics.generators import GeneratorMetrics, threshold_at_fpr
from genlab.models.backbones import Backbone, LinearInit
from genlab.models.mamba import MambaBlock, MambaOptions
from genlab.models.selective_scan import Backend
from genlab.models.xclip import XCLIP
from genlab.models.zones import ScanPath, ZoneOrder, token_order
from genlab.training.base import Method, to_plain
from genlab.training.features import cache_features, weights_key


class LocalFeatures(NamedTuple):
    """What the Mamba block makes of a clip's zones."""

    sequences: Tensor
    """(B, P, L, C) with L = T * R * R, in scan order."""
    zone_mean: Tensor
    """(B, P, C)."""


class DeMambaHead(nn.Module):
    """Tokens and global vector -> logit (Sec. 4.2; parameter names as in the official code).

    Args:
        width: C.
        grid: G.
        num_frames: T' of the tokens.
        zone_size: R.
        zone_order: See :func:`genlab.models.zones.token_order`.
        scan: Path within a frame of a zone.
        mamba: Options of the Mamba block.
        feature_norms: LayerNorm on the global vector and on all zone means together (official code: X-CLIP only).
        scan_backend: Of :func:`genlab.models.selective_scan.selective_scan`.
    """

    order: Tensor

    def __init__(
        self,
        width: int,
        grid: int,
        num_frames: int,
        zone_size: int = 2,
        zone_order: ZoneOrder = "paper",
        scan: ScanPath = "snake",
        mamba: MambaOptions | None = None,
        feature_norms: bool = True,
        scan_backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.register_buffer("order", token_order(grid, zone_size, num_frames, zone_order, scan), persistent=False)
        self.zones, self.shape = len(self.order), (num_frames, grid, grid)
        self.mamba = MambaBlock(width, mamba or MambaOptions(), scan_backend)
        self.fc_norm = nn.LayerNorm(self.zones * width) if feature_norms else nn.Identity()
        self.fc_norm2 = nn.LayerNorm(width) if feature_norms else nn.Identity()
        self.fc1 = nn.Linear((self.zones + 1) * width, 1)
        nn.init.xavier_uniform_(self.fc1.weight)
        nn.init.zeros_(self.fc1.bias)

    def local_features(self, tokens: Tensor) -> LocalFeatures:
        """(B, T, G, G, C) -> the zones' sequences after the Mamba block, and their means."""
        sequences = tokens.flatten(1, 3)[:, self.order]  # (B, P, L, C): zone grouping, Sec. 4.2
        sequences = self.mamba(sequences.flatten(0, 1)).unflatten(0, sequences.shape[:2])
        return LocalFeatures(sequences, sequences.mean(2))

    def classify(self, zone_mean: Tensor, global_vector: Tensor) -> Tensor:
        """Zone means (B, P, C), zone-major, and global vector (B, C) -> logit (B,)."""
        kind = self.fc1.weight.dtype
        with torch.autocast(zone_mean.device.type, enabled=False):  # logits of bf16 have three digits: AP would rank ties
            features = torch.cat([self.fc_norm2(global_vector.to(kind)), self.fc_norm(zone_mean.flatten(1).to(kind))], dim=1)
            return self.fc1(features).squeeze(1)

    def forward(self, tokens: Tensor, global_vector: Tensor) -> Tensor:
        return self.classify(self.local_features(tokens).zone_mean, global_vector)

    def evidence(self, sequences: Tensor, global_vector: Tensor) -> Tensor:
        """Which places speak for "generated": gradient of the logit times activation, after the Mamba block (ours, not the paper's).

        Args:
            sequences: (B, P, L, C) of ``local_features``.
            global_vector: (B, C).

        Returns:
            (B, T, G, G); a place's share of its zone's mean, so the sum over a zone is gradient times zone mean.
        """
        with torch.enable_grad():
            sequences = sequences.detach().requires_grad_()
            logit = self.classify(sequences.mean(2), global_vector.detach()).sum()
            (gradient,) = torch.autograd.grad(logit, sequences)
        share = (gradient * sequences).sum(-1).detach()  # (B, P, L)
        places = share.new_empty(share.shape[0], share[0].numel())
        places[:, self.order.flatten()] = share.flatten(1)
        return places.view(len(places), *self.shape)


class PoolHead(nn.Module):
    """The backbone alone, baseline of every table (paper, Table 3): norm and linear layer on the global vector."""

    def __init__(self, width: int, feature_norms: bool = True, linear_init: LinearInit = "uniform") -> None:
        super().__init__()
        self.fc_norm2 = nn.LayerNorm(width) if feature_norms else nn.Identity()
        self.fc1 = nn.Linear(width, 1)
        (nn.init.xavier_normal_ if linear_init == "normal" else nn.init.xavier_uniform_)(self.fc1.weight)
        nn.init.zeros_(self.fc1.bias)

    def forward(self, tokens: Tensor, global_vector: Tensor) -> Tensor:
        with torch.autocast(global_vector.device.type, enabled=False):  # see DeMambaHead.classify
            return self.fc1(self.fc_norm2(global_vector.to(self.fc1.weight.dtype))).squeeze(1)


class DeMamba(Method):
    """Detector of generated video, trained with binary cross-entropy on one clip per video.

    Args:
        backbone: Settings of the backbone; left out, X-CLIP-B/16 as in the paper's main result.
        head: ``demamba``, or ``pool``: the backbone alone, the baseline.
        num_frames: T, frames per clip. Paper: 8.
        zone_size: R, tokens per side of a zone. Paper: 2; the released code runs with 1.
        zone_order: ``paper``, or ``official`` for the released code's grouping, whose sequences are not zones.
        scan: ``snake`` (paper: "continuous") or ``sweep``.
        mamba: Options of the Mamba block.
        scan_backend: Kernel of the selective scan: ``auto``, ``mamba_ssm`` (CUDA), ``cpu`` or ``torch``.
        train_backbone: Full training (paper: FT), or ``false`` for partial tuning (PT): the backbone is frozen.
        cached_views: With a frozen backbone: compute its tokens once, before the fit, for this many views (windows and augmentations) of
            each training clip, keep them in ``$GENLAB_CACHE/features`` in fp16, and train on those. Epoch e sees the view e modulo this
            number, drawn as ever: with as many views as epochs training is the same, with fewer, views come again. Left out, the
            backbone runs in every step.
        lr: Learning rate. Paper: 1e-6 for CLIP and X-CLIP, 1e-5 for VideoMAE and networks from scratch.
        head_lr: Learning rate of the head; left out, ``lr``, as in the paper.
        weight_decay: Of AdamW. Official code: 1e-8.
        milestones: Epochs after which the rates are multiplied by ``gamma``. Paper: none for full training; 20 and 25 for partial tuning.
        gamma: Factor at the milestones. Paper: 0.1.
        threshold: A clip is called fake when P(fake) is greater. Paper: 0.5.
        fpr: Instead of ``threshold``: the smallest threshold whose false-positive rate on the validation set was at most this, in (0, 1).
        f1_official: Report F1 from the truncated counts of the official evaluation instead of the exact ones.
    """

    resumable_evaluation = True
    val_real_scores: CatMetric

    def __init__(
        self,
        backbone: Backbone | None = None,
        head: Literal["demamba", "pool"] = "demamba",
        num_frames: int = 8,
        zone_size: int = 2,
        zone_order: ZoneOrder = "paper",
        scan: ScanPath = "snake",
        mamba: MambaOptions | None = None,
        scan_backend: Backend = "auto",
        train_backbone: bool = True,
        cached_views: int | None = None,
        lr: float = 1e-6,
        head_lr: float | None = None,
        weight_decay: float = 1e-8,
        milestones: list[int] | None = None,
        gamma: float = 0.1,
        threshold: float = 0.5,
        fpr: float | None = None,
        f1_official: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if fpr is not None and not 0 < fpr < 1:
            raise UserError(f"model.fpr: {fpr} is not a rate between 0 and 1; 0.01 allows one false alarm in a hundred real clips.")
        if cached_views is not None and train_backbone:
            raise UserError(
                "model.cached_views: the backbone is trained, so its tokens change with every step and cannot be kept. Set "
                "model.train_backbone to false (experiments/presets/demamba_partial.yaml), or leave cached_views out."
            )
        if cached_views is not None and cached_views < 1:
            raise UserError(f"model.cached_views: {cached_views} is too small; with one view of each clip every epoch is alike.")
        self.backbone_settings, self.mamba_options = backbone or XCLIP(), mamba or MambaOptions()
        self.validation_scores: Tensor | None = None  # P(fake) of the real validation clips, for ``fpr``; kept in checkpoints
        self.metrics = nn.ModuleDict()
        self.head: nn.Module | None = None

    def configure_model(self) -> None:
        if self.head is not None:
            return
        settings = self.hparams
        self.backbone = self.backbone_settings.build()
        if not settings.train_backbone:
            self.freeze_part("backbone")
        if settings.head == "pool":
            self.head = PoolHead(self.backbone.width, self.backbone.feature_norms, self.backbone.linear_init)
            return
        self.head = DeMambaHead(
            self.backbone.width,
            self.backbone.grid,
            self.backbone.token_frames(settings.num_frames),
            settings.zone_size,
            settings.zone_order,
            settings.scan,
            self.mamba_options,
            self.backbone.feature_norms,
            settings.scan_backend,
        )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.hparams.cached_views is not None:
            views = {"train": self.hparams.cached_views, "val": 1}
            key = {"backbone": to_plain(self.backbone_settings), "weights": weights_key(self.backbone)}
            cache_features(self.trainer, views, self._cacheable, key)

    def _cacheable(self, batch: VideoBatch) -> dict[str, Tensor]:
        tokens, global_vector = self.features(batch["video"])
        return {"tokens": tokens.half(), "global_vector": global_vector.float()}

    def _batch_features(self, batch: VideoBatch) -> tuple[Tensor, Tensor]:
        """Tokens and global vector of a batch: those that it brings along, or the backbone's."""
        return (batch["tokens"], batch["global_vector"]) if "tokens" in batch else self.features(batch["video"])

    def features(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, 3, H, W), normalised -> tokens (B, T', G, G, C) and global vector (B, C)."""
        if video.shape[1] != self.hparams.num_frames:
            raise UserError(
                f"data.num_frames: clips have {video.shape[1]} frames, the model expects {self.hparams.num_frames}; make them equal."
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.hparams.train_backbone):
            tokens, global_vector = self.backbone(video)
        if tokens.shape[2] != self.backbone.grid or tokens.shape[3] != self.backbone.grid:
            grid = self.backbone.grid
            raise UserError(
                f"data.image_size: {video.shape[-1]} px give {tokens.shape[2]} x {tokens.shape[3]} tokens, the backbone {grid} x {grid}."
            )
        return tokens, global_vector

    def forward(self, video: Tensor) -> Tensor:
        """(B, T, 3, H, W), normalised -> logits (B,); greater than 0 means fake."""
        assert self.head is not None, "configure_model() has not run"
        return self.head(*self.features(video))

    def training_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:
        assert self.head is not None
        logits = self.head(*self._batch_features(batch))
        loss = F.binary_cross_entropy_with_logits(logits.float(), batch["label"].float())
        self.log(
            "train/unreadable",
            batch["substituted"].float().sum(),
            on_step=False,
            on_epoch=True,
            reduce_fx="sum",
            sync_dist=True,
            batch_size=1,
        )
        return self.log_losses({"loss": loss}, batch_size=len(logits))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings = self.hparams
        head_lr = settings.lr if settings.head_lr is None else settings.head_lr
        backbone = [p for p in self.backbone.parameters() if p.requires_grad]
        assert self.head is not None
        groups = [{"params": list(self.head.parameters()), "lr": head_lr, "name": "head"}]
        if backbone:
            groups.append({"params": backbone, "lr": settings.lr, "name": "backbone"})
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, settings.milestones or [], settings.gamma)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    # Evaluation: recall, F1, AP and AUROC per generator against all reals, and their means (Sec. 5.2).

    def _start(self, stage: str) -> None:
        generators = getattr(getattr(self.trainer, "datamodule", None), "generators", None)
        if generators is None:
            raise UserError("data: metrics per generator need a datamodule with `generators`, such as datamodules.genvideo.GenVideo.")
        for name in self._sets(stage):
            metric = GeneratorMetrics(generators[stage], threshold=self.decision_threshold(), f1_official=self.hparams.f1_official)
            self.metrics[name] = metric.to(self.device)

    def _sets(self, stage: str) -> list[str]:
        """Prefixes of the stage's metrics: the stage, or ``test/<degradation>`` where the datamodule tests several."""
        degradations = getattr(getattr(self.trainer, "datamodule", None), "test_sets", None) if stage == "test" else None
        return [f"test/{name}" for name in degradations] if degradations else [stage]

    def _metric(self, name: str) -> GeneratorMetrics:
        return cast(GeneratorMetrics, self.metrics[name])

    def _finish(self, stage: str) -> None:
        for name in self._sets(stage):
            self.log_dict({f"{name}/{key}": value for key, value in self._metric(name).compute().items()})
            self._metric(name).reset()

    def on_validation_start(self) -> None:
        self._start("val")
        self.val_real_scores = CatMetric().to(self.device)

    def on_test_start(self) -> None:
        self._start("test")

    def validation_step(self, batch: VideoBatch, batch_idx: int) -> Evaluated:
        out, scores = self._evaluate(batch, "val", pictures=batch_idx == 0)
        self.val_real_scores.update(scores[batch["readable"] & (batch["label"] == 0)])
        return out

    def test_step(self, batch: VideoBatch, batch_idx: int, dataloader_idx: int = 0) -> Evaluated:
        return self._evaluate(batch, self._sets("test")[dataloader_idx], pictures=batch_idx == 0)[0]

    def predict_step(self, batch: VideoBatch, batch_idx: int) -> Evaluated:
        return self._evaluate(batch, None, pictures=True)[0]

    def on_validation_epoch_end(self) -> None:
        self._finish("val")
        self.validation_scores = self.val_real_scores.compute().flatten().cpu().sort().values

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _evaluate(self, batch: VideoBatch, measured: str | None, pictures: bool) -> tuple[Evaluated, Tensor]:
        """Scores a batch: the logit of a video is the mean over its windows."""
        assert self.head is not None
        tokens, global_vector = self._batch_features(batch)
        sequences: Tensor | None = None
        if isinstance(self.head, DeMambaHead):
            sequences, zone_mean = self.head.local_features(tokens)
            logits = self.head.classify(zone_mean, global_vector)
        else:
            logits = self.head(tokens, global_vector)
        windows = logits.double().split(batch["windows"].tolist())
        scores, readable = torch.stack([each.mean() for each in windows]).sigmoid(), batch["readable"]
        if measured is not None:
            generators = [name for name, ok in zip(batch["generator"], readable.tolist()) if ok]
            self._metric(measured).update(scores[readable], batch["label"][readable], generators, batch["index"][readable])
        threshold, rows, shown, first = self.decision_threshold(), [], [], 0
        for i, (score, ok) in enumerate(zip(scores.tolist(), readable.tolist())):
            row = {"id": batch["id"][i], "label": int(batch["label"][i]) if measured else "", "score": score if ok else ""}
            row |= {"status": "ok" if ok else "unreadable", "generator": batch["generator"][i]}
            row |= {"called": ("fake" if score > threshold else "real") if ok else "", "threshold": threshold}
            if measured and "/" in measured:
                row["set"] = measured.split("/")[1]
            strongest = int(windows[i].argmax())  # the window that speaks loudest for "generated"
            if len(windows[i]) > 1:
                row |= {"windows": len(windows[i]), "max_score": float(windows[i].max().sigmoid())}
                row["max_at_seconds"] = round(float(batch["start"][first + strongest]), 3)
            rows.append(row)
            shown.append(first + strongest)
            first += len(windows[i])
        out: Evaluated = {"rows": rows}
        if pictures and "pixels" in batch:  # features come without
            out["strips"] = self._strips(batch, None if sequences is None else sequences[shown], global_vector[shown], rows, shown)
        return out, scores

    def _strips(
        self, batch: VideoBatch, sequences: Tensor | None, global_vector: Tensor, rows: list[dict[str, Any]], windows: list[int]
    ) -> list[Strip]:
        heat: list[np.ndarray | None] = [None] * len(rows)
        if isinstance(self.head, DeMambaHead) and sequences is not None:
            evidence = self.head.evidence(sequences, global_vector).float()
            if self.hparams.zone_order != "official":  # the sequences of the released code are no zones
                evidence = F.avg_pool2d(evidence, self.hparams.zone_size)
            heat = list(evidence.cpu().numpy())
        strips: list[Strip] = []
        for row, window, each in zip(rows, windows, heat):
            if row["status"] == "ok":
                frames = batch["pixels"][window, : int(batch["num_frames"][window])].permute(0, 2, 3, 1).cpu().numpy()
                truth = f", is {row['generator']}" if row["label"] != "" else ""
                caption = f"P(fake) = {row['score']:.3f}: called {row['called']}{truth}"
                strips.append({"id": row["id"], "caption": caption, "frames": frames, "heat": each})
        return strips

    def decision_threshold(self) -> float:
        """Above it a clip is called fake: ``threshold``, or the one with the false-positive rate ``fpr`` on the validation set.

        Raises:
            UserError: ``fpr`` is asked for, but the checkpoint has seen no validation.
        """
        if self.hparams.fpr is None or self.trainer.validating or self.trainer.sanity_checking:
            return self.hparams.threshold
        if self.validation_scores is None or not len(self.validation_scores):
            raise UserError(
                "model.fpr: the checkpoint holds no validation scores to choose a threshold from; use one saved after a validation."
            )
        return threshold_at_fpr(self.validation_scores, self.hparams.fpr)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["validation_scores"] = self.validation_scores

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.validation_scores = checkpoint.get("validation_scores")

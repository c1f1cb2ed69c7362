"""Re-inpainting self-consistency: does it order known inpainters as a reference does, and how fast is it?

    python benchmarks/consistency.py study                  # the photographs that scikit-image and scikit-learn ship
    python benchmarks/consistency.py study --tiny           # the tiny world; tiny:inpaint too, where it is there
    python benchmarks/consistency.py speed

``study`` judges a ladder of inpainters whose order is known from the pictures themselves (noise, constant, mean, harmonic with few and many
sweeps, Telea, Navier-Stokes), and prints how the orders agree, with bootstrap intervals over pictures, and which pairs disagree. The
picture itself is judged along: no filling is better, and what scores better is only easier to foretell. Stopped, it goes on.
``speed``: K = 10 second fillings by a diffusers pipeline in batches against one call each, and Telea on two threads against one.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning as L
import torch
from PIL import Image

from datamodules.inpainting import GeneratedHoles, Inpainting, square
from datamodules.tinyworld import tiny_root
from genlab.diffusion.inpainting import Diffusers
from genlab.errors import UserError
from genlab.methods.inpaint_consistency import InpaintConsistency
from genlab.metrics.consistency import higher_is_better
from genlab.models.inpainters import Constant, Harmonic, Inpainter, Mean, Noise, OpenCV, fill_in_batches
from genlab.models.inpainters_external import Precomputed
from genlab.reports import Report, console_table
from genlab.weights import resolve

PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field", "ihc", "moon", "motorcycle_left",
    "retina", "rocket",
)  # fmt: skip
K = 10
ITSELF = "the picture itself"


def write_photographs(folder: Path, size: int) -> Path:
    """The photographs that come with the two packages, cut to squares, as PNG."""
    import skimage
    import sklearn

    sources = [next((Path(skimage.__file__).parent / "data").glob(f"{name}.*")) for name in PHOTOGRAPHS]
    sources += sorted((Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg"))
    folder.mkdir(parents=True, exist_ok=True)
    for path in sources:
        with Image.open(path) as file:
            square(file.convert("RGB"), size, Image.Resampling.BICUBIC).save(folder / f"{path.stem}.png")
    return folder


def ladder(tiny: bool) -> list[Inpainter]:
    """What is judged."""
    found: list[Inpainter] = [Noise(), Constant(), Mean(), Harmonic(10), Harmonic(200), OpenCV("telea"), OpenCV("ns")]
    if tiny and (pipeline := tiny_pipeline()) is not None:
        found.append(pipeline)
    return found


def tiny_pipeline() -> Diffusers | None:
    """``tiny:inpaint``, where it is shipped."""
    try:
        resolve("tiny:inpaint")
    except UserError:
        print("tiny:inpaint is not there; the study goes without it.")
        return None
    return Diffusers("tiny:inpaint", steps=20, guidance=2.0, use_prompts=True, batch_size=16)


def study(tiny: bool, size: int, images: int | None, out: Path) -> None:
    """Judges the ladder and prints what agrees."""
    judges: list[Inpainter] = [OpenCV("telea"), OpenCV("ns"), Harmonic(200)]
    if tiny and (pipeline := tiny_pipeline()) is not None:
        judges.append(pipeline)
    root = tiny_root("tiny:inpainting") if tiny else write_photographs(out / "photographs", size)
    judged = ladder(tiny)
    names = [each.name for each in judged]
    judged.append(Precomputed(str(root / "images" if tiny else root), name=ITSELF))
    method = InpaintConsistency(judged, judges, ["l1", "ssim", "psnr"], k=K)
    holes = GeneratedHoles("free_form", 0.2, 0.4)
    data = Inpainting("tiny:inpainting" if tiny else str(root), holes=holes, size=size, batch_size=4, n_images=images)
    options = {"logger": False, "enable_model_summary": False, "use_distributed_sampler": False}
    L.Trainer(default_root_dir=out, accelerator="cpu", devices=1, **options).test(method, datamodule=data, verbose=False)
    outcome = method.outcome
    assert outcome is not None
    for f2 in outcome.f2:
        print("\n" + console_table(outcome.leaderboard(f2), f"{len(outcome.ids)} pictures of {size} x {size}, filled again by {f2}"))
        for said in outcome.warnings(f2):
            print(f"\n{said}")
    print("\n" + console_table(outcome.rank_agreement(names), "Kendall's tau with the order by the pictures themselves"))
    print("\n" + console_table(outcome.between_judges(names), "One F2 against another"))
    for f2 in outcome.f2:
        for column in outcome.columns:
            sign = 1 if higher_is_better(column) else -1
            lead = [name for name in names if sign * (outcome.score(name, f2, column) - outcome.score(ITSELF, f2, column)) > 0]
            print(f"\nfilled again by {f2}, {column}: easier to foretell than the picture itself: {', '.join(lead) or 'none'}")
    report = Report("Self-consistency of known inpainters")
    method.add_to_report(report)
    print(f"\n{report.write(out / 'report.html')}")


def timed(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each way, the median of turns that they take: other work on the machine then meets all of them."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:  # the first turn warms up
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def speed(repeats: int) -> None:
    """Batches against single calls, and threads."""
    images, holes = torch.rand(K, 3, 64, 64), (torch.rand(K, 1, 64, 64) < 0.3).float()
    seeds = list(range(K))
    with tempfile.TemporaryDirectory() as folder:
        pipeline = tiny_pipeline()
        if pipeline is None:
            from tests.diffusion.tiny_parts import write_inpainting_pipeline

            pipeline = Diffusers(str(write_inpainting_pipeline(Path(folder) / "random")), name="random tiny pipeline", steps=20)
        pipeline.batch_size = K
        pipeline.load(torch.device("cpu"))

        def one_by_one() -> None:
            for n in range(K):
                pipeline.fill(images[n : n + 1], holes[n : n + 1], seeds=seeds[n : n + 1])

        times = timed({"batch": lambda: fill_in_batches(pipeline, images, holes, seeds=seeds), "loop": one_by_one}, repeats)
    say(f"diffusers ({pipeline.name}), K = {K} in a batch to one call each", times["loop"], times["batch"], 1.8)
    images, holes = torch.rand(8, 3, 256, 256), torch.zeros(8, 1, 256, 256)
    holes[:, :, 64:192, 64:192] = 1
    one, two = OpenCV("telea", threads=1), OpenCV("telea", threads=2)
    seeds = [0] * 8
    times = timed({"one": lambda: one.fill(images, holes, seeds=seeds), "two": lambda: two.fill(images, holes, seeds=seeds)}, repeats)
    say("Telea, 256 x 256, two threads to one", times["one"], times["two"], 1.6)


def say(what: str, slow: float, fast: float, wanted: float) -> None:
    verdict = "" if slow / fast >= wanted else ": missed"
    print(f"{what}: {slow:.2f} s to {fast:.2f} s, {slow / fast:.2f} x (wanted {wanted} x{verdict})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("study", "speed"))
    parser.add_argument("--tiny", action="store_true", help="the tiny world's pictures and masks instead of photographs")
    parser.add_argument("--size", type=int, default=128, help="side of the photographs in pixels")
    parser.add_argument("--images", type=int, default=None, help="judge only so many")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/consistency"))
    parser.add_argument("--repeats", type=int, default=5, help="turns that the median is taken of")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if given.what == "speed":
        speed(given.repeats)
    else:
        study(
            given.tiny, 64 if given.tiny else given.size, given.images, given.out / ("tiny" if given.tiny else f"photographs{given.size}")
        )


if __name__ == "__main__":
    main()

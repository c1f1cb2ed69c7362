"""Does DeMamba's head find artefacts of kinds never met in training better than its backbone alone? On the tiny world, over seeds.

    python benchmarks/demamba_claim.py --out runs/demamba_claim       # about 25 minutes on 2 cores; continues where it was stopped

Both heads are trained through the command line by experiments/tiny/demamba.yaml and demamba_pool.yaml: same backbone, clips, steps and
seeds. The tables (also in OUT/claim.md) show AP per generator against all real test clips, the paper's measure; its chance level is the
share of fakes among them. Intervals of the difference are of 95 %: Student's t over the paired seeds, and a bootstrap that redraws
seeds and test clips, the same for both heads.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from genlab.metrics.generators import average_precision
from genlab.training.randomness import keyed_rng

HEADS = {"demamba": "tiny/demamba", "pool": "tiny/demamba_pool"}
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # seeds -> 97.5 % quantile
RESAMPLES = 500

Scores = dict[str, NDArray[np.float64]]  # generator, or "Real" -> P(fake) of its clips, in the order of their names


def genlab(*args: str, log: Path) -> None:
    """One command, its output appended to ``log``."""
    with log.open("a") as file:
        print("$ genlab", *args, file=file, flush=True)
        subprocess.run([sys.executable, "-m", "genlab", *args], stdout=file, stderr=subprocess.STDOUT, check=True)


def train_and_test(out: Path, head: str, seed: int, options: list[str]) -> None:
    """Fit, validate and test of one head and seed; what has been done before is left out."""
    folder = out / "runs" / HEADS[head] / f"seed{seed}"
    common = ["-c", HEADS[head], f"--data.root={out / 'data'}", f"--seed_everything={seed}", f"--run.root={out / 'runs'}", *options]
    log = out / f"{head}-{seed}.log"
    if not (folder / "results.json").exists():
        genlab("fit", *common, "--ckpt_path", "last", log=log)
    for verb in ("validate", "test"):
        if not list(folder.glob(f"{verb}-*/results.json")):
            genlab(verb, *common, "--ckpt_path", "best", log=log)


def read_scores(folder: Path, verb: str) -> Scores:
    """Scores of an evaluation by generator."""
    (path,) = folder.glob(f"{verb}-*/predictions.csv")
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["id"])
    names = {row["id"]: row["generator"] if row["label"] == "1" else "Real" for row in rows}
    return {kind: np.array([float(row["score"]) for row in rows if names[row["id"]] == kind]) for kind in dict.fromkeys(names.values())}


def ap_per_generator(scores: Scores, draw: dict[str, NDArray[np.int64]] | None = None) -> dict[str, float]:
    """AP of each generator's fakes against all reals; ``draw``: the clips that a bootstrap took."""
    taken = {kind: values if draw is None else values[draw[kind]] for kind, values in scores.items()}
    real = taken.pop("Real")
    labels = {kind: np.r_[np.zeros(len(real)), np.ones(len(fakes))] for kind, fakes in taken.items()}
    return {kind: average_precision(np.r_[real, fakes], labels[kind]) for kind, fakes in sorted(taken.items())}


def bootstrap(pairs: list[tuple[Scores, Scores]]) -> tuple[float, float]:
    """95 % interval of the mean difference in macro AP when seeds and test clips are drawn anew."""
    rng, differences = keyed_rng("claim bootstrap"), []
    for _ in range(RESAMPLES):
        draw = {kind: rng.integers(len(values), size=len(values)) for kind, values in pairs[0][0].items()}
        chosen = [pairs[i] for i in rng.integers(len(pairs), size=len(pairs))]
        differences.append(np.mean([macro(ap_per_generator(one, draw)) - macro(ap_per_generator(two, draw)) for one, two in chosen]))
    low, high = np.quantile(differences, (0.025, 0.975))
    return float(low), float(high)


def macro(values: dict[str, float]) -> float:
    """Unweighted mean over generators."""
    return statistics.fmean(values.values())


def table(title: str, scores: dict[str, list[Scores]]) -> list[str]:
    """Markdown: AP per generator, mean over seeds, of both heads."""
    aps = {head: [ap_per_generator(each) for each in runs] for head, runs in scores.items()}
    first = scores["demamba"][0]
    lines = [f"| {title} | clips | chance | demamba | pool | difference | lowest | highest |", "|---|---|---|---|---|---|---|---|"]
    for kind in [*aps["demamba"][0], "mean"]:
        one, two = ([macro(ap) if kind == "mean" else ap[kind] for ap in aps[head]] for head in ("demamba", "pool"))
        gains = [a - b for a, b in zip(one, two)]
        counts = [len(values) for name, values in first.items() if name != "Real"]
        n = statistics.fmean(counts) if kind == "mean" else len(first[kind])
        cells = (statistics.fmean(one), statistics.fmean(two))
        lines.append(
            f"| {kind} | {sum(counts) if kind == 'mean' else n} | {n / (n + len(first['Real'])):.3f} | {cells[0]:.3f} | {cells[1]:.3f} "
            f"| {statistics.fmean(gains):+.3f} | {min(gains):+.3f} | {max(gains):+.3f} |"
        )
    return lines


def report(out: Path, seeds: list[int]) -> str:
    """The Markdown page."""
    folders = {head: [out / "runs" / HEADS[head] / f"seed{seed}" for seed in seeds] for head in HEADS}
    test = {head: [read_scores(folder, "test") for folder in runs] for head, runs in folders.items()}
    val = {head: [read_scores(folder, "validate") for folder in runs] for head, runs in folders.items()}
    pairs = list(zip(test["demamba"], test["pool"]))
    gains = [macro(ap_per_generator(one)) - macro(ap_per_generator(two)) for one, two in pairs]
    mean, spread = statistics.fmean(gains), statistics.stdev(gains) if len(gains) > 1 else float("nan")
    half = STUDENT_T.get(len(gains), 1.96) * spread / len(gains) ** 0.5
    low, high = bootstrap(pairs)
    seconds = {
        head: ", ".join(f"{json.loads((folder / 'results.json').read_text())['wall_seconds']:.0f}" for folder in runs)
        for head, runs in folders.items()
    }
    lines = [
        "# Tiny world: head `demamba` against head `pool` on kinds of artefact never met in training", "",
        *table("held-out generator", test), "",
        f"Mean AP of demamba less that of pool: **{mean:+.3f}**; by seed {', '.join(f'{gain:+.3f}' for gain in gains)}; "
        f"95 % interval {mean - half:+.3f} to {mean + half:+.3f} (t over seeds), {low:+.3f} to {high:+.3f} (bootstrap).", "",
        *table("training generator (validation clips)", val), "",
        f"Real test clips: {len(test['pool'][0]['Real'])}. Seconds of each fit: {seconds}.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demamba_claim"), help="folder of data, runs and report")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS), help="run these only, without the report")
    parser.add_argument("--test-clips", type=int, default=200, help="per held-out generator")
    args, options = parser.parse_known_args()  # the rest goes to the commands, such as --data.num_workers=0
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    genlab("data", "make", "genvideo", "--root", str(out / "data"), "--test_clips", str(args.test_clips), log=out / "data.log")
    for seed in args.seeds:
        for head in args.heads:
            print(f"{head}, seed {seed}", flush=True)
            train_and_test(out, head, seed, options)
    if len(args.heads) == len(HEADS):
        text = report(out, args.seeds)
        (out / "claim.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()

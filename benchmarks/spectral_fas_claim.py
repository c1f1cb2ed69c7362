"""What do spectral bands, re-balancing and the contrastive loss add to telling live faces from attacks? On the tiny world, over seeds.

    python benchmarks/spectral_fas_claim.py --out runs/spectral_fas_claim   # about 25 minutes of one core; continues where it was stopped

Four steps are trained through the command line by experiments/tiny/spectral_fas.yaml, with the same data, optimizer steps and seeds:
colours alone (otherwise the whole method); 33 channels with the focal loss; and re-balancing; and the contrastive loss. The table (also in
OUT/claim.md) has the ACER on the test set at the threshold of the validation set, and differences to the step before, paired by seed, with
95 % intervals by Student's t.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.paired import difference, genlab

CONFIG = "tiny/spectral_fas"
RGB = ["-c", "presets/spectral_fas_rgb"]
STEPS: dict[str, list[str]] = {
    "RGB only": RGB,
    "33 channels, focal": ["--model.scl_weight=0", "--data.rebalance=none"],
    "+ re-balancing": ["--model.scl_weight=0"],
    "+ contrastive": [],
}


def measure(out: Path, number: int, seed: int, options: list[str]) -> dict[str, float]:
    """Metrics of the test of one step and seed; what has been done before is left out."""
    name = f"step{number}-seed{seed}"
    folder = out / "runs" / CONFIG / name
    common = ["-c", CONFIG, *options, f"--seed_everything={seed}", f"--run.root={out / 'runs'}", f"--run.name={name}"]
    common += ["--trainer.enable_progress_bar=false"]
    if not (folder / "results.json").exists():
        genlab("fit", *common, "--ckpt_path", "last", log=out / f"{name}.log")
    if not list(folder.glob("test-*/results.json")):
        genlab("test", *common, "--ckpt_path", "last", log=out / f"{name}.log")
    (results,) = folder.glob("test-*/results.json")
    return json.loads(results.read_text())["metrics"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/spectral_fas_claim"))
    parser.add_argument("--seeds", type=lambda text: [int(each) for each in text.split(",")], default=[2, 3, 4])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    lines = ["| | ACER of each seed | mean | less the step before | worst attack's APCER |", "|---|---|---|---|---|"]
    before: list[float] = []
    for seed in given.seeds:  # a whole table of one seed before the next
        for number, options in enumerate(STEPS.values()):
            measure(given.out, number, seed, options)
    for number, (step, options) in enumerate(STEPS.items()):
        found = [measure(given.out, number, seed, options) for seed in given.seeds]
        acer = [metrics["test/acer"] for metrics in found]
        worst = statistics.mean(metrics["test/apcer_max"] for metrics in found)
        each = ", ".join(f"{value:.3f}" for value in acer)
        lines.append(f"| {step} | {each} | {statistics.mean(acer):.3f} | {difference(acer, before) if before else ''} | {worst:.3f} |")
        before = acer
    (given.out / "claim.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

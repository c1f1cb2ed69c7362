"""The degraded test on the tiny world, the paper's DeMamba beside the released code's: clean clips and the eight degradations.

    python benchmarks/demamba_degraded.py --out runs/demamba_degraded     # about 20 minutes on 2 cores; continues where it was stopped

``paper`` is experiments/tiny/demamba.yaml. ``official`` lays the model's switches of experiments/presets/demamba_official.yaml over it:
the released grouping of tokens, a second direction that reverses channels, its initial step sizes, and F1 by truncated counts. Zone size,
clips, augmentation, steps, learning rates and seeds are those of ``paper``, so that the difference is the model's. Each is trained once
a seed and tested with ``--data.degradations '[all]'``, one command. The table (also in OUT/degraded.md) has means over the seeds of
recall, F1 and AP, which are means over the six test generators, each against all real test clips.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.demamba_claim import genlab

BASE = "tiny/demamba"
PRESETS = {"paper": [], "official": ["-c", "presets/demamba_official"]}
SAME = {"data.augment.mode": "clip", "model.milestones": "[4, 5]", "trainer.max_epochs": "6"}  # what the preset sets besides the model
COLUMNS = ("recall", "f1", "ap", "real_acc")


def train_and_test(out: Path, preset: str, seed: int, options: list[str]) -> None:
    """Fit and degraded test; what has been done before is left out."""
    folder, log = out / preset / f"seed{seed}", out / f"{preset}-{seed}.log"
    common = ["-c", BASE, *PRESETS[preset], f"--data.root={out / 'data'}", f"--seed_everything={seed}"]
    common += [f"--run.root={out}", f"--run.experiment={preset}", *(f"--{key}={value}" for key, value in SAME.items()), *options]
    if not (folder / "results.json").exists():
        genlab("fit", *common, "--ckpt_path", "last", log=log)
    if not list(folder.glob("test-*/results.json")):
        genlab("test", *common, "--data.degradations=[all]", "--ckpt_path", "best", log=log)


def read_metrics(folder: Path) -> dict[str, dict[str, float]]:
    """Set of test clips -> its numbers; and the validation's, which are on clips of the training generators."""
    (path,) = folder.glob("test-*/results.json")
    results = json.loads(path.read_text())
    metrics = results["metrics"]
    found = {name: {key: metrics[f"test/{name}/{key}"] for key in COLUMNS} for name in results["protocol"]["degradations"]}
    return found


def report(out: Path, seeds: list[int]) -> str:
    """The Markdown table."""
    runs = {preset: [read_metrics(out / preset / f"seed{seed}") for seed in seeds] for preset in PRESETS}
    names = list(runs["paper"][0])
    head = [f"{preset} {key}" for preset in PRESETS for key in COLUMNS]
    lines = [f"| test clips | {' | '.join(head)} |", "|" + "---|" * (len(head) + 1)]
    for name in names:
        cells = [statistics.fmean(run[name][key] for run in runs[preset]) for preset in PRESETS for key in COLUMNS]
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in cells)} |")
    for preset in PRESETS:
        best = [json.loads((out / preset / f"seed{seed}" / "results.json").read_text())["best"]["score"] for seed in seeds]
        lines += ["", f"Validation AP (training generators) of {preset}, by seed: {', '.join(f'{value:.3f}' for value in best)}."]
    return "\n".join([*lines, "", f"Seeds: {', '.join(map(str, seeds))}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demamba_degraded"), help="folder of data, runs and table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS), help="run these only, without the table")
    parser.add_argument("--test-clips", type=int, default=100, help="per held-out generator")
    args, options = parser.parse_known_args()  # the rest goes to the commands, such as --data.num_workers=0
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    genlab("data", "make", "genvideo", "--root", str(out / "data"), "--test_clips", str(args.test_clips), log=out / "data.log")
    for seed in args.seeds:
        for preset in args.presets:
            print(f"{preset}, seed {seed}", flush=True)
            train_and_test(out, preset, seed, options)
    if len(args.presets) == len(PRESETS):
        text = report(out, args.seeds)
        (out / "degraded.md").write_text(text + "\n")
        print(text)


if __name__ == "__main__":
    main()

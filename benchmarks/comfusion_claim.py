"""Does ComFusion show a subject from one picture in more of the scenes asked for than DreamBooth does? On the tiny world, over seeds.

    python benchmarks/comfusion_claim.py --out runs/comfusion_claim   # about 10 minutes of one core; continues where it was stopped

Both are trained through the command line with the same steps, rank, batches, rate and number of pictures of the class
(experiments/tiny/comfusion.yaml and dreambooth_subject.yaml), on the first picture of three subjects of tiny:dreambooth; the recipe was
chosen on another one. Scenes are the first four backgrounds but the picture's own. Every model then draws the same prompts from the same
noise. tiny:judge says what is seen; it is part of no loss (the losses have tiny:clip). Diversity is 1 - cosine by EfficientNet-Lite0.
Intervals are Student's t over the differences of all pairs of seed and subject. The table is also in OUT/claim.md, pictures in OUT/grids.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.paired import difference
from datamodules.domain_images import cut
from datamodules.images import open_picture
from datamodules.subject_scenes import in_scene
from datamodules.tinyworld import tiny_root
from datamodules.tinyworld.scene import BACKGROUNDS
from datamodules.tinyworld.subjects import Subject, subject_photos, subjects
from genlab.cli import main as genlab
from genlab.methods.comfusion import ComFusion
from genlab.metrics.scenes import diversity, fidelity
from genlab.models.judge import Judge
from genlab.models.picture_encoders import LiteEncoder, PictureEncoder
from genlab.sheets import frame_strip, stack
from genlab.weights import load_pretrained

SUBJECTS, WORD, RANK, EACH = ("circle", "cross", "moon"), "picture", 16, 8
WAYS: dict[str, tuple[str, list[str]]] = {
    "ComFusion": ("tiny/comfusion", []),
    "DreamBooth": ("tiny/dreambooth_subject", []),
}
ROWS = {
    "scene": "scene: the judge sees the background asked for",
    "subject": "subject: the judge sees its shape, colour and texture (mean of the three)",
    "shape": "its shape",
    "colour": "its colour",
    "texture": "its texture",
    "both": "scene, shape and colour at once",
    "likeness": "cosine to the subject's held-back pictures (EfficientNet-Lite0)",
    "diversity": "diversity within a scene",
}


def scenes_of(subject: Subject) -> dict[str, str]:
    """The first four backgrounds that the picture does not have -> how prompts say them."""
    own = subject_photos("dreambooth", 0, subject)[0].scene.background
    return dict([(name, words) for name, words in BACKGROUNDS["A"].items() if name != own][:4])


def train(out: Path, way: str, subject: Subject, seed: int) -> Path:
    """Folder of the run, trained unless it was."""
    config, options = WAYS[way]
    name = f"{list(WAYS).index(way)}-{subject.name}-seed{seed}"
    folder = out / "runs" / config / name
    if not (folder / "results.json").exists():
        scenes = json.dumps(list(scenes_of(subject).values()))
        common = ["-c", config, f"--seed_everything={seed}", f"--run.root={out / 'runs'}", f"--run.name={name}", *options]
        common += [f"--data.instance=tiny:dreambooth/{subject.name}", f"--data.scenes={scenes}", "--trainer.limit_val_batches=0"]
        if code := genlab(["fit", *common, "--trainer.enable_progress_bar=false", "--ckpt_path", "last"]):  # here: imports take longer
            raise SystemExit(f"{name}: exit code {code}")
    return folder


def loaded(folder: Path | None) -> ComFusion:
    """tiny:sd with the LoRA of a run, or without one: what draws is the same for all."""
    method = ComFusion(
        "tiny:sd", WORD, trained="lora", rank=RANK, sampling_steps=20, guidance=4.0, seed=1000
    )  # of pictures, not of training
    method.configure_model()
    if folder is not None:
        state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        found = method.load_state_dict(state, strict=False)
        assert not found.unexpected_keys and len(state) == 2 * sum("lora_A" in name for name, _ in method.named_parameters())
    return method.eval()


def measure(method: ComFusion, subject: Subject, word: str, judge: Judge, lite: PictureEncoder, grid: Path | None) -> dict[str, float]:
    """All figures of a model and subject."""
    drawn: dict[str, Tensor] = {}
    for background, words in scenes_of(subject).items():
        prompt = in_scene(f"a {word} {subject.shape}".replace("  ", " "), words)
        drawn[background] = method.draw([prompt] * EACH, list(range(EACH)))
    said = {background: judge.say(pictures) for background, pictures in drawn.items()}
    wanted = {"shape": subject.shape, "colour": subject.colour, "texture": subject.texture}
    right = {name: [each == value for answers in said.values() for each in answers[name]] for name, value in wanted.items()}
    right["scene"] = [each == background for background, answers in said.items() for each in answers["background"]]
    right["both"] = [all(three) for three in zip(right["scene"], right["shape"], right["colour"])]
    folder = tiny_root("tiny:dreambooth") / "dataset" / subject.name
    pictures = torch.stack([cut(open_picture(path), 64, "center") for path in sorted(folder.iterdir())]).float() / 255
    real = lite.scored(pictures[1:])
    features = {background: lite.scored(each) for background, each in drawn.items()}
    if grid is not None:
        frames = [torch.cat([pictures[:1], each[:8]]) for each in drawn.values()]
        rows = [(each.permute(0, 2, 3, 1) * 255 + 0.5).byte().numpy() for each in frames]
        stack([frame_strip(row, None, f"subject | {words}", None) for row, words in zip(rows, scenes_of(subject).values())], path=grid)
    found = {name: statistics.fmean(values) for name, values in right.items()}
    found["subject"] = statistics.fmean(found[name] for name in wanted)
    found["likeness"] = statistics.fmean(float(fidelity(each, real)) for each in features.values())
    return found | {"diversity": statistics.fmean(float(diversity(each)) for each in features.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/comfusion_claim"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    given = parser.parse_args()
    out: Path = given.out.resolve()
    (out / "grids").mkdir(parents=True, exist_ok=True)
    judge, lite = load_pretrained(Judge, "tiny:judge"), LiteEncoder().build()
    chosen = [subject for subject in subjects("dreambooth", 0) if subject.name in SUBJECTS]
    plain_model = loaded(None)
    plain = [measure(plain_model, subject, subject.words.removesuffix(subject.shape), judge, lite, None) for subject in chosen]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for seed in given.seeds:  # a whole table of one seed before the next
        for way in WAYS:
            for subject in chosen:
                folder = train(out, way, subject, seed)
                if not (folder / "claim.json").exists():
                    grid = out / "grids" / f"{folder.name}.png"
                    (folder / "claim.json").write_text(json.dumps(measure(loaded(folder), subject, WORD, judge, lite, grid)))
                found[way].append(json.loads((folder / "claim.json").read_text()))
                print(way, subject.name, seed, {name: round(value, 3) for name, value in found[way][-1].items()}, flush=True)
    text = table(plain, found)
    (out / "claim.md").write_text(text)
    print(text)


def table(plain: list[dict[str, float]], found: dict[str, list[dict[str, float]]]) -> str:
    """Means over subjects and seeds, and differences to DreamBooth paired by both."""
    others = [way for way in WAYS if way != "DreamBooth"]
    seeds = len(found["DreamBooth"]) // len(SUBJECTS)
    head = f"| {seeds} seeds x {len(SUBJECTS)} subjects x 4 scenes | plain model, subject in words | {' | '.join(WAYS)} |"
    lines = [head + "".join(f" {way} less DreamBooth |" for way in others), "|---" * (2 + len(WAYS) + len(others)) + "|"]
    for name, title in ROWS.items():
        values = {way: [each[name] for each in runs] for way, runs in found.items()}
        cells = [f"{statistics.fmean(each[name] for each in plain):.3f}", *(f"{statistics.fmean(values[way]):.3f}" for way in WAYS)]
        cells += [difference(values[way], values["DreamBooth"]) for way in others]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

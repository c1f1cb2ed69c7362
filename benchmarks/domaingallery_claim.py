"""Does DomainGallery leave the model's own prompts alone where DreamBooth with LoRA does not, at no cost? On the tiny world, over seeds.

    python benchmarks/domaingallery_claim.py --out runs/domaingallery_claim   # about 25 minutes of one core; continues where it was stopped

Both are trained through the command line on the ten pictures of ``sketched_stars``, with the same steps, rank, batches and rate
(experiments/tiny/domaingallery.yaml, dreambooth.yaml). Every model then draws the same
prompts from the same noise. Features and distances are EfficientNet-Lite0's, so figures are not those of papers. The table is also in
OUT/claim.md, the pictures in OUT/grids.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.paired import difference, genlab
from datamodules.domain_images import cut
from datamodules.images import open_picture, pictures_in
from datamodules.tinyworld import tiny_root
from datamodules.tinyworld.scene import SHAPES
from genlab.diffusion.guidance import Enhancement
from genlab.diffusion.schedule import add_noise
from genlab.methods.domaingallery import DomainGallery
from genlab.metrics.t2i import cluster_spread, kernel_distance
from genlab.models.judge import Judge
from genlab.models.picture_features import LitePictureFeatures
from genlab.sheets import frame_strip, stack
from genlab.training.randomness import keyed_torch_generator
from genlab.weights import load_pretrained

DOMAIN, CATEGORY, WORD, RANK = "sketched_stars", "star", "picture", 16
WAYS: dict[str, tuple[str, list[str]]] = {
    "DomainGallery": ("tiny/domaingallery", []),
    "DreamBooth+LoRA": ("tiny/dreambooth", []),
}
FIRST, OTHERS = "DomainGallery", ["DreamBooth+LoRA"]
TARGETS, EACH = 80, 6  # pictures of the target prompt, and of every other one
COLOURS = ("red", "green", "blue", "yellow")
ROWS = {
    "kid": "KID x 1000 to 200 held-out pictures of the domain (less is better)",
    "intra": "mean distance within clusters (more is more diverse)",
    "shape": "target prompt: the judge sees a star",
    "leak": "source prompts: distance to what the plain model draws (less is less leak)",
    "leak_noise": "source prompts: squared change of the predicted noise (likewise)",
    "saturation": "source prompts: colour that is left",
    "colour": "source prompts with a colour: the judge sees it",
    "cross_kid": "other categories in the domain: KID x 1000 to 200 sketches of all shapes",
    "cross_shape": "other categories in the domain: the judge sees what was asked for",
    "enhanced_kid": "the same with attribute enhancement (v-uncond): KID x 1000",
    "enhanced_shape": "the same with attribute enhancement: the judge",
}


def train(out: Path, way: str, seed: int, steps: int) -> Path:
    """Folder of the run, trained unless it was."""
    config, options = WAYS[way]
    name = f"{list(WAYS).index(way)}-seed{seed}"
    folder = out / "runs" / config / name
    if not (folder / "results.json").exists():
        common = ["-c", config, f"--seed_everything={seed}", f"--run.root={out / 'runs'}", f"--run.name={name}", *options]
        common += [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps // 2}"]
        genlab("fit", *common, "--trainer.enable_progress_bar=false", "--ckpt_path", "last", log=out / f"{name}.log")
    return folder


def loaded(folder: Path | None) -> DomainGallery:
    """tiny:sd with the LoRA of a run, or without one: what draws is the same for all."""
    method = DomainGallery("tiny:sd", WORD, rank=RANK, sampling_steps=20, guidance=4.0, seed=1000)  # of the pictures, not of training
    method.configure_model()
    if folder is not None:
        state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        found = method.load_state_dict(state, strict=False)
        assert not found.unexpected_keys and len(state) == 2 * sum("lora_A" in name for name, _ in method.named_parameters())
    return method.eval()


def drawn(method: DomainGallery, prompts: Sequence[str], each: int, enhancement: Enhancement = "off") -> Tensor:
    """(P * each, 3, H, W): prompt by prompt; the same noise for every method."""
    pairs = [(prompt, number) for prompt in prompts for number in range(each)]
    parts = [pairs[first : first + 20] for first in range(0, len(pairs), 20)]
    return torch.cat([method.draw([p for p, _ in some], [n for _, n in some], enhancement, WORD) for some in parts])


def of_folder(folder: Path) -> Tensor:
    """Its pictures (N, 3, 64, 64) in [0, 1]."""
    return torch.stack([cut(open_picture(path), 64, "center") for path in pictures_in(folder)]).float() / 255


def saturation(pictures: Tensor) -> float:
    """Mean of largest less smallest channel, in [0, 1]."""
    return float((pictures.amax(1) - pictures.amin(1)).mean())


def change_of_noise(method: DomainGallery, clean: Tensor, prompts: Sequence[str]) -> float:
    """Mean squared difference of what the tuned and the plain model predict for noised latents under source prompts."""
    from genlab.diffusion.lora import lora_disabled

    alphas, total = method.parts.alphas_cumprod, []
    for timestep in (100, 300, 500, 700, 900):
        at = torch.full((len(clean),), timestep)
        noise = torch.randn(clean.shape, generator=keyed_torch_generator("probe", timestep))
        noised = add_noise(clean, noise, at, alphas)
        states = method.states(prompts)
        with torch.no_grad():
            tuned = method.network(noised, at, states).sample
            with lora_disabled(method.network):
                total.append(float((tuned - method.network(noised, at, states).sample).square().mean()))
    return statistics.fmean(total)


class Yardsticks:
    """What pictures are measured with, and what the plain model draws."""

    def __init__(self) -> None:
        root = tiny_root("tiny:domain_images")
        self.lite = LitePictureFeatures()
        self.judge: Judge = load_pretrained(Judge, "tiny:judge")
        self.targets = of_folder(root / "target_dataset" / DOMAIN)
        held_out = {name: of_folder(root / "reference" / name) for name in (DOMAIN, "sketched_shapes")}
        self.target_maps = self.maps(self.targets)
        self.reference = {name: self.features(pictures) for name, pictures in held_out.items()}
        self.ceiling = self.says(held_out[DOMAIN], "shape", [CATEGORY] * len(held_out[DOMAIN]))
        self.shapes = [shape for shape in SHAPES if shape != CATEGORY]
        self.source_prompts = [f"a {shape}" for shape in SHAPES]
        plain = loaded(None)
        self.plain = drawn(plain, self.source_prompts, EACH)
        self.plain_maps = self.maps(self.plain)
        from genlab.diffusion.components import encode_image

        self.latents = encode_image(plain.parts.vae, self.plain)[0]
        self.figures = self.measure(plain, None)

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        return torch.cat([self.lite(some) for some in pictures.split(50)])

    @torch.no_grad()
    def maps(self, pictures: Tensor) -> list[Tensor]:
        return [torch.cat(stage) for stage in zip(*(self.lite.maps(some) for some in pictures.split(20)))]

    def says(self, pictures: Tensor, attribute: str, asked: Sequence[str]) -> float:
        """Share of pictures of which the judge says what was asked for."""
        said = self.judge.say(pictures)[attribute]
        return statistics.fmean(a == b for a, b in zip(said, asked, strict=True))

    def kid(self, pictures: Tensor, of: str) -> float:
        return 1000 * float(kernel_distance(self.reference[of], self.features(pictures)))

    def measure(self, method: DomainGallery, grid: Path | None) -> dict[str, float]:
        """All figures of a model."""
        target = drawn(method, [f"a {WORD} {CATEGORY}"], TARGETS)
        source = drawn(method, self.source_prompts, EACH)
        coloured = drawn(method, [f"a {colour} {CATEGORY}" for colour in COLOURS], EACH)
        crossed = [f"a {WORD} {shape}" for shape in self.shapes]
        cross, enhanced = drawn(method, crossed, EACH), drawn(method, crossed, EACH, "v-uncond")
        asked = [shape for shape in self.shapes for _ in range(EACH)]
        maps = self.maps(target)
        to_real = torch.stack(
            [self.lite.apart(maps, [stage[i : i + 1] for stage in self.target_maps]) for i in range(len(self.targets))], 1
        )
        spread = cluster_spread(to_real, lambda a, b: float(self.lite.apart([m[a : a + 1] for m in maps], [m[b : b + 1] for m in maps])))
        if grid is not None:
            show(
                grid,
                {
                    "the domain": target[:8],
                    "plain prompts": source[::EACH],
                    "other categories": cross[::EACH],
                    "enhanced": enhanced[::EACH],
                },
            )
        return {
            "kid": self.kid(target, DOMAIN),
            "intra": spread.ignoring_small,
            "shape": self.says(target, "shape", [CATEGORY] * TARGETS),
            "leak": float(self.lite.apart(self.maps(source), self.plain_maps).mean()),
            "leak_noise": change_of_noise(method, self.latents, [p for p in self.source_prompts for _ in range(EACH)]),
            "saturation": saturation(source),
            "colour": self.says(coloured, "colour", [colour for colour in COLOURS for _ in range(EACH)]),
            "cross_kid": self.kid(cross, "sketched_shapes"),
            "cross_shape": self.says(cross, "shape", asked),
            "enhanced_kid": self.kid(enhanced, "sketched_shapes"),
            "enhanced_shape": self.says(enhanced, "shape", asked),
        }  # fmt: skip


def show(path: Path, rows: dict[str, Tensor]) -> None:
    """A sheet, a row each."""
    frames = {name: (pictures.permute(0, 2, 3, 1) * 255 + 0.5).byte().numpy() for name, pictures in rows.items()}
    stack([frame_strip(each, None, name, None) for name, each in frames.items()], path=path)


def report(plain: dict[str, float], ceiling: float, found: dict[str, list[dict[str, float]]]) -> str:
    """The table."""
    lines = [
        f"| {len(next(iter(found.values())))} seeds | plain | {' | '.join(WAYS)} | {' | '.join(f'{FIRST} less {way}' for way in OTHERS)} |"
    ]
    lines.append("|---" * (2 + len(WAYS) + len(OTHERS)) + "|")
    for key, title in ROWS.items():
        values = {way: [each[key] for each in runs] for way, runs in found.items()}
        digits = 4 if key == "leak_noise" else 1 if key.endswith("kid") else 3
        cells = [f"{statistics.fmean(values[way]):.{digits}f}" for way in WAYS]
        cells += [difference(values[FIRST], values[way], digits) for way in OTHERS]
        lines.append(f"| {title} | {plain[key]:.{digits}f} | {' | '.join(cells)} |")
    each = {way: ", ".join(f"{run['kid']:.1f}/{run['leak']:.3f}" for run in runs) for way, runs in found.items()}
    return (
        "\n".join(
            [*lines, "", f"KID/leak of each seed: {each}", f"The judge sees a star in {ceiling:.3f} of the domain's held-out pictures."]
        )
        + "\n"
    )


def kept(path: Path, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Figures from a file, computed unless they were."""
    if not path.exists():
        path.write_text(json.dumps(compute()))
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/domaingallery_claim"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=220, help="of both; other numbers want another OUT")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    (out / "grids").mkdir(parents=True, exist_ok=True)
    yardsticks = Yardsticks()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for seed in given.seeds:
        for number, way in enumerate(WAYS):
            folder = train(out, way, seed, given.steps)
            grid = out / "grids" / f"{number}-seed{seed}.png"
            figures = kept(folder / "claim.json", lambda folder=folder, grid=grid: yardsticks.measure(loaded(folder), grid))  # type: ignore[misc]
            found[way].append(figures)
            print(way, seed, {key: round(value, 4) for key, value in figures.items()}, flush=True)
    text = report(yardsticks.figures, yardsticks.ceiling, found)
    (out / "claim.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

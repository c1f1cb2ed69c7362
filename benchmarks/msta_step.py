"""What prefix caching and short prompts save of a training step of MSTA, against the arithmetic that they spare.

    python benchmarks/msta_step.py            # about five minutes on 2 cores, 6 GB

ViCLIP-B/16 with random weights, adapters as in the authors' logs (r = 128, blocks 8 to 12), 400 prompts of 13 tokens, 8 frames a clip.
The peer is the same step as it is usually written: prompts padded to the 32 tokens of the context, all twelve text blocks in every
step. Both give the same loss. The limit is the ratio of the floating-point operations of both, counted by torch; the gain is
that of the processor's seconds, the median over rounds that alternate.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from genlab.losses.description_consistency import description_consistency
from genlab.methods.msta import MSTA
from genlab.models.viclip import ViCLIP, ViCLIPConfig
from genlab.models.video_text import ViCLIPVideoText, cosine_logits

CLASSES, LENGTH, CONTEXT = 400, 13, 32


def build() -> MSTA:
    torch.manual_seed(0)
    model = MSTA(blocks=(8, 12), bottleneck=128, scale=0.005)
    model.backbone = ViCLIPVideoText(ViCLIP(ViCLIPConfig()))
    model.build()
    return model


def step(model: MSTA, video: Tensor, labels: Tensor, texts: Callable[[], Tensor], means: tuple[Tensor, Tensor]) -> float:
    """Loss and gradients."""
    w = texts()
    loss = F.cross_entropy(cosine_logits(model.encode_video(video), w, model.net.scale()), labels) + description_consistency(w, *means)
    loss.backward()
    for parameter in model.adapted.parameters():
        parameter.grad = None
    return float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=lambda text: [int(each) for each in text.split(",")], default=[1, 4])
    given = parser.parse_args()
    model = build()
    short = torch.randint(1, 49000, (CLASSES, LENGTH))
    short[:, -1] = 49407
    padded = F.pad(short, (0, CONTEXT - LENGTH))
    entering = model.text_before(short)
    means = torch.randn(CLASSES, 512), torch.randn(CLASSES, 512)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {CLASSES} prompts of {LENGTH} of {CONTEXT} tokens")
    for batch in given.batches:
        video, labels = torch.randn(batch, 8, 3, 224, 224), torch.randint(0, CLASSES, (batch,))
        ways = {"plain": lambda: model.encode_tokens(padded), "ours": lambda: model.encode_tokens(short, entering)}
        flops, losses, seconds = dict[str, int](), dict[str, float](), dict[str, list[float]]({name: [] for name in ways})
        for name, texts in ways.items():
            with FlopCounterMode(display=False) as counter:
                losses[name] = step(model, video, labels, texts, means)
            flops[name] = counter.get_total_flops()
        assert abs(losses["plain"] - losses["ours"]) < 1e-5 * abs(losses["plain"]), losses
        for _ in range(given.rounds):
            for name, texts in ways.items():
                since = time.process_time()
                step(model, video, labels, texts, means)
                seconds[name].append(time.process_time() - since)
        limit = flops["plain"] / flops["ours"]
        gain = statistics.median(seconds["plain"]) / statistics.median(seconds["ours"])
        times = ", ".join(f"{name} {statistics.median(each):.1f} core-s" for name, each in seconds.items())
        print(f"batch {batch}: limit {limit:.2f}, gain {gain:.2f} ({gain / limit:.2f} of it); {times}; losses equal to 1e-5")


if __name__ == "__main__":
    main()

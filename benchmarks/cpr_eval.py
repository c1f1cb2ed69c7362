"""CPR's evaluation at ImageNet's size, with nearest-neighbour rectification: seconds and memory of three ways to compute the same answers.

    python benchmarks/cpr_eval.py                       # 10,000 queries, bank of 50,000, 1,000 classes, width 512
    python benchmarks/cpr_eval.py --queries 1000

``pruned`` looks for neighbours only of classes that can still win, ``chunked`` of all classes in the cheap form, ``literal`` builds the
prototypes (B, C, D) as the official code does. The two slower ones run on fewer queries, and their time is scaled up. Features are
random, in the geometry of CLIP's: pictures of a class lie around its centre, all of them in a cone, texts in another one.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.methods.cpr import conditional_logits, conditional_prototypes
from genlab.models.rectification import SCALE, Rectifier

K, ALPHA = 5, 0.95


def features(queries: int, bank: int, classes: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit features x (B, D) and of a bank (N, D) that begins with them, t (C, D), and residuals r (B, D) as long as after a training."""
    torch.manual_seed(0)
    cone, text_cone, centres = torch.randn(width), torch.randn(width), torch.randn(classes, width)
    label = torch.randint(0, classes, (bank,))
    pictures = F.normalize(cone + 0.25 * centres[label] + 0.8 * torch.randn(bank, width), dim=-1)
    t = F.normalize(text_cone + 0.25 * cone + 0.2 * centres + 0.3 * torch.randn(classes, width), dim=-1)
    x = pictures[:queries]
    r = 0.2 * x + 0.1 * F.normalize(torch.randn(queries, width), dim=-1)
    return x, pictures, t, r


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    """What it gives, seconds, and core seconds, which hold on a busy machine too."""
    start, core = time.perf_counter(), time.process_time()
    found = run()
    return found, time.perf_counter() - start, time.process_time() - core


def peak() -> float:
    """Largest resident memory so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "queries": 10_000,
        "bank": 50_000,
        "classes": 1000,
        "width": 512,
        "chunked": 40,
        "literal": 8,
        "threads": 2,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    x, bank, t, r = features(given.queries, given.bank, given.classes, given.width)
    before = peak()

    def pruned() -> Tensor:
        rectifier, parts = Rectifier(t, bank, K, ALPHA), []
        for some in torch.arange(len(x)).split(512):
            parts.append(rectifier.classes(conditional_logits(x[some], t, r[some]), x[some], r[some]).label)
        return torch.cat(parts)

    found, seconds, core = timed(pruned)
    memory = peak() - before
    changed = (found != conditional_logits(x, t, r).argmax(1)).float().mean()
    print(f"pruned   {len(x)} queries: {seconds:.1f} s ({core:.1f} of a core), {memory:.2f} GB more; changes {changed:.1%} of the answers")

    few = given.chunked
    full, slow, busy = timed(lambda: Rectifier(t, bank, K, ALPHA).logits(conditional_logits(x[:few], t, r[:few]), x[:few], r[:few])[0])
    scaled = busy * len(x) / few
    same = (full.argmax(1) == found[:few]).float().mean()
    print(f"chunked  {few} queries: {slow:.1f} s, {scaled:.0f} of a core for all; ratio {scaled / core:.1f}; the same answers: {same:.0%}")

    few = given.literal

    def literal() -> Tensor:
        rows = []
        for one in range(few):
            prototypes = conditional_prototypes(t, r[one : one + 1])[0]  # (C, D)
            near = (prototypes @ bank.T).topk(K).indices
            rectified = ALPHA * prototypes + (1 - ALPHA) * bank[near].mean(1)
            rows.append(SCALE * x[one] @ rectified.T)
        return torch.stack(rows)

    full, slow, busy = timed(literal)
    scaled = busy * len(x) / few
    same = (full.argmax(1) == found[:few]).float().mean()
    print(f"literal  {few} queries: {slow:.1f} s, {scaled:.0f} of a core for all; ratio {scaled / core:.1f}; the same answers: {same:.0%}")


if __name__ == "__main__":
    main()

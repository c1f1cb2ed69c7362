"""How much faster samples come from converted cubes than from ``.mat`` files: seconds of an epoch through the data module's own dataset.

python benchmarks/hyspefas_read.py                    # about a minute: 64 faces of 256 pixels, 30 bands
python benchmarks/hyspefas_read.py --image_size 48 --size 48
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from datamodules.cube_cache import CubeCache
from datamodules.cube_dataset import CubeDataset
from datamodules.hyspefas_index import read_challenge
from datamodules.sampling import Draw
from datamodules.spectral_channels import Channels
from datamodules.tinyworld import make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="of the faces in their files, pixels")
    parser.add_argument("--image_size", type=int, default=256, help="of the samples")
    parser.add_argument("--captures", type=int, default=4, help="sittings of 14 faces")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = make(
            "hyspefas",
            Path(folder) / "data",
            progress=False,
            train_captures=given.captures,
            val_captures=1,
            test_captures=1,
            size=given.size,
        )
        samples = read_challenge(root)["train"]
        channels = Channels("bgr", None, 30, "as_is")
        ways = {"mat": CubeCache(None, root), "converted": CubeCache(Path(folder) / "cubes", root)}
        since = time.perf_counter()
        ways["converted"].fill(samples, workers=0)
        converting = time.perf_counter() - since
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(given.rounds):
            for name, cache in ways.items():
                dataset = CubeDataset(samples, cache, channels, given.image_size, np.ones(len(samples)), None, 0)
                since = time.process_time()
                for i in range(len(samples)):
                    dataset[Draw(i, 0)]
                seconds[name].append(time.process_time() - since)
    per = {name: statistics.median(each) / len(samples) * 1e3 for name, each in seconds.items()}
    print(f"{len(samples)} samples of {given.size} -> {given.image_size} pixels; processor time of a sample: ", end="")
    print(f".mat {per['mat']:.1f} ms, converted {per['converted']:.1f} ms: {per['mat'] / per['converted']:.1f} x (wanted 5 x)")
    print(f"converting took {converting / len(samples) * 1e3:.0f} ms a sample, once")


if __name__ == "__main__":
    main()

"""Zero-shot accuracy of tiny:viclip on the tiny action benchmarks, whose style it has never seen: how much is left for adaptation to do?

python benchmarks/viclip_zero_shot.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))

from datamodules.action_index import DATASETS, items
from datamodules.captioned_videos import read_clip
from datamodules.tinyworld import tiny_root
from datamodules.tinyworld.action_texts import spoken
from genlab.models.viclip import IMAGENET_MEAN, IMAGENET_STD, ViCLIP, load_viclip
from genlab.reports import console_table
from genlab.weights import resolve


@torch.no_grad()
def zero_shot(model: ViCLIP, tokenizer: CLIPTokenizer, dataset: str, root: Path, template: str = "a video of {}.") -> dict[str, object]:
    """Accuracy on the test clips of split 1, one central view of evenly spaced frames, class names in lower-case words."""
    tested = [item for item in items(root, dataset) if item.split in ("test", "val", "validation")]
    tested = [item for item in tested if item.label >= 0 and item.path.is_file()]
    names = {item.label: item.group for item in tested}
    prompts = [template.format(spoken(names[label])) for label in sorted(names)]
    texts = model.encode_text(tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")["input_ids"])
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    config, right, shuffled = model.config, [], []
    for item in tested:
        video = (torch.from_numpy(read_clip(item.path, config.num_frames, config.image_size)).float() / 255 - mean) / std
        order = torch.randperm(len(video), generator=torch.Generator().manual_seed(len(right)))
        clips = torch.stack([video, video[order]])
        said = (F.normalize(model.encode_video(clips), dim=-1) @ F.normalize(texts, dim=-1).T).argmax(1)
        right.append(bool(said[0] == item.label))
        shuffled.append(bool(said[1] == item.label))
    row = {"dataset": dataset, "classes": len(names), "clips": len(right), "zero-shot": round(float(np.mean(right)), 3)}
    return row | {"frames shuffled": round(float(np.mean(shuffled)), 3), "chance": round(1 / len(names), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="tiny:viclip")
    weights = parser.parse_args().weights
    model, tokenizer = load_viclip(weights), CLIPTokenizer.from_pretrained(resolve(weights), local_files_only=True)
    rows = [zero_shot(model, tokenizer, dataset, tiny_root(f"tiny:{dataset}")) for dataset in DATASETS]
    print(console_table(rows, f"{weights}, zero-shot on style B"))


if __name__ == "__main__":
    main()

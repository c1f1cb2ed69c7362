"""A small convolutional classifier with a head per attribute: what does a picture show?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.files import write_json


class Judge(nn.Module):
    """(B, 3, H, W) in [0, 1] -> logits (B, K) for each attribute; pictures of another size are resized first.

    Args:
        classes: Attribute -> names of its K classes.
        channels: Width of each stage; all but the first one halve the picture.
        image_size: Pixels per side.
    """

    def __init__(self, classes: Mapping[str, list[str]], channels: tuple[int, ...] = (16, 32, 64, 96, 96), image_size: int = 64) -> None:
        super().__init__()
        self.classes = {name: list(classes[name]) for name in sorted(classes)}  # as config.json has them: heads go by number
        self.channels, self.image_size = tuple(channels), image_size
        stages: list[nn.Module] = []
        for before, after in zip((3, *channels), channels):
            stride = 2 if 3 < before < after else 1
            stages += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.stages = nn.Sequential(*stages)
        # In the order of the classes; not a ModuleDict: an attribute may be called as one of its methods ("type").
        self.heads = nn.ModuleList(nn.Linear(2 * channels[-1], len(values)) for values in self.classes.values())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        size = (self.image_size, self.image_size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True)
        features = self.stages((2 * image - 1).contiguous(memory_format=torch.channels_last))
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)  # a background is everywhere, a shape in one place
        return {name: head(pooled) for name, head in zip(self.classes, self.heads)}

    @torch.no_grad()
    def say(self, image: Tensor) -> dict[str, list[str]]:
        """Attribute -> name of the likeliest class of each picture."""
        return {name: [self.classes[name][i] for i in logits.argmax(1).tolist()] for name, logits in self(image).items()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``config.json`` and ``model.safetensors`` in the present precision."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"classes": self.classes, "channels": list(self.channels), "image_size": self.image_size}
        write_json(folder / "config.json", {"architectures": ["Judge"], "model_type": "judge"} | settings)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, *, local_files_only: bool = True, output_loading_info: bool = False
    ) -> Any:
        """Reads a folder; :func:`genlab.weights.load_pretrained` is the door, which also knows ``tiny:judge``.

        Raises:
            OSError: The files are not there.
            UserError: They hold another model.
        """
        from safetensors.torch import load_file

        folder = Path(pretrained_model_name_or_path)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("model_type") != "judge":
            raise UserError(f"weights: {folder} holds a {config.get('model_type', 'model of no name')}, not a judge.")
        model = cls(config["classes"], tuple(config["channels"]), config["image_size"])
        found = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        if found.unexpected_keys or (found.missing_keys and not output_loading_info):
            raise UserError(f"weights: {folder} does not hold its config's judge: {[*found.unexpected_keys, *found.missing_keys][:3]}.")
        info = {"missing_keys": found.missing_keys, "unexpected_keys": found.unexpected_keys, "mismatched_keys": []}
        return (model.eval(), info) if output_loading_info else model.eval()

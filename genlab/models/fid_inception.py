"""The Inception network that FID and KID of papers are taken with: TensorFlow's of 2015, as pytorch-fid's file holds it.

It differs from torchvision's: averages leave padding out, the last block takes a maximum, and there are 1008 classes. The file is read,
never downloaded.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import Inception3
from torchvision.models.inception import InceptionA, InceptionC, InceptionE

from genlab.errors import MissingPath, UserError
from genlab.weights import resolve

FILE = "pt_inception-2015-12-05-6726825d.pth"
SIDE = 299


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class _A(InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        wide = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), wide, self.branch_pool(_average(x))]


class _C(InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        seven, twice = self.branch7x7_1(x), self.branch7x7dbl_1(x)
        for part in (self.branch7x7_2, self.branch7x7_3):
            seven = part(seven)
        for part in (self.branch7x7dbl_2, self.branch7x7dbl_3, self.branch7x7dbl_4, self.branch7x7dbl_5):
            twice = part(twice)
        return [self.branch1x1(x), seven, twice, self.branch_pool(_average(x))]


class _E(InceptionE):
    """Args: channels of the input, and whether its pooling takes the maximum."""

    def __init__(self, channels: int, maximum: bool) -> None:
        super().__init__(channels)
        self.maximum = maximum

    def _forward(self, x: Tensor) -> list[Tensor]:
        three, twice = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.maximum else _average(x)
        return [
            self.branch1x1(x),
            torch.cat([self.branch3x3_2a(three), self.branch3x3_2b(three)], 1),
            torch.cat([self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)], 1),
            self.branch_pool(pooled),
        ]


class FIDInception(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, 2048), after the last average; pictures are resized to 299 pixels bilinearly, without smoothing."""

    def __init__(self) -> None:
        super().__init__()
        whole = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
        whole.Mixed_5b, whole.Mixed_5c, whole.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        whole.Mixed_6b, whole.Mixed_6c, whole.Mixed_6d, whole.Mixed_6e = (_C(768, width) for width in (128, 160, 160, 192))
        whole.Mixed_7b, whole.Mixed_7c = _E(1280, False), _E(2048, True)
        whole.fc, whole.dropout = nn.Identity(), nn.Identity()
        self.network = whole

    def forward(self, pictures: Tensor) -> Tensor:
        sized = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", align_corners=False)
        features: Tensor = self.network(2 * sized - 1)
        return features


def load_fid_inception(name: str) -> FIDInception:
    """The network with its weights.

    Args:
        name: The file, or a folder (or hub id) that holds it.

    Raises:
        MissingPath: There is no such file.
        UserError: It holds another network.
    """
    path = Path(resolve(name))
    if path.is_dir():
        path = next((file for file in sorted(path.iterdir()) if file.suffix in (".pth", ".safetensors")), path / FILE)
    if not path.is_file():
        raise MissingPath(f"model.measures.inception: {path} is not there. It is pytorch-fid's file {FILE}; give its path.")
    model = FIDInception().eval()
    state = _read(path)
    own = model.network.state_dict()
    wrong = [key for key in own if not key.endswith("num_batches_tracked") and (key not in state or state[key].shape != own[key].shape)]
    if wrong:
        raise UserError(
            f"model.measures.inception: {path} is not the network of FID: {len(wrong)} of its {len(own)} tensors are missing or of another "
            f"shape ({', '.join(wrong[:3])}). It is pytorch-fid's file {FILE}; torchvision's Inception is another."
        )
    model.network.load_state_dict({key: state[key] for key in own if key in state}, strict=False)
    return model.requires_grad_(False)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        held = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"model.measures.inception: {path} cannot be read as weights ({type(error).__name__}). Is it whole?") from error
    return held if isinstance(held, dict) else {}

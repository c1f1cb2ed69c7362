"""Backbones of the multi-attention detector on pictures of any number of channels: timm's networks, and a tiny one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from genlab.errors import MissingPath, UserError
from genlab.models.efficientnet_lite0 import NAME as LITE0
from genlab.models.efficientnet_lite0 import efficientnet_lite0_weights
from genlab.models.multi_attention import CentralDifferenceConv
from genlab.weights import resolve


class TinyBackbone(nn.Module):
    """Four 3 x 3 convolutions with batch norm and Mish, the first one a central-difference convolution; strides 2, 2, 1, 2.

    Args:
        channels: C.
        theta: Of the first one.
    """

    early_width, final_width = 32, 48

    def __init__(self, channels: int, theta: float = 0.7) -> None:
        super().__init__()
        widths, strides = (16, 24, 32, 48), (2, 2, 1, 2)
        self.stages = nn.ModuleList()
        for width, stride, before in zip(widths, strides, (channels, *widths)):
            first = before == channels and not len(self.stages)
            conv = CentralDifferenceConv(before, width, stride, theta) if first else nn.Conv2d(before, width, 3, stride, 1, bias=False)
            self.stages.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.Mish()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (B, 32, H/4, W/4), (B, 48, H/8, W/8)."""
        for stage in self.stages[:3]:
            x = stage(x)
        return x, self.stages[3](x)


class EfficientNetBackbone(nn.Module):
    """timm's EfficientNet with a central-difference stem: the outputs of its third stage, and of its head convolution or last stage."""

    def __init__(self, network: Any, channels: int, theta: float, stages: int | None = None) -> None:
        super().__init__()
        stem = network.conv_stem
        self.network = network
        if stages is not None:
            if not 4 <= stages <= len(network.blocks):
                raise UserError(f"model.backbone.stages: {stages} is out of range; use 4 to {len(network.blocks)}, or null for all.")
            network.blocks = network.blocks[:stages]
            network.conv_head, network.bn2 = nn.Identity(), nn.Identity()
        self.network.conv_stem = CentralDifferenceConv(channels, stem.out_channels, stem.stride[0], theta)
        self.early_width = _out_channels(network.blocks[2])
        self.final_width = int(network.num_features) if stages is None else _out_channels(network.blocks[-1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> strides 8 and 32; of fewer stages 16 or 32."""
        net = self.network
        x = net.bn1(net.conv_stem(x))
        for stage in net.blocks[:3]:
            x = stage(x)
        early = x
        for stage in net.blocks[3:]:
            x = stage(x)
        return early, net.bn2(net.conv_head(x))


class FeaturesBackbone(nn.Module):
    """Any other network of timm: its map of stride 8 and its last one."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        reductions = network.feature_info.reduction()
        if 8 not in reductions:
            raise UserError(f"model.backbone: the network has no features of stride 8; its strides are {reductions}.")
        self.early = reductions.index(8)
        self.early_width, self.final_width = network.feature_info.channels()[self.early], network.feature_info.channels()[-1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.network(x)
        return maps[self.early], maps[-1]


def _out_channels(stage: nn.Module) -> int:
    return [part for part in stage.modules() if isinstance(part, nn.Conv2d)][-1].out_channels


@dataclass(frozen=True)
class SpectralBackbone:
    """A backbone and where its weights come from.

    Args:
        name: Of timm, or ``tiny``. Official code: EfficientNet-B3.
        weights: ``None`` for random ones; ``package``: those of EfficientNet-Lite0 that are installed; else a folder, file or hub id with
            timm's ``model.safetensors``. All but the stem, which sees other channels, start from them.
        act: Activation everywhere, also in squeeze-excite; ``None`` is the network's own. Official code: mish.
        theta: Of the central-difference stem (EfficientNets and ``tiny``).
        drop_path: Stochastic depth, per block rising linearly from 0.
        bn_momentum: Of all batch norms of the backbone.
        stages: Of an EfficientNet take the first ones only, 4 or more, without its head convolution: for small pictures.
    """

    name: str = "tf_efficientnet_b3.ap_in1k"
    weights: str | None = "timm/tf_efficientnet_b3.ap_in1k"
    act: str | None = "mish"
    theta: float = 0.7
    drop_path: float = 0.2
    bn_momentum: float = 0.01
    stages: int | None = None

    @property
    def pretrained(self) -> bool:
        return self.weights is not None

    def build(self, channels: int) -> nn.Module:
        """The backbone for pictures of so many channels.

        Raises:
            UserError: No such network, or weights of another one.
        """
        if self.name == "tiny":
            return TinyBackbone(channels, self.theta)
        import timm

        if self.name not in timm.list_models(self.name.partition(".")[0] + "*") + timm.list_pretrained(self.name):
            near = timm.list_models(f"*{self.name.partition('.')[0][:14]}*")[:5]
            raise UserError(f"model.backbone: timm has no network {self.name!r}; near are {', '.join(near) or 'none'}.")
        options: dict[str, Any] = {"in_chans": channels, "drop_path_rate": self.drop_path}
        if self.act is not None:
            options["act_layer"] = self.act
        network = timm.create_model(self.name, num_classes=0, **options)
        plain = not hasattr(network, "conv_head")
        if plain:
            options.pop("act_layer", None)
            network = timm.create_model(self.name, features_only=True, in_chans=channels)
        if self.weights is not None:
            self._load(network)
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = self.bn_momentum
        return FeaturesBackbone(network) if plain else EfficientNetBackbone(network, channels, self.theta, self.stages)

    def _load(self, network: nn.Module) -> None:
        """Everything but the stem and the classifier."""
        state, own = _read_weights(str(self.weights), self.name), network.state_dict()
        seeing = {key for key in own if key in state and own[key].shape != state[key].shape and own[key].ndim == 4}
        state = {key: value for key, value in state.items() if key in own and key not in seeing and not key.startswith("conv_stem.")}
        missing = [key for key in own if key not in state and key not in seeing and not key.startswith("conv_stem.")]
        wrong = [key for key in state if own[key].shape != state[key].shape]
        if missing or wrong or len(seeing) > 1:
            some = ", ".join([*missing, *wrong, *sorted(seeing)][:3])
            raise UserError(f"model.backbone.weights: {self.weights} does not fit {self.name}: {some}. Is it another network?")
        network.load_state_dict(state, strict=False)


def _read_weights(weights: str, name: str) -> dict[str, Tensor]:
    if weights == "package":
        if name != LITE0:
            raise UserError(f"model.backbone.weights: package has the weights of {LITE0}, the network is {name}.")
        return efficientnet_lite0_weights()
    from safetensors.torch import load_file

    path = Path(resolve(weights))
    file = path if path.is_file() else path / "model.safetensors"
    if not file.is_file():
        file = _from_hub(weights)
    return load_file(file)


def _from_hub(weights: str) -> Path:
    import os

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    download = os.environ.get("GENLAB_DOWNLOAD", "") not in ("", "0")
    try:
        return Path(hf_hub_download(weights, "model.safetensors", local_files_only=not download))
    except (LocalEntryNotFoundError, ValueError, OSError) as error:
        raise MissingPath(
            f"model.backbone.weights: {weights} is not on this machine. Set GENLAB_DOWNLOAD=1 to let the hub be asked, or with "
            f"network run 'hf download {weights} --local-dir {weights}' and set GENLAB_WEIGHTS to the folder that holds it."
        ) from error

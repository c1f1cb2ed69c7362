"""LPIPS networks (Zhang et al., arXiv 1801.03924) for machines without network: heads as torchmetrics ships them, backbone from a file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genlab.errors import MissingPath, UserError

FILES = {  # as torchvision calls them
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}


def load_lpips(net: str, backbone_weights: Path | str | None = None) -> nn.Module:
    """The network ``alex`` (the reference package's default), ``vgg`` or ``squeeze``: pairs in [-1, 1] -> (B, 1, 1, 1), 0 for equal ones.

    The backbone is torchvision's of ImageNet: in ``backbone_weights``, in ``$GENLAB_WEIGHTS/torchvision/`` or in torch's own cache. Only
    ``GENLAB_DOWNLOAD=1`` lets it be downloaded.

    Raises:
        MissingPath: It is in none of these places.
        UserError: The file holds another network.
    """
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    path = _backbone(net, backbone_weights)
    network = _NoTrainLpips(net=net, pnet_rand=path is not None)  # type: ignore[arg-type]
    if path is not None:
        held = _read(path)
        features = {name.removeprefix("features."): value for name, value in held.items() if name.startswith("features.")}
        own = network.net.state_dict()
        places = {name: re.sub(r"^slices?\.?\d+\.", "", name) for name in own}  # slice1.0.weight is torchvision's features.0.weight
        missing = [name for name in own if places[name] not in features or features[places[name]].shape != own[name].shape]
        if missing:
            raise UserError(
                f"backbone_weights: {path} is not torchvision's network for lpips_{net}: {len(missing)} of its {len(own)} parameters are "
                f"missing or of another shape ({', '.join(missing[:3])}). It is the file {FILES[net]}."
            )
        network.net.load_state_dict({name: features[place] for name, place in places.items()})
    return network.requires_grad_(False).eval()


def _backbone(net: str, given: Path | str | None) -> Path | None:
    """The file with the backbone's weights; ``None`` where torchvision may download it."""
    if given is not None:
        if not Path(given).is_file():
            raise MissingPath(f"backbone_weights: {given} is not there. It is torchvision's file {FILES[net]}.")
        return Path(given)
    own = Path(os.environ.get("GENLAB_WEIGHTS", "weights")) / "torchvision" / FILES[net]
    places = [own, Path(torch.hub.get_dir()) / "checkpoints" / FILES[net]]
    if found := next((path for path in places if path.is_file()), None):
        return found
    if os.environ.get("GENLAB_DOWNLOAD", "") not in ("", "0"):
        return None
    raise MissingPath(
        f"lpips_{net}: its backbone, torchvision's {FILES[net]}, is not on this machine (looked for {' and '.join(map(str, places))}). "
        "Put it there, name it with --model.backbone_weights FILE, set GENLAB_DOWNLOAD=1 to let it be downloaded, or do without: "
        "--model.distances '[l1, ssim, psnr]'."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever the readers of both formats raise for a broken file
        raise UserError(f"backbone_weights: {path} cannot be read as weights ({type(error).__name__}). Is it whole?") from error

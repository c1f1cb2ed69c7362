"""Which networks generated pictures are measured by, found on this machine when a test begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from genlab.errors import MissingPath
from genlab.metrics.lpips import FILES, load_lpips
from genlab.metrics.t2i import FewShotQuality, MeanCosine, PromptCosine
from genlab.models.fid_inception import load_fid_inception
from genlab.models.picture_features import LitePictureFeatures
from genlab.models.scoring_towers import ClipScorer, DinoFeatures

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Measures:
    """Networks of ``test`` beside EfficientNet-Lite0, which an installed package brings along and which is in no paper.

    Args:
        inception: pytorch-fid's file of weights: FID (with ``data.reference``) and KID as papers have them.
        lpips: Network of LPIPS for intra-cluster LPIPS; few-shot work: vgg.
        lpips_weights: torchvision's weights of it; left out, ``$GENLAB_WEIGHTS/torchvision/``.
        clip: CLIP for CLIP-T and CLIP-I: hub id, folder or ``tiny:clip``. Usual: openai/clip-vit-base-patch32.
        dino: ViT for DINO-I: hub id or folder. Usual: facebook/dino-vits16.
        lite0: EfficientNet-Lite0's figures as well.
    """

    inception: str | None = None
    lpips: Literal["vgg", "alex", "squeeze"] | None = None
    lpips_weights: str | None = None
    clip: str | None = None
    dino: str | None = None
    lite0: bool = True


class Quality(nn.Module):
    """All chosen measures of generated pictures. Each name begins with its network's.

    Args:
        measures: Which.
        real: (R, 3, H, W) in [0, 1], the few real pictures.
        reference: (N, 3, H, W) in [0, 1], many more, or ``None``.

    Raises:
        MissingPath: A network is not on this machine.
        UserError: A file is not what it should be.
    """

    def __init__(self, measures: Measures, real: Tensor, reference: Tensor | None = None) -> None:
        super().__init__()
        self.networks = nn.ModuleDict()
        self.few = nn.ModuleDict()
        self.cosines = nn.ModuleDict()
        self.prompts: PromptCosine | None = None
        if measures.lite0:
            lite = self._kept("lite0", LitePictureFeatures())
            self.few["lite0"] = FewShotQuality(lite, lite.distance, real, reference=reference)
        if measures.inception is not None:
            self.few["inception"] = FewShotQuality(
                self._kept("inception", load_fid_inception(measures.inception)), None, real, 50, reference
            )
        if measures.lpips is not None:
            name = f"lpips_{measures.lpips}"
            self.few[name] = FewShotQuality(None, lpips_distance(self._kept(name, _lpips(measures))), real)
        if measures.clip is not None:
            scorer = self._kept("clip", ClipScorer(measures.clip))
            self.cosines["clip_i"] = MeanCosine(scorer, real)
            self.prompts = PromptCosine(scorer, scorer.text)
        if measures.dino is not None:
            self.cosines["dino_i"] = MeanCosine(self._kept("dino", DinoFeatures(measures.dino)), real)

    def _kept(self, name: str, network: Network) -> Network:
        self.networks[name] = network
        return network

    def _few(self) -> dict[str, FewShotQuality]:
        return cast(dict[str, FewShotQuality], dict(self.few.items()))

    def _cosines(self) -> dict[str, MeanCosine]:
        return cast(dict[str, MeanCosine], dict(self.cosines.items()))

    @torch.no_grad()
    def update(self, pictures: Tensor, numbers: Tensor, prompts: Sequence[str]) -> None:
        """Generated pictures (B, 3, H, W) in [0, 1], their numbers (B,) and prompts."""
        for few in self._few().values():
            few.update(pictures, numbers)
        for cosine in self._cosines().values():
            cosine.update(pictures)
        if self.prompts is not None:
            self.prompts.update(pictures, prompts)

    def compute(self) -> dict[str, Tensor]:
        """Such as ``lite0_kid_x1000``, ``inception_fid``, ``lpips_vgg_intra``, ``clip_t``."""
        found = {f"{name}_{key}": value for name, few in self._few().items() for key, value in few.compute().items()}
        found |= {name: cosine.compute() for name, cosine in self._cosines().items()}
        return found | ({"clip_t": self.prompts.compute()} if self.prompts is not None else {})


def lpips_distance(network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS (Zhang et al., arXiv 1801.03924) of pictures (B, 3, H, W) in [0, 1] -> (B,)."""

    def distance(one: Tensor, other: Tensor) -> Tensor:
        value: Tensor = network(2 * one - 1, 2 * other - 1)
        return value.flatten()

    return distance


def _lpips(measures: Measures) -> nn.Module:
    assert measures.lpips is not None
    try:
        return load_lpips(measures.lpips, measures.lpips_weights)
    except MissingPath as error:
        file, place = FILES[measures.lpips], measures.lpips_weights or "$GENLAB_WEIGHTS/torchvision/"
        raise MissingPath(
            f"model.measures.lpips: torchvision's {file} is not on this machine (looked in {place}). Put it there, or name it with "
            "--model.measures.lpips_weights FILE."
        ) from error

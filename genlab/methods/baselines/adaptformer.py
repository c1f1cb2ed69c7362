"""AdaptFormer (arXiv 2205.13535): a bottleneck beside the MLP of every block, in both towers of a video-text network."""

from __future__ import annotations

import math
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from genlab.batches import ActionBatch
from genlab.models.video_text import Kind, Parts
from genlab.training.video_text import VideoTextMethod, classification_loss


class Bottleneck(nn.Module):
    """s W_up ReLU(W_down x), zero at the start: (..., D) -> (..., D).

    Args:
        width: D.
        bottleneck: Channels between.
        scale: s.
    """

    def __init__(self, width: int, bottleneck: int, scale: float) -> None:
        super().__init__()
        self.down, self.up, self.scale = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width), scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.up(F.relu(self.down(x)))


class AdaptFormer(VideoTextMethod):
    """Block k gives x' + MLP(LN(x')) + Bottleneck(x') with x' = x + attention; the network is frozen.

    Args:
        backbone: Hub id or folder, ``tiny:viclip``.
        network: ``viclip``, or ``clip`` for frame by frame.
        bottleneck: Channels; 256 in both towers of ViCLIP-B/16 make the 7.9 M parameters that the MSTA paper gives. AdaptFormer: 64.
        scale: s. AdaptFormer: 0.1.
        prompt_template: ``{}`` for the class name.
        humanize: Turn names as ``ApplyEyeMakeup`` into words.
        lr: Of AdamW.
        weight_decay: On everything trained.
        warmup_epochs: Of the learning rate.
    """

    def __init__(
        self,
        backbone: str = "OpenGVLab/ViCLIP-B-16-hf",
        network: Kind = "viclip",
        bottleneck: int = 256,
        scale: float = 0.1,
        prompt_template: str = "a video of {}.",
        humanize: bool = False,
        lr: float = 1e-3,
        weight_decay: float = 1e-3,
        warmup_epochs: float = 5.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    def build(self) -> None:
        h, net = self.hparams, self.net
        self.freeze_part("backbone")
        self.vision = nn.ModuleList(Bottleneck(net.vision_width, h.bottleneck, h.scale) for _ in range(net.vision_layers))
        self.text = nn.ModuleList(Bottleneck(net.text_width, h.bottleneck, h.scale) for _ in range(net.text_layers))

    def encode_video(self, video: Tensor) -> Tensor:
        x = self.net.embed_video(video)
        for k, adapter in enumerate(self.vision, 1):
            x = _adapted(self.net.video_block(k), cast(Bottleneck, adapter), x)
        return self.net.project_video(x, len(video))

    def encode_prompts(self, name: str) -> Tensor:
        tokens = self.prompt_tokens(name)
        x = self.net.embed_text(tokens)
        for k, adapter in enumerate(self.text, 1):
            x = _adapted(self.net.text_block(k), cast(Bottleneck, adapter), x)
        return self.net.project_text(x, tokens)

    def training_step(self, batch: ActionBatch, batch_idx: int) -> Tensor:
        loss = classification_loss(self.logits(batch["video"][:, 0], self.encode_prompts("train")), batch["label"])
        self.log_substitutes(batch)
        return self.log_losses({"loss": loss}, batch_size=len(batch["label"]))


def _adapted(block: Parts, adapter: Bottleneck, x: Tensor) -> Tensor:
    x = x + block.attend(block.norm1(x))
    return x + block.mlp(block.norm2(x)) + adapter(x)

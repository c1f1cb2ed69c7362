"""LoRA (arXiv 2106.09685) on the linear layers of a video-text network, by peft."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from genlab.batches import ActionBatch
from genlab.models.video_text import Kind
from genlab.training.video_text import VideoTextMethod, classification_loss

LAYERS = {"viclip": ["out_proj", "c_fc", "c_proj"], "clip": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]}


class VideoLoRA(VideoTextMethod):
    """Low-rank updates of the blocks' linear layers in both towers.

    ViCLIP's queries, keys and values are one matrix, which is left as it is. The MSTA paper gives 9.4 M trained parameters and neither rank
    nor layers; rank 51 comes to that number here.

    Args:
        backbone: Hub id or folder, ``tiny:viclip``.
        network: ``viclip``, or ``clip`` for frame by frame.
        rank: Of the updates; their scale is 1.
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
        rank: int = 51,
        prompt_template: str = "a video of {}.",
        humanize: bool = False,
        lr: float = 1e-3,
        weight_decay: float = 1e-3,
        warmup_epochs: float = 5.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    def build(self) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        h = self.hparams
        self.net.requires_grad_(False)
        config = LoraConfig(r=h.rank, lora_alpha=h.rank, target_modules=LAYERS[h.network], lora_dropout=0.0)
        inject_adapter_in_model(config, cast(nn.Module, self.net))

    def is_frozen(self, key: str) -> bool:
        return "lora_" not in key and key.startswith("backbone.")

    def training_step(self, batch: ActionBatch, batch_idx: int) -> Tensor:
        loss = classification_loss(self.logits(batch["video"][:, 0], self.encode_prompts("train")), batch["label"])
        self.log_substitutes(batch)
        return self.log_losses({"loss": loss}, batch_size=len(batch["label"]))

"""Full fine-tuning of a video-text network for action recognition: what adapters are compared with, and ViFi-CLIP (arXiv 2212.03640).

ViFi-CLIP is this with ``network: clip``: every frame through CLIP, the mean of the frames' embeddings, both towers trained.
"""

from __future__ import annotations

from torch import Tensor

from genlab.batches import ActionBatch
from genlab.models.video_text import Kind
from genlab.training.video_text import VideoTextMethod, classification_loss


class VideoFineTuning(VideoTextMethod):
    """Everything is trained but the token embedding and the temperature (124.3 M parameters of ViCLIP-B/16, as the MSTA paper counts).

    Args:
        backbone: Hub id or folder, ``tiny:viclip``.
        network: ``viclip``, or ``clip`` for frame by frame.
        prompt_template: ``{}`` for the class name.
        humanize: Turn names as ``ApplyEyeMakeup`` into words.
        lr: Of AdamW. ViFi-CLIP: 8e-6 fully supervised, 2e-6 few-shot.
        weight_decay: On everything trained.
        warmup_epochs: Of the learning rate.
    """

    def __init__(
        self,
        backbone: str = "OpenGVLab/ViCLIP-B-16-hf",
        network: Kind = "viclip",
        prompt_template: str = "a video of {}.",
        humanize: bool = False,
        lr: float = 8e-6,
        weight_decay: float = 1e-3,
        warmup_epochs: float = 5.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    def build(self) -> None:
        self.net.requires_grad_(True)
        for name, parameter in self.net.named_parameters():
            if name.endswith(("token_embedding.weight", "temp", "logit_scale")):
                parameter.requires_grad_(False)

    def training_step(self, batch: ActionBatch, batch_idx: int) -> Tensor:
        loss = classification_loss(self.logits(batch["video"][:, 0], self.encode_prompts("train")), batch["label"])
        self.log_substitutes(batch)
        return self.log_losses({"loss": loss}, batch_size=len(batch["label"]))

"""Zero-shot action recognition: the frozen video-text network and class prompts, nothing trained (ViCLIP, arXiv 2307.06942)."""

from __future__ import annotations

from genlab.models.video_text import Kind
from genlab.training.video_text import VideoTextMethod


class VideoZeroShot(VideoTextMethod):
    """A clip is called by the class whose prompt is nearest.

    Args:
        backbone: Hub id or folder, ``tiny:viclip``.
        network: ``viclip``, or ``clip`` for frame by frame.
        prompt_template: ``{}`` for the class name.
        humanize: Turn names as ``ApplyEyeMakeup`` into words.
    """

    needs_checkpoint = False

    def __init__(
        self,
        backbone: str = "OpenGVLab/ViCLIP-B-16-hf",
        network: Kind = "viclip",
        prompt_template: str = "a video of {}.",
        humanize: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    def build(self) -> None:
        self.freeze_part("backbone")

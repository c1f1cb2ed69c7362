"""Inpainting pipelines of diffusers as inpainters: Stable Diffusion, SDXL, FLUX-Fill and whatever ``AutoPipelineForInpainting`` loads."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.diffusion.components import pipeline_options
from genlab.errors import MissingPath, UserError
from genlab.files import fingerprint
from genlab.models.inpainters import Inpainter, generators
from genlab.weights import resolve

log = logging.getLogger(__name__)

MULTIPLE_OF = 8  # what the sides of a picture must be for the pipelines
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(eq=False)
class Diffusers(Inpainter):
    """An inpainting pipeline.

    Args:
        weights: Folder, hub id such as ``stable-diffusion-v1-5/stable-diffusion-inpainting``, or ``tiny:inpaint``.
        prompt: For pictures that come without one; empty by default, which makes large models put things into large holes.
        use_prompts: Listen to the prompts of the data.
        steps: Denoising steps.
        guidance: Of classifier-free guidance; 1 is without.
        strength: In (0, 1]; 1 starts from pure noise.
        dtype: ``auto`` is fp16 on a GPU and fp32 on a CPU; results in half precision differ between GPUs in their last bits.
        seed_offset: Another number draws other noise.
        name: In tables; left out, the last part of ``weights``.
        batch_size: Pictures per call.
    """

    weights: str
    prompt: str = ""
    use_prompts: bool = False
    steps: int = 50
    guidance: float = 7.5
    strength: float = 1.0
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed_offset: int = 0
    name: str = ""
    batch_size: int = 4
    same_anywhere: ClassVar[tuple[str, ...]] = Inpainter.same_anywhere

    def __post_init__(self) -> None:
        self.name = self.name or self.weights.removeprefix("tiny:").rstrip("/").rsplit("/", 1)[-1]
        if self.steps < 1 or not 0 < self.strength <= 1:
            raise UserError(
                f"Diffusers {self.name}: {self.steps=} {self.strength=}; there is at least one step, and strength is in (0, 1]."
            )

    def key(self) -> dict[str, Any]:
        folder = Path(resolve(self.weights))
        files = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in folder.rglob("*") if path.is_file()]
        return super().key() | ({"weights": fingerprint(files)} if folder.is_dir() else {})

    def load(self, device: torch.device) -> None:
        from diffusers import AutoPipelineForInpainting

        source = resolve(self.weights)
        dtype = ("fp16" if device.type == "cuda" else "fp32") if self.dtype == "auto" else self.dtype
        download = os.environ.get("GENLAB_DOWNLOAD", "") not in ("", "0")
        options = {"torch_dtype": DTYPES[dtype], "local_files_only": not download}
        try:
            index = AutoPipelineForInpainting.load_config(source, local_files_only=not download)
            options |= pipeline_options() if "safety_checker" in index else {}
            self._pipeline: Any = AutoPipelineForInpainting.from_pretrained(source, **options)
        except OSError as error:
            raise MissingPath(
                f"weights: {self.weights} is not on this machine as a whole pipeline. Set GENLAB_DOWNLOAD=1 to let the hub be asked, or "
                f"fill $GENLAB_WEIGHTS/{self.weights}. ({str(error).splitlines()[0]})"
            ) from error
        except ValueError as error:
            raise UserError(f"weights: {self.weights} is no pipeline that can fill holes ({str(error).splitlines()[0]}).") from error
        self._pipeline.set_progress_bar_config(disable=True)
        self._pipeline.to(device)

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        texts = [(text if self.use_prompts else "") or self.prompt for text in prompts or [""] * len(images)]
        return run_pipeline(
            self._pipeline, images, holes, texts, [seed + self.seed_offset for seed in seeds], self.steps, self.guidance, self.strength
        )


@torch.no_grad()
def run_pipeline(
    pipeline: Any, images: Tensor, holes: Tensor, prompts: list[str], seeds: list[int], steps: int, guidance: float, strength: float = 1.0
) -> Tensor:
    """Calls a pipeline with white = hole, a generator for each picture, and sides that are multiples of 8; gives back the size that came.

    Raises:
        UserError: Its safety checker has blackened a picture.
    """
    height, width = images.shape[-2:]
    size = tuple(max(math.ceil(side / MULTIPLE_OF), 1) * MULTIPLE_OF for side in (height, width))
    resized, hidden = images, holes
    if size != (height, width):
        resized = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        hidden = F.interpolate(holes, size, mode="nearest-exact")
    result = pipeline(
        prompt=prompts,
        image=resized,
        mask_image=hidden,
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance,
        strength=strength,
        generator=generators(seeds),
        output_type="pt",
    )
    if any(getattr(result, "nsfw_content_detected", None) or []):
        raise UserError(
            "weights: the pipeline's safety checker has blackened a result, which cannot be judged. Load it without the checker."
        )
    return _original_size(result.images.float(), (height, width))


def _original_size(filled: Tensor, size: tuple[int, int]) -> Tensor:
    if filled.shape[-2:] != size:
        filled = F.interpolate(filled, size, mode="bilinear", antialias=True, align_corners=False)
    return filled.clamp(0, 1)

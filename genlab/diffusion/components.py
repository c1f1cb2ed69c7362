"""The parts of a Stable Diffusion pipeline, loaded one by one from a folder or the hub, and frozen.

A pipeline folder has ``tokenizer/``, ``text_encoder/``, ``vae/``, ``unet/`` and ``scheduler/``. Methods train some of the parts, or small
things inside them; so the parts are handed out as they are, in fp32, and nothing is wrapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from genlab.diffusion.schedule import Prediction
from genlab.errors import MissingPath, UserError
from genlab.weights import load_pretrained, resolve

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")


@dataclass
class Components:
    """Frozen networks of a pipeline, in eval mode, and its schedule."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler

    @property
    def alphas_cumprod(self) -> Tensor:
        """a_t, (steps,) fp32."""
        return self.scheduler.alphas_cumprod

    @property
    def prediction(self) -> Prediction:
        """What the UNet predicts."""
        return prediction_of(self.scheduler)


def load_components(name: str) -> Components:
    """All parts of the pipeline in a folder, at a hub id, or of ``tiny:NAME``.

    Raises:
        MissingPath: A part is not on this machine.
        UserError: A part is not what its name says.
    """
    source = Path(resolve(name))
    if source.is_file():
        raise UserError(
            f"model.backbone: {source} is one file. A folder in diffusers' format is read; "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER) makes one."
        )
    if source.is_dir() and (absent := [part for part in PARTS if not (source / part).is_dir()]):
        raise MissingPath(f"model.backbone: {source} is no whole Stable Diffusion: {', '.join(f'{part}/' for part in absent)} missing.")
    scheduler = load_scheduler(name)
    refuse_other_conditions(name)
    return Components(*load_text(name), load_vae(name), load_unet(name), scheduler)


def refuse_other_conditions(name: str) -> None:
    """A UNet that wants more than latents, a timestep and one text: of SDXL, for inpainting, for classes. Its configuration says so.

    Raises:
        UserError: It does.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    source = resolve(name)
    try:
        unet, vae = (
            dict(kind.load_config(source, subfolder=part, local_files_only=True))
            for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
        )
    except OSError:
        return  # loading says what is missing
    if unet.get("addition_embed_type") is not None or (Path(source) / "text_encoder_2").is_dir():
        raise UserError(
            f"model.backbone: {name} is an SDXL, whose UNet also takes a pooled text and sizes of the picture, and whose text comes from "
            "two towers; that is not supported. Use a Stable Diffusion 1 or 2."
        )
    wanted, channels = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if wanted != channels or unet.get("class_embed_type") is not None:
        raise UserError(
            f"model.backbone: the UNet of {name} takes {wanted} channels, its latents have {channels}. It wants more than latents and "
            "text, as those for inpainting do; use a plain Stable Diffusion 1 or 2."
        )


def load_text(name: str) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Tokenizer and text tower of a pipeline, or of a CLIP folder: what a UNet listens to.

    Raises:
        MissingPath: Not on this machine.
    """
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

    source = resolve(name)
    alone = Path(source).is_dir() and not (Path(source) / "text_encoder").is_dir()  # a CLIP, both towers in one file
    try:
        tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=True, subfolder="" if alone else "tokenizer")
    except OSError as error:
        raise MissingPath(f"weights: {name} has no tokenizer on this machine ({str(error).splitlines()[0]}).") from error
    if alone:
        text_encoder = load_pretrained(CLIPModel, name).text_model
    else:
        text_encoder = load_pretrained(CLIPTextModel, name, subfolder="text_encoder")
    return tokenizer, cast("CLIPTextModel", frozen(text_encoder))


def load_vae(name: str) -> AutoencoderKL:
    """The autoencoder of a pipeline."""
    from diffusers import AutoencoderKL

    return cast("AutoencoderKL", frozen(load_pretrained(AutoencoderKL, name, subfolder="vae")))


def load_unet(name: str) -> UNet2DConditionModel:
    """The denoising network of a pipeline."""
    from diffusers import UNet2DConditionModel

    return cast("UNet2DConditionModel", frozen(load_pretrained(UNet2DConditionModel, name, subfolder="unet")))


def load_scheduler(name: str) -> DDIMScheduler:
    """The noise schedule of a pipeline, as DDIM. Latents are never clipped, whatever an old configuration leaves unsaid.

    Raises:
        MissingPath: Not on this machine.
        UserError: The network predicts something else than noise or velocity.
    """
    from diffusers import DDIMScheduler

    try:
        scheduler = DDIMScheduler.from_pretrained(resolve(name), subfolder="scheduler", clip_sample=False, local_files_only=True)
    except OSError as error:
        raise MissingPath(f"weights: {name} has no scheduler/ on this machine ({str(error).splitlines()[0]}).") from error
    prediction_of(scheduler)
    return scheduler


def stable_diffusion_scheduler(prediction: Prediction) -> DDIMScheduler:
    """The schedule of Stable Diffusion 1 and 2 as DDIM."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def prediction_of(scheduler: DDIMScheduler) -> Prediction:
    """What the network of a schedule predicts.

    Raises:
        UserError: Neither noise nor velocity.
    """
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise UserError(f"weights: the scheduler's prediction_type is {kind!r}; epsilon and v_prediction are understood.")
    return cast(Prediction, kind)


def encode_text(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: list[str]) -> Tensor:
    """Last hidden states of the prompts, padded or cut to the tokenizer's length as pipelines do. -> (B, L, D)."""
    tokens = tokenizer(prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
    device = next(text_encoder.parameters()).device
    return text_encoder(tokens.input_ids.to(device))[0]


@torch.no_grad()
def encode_image(vae: AutoencoderKL, image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of q(z|x), scaled as the UNet wants them. (B, 3, H, W) in [0, 1] -> (B, C, h, w) twice."""
    posterior = vae.encode(2 * image - 1).latent_dist
    return posterior.mean * vae.config.scaling_factor, posterior.std * vae.config.scaling_factor


def decoded(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """(B, C, h, w) -> pictures (B, 3, H, W), differentiable; [0, 1] is black to white, and some values lie outside."""
    return vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """(B, C, h, w) -> pictures (B, 3, H, W) in [0, 1], fp32."""
    return decoded(vae, latents).float().clamp(0, 1)


def frozen(module: nn.Module) -> nn.Module:
    """The module without gradients and in eval mode."""
    return module.requires_grad_(False).eval()


def pipeline_options() -> dict[str, Any]:
    """What `StableDiffusionPipeline` and its like need to hear where there is no safety checker."""
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

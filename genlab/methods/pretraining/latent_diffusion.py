"""Latent diffusion with text (Rombach et al., arXiv 2112.10752), as diffusers' ``UNet2DConditionModel``: what Stable Diffusion is.

The autoencoder is frozen. Its latents never change for a picture that is not augmented, so they can be kept in memory: that is what makes
a tiny model trainable within an hour on one CPU core. The text tower is a given one, frozen as in Stable Diffusion, or a fresh one that is
trained along with the UNet, as in Eq. 3 of the paper.

Notation: x_0 latents, e noise, a_t = ``alphas_cumprod[t]``, see ``genlab.diffusion.schedule``.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from genlab.batches import CaptionedBatch, Evaluated, Strip
from genlab.diffusion.components import (
    decode_latents,
    encode_image,
    encode_text,
    load_scheduler,
    load_text,
    load_unet,
    load_vae,
    pipeline_options,
    stable_diffusion_scheduler,
)
from genlab.diffusion.losses import diffusion_loss, min_snr_weights, signal_to_noise
from genlab.diffusion.sampling import sample_latents
from genlab.diffusion.schedule import add_noise, training_target
from genlab.errors import UserError
from genlab.methods.pretraining.base import Pretraining
from genlab.methods.pretraining.judging import judged
from genlab.methods.pretraining.pipeline_parts import fresh_text_encoder, fresh_unet, share_parts, widen_input
from genlab.methods.pretraining.tokenizer import learn_tokenizer, merges_of, tokenizer_from, training_captions
from genlab.training.averaging import update_average, warm_decay
from genlab.training.randomness import keyed_rng, keyed_torch_generator
from genlab.training.schedules import warm_flat

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
    from transformers import CLIPTextModel, CLIPTokenizer


def random_holes(count: int, size: int, *keys: int | str) -> Tensor:
    """Masks to learn inpainting from: 1 where something is missing. (count, 1, size, size) float.

    Half are one rectangle, a third a thick stroke of the brush, the rest the whole picture, which keeps the model able to paint freely.
    """
    rng = keyed_rng(*keys)
    masks = torch.zeros(count, 1, size, size)
    grid = (torch.arange(size) + 0.5) / size
    for mask in masks[:, 0]:
        kind = rng.random()
        if kind < 0.5:
            height, width = rng.uniform(0.25, 0.75, 2)
            top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
            rows, columns = (grid >= top) & (grid < top + height), (grid >= left) & (grid < left + width)
            mask[rows[:, None] & columns[None]] = 1
        elif kind < 5 / 6:
            x, y, radius = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.16)
            for _ in range(int(rng.integers(6, 16))):
                mask[(grid[:, None] - y) ** 2 + (grid[None] - x) ** 2 < radius**2] = 1
                x, y = (min(max(place + rng.normal(0, 0.12), 0), 1) for place in (x, y))
        else:
            mask.fill_(1)
    return masks


class LatentDiffusion(Pretraining):
    """Trains a text-to-image, or inpainting, UNet on captioned pictures.

    Args:
        vae: Folder, hub id or ``tiny:NAME`` of a pipeline with the autoencoder; frozen.
        text_encoder: Likewise with tokenizer and text tower, or a CLIP; frozen. ``None`` trains a text tower along, that of ``weights`` or
            a fresh one with a tokenizer learned from the training captions.
        weights: Likewise with a UNet and a scheduler to continue from or to evaluate; ``None`` starts afresh with the sizes below.
        text_width: Of a fresh text tower.
        text_layers: Likewise.
        text_length: Tokens that it reads, with start and end; longer captions are cut.
        channels: Width of each level of the UNet, from the latents' size down.
        layers: Blocks per level.
        heads: Of each attention.
        groups: Of the group norms.
        plain_levels: First levels of the UNet that have no attention.
        image_size: Side of the pictures in pixels, for the pipeline's default.
        inpainting: Also show the network which part of the picture is missing, and the rest of it. A ``weights`` without these inputs
            gets them, with zero weights, so that it starts as what it was.
        prediction: What a fresh UNet predicts.
        min_snr_gamma: Weighting over time (see ``min_snr_weights``); ``None`` for none.
        text_dropout: Share of pictures whose caption is left empty, which guidance needs.
        posterior: ``sample`` draws x_0 from q(z|x), as Stable Diffusion does; ``mean`` takes its mean.
        cache: Keep latents and text states in memory. Only for data without augmentation.
        ema_decay: Of the running mean of the weights, which evaluation and export use.
        lr: AdamW. It rises over ``warmup`` steps, stays, and falls to 0 over the last ``cooldown`` of all steps.
        warmup: Steps.
        cooldown: Share of all steps.
        weight_decay: Of AdamW.
        sampling_steps: DDIM steps of the pictures drawn in evaluation.
        guidance: Likewise, of classifier-free guidance.
        judge: Folder or ``tiny:NAME`` of a classifier that names what drawn pictures show, in validation and test only; needs
            ``data.labels``. Of inpainting it judges the pictures with grey holes too, as ``<column>_unfilled``.
        seed: Of noise, timesteps, dropout, masks.
    """

    ema_updates: Tensor
    cannot_run_under: ClassVar[dict[str, str]] = {
        "FSDP": "the running mean of the weights takes them whole.",
        "ZeRO-1": "the running mean of the weights takes them in fp32.",  # steps of a thousandth are lost in bf16
        "ZeRO-2": "the running mean of the weights takes them in fp32.",
        "ZeRO-3": "the running mean of the weights takes them whole.",
    }

    def __init__(
        self,
        vae: str,
        text_encoder: str | None = None,
        weights: str | None = None,
        text_width: int = 128,
        text_layers: int = 2,
        text_length: int = 32,
        channels: list[int] | None = None,
        layers: int = 1,
        heads: int = 4,
        groups: int = 8,
        plain_levels: int = 0,
        image_size: int = 64,
        inpainting: bool = False,
        prediction: Literal["epsilon", "v_prediction"] = "v_prediction",
        min_snr_gamma: float | None = 5.0,
        text_dropout: float = 0.1,
        posterior: Literal["sample", "mean"] = "sample",
        cache: bool = False,
        ema_decay: float = 0.999,
        lr: float = 1e-3,
        warmup: int = 200,
        cooldown: float = 0.2,
        weight_decay: float = 0.01,
        sampling_steps: int = 25,
        guidance: float = 4.0,
        judge: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.needs_checkpoint = weights is None
        self.kept_latents: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.kept_states: dict[str, Tensor] = {}
        self.unet: UNet2DConditionModel | None = None

    # The networks. A fresh text tower depends on the vocabulary, so they are built from the data's captions or from a checkpoint then.

    def configure_model(self) -> None:
        if self.unet is not None:
            return
        settings = self.hparams
        source = settings.text_encoder or settings.weights
        if source is not None:
            self._build(*load_text(source))
        elif self._trainer is not None and self.trainer.training:
            self._build(learn_tokenizer(training_captions(self.trainer), max_length=settings.text_length))

    def _build(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel | None = None) -> None:
        from diffusers.models.attention_processor import AttnProcessor

        settings = self.hparams
        self.vae: AutoencoderKL = load_vae(settings.vae)
        self.freeze_part("vae")
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder or fresh_text_encoder(tokenizer, settings.text_width, settings.text_layers)
        self.text_ema: CLIPTextModel | None = None
        if settings.text_encoder is not None:
            self.freeze_part("text_encoder")
        else:
            # As below: written-out attention for the sake of the backward pass on a CPU.
            self.text_encoder.set_attn_implementation("sdpa" if torch.cuda.is_available() else "eager")
            self.text_encoder.requires_grad_(True).train()
            self.text_ema = copy.deepcopy(self.text_encoder).requires_grad_(False).eval()
        latent_channels = self.vae.config.latent_channels
        extra = latent_channels + 1 if settings.inpainting else 0
        if settings.weights is None:
            size = settings.image_size // 2 ** (len(self.vae.config.block_out_channels) - 1)
            width = self.text_encoder.config.hidden_size
            unet = fresh_unet(
                settings.channels or [64, 64],
                settings.layers,
                settings.heads,
                settings.groups,
                latent_channels,
                extra,
                width,
                size,
                settings.plain_levels,
            )
            self.scheduler = stable_diffusion_scheduler(settings.prediction)
        else:
            unet, self.scheduler = load_unet(settings.weights), load_scheduler(settings.weights)
            if extra and unet.config.in_channels == latent_channels:
                unet = widen_input(unet, extra)
        # The default, fused attention has a slow backward pass in bf16 on a CPU.
        unet.set_attn_processor(AttnProcessor())
        self.unet = unet.requires_grad_(True).to(memory_format=torch.channels_last).train()
        self.ema = copy.deepcopy(unet).requires_grad_(False).eval()
        self.register_buffer("ema_updates", torch.zeros((), dtype=torch.int64))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.text_ema is not None:
            checkpoint["tokenizer"] = {"merges": merges_of(self.tokenizer), "max_length": self.tokenizer.model_max_length}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        held = checkpoint.get("tokenizer")
        if held is not None and self.unet is None:
            self._build(tokenizer_from(held["merges"], held["max_length"]))
        elif held is not None and held["merges"] != merges_of(self.tokenizer):
            raise UserError(
                "ckpt_path: the checkpoint has another vocabulary than the captions give. Continue with the data it began with."
            )
        super().on_load_checkpoint(checkpoint)

    # Inputs: latents and text states.

    def latents(self, batch: CaptionedBatch, *keys: int | str) -> Tensor:
        """x_0 of the batch, fp32 (B, C, h, w); the draw from q(z|x) is keyed by ``keys``, sample and occurrence."""
        names = list(zip(batch["id"], batch["index"].tolist()))
        found = self.kept_latents if self.hparams.cache else {}
        new = [i for i, name in enumerate(names) if name not in found]
        if new:
            with torch.autocast(self.device.type, enabled=False):
                mean, std = encode_image(self.vae, batch["image"][new].contiguous(memory_format=torch.channels_last))
            found |= {names[i]: each for i, each in zip(new, zip(mean, std))}
        mean, std = (torch.stack(each) for each in zip(*(found[name] for name in names)))
        return mean if self.hparams.posterior == "mean" else mean + std * self.noise(batch, mean, "posterior", *keys)

    def states(self, captions: list[str]) -> Tensor:
        """Text states (B, L, D), fp32, for evaluation, or those of a frozen tower."""
        found = self.kept_states if self.hparams.cache and self.text_ema is None else {}
        new = [caption for caption in dict.fromkeys(captions) if caption not in found]
        if new:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                found |= dict(zip(new, encode_text(self.tokenizer, self.text_ema or self.text_encoder, new)))
        return torch.stack([found[caption] for caption in captions])

    def trained_states(self, captions: list[str]) -> Tensor:
        """Text states (B, L, D) that a text tower which is trained along learns from."""
        if self.text_ema is None:
            return self.states(captions)
        distinct = list(dict.fromkeys(captions))
        return encode_text(self.tokenizer, self.text_encoder, distinct)[[distinct.index(caption) for caption in captions]]

    def noise(self, batch: CaptionedBatch, like: Tensor, *keys: int | str) -> Tensor:
        """N(0, 1) in the shape of ``like``, a generator per sample: neither order nor number of processes matters."""
        drawn = [
            torch.randn(like.shape[1:], generator=keyed_torch_generator(self.hparams.seed, *keys, name, times))
            for name, times in zip(batch["id"], batch["occurrence"].tolist())
        ]
        return torch.stack(drawn).to(like)

    def holes(self, batch: CaptionedBatch, *keys: int | str) -> Tensor:
        """What is missing of each picture, (B, 1, H, W); drawn like ``noise``."""
        size, names = batch["image"].shape[-1], zip(batch["id"], batch["occurrence"].tolist())
        drawn = [random_holes(1, size, self.hparams.seed, "holes", *keys, name, times) for name, times in names]
        return torch.cat(drawn).to(self.device)

    def denoise(self, network: UNet2DConditionModel, noised: Tensor, timesteps: Tensor, states: Tensor, seen: Tensor | None) -> Tensor:
        """The network's prediction; ``seen`` are mask and masked latents for inpainting, (N, 1 + C, h, w)."""
        inputs = noised if seen is None else torch.cat([noised, seen], 1)
        return network(inputs.contiguous(memory_format=torch.channels_last), timesteps, states).sample

    def seen(self, batch: CaptionedBatch, holes: Tensor) -> Tensor:
        """What an inpainting network sees: the holes at the latents' size, and the latents of the picture, grey where it is missing.

        Args:
            holes: (B, 1, H, W), 1 where something is missing.
        """
        with torch.autocast(self.device.type, enabled=False):
            masked, _ = encode_image(self.vae, batch["image"] * (1 - holes) + 0.5 * holes)
        return torch.cat([torch.nn.functional.interpolate(holes, masked.shape[-2:]), masked], 1)

    def draw(self, batch: CaptionedBatch, seen: Tensor | None = None) -> Tensor:
        """A picture for each caption, (B, 3, H, W) in [0, 1], by the running mean of the weights; noise is keyed by seed and sample."""
        settings = self.hparams
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (self.vae.config.latent_channels, *(side // factor for side in batch["image"].shape[-2:]))
        noise = self.noise(batch, torch.empty(1, *shape, device=self.device), "draw")

        def denoise(noised: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
            shown = seen if seen is None or len(seen) == len(noised) else torch.cat([seen, seen])  # guidance doubles the batch
            return self.denoise(self.ema, noised, timesteps, states, shown)

        text, empty = self.states(batch["caption"]), self.states([""])
        latents = sample_latents(denoise, self.scheduler, noise, text, empty, settings.sampling_steps, settings.guidance)
        with torch.autocast(self.device.type, enabled=False):
            return decode_latents(self.vae, latents)

    # Training.

    def loss(self, network: UNet2DConditionModel, batch: CaptionedBatch, dropout: float, *keys: int | str) -> Tensor:
        """Weighted squared error at a random timestep per sample; all draws are keyed by ``keys``, sample and occurrence.

        Args:
            network: The trained UNet, or its running mean, which goes with that of the text tower.
            dropout: Share of captions left empty.
        """
        settings, latents = self.hparams, self.latents(batch, *keys)
        draws = [
            keyed_rng(settings.seed, "step", *keys, name, times).random(2) for name, times in zip(batch["id"], batch["occurrence"].tolist())
        ]
        alphas = self.scheduler.alphas_cumprod.to(self.device)
        timesteps = torch.tensor([int(when * len(alphas)) for when, _ in draws], device=self.device)
        captions = ["" if drop < dropout else caption for (_, drop), caption in zip(draws, batch["caption"])]
        states = self.states(captions) if network is self.ema else self.trained_states(captions)
        noise = self.noise(batch, latents, "noise", *keys)
        seen = None
        if settings.inpainting:
            seen = self.seen(batch, self.holes(batch, *keys))
        kind = self.scheduler.config.prediction_type
        output = self.denoise(network, add_noise(latents, noise, timesteps, alphas), timesteps, states, seen)
        weights = None
        if settings.min_snr_gamma is not None:
            weights = min_snr_weights(signal_to_noise(alphas[timesteps]), settings.min_snr_gamma, kind)
        return diffusion_loss(output, training_target(latents, noise, timesteps, alphas, kind), weights)

    def training_step(self, batch: CaptionedBatch, batch_idx: int) -> Tensor:
        loss = self.loss(self.trained, batch, self.hparams.text_dropout, self.global_step)
        return self.log_losses({"loss": loss}, batch_size=len(batch["id"]))

    @property
    def trained(self) -> UNet2DConditionModel:
        assert self.unet is not None, "configure_model() has not run"
        return self.unet

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        super().optimizer_step(*args, **options)
        self.ema_updates += 1
        decay = warm_decay(int(self.ema_updates), self.hparams.ema_decay)
        update_average(self.ema, self.trained, decay)
        if self.text_ema is not None:
            update_average(self.text_ema, self.text_encoder, decay)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings, steps = self.hparams, int(self.trainer.estimated_stepping_batches)
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_flat(step, settings.warmup, steps, settings.cooldown))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Evaluation: the loss, and drawn pictures in the eyes of the judge.

    def start_evaluation(self) -> None:
        self.losses = MeanMetric().to(self.device)
        datamodule = getattr(self.trainer, "datamodule", None)
        self.judged = judged(self.hparams.judge, datamodule, None, self.device)
        self.unfilled = judged(self.hparams.judge, datamodule, None, self.device) if self.hparams.inpainting else None

    def finish_evaluation(self, stage: str) -> None:
        self.log(f"{stage}/loss", self.losses.compute(), prog_bar=True)
        if self.judged is not None:
            self.log_dict({f"{stage}/{name}": value for name, value in self.judged.compute().items()}, prog_bar=True)
        if self.unfilled is not None:
            self.log_dict({f"{stage}/{name}_unfilled": value for name, value in self.unfilled.compute().items()})

    def evaluate(self, batch: CaptionedBatch, pictures: bool) -> Evaluated:
        self.losses.update(self.loss(self.ema, batch, 0.0, "evaluation"), len(batch["id"]))
        image, shown = batch["image"], [batch["image"]]
        if self.hparams.inpainting:
            holes = self.holes(batch, "evaluation")
            drawn = self.draw(batch, self.seen(batch, holes)) * holes + image * (1 - holes)
            shown.append(image * (1 - holes) + 0.5 * holes)
            if self.unfilled is not None:
                self.unfilled.update(shown[-1], batch["labels"])
        else:
            drawn = self.draw(batch)
        shown.append(drawn)
        rows: list[dict[str, Any]] = [
            {"id": name, "label": "", "score": "", "status": "ok", "caption": caption}
            for name, caption in zip(batch["id"], batch["caption"])
        ]
        if self.judged is not None:
            for row, said in zip(rows, self.judged.update(drawn, batch["labels"])):
                row |= {f"{column}_said": value for column, value in said.items()}
        frames = (torch.stack(shown, 1).permute(0, 1, 3, 4, 2) * 255 + 0.5).byte().cpu().numpy()
        strips: list[Strip] = [
            {"id": name, "caption": caption, "frames": each, "heat": None}
            for name, caption, each in zip(batch["id"], batch["caption"], frames[:16])
        ]
        return {"rows": rows, "strips": strips if pictures else []}

    # Weights for others.

    def export(self, folder: Path) -> None:
        """Writes a pipeline folder for diffusers in fp16, with the running mean of the weights.

        Parts that come from a tiny model are named in ``parts.json`` instead of being written again.
        """
        from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline

        pipeline_class = StableDiffusionInpaintPipeline if self.hparams.inpainting else StableDiffusionPipeline
        networks = {name: copy.deepcopy(part).cpu().half() for name, part in self._parts().items()}
        pipeline = pipeline_class(**networks, tokenizer=self.tokenizer, scheduler=self.scheduler, **pipeline_options())
        pipeline.save_pretrained(folder)
        share_parts(folder, self.hparams.vae, self.hparams.text_encoder)

    def _parts(self) -> dict[str, nn.Module]:
        return {"unet": self.ema, "vae": self.vae, "text_encoder": self.text_ema or self.text_encoder}

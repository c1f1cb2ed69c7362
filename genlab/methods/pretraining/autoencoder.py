"""The autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752, Sec. 3.1), as diffusers' ``AutoencoderKL``.

A picture x in [-1, 1] becomes a diagonal Gaussian q(z|x) over latents, a sample of which is decoded again. There is neither a
perceptual nor an adversarial loss: at 64 pixels the absolute and the squared error alone give sharp enough edges, and both need networks
that a machine without network does not have.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import MeanMetric

from genlab.batches import CaptionedBatch, Evaluated, Strip
from genlab.methods.pretraining.base import Pretraining
from genlab.methods.pretraining.judging import judged
from genlab.training.randomness import keyed_rng, keyed_torch_generator
from genlab.training.schedules import warm_cosine
from genlab.weights import load_pretrained

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(q(z|x) || N(0, 1)) in nats per latent number: the mean of (mu^2 + sigma^2 - 1 - log sigma^2) / 2. (B, C, h, w) -> scalar."""
    return 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, for values in [0, 1]. (B, C, H, W) twice -> (B,)."""
    return -10 * (image - target).pow(2).flatten(1).mean(1).clamp_min(1e-10).log10()


def normalise_latents(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Changes a VAE, in place, to one whose latents are (z - mean) / std and whose pictures are the same.

    The affine map goes into the two 1 x 1 convolutions at the latents, so it is exact, and ``scaling_factor`` becomes 1: pipelines know a
    scale for all channels, but neither a shift nor one scale per channel.

    Args:
        mean: (C,), of the posterior means of typical pictures.
        std: (C,), positive.
    """
    out, back, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    with torch.no_grad():
        back.bias += back.weight[:, :, 0, 0] @ mean  # z = std * z' + mean
        back.weight *= std[None, :, None, None]
        out.weight[:channels] /= std[:, None, None, None]
        out.bias[:channels] = (out.bias[:channels] - mean) / std
        out.bias[channels:] -= 2 * std.log()  # the second half is log sigma^2
    vae.register_to_config(scaling_factor=1.0)


def crop_batch(images: Tensor, size: int, names: Sequence[str], *keys: int | str) -> Tensor:
    """A random square of each picture, drawn by ``keys`` and its name. (B, C, H, W) -> (B, C, size, size)."""
    high, wide = images.shape[-2] - size + 1, images.shape[-1] - size + 1
    corners = [keyed_rng(*keys, name).integers((high, wide)).tolist() for name in names]
    return torch.stack([image[:, y : y + size, x : x + size] for image, (y, x) in zip(images, corners)])


def fresh_autoencoder(channels: list[int], latent_channels: int, layers: int) -> AutoencoderKL:
    """A VAE without attention that starts near a linear one: each residual block begins as the identity or as its 1 x 1 shortcut.

    Its norms are over all channels at once (one group): norms over few channels take the colours away that a picture is made of.
    """
    from diffusers import AutoencoderKL
    from diffusers.models.resnet import ResnetBlock2D

    vae = AutoencoderKL(
        block_out_channels=tuple(channels),
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=layers,
        latent_channels=latent_channels,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )
    for block in vae.modules():
        if isinstance(block, ResnetBlock2D):
            nn.init.zeros_(block.conv2.weight)
            nn.init.zeros_(block.conv2.bias)
    return vae


class Autoencoder(Pretraining):
    """Trains an ``AutoencoderKL`` on pictures, and evaluates it by PSNR and, if asked, by a judge of attributes.

    Args:
        weights: Folder, hub id or ``tiny:NAME`` of a pipeline, whose VAE is continued or evaluated; ``None`` starts afresh with the sizes
            below.
        channels: Width of each level from the pixels down; each level but the last one halves the picture.
        latent_channels: C of the latents.
        layers: Residual blocks per level of the encoder; the decoder has one more.
        kl_weight: Weight of the divergence from N(0, 1), in nats per latent number. Larger values make latents noisier and decoders more
            tolerant of a diffusion model's mistakes.
        mse_weight: Weight of the squared error, beside the absolute error.
        lr: Peak learning rate of AdamW; it rises over ``warmup`` steps and then falls to 0 on a cosine until the last step of the trainer.
        warmup: Steps.
        weight_decay: Of AdamW.
        crop: Side of the random squares that are trained on at first, in pixels; ``None`` always takes whole pictures.
        crop_steps: Steps on such squares; whole pictures follow.
        judge: Folder or ``tiny:NAME`` of a classifier that names what reconstructions show, in validation and test only; needs
            ``data.labels``.
        judge_only: Label -> classes: only such pictures are shown to the judge.
        seed: Of crops and latent noise.
    """

    latent_mean: Tensor
    latent_std: Tensor
    moments: Tensor

    def __init__(
        self,
        weights: str | None = None,
        channels: list[int] | None = None,
        latent_channels: int = 16,
        layers: int = 1,
        kl_weight: float = 1e-3,
        mse_weight: float = 1.0,
        lr: float = 2e-3,
        warmup: int = 100,
        weight_decay: float = 1e-4,
        crop: int | None = None,
        crop_steps: int = 0,
        judge: str | None = None,
        judge_only: dict[str, list[str]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.needs_checkpoint = weights is None
        self.vae: AutoencoderKL | None = None

    def configure_model(self) -> None:
        if self.vae is not None:
            return
        from diffusers import AutoencoderKL

        settings = self.hparams
        if settings.weights is not None:
            vae = load_pretrained(AutoencoderKL, settings.weights, subfolder="vae")
        else:
            vae = fresh_autoencoder(settings.channels or [16, 24, 32, 44], settings.latent_channels, settings.layers)
        self.vae = vae.to(memory_format=torch.channels_last).train()
        # Of the posterior means over the latest validation; ``export`` needs them.
        self.register_buffer("latent_mean", torch.zeros(vae.config.latent_channels))
        self.register_buffer("latent_std", torch.ones(vae.config.latent_channels))

    @property
    def network(self) -> AutoencoderKL:
        assert self.vae is not None, "configure_model() has not run"
        return self.vae

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the reconstruction from the mean latents, likewise."""
        mean = self.network.encode(2 * image - 1).latent_dist.mean
        return (self.network.decode(mean).sample.float() / 2 + 0.5).clamp(0, 1)

    def training_step(self, batch: CaptionedBatch, batch_idx: int) -> Tensor:
        settings, step = self.hparams, self.global_step
        image, names = batch["image"], [f"{name}/{n}" for name, n in zip(batch["id"], batch["occurrence"].tolist())]
        if settings.crop is not None and step < settings.crop_steps:
            image = crop_batch(image, settings.crop, names, settings.seed, "crop", step)
        target = (2 * image - 1).contiguous(memory_format=torch.channels_last)
        posterior = self.network.encode(target).latent_dist
        shape = posterior.mean.shape[1:]
        generators = (keyed_torch_generator(settings.seed, "latent", step, name) for name in names)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(posterior.mean)
        error = self.network.decode(posterior.mean + posterior.std * noise).sample.float() - target
        losses = {
            "l1": error.abs().mean(),
            "mse": error.pow(2).mean(),
            "kl": kl_divergence(posterior.mean.float(), posterior.logvar.float()),
        }
        loss = losses["l1"] + settings.mse_weight * losses["mse"] + settings.kl_weight * losses["kl"]
        return self.log_losses({"loss": loss, **losses}, batch_size=len(image))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings, steps = self.hparams, int(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.AdamW(self.network.parameters(), settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, settings.warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Evaluation: reconstructions from the mean latents.

    def start_evaluation(self) -> None:
        self.quality = MeanMetric().to(self.device)
        self.judged = judged(self.hparams.judge, getattr(self.trainer, "datamodule", None), self.hparams.judge_only, self.device)
        self.moments = torch.zeros(3, self.network.config.latent_channels, dtype=torch.float64, device=self.device)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        moments = self.moments
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(moments)
        total, squares, count = moments
        self.latent_mean.copy_(total / count)
        self.latent_std.copy_((squares / count - (total / count) ** 2).clamp_min(1e-12).sqrt())

    def finish_evaluation(self, stage: str) -> None:
        self.log(f"{stage}/psnr", self.quality.compute(), prog_bar=True)
        if self.judged is not None:
            self.log_dict({f"{stage}/{name}": value for name, value in self.judged.compute().items()})

    def evaluate(self, batch: CaptionedBatch, pictures: bool) -> Evaluated:
        image = batch["image"]
        latents = self.network.encode(2 * image - 1).latent_dist.mean
        again = (self.network.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)
        flat = latents.double().transpose(0, 1).flatten(1)
        self.moments += torch.stack([flat.sum(1), flat.pow(2).sum(1), torch.full_like(flat[:, 0], flat.shape[1])])
        scores = psnr(again, image)
        self.quality.update(scores)
        rows: list[dict[str, Any]] = []
        strips: list[Strip] = []
        for name, score, caption, both in zip(batch["id"], scores.tolist(), batch["caption"], torch.stack([image, again], 1)):
            rows.append({"id": name, "label": "", "score": round(score, 3), "status": "ok"})
            frames = (both.permute(0, 2, 3, 1) * 255 + 0.5).byte().cpu().numpy()
            strips.append({"id": name, "caption": f"{caption}: {score:.1f} dB", "frames": frames, "heat": None})
        if self.judged is not None:
            for row, said in zip(rows, self.judged.update(again, batch["labels"])):
                row |= {f"{column}_said": value for column, value in said.items()}
        return {"rows": rows, "strips": strips[:16] if pictures else []}

    def export(self, folder: Path) -> None:
        """Writes ``folder/vae`` for diffusers, fp16, its latents normalised to mean 0 and deviation 1 over the latest validation."""
        vae = copy.deepcopy(self.network).float().cpu()
        normalise_latents(vae, self.latent_mean.cpu(), self.latent_std.cpu())
        vae.half().save_pretrained(folder / "vae")

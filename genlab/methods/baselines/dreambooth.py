"""DreamBooth (Ruiz et al., arXiv 2208.12242): a rare word is bound to a few pictures, while pictures of the plain class hold the model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from genlab.batches import DomainBatch
from genlab.diffusion.estimates import StageCost
from genlab.diffusion.export import model_card, save_diffusers, save_kohya
from genlab.diffusion.lora import attach_lora, lora_disabled
from genlab.diffusion.losses import prior_preservation_loss
from genlab.diffusion.schedule import add_noise, training_target
from genlab.errors import UserError
from genlab.files import write_bytes
from genlab.training.generation_quality import Measures
from genlab.training.optimizers import adamw, require_eight_bit
from genlab.training.text_to_image import TextToImage

log = logging.getLogger(__name__)


class DreamBooth(TextToImage):
    """The UNet, or a LoRA of it, learns the instance prompt from the pictures and keeps the class prompt.

    Args:
        backbone: Pipeline folder, hub id or ``tiny:sd``.
        identifier: V, a rare word.
        instance_prompt: ``{V}`` and ``{N}``, the datamodule's category.
        class_prompt: Of the pictures that the plain model draws first.
        class_images: How many. DreamBooth: about 1000, diffusers' example 100.
        prior_weight: lambda of the prior preservation. DreamBooth: 1.
        rank: Of the LoRA; ``null`` trains the whole UNet.
        lr: Of AdamW. DreamBooth: 1e-6 to 5e-6 for the whole network; LoRA: 1e-4.
        weight_decay: Of AdamW.
        eight_bit_adam: Keep AdamW's state in eight bits; takes bitsandbytes.
        gradient_checkpointing: Compute activations again in the backward pass; saves memory.
        sampling_steps: DDIM steps of drawn pictures.
        guidance: Of classifier-free guidance.
        measures: Networks that ``test`` measures by, beside EfficientNet-Lite0.
        seed: Of noise, timesteps and drawn pictures.
    """

    def __init__(
        self,
        backbone: str = "CompVis/stable-diffusion-v1-4",
        identifier: str = "sks",
        instance_prompt: str = "a {V} {N}",
        class_prompt: str = "a {N}",
        class_images: int = 200,
        prior_weight: float = 1.0,
        rank: int | None = None,
        lr: float = 5e-6,
        weight_decay: float = 1e-2,
        eight_bit_adam: bool = False,
        gradient_checkpointing: bool = False,
        sampling_steps: int = 50,
        guidance: float = 7.5,
        measures: Measures | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(measures)
        self.save_hyperparameters(logger=False)
        if class_images < 1 or prior_weight < 0:
            raise UserError(f"model: {class_images=} {prior_weight=}; one picture or more, and a weight from 0.")
        require_eight_bit(eight_bit_adam)

    @property
    def target_template(self) -> str:
        return self.hparams.instance_prompt

    @property
    def source_template(self) -> str:
        return self.hparams.class_prompt

    def attach(self) -> None:
        if self.hparams.gradient_checkpointing:
            cast(Any, self.network).enable_gradient_checkpointing()
        if self.hparams.rank is None:
            self.network.requires_grad_(True)
        else:
            attach_lora(self.network, self.hparams.rank)

    def _parameter_is_trained(self, key: str) -> bool:
        return self.hparams.rank is None or super()._parameter_is_trained(key)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        data = self.data
        batch = data.hparams.batch_size
        self.say_estimate([self.prior_stage(self.hparams.class_images), StageCost("training", self.training_steps(), 2 * batch, 0)])
        if data.wants_source:
            data.use_source(self._class_folder(data.hparams.batch_size), self.hparams.class_images)

    def _class_folder(self, batch_size: int) -> Path:
        h = self.hparams
        if h.rank is None:  # nothing has been trained yet, or the weights of a checkpoint are loaded later
            return self.prior_folder(self.prompt(h.class_prompt), h.class_images, batch_size)
        with lora_disabled(self.network):
            return self.prior_folder(self.prompt(h.class_prompt), h.class_images, batch_size)

    def training_step(self, batch: DomainBatch, batch_idx: int) -> Tensor:
        h, parts, step = self.hparams, self.parts, self.global_step
        images, ids = torch.cat([batch["target"], batch["source"]]), [*batch["target_id"], *batch["source_id"]]
        numbers = batch["index"].tolist() * 2
        clean = self.latents(images, ids, numbers, step, bool(self.data.fixed_crop))
        noise, alphas = self.noise(clean, ids, numbers, step), parts.alphas_cumprod.to(self.device)
        timesteps = self.timesteps(ids, numbers, step)
        count = len(batch["target"])
        prompts = [self.prompt(h.instance_prompt)] * count + [self.prompt(h.class_prompt)] * count
        output = self.network(add_noise(clean, noise, timesteps, alphas), timesteps, self.states(prompts)).sample
        target = training_target(clean, noise, timesteps, alphas, parts.prediction)
        loss, instance, prior = prior_preservation_loss(output, target, h.prior_weight)
        return self.log_losses({"loss": loss, "instance": instance, "prior": prior}, batch_size=count)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        h = self.hparams
        return adamw(self.parameters(), h.lr, h.weight_decay, h.eight_bit_adam)

    def on_train_end(self) -> None:
        """Leaves a LoRA in ``lora/`` of the run, where one was trained."""
        h = self.hparams
        if h.rank is None or not self.trainer.is_global_zero:
            return
        folder = Path(self.trainer.default_root_dir) / "lora"
        facts = {"base_model": str(h.backbone), "method": "DreamBooth (arXiv 2208.12242) with LoRA"}
        facts |= {"instance_prompt": self.prompt(h.instance_prompt), "class_prompt": self.prompt(h.class_prompt)}
        save_diffusers(folder, self.network, facts)
        save_kohya(folder, self.network, facts)
        usage = f'pipe.load_lora_weights("lora")\npipe("{facts["instance_prompt"]}").images[0]'
        write_bytes(folder / "README.md", model_card(f"LoRA of {facts['instance_prompt']!r}", facts, usage))

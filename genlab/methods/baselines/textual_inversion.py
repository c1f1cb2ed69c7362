"""Textual Inversion (Gal et al., arXiv 2208.01618): a new word of the text tower is learned from a few pictures, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from genlab.batches import DomainBatch
from genlab.diffusion.components import encode_text
from genlab.diffusion.estimates import StageCost
from genlab.diffusion.export import model_card
from genlab.diffusion.losses import diffusion_loss
from genlab.diffusion.schedule import add_noise, training_target
from genlab.diffusion.tokens import PlaceholderTokens
from genlab.errors import UserError
from genlab.files import write_bytes
from genlab.training.generation_quality import Measures
from genlab.training.optimizers import adamw, require_eight_bit
from genlab.training.randomness import keyed_rng
from genlab.training.text_to_image import TextToImage

EMBEDDINGS = "learned_embeds.safetensors"  # as diffusers' example calls it


class TextualInversion(TextToImage):
    """The vectors of a new word are fitted to the pictures by the plain noise loss (Eq. 2); all networks stay as they are.

    Args:
        backbone: Pipeline folder, hub id or ``tiny:sd``.
        identifier: The new word, as prompts write it; none that the text tower has already.
        vectors: Embeddings that it stands for. Paper: 1.
        initializer: Word that they start from, a coarse description of the pictures, such as dog; left out, the datamodule's category.
        templates: Prompts that are seen in training, at random; ``{V}`` is the new word, ``{N}`` the datamodule's category. Paper:
            neutral ones, such as these.
        target_prompt: Of pictures in ``validate`` and ``test``.
        source_prompt: The plain prompt beside it.
        lr: Of AdamW. Paper: 5e-3 for one picture a batch, times the pictures of a batch.
        weight_decay: Of AdamW.
        eight_bit_adam: Keep AdamW's state in eight bits; takes bitsandbytes.
        gradient_checkpointing: Compute activations again in the backward pass; saves memory.
        sampling_steps: DDIM steps of drawn pictures. Paper: 50.
        guidance: Of classifier-free guidance.
        measures: Networks that ``test`` measures by, beside EfficientNet-Lite0.
        seed: Of noise, timesteps and drawn pictures.
    """

    def __init__(
        self,
        backbone: str = "CompVis/stable-diffusion-v1-4",
        identifier: str = "<domain>",
        vectors: int = 1,
        initializer: str | None = None,
        templates: Sequence[str] = ("a photo of {V}", "a picture of {V}", "a close photo of {V}", "one {V}", "{V}"),
        target_prompt: str = "a photo of {V}",
        source_prompt: str = "a photo of a {N}",
        lr: float = 5e-3,
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
        if vectors < 1 or not templates or any("{V}" not in each for each in templates):
            raise UserError(
                f"model: {vectors=} templates={list(templates)}; one vector or more, and {{V}} in each of one template or more."
            )
        require_eight_bit(eight_bit_adam)

    @property
    def target_template(self) -> str:
        return self.hparams.target_prompt

    @property
    def source_template(self) -> str:
        return self.hparams.source_prompt

    def attach(self) -> None:
        h, parts = self.hparams, self.parts
        word = h.initializer or (str(self.data.category) if self._trainer is not None else "a")  # of a checkpoint all will be replaced
        self.words = PlaceholderTokens(parts.tokenizer, parts.text_encoder, h.identifier, h.vectors, word)
        if h.gradient_checkpointing:
            cast(Any, self.network).enable_gradient_checkpointing()

    @property
    def protocol(self) -> dict[str, Any]:
        """Switches that could make two numbers incomparable."""
        return {name: self.hparams[name] for name in ("backbone", "vectors", "target_prompt", "sampling_steps", "guidance")}

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.say_estimate([StageCost("training", self.training_steps(), self.data.hparams.batch_size, 0)])

    def states(self, prompts: Sequence[str]) -> Tensor:
        """As the base's; prompts with the new word are embedded anew each time, with gradients to its vectors."""
        fresh = [each for each in dict.fromkeys(prompts) if self.words.token in each]
        if not fresh:
            return super().states(prompts)
        found = dict(zip(fresh, encode_text(self.parts.tokenizer, self.parts.text_encoder, [self.words.spelled(each) for each in fresh])))
        plain = [each for each in dict.fromkeys(prompts) if each not in found]
        found |= dict(zip(plain, super().states(plain))) if plain else {}
        return torch.stack([found[each] for each in prompts])

    def training_step(self, batch: DomainBatch, batch_idx: int) -> Tensor:
        h, parts, step = self.hparams, self.parts, self.global_step
        ids, numbers = batch["target_id"], batch["index"].tolist()
        clean = self.latents(batch["target"], ids, numbers, step, bool(self.data.fixed_crop))
        noise, timesteps = self.noise(clean, ids, numbers, step), self.timesteps(ids, numbers, step)
        alphas = parts.alphas_cumprod.to(self.device)
        chosen = [int(keyed_rng(h.seed, "template", step, *each).integers(len(h.templates))) for each in zip(ids, numbers)]
        states = self.states([self.prompt(h.templates[each]) for each in chosen])
        output = self.network(add_noise(clean, noise, timesteps, alphas), timesteps, states).sample
        loss = diffusion_loss(output, training_target(clean, noise, timesteps, alphas, parts.prediction))
        return self.log_losses({"loss": loss}, batch_size=len(ids))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        h = self.hparams
        return adamw(self.parameters(), h.lr, h.weight_decay, h.eight_bit_adam)

    def on_train_end(self) -> None:
        """Leaves the vectors in ``embeddings/`` of the run, and a page that says what they are."""
        if not self.trainer.is_global_zero:
            return
        h, folder = self.hparams, Path(self.trainer.default_root_dir) / "embeddings"
        self.words.export(folder / EMBEDDINGS)
        facts = {"base_model": str(h.backbone), "method": "Textual Inversion (arXiv 2208.01618)", "word": f"`{h.identifier}`"}
        facts |= {"vectors": str(h.vectors), "category": str(self.data.category), "steps": str(self.global_step)}
        usage = f'pipe.load_textual_inversion("embeddings/{EMBEDDINGS}")\npipe("{self.prompt(h.target_prompt)}").images[0]'
        write_bytes(folder / "README.md", model_card(f"Embedding of {h.identifier!r}", facts, usage))

"""DomainGallery: few-shot domain-driven image generation by attribute-centric finetuning (arXiv 2411.04571, NeurIPS 2024).

About ten pictures of a domain become a LoRA of a frozen Stable Diffusion. Whatever they share but their category is tied to an identifier
V, a word that exists already; N is the noun of the category. Two stages train one LoRA:

    erasure      L = L_prior + 10 L_disen + 10 L_erase                  on pictures of N that the plain model made
    finetuning   L = L_target + L_prior + 10 L_disen + L_sim            on the domain's pictures and those

Notation: e(x, c) prediction of the UNet with LoRA for noised latents x under text c, e_base the one without, y what is to be predicted.
"a N" is the source prompt, "a V N" the target prompt. The released code's form of L_sim is the default, since its weights go with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from genlab.batches import DomainBatch, PromptBatch
from genlab.diffusion.denoising import Denoising
from genlab.diffusion.estimates import StageCost
from genlab.diffusion.export import model_card, save_diffusers, save_kohya
from genlab.diffusion.guidance import Enhancement
from genlab.diffusion.lora import attach_lora, load_lora_state, lora_disabled, read_lora
from genlab.diffusion.schedule import add_noise, offset_noise, training_target
from genlab.errors import UserError
from genlab.files import write_bytes
from genlab.losses.similarity_consistency import Direction, Reduction
from genlab.methods.domaingallery.losses import Similarity, Texts, disentanglement, erasure_losses, finetuning_losses, mse
from genlab.training.generation_quality import Measures
from genlab.training.optimizers import adamw, require_eight_bit
from genlab.training.randomness import keyed_torch_generator
from genlab.training.text_to_image import TextToImage, part_of

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

log = logging.getLogger(__name__)

Stage = Literal["erasure", "finetuning"]
Noised = Callable[[Tensor, list[str]], tuple[Tensor, Tensor]]
"""Pictures and their ids -> noised latents, and what is to be predicted of them."""
PROBED = (100, 300, 500, 700, 900)  # timesteps
LEAST = 3  # samples whose similarities can differ: of two the only one has probability 1


class DomainGallery(TextToImage):
    """LoRA of a frozen Stable Diffusion, from about ten pictures.

    ``disen_weight``, ``sim_weight`` and ``erasure_steps`` 0 make it DreamBooth with LoRA and prior preservation.

    Args:
        backbone: Pipeline folder, hub id or ``tiny:sd``. Paper: Stable Diffusion 1.4.
        identifier: V, one word that the tokenizer knows as one token. Released code: sks.
        source_prompt: Of the plain category; ``{N}`` is the datamodule's category.
        target_prompt: Of the domain, with ``{V}`` too.
        rank: Of the LoRA on all attentions. Released code: 4.
        init_lora: File of a LoRA to begin with (diffusers' format); with ``erasure_steps`` 0 one whose erasure is done.
        erasure_steps: Steps of the first stage. Paper: 500 (the released script goes on from step 200); the second stage takes the rest of
            ``trainer.max_steps``, paper: 1000.
        source_images: Pictures of the source prompt that the plain model draws first. Released scripts: 1000.
        erase_weight: Of L_erase, in the first stage.
        disen_weight: Of L_disen.
        prior_weight: Of L_prior.
        sim_weight: Of L_sim, in the second stage; needs three pictures or more a batch.
        sim_steps: n, DDIM steps to the clean latents that are compared. Paper: 5.
        sim_guidance: Guidance of these steps; 1 is without.
        sim_reduction: See :func:`genlab.losses.similarity_consistency.similarity_consistency`.
        sim_direction: Likewise.
        offset_noise: Random shift of the noise per channel. Released scripts: 0.1, which the paper uses for sketches and watercolours.
        lr_erasure: Of AdamW in the first stage.
        lr: In the second one; the optimizer starts afresh there.
        weight_decay: Of AdamW.
        eight_bit_adam: Keep AdamW's state in eight bits, as the released scripts do; takes bitsandbytes.
        gradient_checkpointing: Compute activations again in the backward pass; saves memory.
        sampling_steps: DDIM steps of drawn pictures. Paper: 50.
        guidance: Of classifier-free guidance. Paper: 7.5.
        enhancement: In ``predict``, of prompts of V with other categories: ``v-uncond`` (paper), ``vn-n``, ``off``, or ``all`` of them, one
            below the other.
        enhancement_strength: lambda_2. Paper: 1.
        enhance_own_category: Also where a prompt is of the domain's own category; the paper does not.
        subject_identifier: S, a rare word for the subject in ``data.subject`` (personalisation; which word is unknown).
        subject_prompt: Of the subject; ``{S}``, and ``{M}``, its category.
        subject_class_prompt: Of pictures of that category that the plain model draws, as many as ``source_images``.
        subject_weight: Of the subject's losses. Paper: 1.
        measures: Networks that ``test`` measures by, beside EfficientNet-Lite0.
        seed: Of noise, timesteps and drawn pictures.
    """

    cannot_run_under: ClassVar[dict[str, str]] = {
        "FSDP": "the LoRA is switched off for one pass of each step, which takes the network whole.",
        "ZeRO-3": "the LoRA is switched off for one pass of each step, which takes the network whole.",
    }

    def __init__(
        self,
        backbone: str = "CompVis/stable-diffusion-v1-4",
        identifier: str = "sks",
        source_prompt: str = "a {N}",
        target_prompt: str = "a {V} {N}",
        rank: int = 4,
        init_lora: str | None = None,
        erasure_steps: int = 500,
        source_images: int = 1000,
        erase_weight: float = 10.0,
        disen_weight: float = 10.0,
        prior_weight: float = 1.0,
        sim_weight: float = 1.0,
        sim_steps: int = 5,
        sim_guidance: float = 1.0,
        sim_reduction: Reduction = "mean",
        sim_direction: Direction = "source",
        offset_noise: float = 0.0,
        lr_erasure: float = 1e-4,
        lr: float = 5e-5,
        weight_decay: float = 1e-2,
        eight_bit_adam: bool = False,
        gradient_checkpointing: bool = False,
        sampling_steps: int = 50,
        guidance: float = 7.5,
        enhancement: Literal["off", "v-uncond", "vn-n", "all"] = "v-uncond",
        enhancement_strength: float = 1.0,
        enhance_own_category: bool = False,
        subject_identifier: str = "zwx",
        subject_prompt: str = "a {S} {M}",
        subject_class_prompt: str = "a {M}",
        subject_weight: float = 1.0,
        measures: Measures | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(measures)
        self.save_hyperparameters(logger=False)
        for name, value in {"rank": rank, "source_images": source_images, "sim_steps": sim_steps, "sampling_steps": sampling_steps}.items():
            if value < 1:
                raise UserError(f"model.{name}: {value} is too small; use 1 or more.")
        if guidance <= 1:
            raise UserError(f"model.guidance: {guidance} is no guidance; use more than 1. Paper: 7.5.")
        require_eight_bit(eight_bit_adam)

    @property
    def target_template(self) -> str:
        return self.hparams.target_prompt

    @property
    def source_template(self) -> str:
        return self.hparams.source_prompt

    def attach(self) -> None:
        attach_lora(self.network, self.hparams.rank)
        if self.hparams.init_lora is not None:
            self._start_from(Path(self.hparams.init_lora))
        if self.hparams.gradient_checkpointing:
            cast(Any, self.network).enable_gradient_checkpointing()
        pieces = self.parts.tokenizer.tokenize(self.hparams.identifier)
        if len(pieces) != 1:
            log.warning(
                "model.identifier: %r is %d tokens; one that is a single token is easier to bind.", self.hparams.identifier, len(pieces)
            )

    def _start_from(self, path: Path) -> None:
        """The LoRA of another run, such as one that erased what V means; it knows nothing of targets, so that many domains may share it.

        Raises:
            UserError: It is of another base model or word, or does not fit.
        """
        state, facts = read_lora(path)
        mine = {"base_model": str(self.hparams.backbone), "identifier": self.hparams.identifier}
        if other := [f"{name} {facts[name]!r}, here {value!r}" for name, value in mine.items() if facts.get(name, value) != value]:
            raise UserError(f"model.init_lora: {path} was trained with {' and '.join(other)}.")
        load_lora_state(self.network, state)

    @property
    def protocol(self) -> dict[str, Any]:
        """Switches that could make two numbers incomparable."""
        names = ("backbone", "identifier", "source_prompt", "target_prompt", "rank", "erasure_steps", "sampling_steps", "guidance")
        return {name: self.hparams[name] for name in names}

    def texts(self) -> Texts:
        h = self.hparams
        return Texts(*self.states([self.prompt(h.target_prompt), self.prompt(h.source_prompt), ""]))

    # Training

    def words_of_prompts(self) -> dict[str, str]:
        subject = {"S": self.hparams.subject_identifier, "M": str(self.data.hparams.subject_category)} if self.has_subject else {}
        return super().words_of_prompts() | subject

    @property
    def has_subject(self) -> bool:
        """Whether a subject is learned beside the domain."""
        return self.data.hparams.get("subject") is not None

    def on_fit_start(self) -> None:
        super().on_fit_start()
        h, data = self.hparams, self.data
        if h.sim_weight and data.hparams.batch_size < LEAST:
            raise UserError(
                f"data.batch_size: {data.hparams.batch_size}; the similarity loss compares pictures of a batch and needs {LEAST} or more. "
                "Paper: 4. Without it: --model.sim_weight 0."
            )
        if h.sim_weight and data.wants_source and h.source_images < LEAST:
            raise UserError(f"model.source_images: {h.source_images}; the similarity loss compares them and needs {LEAST} or more.")
        if len(data.target) < LEAST:
            raise UserError(f"data.root: {len(data.target)} pictures; a domain is what several share. Give {LEAST} or more, about ten.")
        self.say_estimate(self.stages())
        if data.wants_source:
            data.use_source(self._prior(h.source_prompt), h.source_images)
        if self.has_subject:
            data.use_subject_source(self._prior(h.subject_class_prompt), h.source_images)

    def _prior(self, template: str) -> Path:
        """Folder of pictures that the plain model draws."""
        with lora_disabled(self.network):
            return self.prior_folder(self.prompt(template), self.hparams.source_images, self.data.hparams.batch_size)

    def stages(self) -> list[StageCost]:
        """For the estimate; the encoder is about .45 of a pass (by the share of its operations in Stable Diffusion 1)."""
        h, batch = self.hparams, self.data.hparams.batch_size
        chain = (h.sim_steps * (1 if h.sim_guidance == 1 else 2) + 0.45) if h.sim_weight else 0
        steps = self.training_steps()
        erasure, subject = min(h.erasure_steps, steps), 2 if self.has_subject else 0
        return [
            self.prior_stage(h.source_images * (self.data.wants_source + self.has_subject)),
            StageCost("erasure", erasure, 2 * batch, batch),
            StageCost("finetuning", steps - erasure, (2 + subject + chain) * batch, (bool(h.disen_weight) + chain) * batch),
        ]

    @property
    def stage(self) -> Stage:
        """Of the coming step."""
        return "erasure" if self.global_step < self.hparams.erasure_steps else "finetuning"

    def denoising(self) -> Denoising:
        return Denoising(self.network, self.parts.alphas_cumprod.to(self.device), self.parts.prediction)

    def training_step(self, batch: DomainBatch, batch_idx: int) -> Tensor:
        h, step, model, texts = self.hparams, self.global_step, self.denoising(), self.texts()
        timestep = int(torch.randint(len(model.alphas), (), generator=keyed_torch_generator(h.seed, "timestep", step)))
        numbers, keep = batch["index"].tolist(), bool(self.data.fixed_crop)

        def noised(images: Tensor, ids: list[str]) -> tuple[Tensor, Tensor]:
            clean = self.latents(images, ids, numbers, step, keep)
            noise = offset_noise(self.noise(clean, ids, numbers, step), self.offsets(clean, ids, numbers, step), h.offset_noise)
            at = torch.full((len(clean),), timestep, device=self.device)
            return add_noise(clean, noise, at, model.alphas), training_target(clean, noise, at, model.alphas, model.prediction)

        source, wanted = noised(batch["source"], batch["source_id"])
        if self.stage == "erasure":
            losses = erasure_losses(model, source, wanted, timestep, texts)
        else:
            target, wanted_target = noised(batch["target"], batch["target_id"])
            similarity = Similarity(h.sim_steps, h.sim_guidance, h.sim_reduction, h.sim_direction) if h.sim_weight else None
            losses = finetuning_losses(model, (target, wanted_target), (source, wanted), timestep, texts, h.disen_weight > 0, similarity)
            if "subject" in batch:
                losses |= self.subject_losses(model, noised, batch, timestep)
        weights = {"subject": h.subject_weight, "subject_prior": h.subject_weight * h.prior_weight}
        weights |= {"erase": h.erase_weight, "disen": h.disen_weight, "prior": h.prior_weight, "sim": h.sim_weight, "target": 1.0}
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return self.log_losses({"loss": total, **losses}, batch_size=len(source))

    def subject_losses(self, model: Denoising, noised: Noised, batch: DomainBatch, timestep: int) -> dict[str, Tensor]:
        """Plain noise losses of the subject and of its category: personalisation, which the paper has and the released code has not."""
        h = self.hparams
        (mine, wanted), (prior, wanted_prior) = (
            noised(batch["subject"], batch["subject_id"]), noised(batch["subject_source"], batch["subject_source_id"]),
        )  # fmt: skip
        own, other = self.states([self.prompt(h.subject_prompt), self.prompt(h.subject_class_prompt)])
        return {"subject": mse(model(mine, timestep, own), wanted), "subject_prior": mse(model(prior, timestep, other), wanted_prior)}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == self.hparams.erasure_steps and self.hparams.erasure_steps:
            cast(Any, self.optimizers()).state.clear()  # the second stage begins with an optimizer of its own

    def on_train_end(self) -> None:
        """Leaves the LoRA in ``lora/`` of the run: for diffusers, for web interfaces, and a page that says what it is."""
        if self.trainer.is_global_zero:
            self.export(Path(self.trainer.default_root_dir) / "lora")

    def export(self, folder: Path) -> None:
        """Writes ``pytorch_lora_weights.safetensors``, ``kohya_lora.safetensors`` and ``README.md``."""
        h = self.hparams
        own = {"identifier": h.identifier, "target_prompt": self.prompt(h.target_prompt), "source_prompt": self.prompt(h.source_prompt)}
        if self.has_subject:
            own["subject_prompt"] = self.prompt(h.subject_prompt)
        weights = [f"{term}_weight" for term in ("erase", "disen", "prior", "sim")]
        names = ["rank", "erasure_steps", *weights, "offset_noise", "source_images", "seed"]
        facts = {"base_model": h.backbone, "method": "DomainGallery (arXiv 2411.04571)", "category": self.data.category, **own}
        facts |= {"steps": self.global_step, "pictures": len(self.data.target)} | {name: h[name] for name in names}
        facts = {name: str(value) for name, value in facts.items()}
        save_diffusers(folder, self.network, facts)
        save_kohya(folder, self.network, facts)
        usage = (
            f'pipe.load_lora_weights("{folder.name}")\npipe("{facts["target_prompt"]}", guidance_scale={h.guidance}).images[0]\n'
            f"# Other categories, with attribute enhancement: python -m genlab predict ... --data.prompts '[\"a {{V}} dog\"]'"
        )
        write_bytes(folder / "README.md", model_card(f"LoRA of {facts['target_prompt']!r}", facts, usage))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        h = self.hparams
        optimizer = adamw(self.parameters(), h.lr, h.weight_decay, h.eight_bit_adam)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: h.lr_erasure / h.lr if step < h.erasure_steps else 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    # Pictures

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/leak``, how far the plain prompt has left the plain model, and ``val/bound``, what V changes: mean squared differences
        of predicted noise on fixed probes, which are smoother over time than losses."""
        model, texts, pictures = self.denoising(), self.texts(), self.data.real_pictures()[:4].float().to(self.device) / 255
        ids, sums = [f"probe/{i}" for i in range(len(pictures))], torch.zeros(2, device=self.device)
        clean = self.latents(pictures, ids, range(len(ids)), 0, keep=True)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for timestep in PROBED:
                at = torch.full((len(clean),), timestep, device=self.device)
                noised = add_noise(clean, self.noise(clean, ids, range(len(ids)), "probe", timestep), at, model.alphas)
                source = model(noised, timestep, texts.source)
                changed = mse(model(noised, timestep, texts.target), source)
                sums += torch.stack([disentanglement(model, source, noised, timestep, texts), changed])
        leak, bound = (sums / len(PROBED)).unbind()
        self.log_dict({"val/leak": leak, "val/bound": bound})

    def ways_to_draw(self, batch: PromptBatch) -> Iterator[tuple[str, PromptBatch, Tensor]]:
        """Prompts of V with another category are enhanced (Eq. 6); the domain's own category and plain prompts are not."""
        h = self.hparams
        chosen = [i for i, prompt in enumerate(batch["prompt"]) if self._is_enhanced(prompt)]
        others = [i for i in range(len(batch["prompt"])) if i not in chosen]
        modes: list[Enhancement] = ["off", "v-uncond", "vn-n"] if h.enhancement == "all" else [h.enhancement]
        for mode, places in [("off", others), *((mode, chosen) for mode in modes)]:
            if places:
                part = part_of(batch, places)
                bases = [h.identifier if mode == "v-uncond" else self.plain_prompt(prompt) for prompt in part["prompt"]]
                pictures = self.draw(part["prompt"], part["number"].tolist(), mode, bases, h.enhancement_strength)
                yield mode if places is chosen else "", part, pictures

    def _is_enhanced(self, prompt: str) -> bool:
        own = f" {self.data.category} " in f" {prompt} "
        return self.plain_prompt(prompt) != " ".join(prompt.split()) and (not own or self.hparams.enhance_own_category)

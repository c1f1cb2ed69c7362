"""Multi-Modal Prompt: user-friendly customised generation (arXiv 2405.16501).

A sentence has pictures in it, ``A photo of [img] on the background of [img]``. Each picture is put into words (its main object, described),
the sentence gets "identifier description" in its place, and Stable Diffusion learns each identifier from the one picture, with pictures of
the plain description to hold what it knew. What is tuned, and how, is DreamBooth's, Custom Diffusion's or Textual Inversion's.

    L = L_instance + w L_prior         Custom Diffusion: L_instance within the picture's place, over the sum of the mask

The paper's own figures and settings could not be read; defaults are the released code's, docs/multimodal_prompt.md says where not.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from genlab.batches import ConceptBatch, Evaluated, PromptBatch
from genlab.diffusion.components import encode_text
from genlab.diffusion.custom_diffusion import (
    Freeze,
    attach_custom_diffusion,
    load_custom_diffusion_state,
    read_custom_diffusion,
    save_custom_diffusion,
)
from genlab.diffusion.export import save_lora
from genlab.diffusion.lora import attach_lora, lora_disabled
from genlab.diffusion.losses import diffusion_loss, masked_loss
from genlab.diffusion.schedule import add_noise, training_target
from genlab.diffusion.tokens import PlaceholderTokens
from genlab.errors import UserError
from genlab.files import cache_folder, read_json, write_json
from genlab.methods.multimodal_prompt.grammar import Sentence, compose, identifier_of
from genlab.metrics.scenes import SceneScores
from genlab.models.picture_encoders import ClipEncoder, DinoEncoder, EncoderSettings
from genlab.store import content_key
from genlab.training.optimizers import adamw
from genlab.training.text_to_image import TextToImage
from genlab.vlm.analysers import Analyser, Blip, Rules
from genlab.vlm.concepts import NONE, Analysis

log = logging.getLogger(__name__)

Tuner = Literal["dreambooth", "lora", "custom_diffusion", "textual_inversion"]
CONCEPTS = "concepts.json"


@dataclass(frozen=True)
class Known:
    """What a picture was found to show; a row of ``concepts.json``, which may be edited."""

    image: str
    hash: str
    identifier: str
    foreground: str
    background: str = NONE
    action: str = NONE
    role: str = ""
    caption: str = ""
    analyser: str = "user"


class MultiModalPrompt(TextToImage):
    """A Stable Diffusion tuned on the pictures of one sentence.

    Args:
        backbone: Pipeline folder, hub id or ``tiny:sd``. Released code: 1.4.
        tuner: ``dreambooth``, the whole UNet; ``lora``; ``custom_diffusion``, keys and values of the attention to text and a new word for
            each concept; ``textual_inversion``, the words alone, without pictures of the plain model.
        rank: Of the LoRA.
        freeze: Of Custom Diffusion: keys and values, or all of the attention to text.
        start_from: File of Custom Diffusion that training begins with, ``pytorch_custom_diffusion_weights.bin`` of diffusers or of a run.
        analyser: Who takes captions apart; left out, rules of ours, no model.
        captioner: Who describes a picture of which nothing is said; left out, nobody, and ``data.concepts`` has to.
        initializers: Words that new words start from, in turn.
        prior_images: Pictures of each description that the plain model draws first. Released code: 100.
        prior_weight: w.
        mean_channels: Divide Custom Diffusion's masked loss by the channels too; the released code does not.
        instance_prompt: What a picture is learned under; ``{}`` is the identifier with the description. Left out, ``{}`` for DreamBooth
            and LoRA, ``A photo of {}`` else, as in the released code.
        scored_visual: Encoder that ``test`` compares pictures with; left out, DINO ViT-S/16.
        scored_textual: Likewise of pictures and texts; left out, CLIP ViT-B/32.
        lr: Of AdamW. Released code: 2e-6 for DreamBooth, 4e-5 for Custom Diffusion, 2e-3 for Textual Inversion.
        weight_decay: Of AdamW; only what is trained decays.
        gradient_checkpointing: Compute activations again in the backward pass; saves memory.
        sampling_steps: DDIM steps of drawn pictures. Released code: 200 of another sampler.
        guidance: Of classifier-free guidance.
        seed: Of noise, timesteps and drawn pictures.
    """

    def __init__(
        self,
        backbone: str = "CompVis/stable-diffusion-v1-4",
        tuner: Tuner = "dreambooth",
        rank: int = 16,
        freeze: Freeze = "crossattn_kv",
        start_from: str | None = None,
        analyser: Analyser | None = None,
        captioner: Blip | None = None,
        initializers: Sequence[str] = ("ktn", "pll", "ucd"),
        prior_images: int = 100,
        prior_weight: float = 1.0,
        mean_channels: bool = False,
        instance_prompt: str | None = None,
        scored_visual: EncoderSettings | None = None,
        scored_textual: EncoderSettings | None = None,
        lr: float = 2e-6,
        weight_decay: float = 1e-2,
        gradient_checkpointing: bool = False,
        sampling_steps: int = 50,
        guidance: float = 7.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if prior_images < 1 or prior_weight < 0 or rank < 1 or not initializers:
            raise UserError(f"model: {prior_images=} {prior_weight=} {rank=} {initializers=}; one or more, and a weight from 0.")
        if instance_prompt is not None and "{}" not in instance_prompt:
            raise UserError(f"model.instance_prompt: {instance_prompt!r} has no {{}} for the identifier and its description.")
        if start_from is not None and tuner != "custom_diffusion":
            raise UserError(f"model.start_from: it holds weights of Custom Diffusion, the tuner is {tuner}.")
        self.analyser, self.captioner = analyser or Rules(), captioner
        self.scored_by = scored_visual or DinoEncoder(), scored_textual or ClipEncoder()
        self.known: list[Known] = []

    # Network

    @property
    def has_words(self) -> bool:
        """Whether identifiers are new words."""
        return self.hparams.tuner in ("custom_diffusion", "textual_inversion")

    def attach(self) -> None:
        h, parts = self.hparams, self.parts
        match h.tuner:
            case "dreambooth":
                self.network.requires_grad_(True)
            case "lora":
                attach_lora(self.network, h.rank)
            case "custom_diffusion":
                attach_custom_diffusion(self.network, h.freeze)
                if h.start_from is not None:
                    load_custom_diffusion_state(self.network, read_custom_diffusion(Path(h.start_from)))
        self._trained_names = {f"unet.{name}" for name, each in self.network.named_parameters() if each.requires_grad}
        words = self.identifiers() if self.has_words else []
        starts = [h.initializers[i % len(h.initializers)] for i in range(len(words))]
        self.words = nn.ModuleList(
            PlaceholderTokens(parts.tokenizer, parts.text_encoder, word, 1, start) for word, start in zip(words, starts)
        )
        if h.gradient_checkpointing:
            cast(Any, self.network).enable_gradient_checkpointing()

    def _parameter_is_trained(self, key: str) -> bool:
        return key in self._trained_names

    def identifiers(self) -> list[str]:
        """Of the pictures: what the user says, else rare words; new words have brackets."""
        said = [concept.get("identifier", "") for concept in self.data.request.concepts]
        plain = [each or identifier_of(number) for number, each in enumerate(said)]
        if len(set(plain)) < len(plain):
            raise UserError(f"data.concepts: identifiers {', '.join(plain)}; each picture needs its own.")
        return [f"<{each.strip('<>')}>" for each in plain] if self.has_words else plain

    def states(self, prompts: Sequence[str]) -> Tensor:
        """As the base's; prompts with new words are embedded anew each time, with gradients to their vectors."""
        tokens = [cast(PlaceholderTokens, word).token for word in self.words]
        fresh = [each for each in dict.fromkeys(prompts) if any(token in each for token in tokens)]
        found = dict(zip(fresh, encode_text(self.parts.tokenizer, self.parts.text_encoder, fresh))) if fresh else {}
        plain = [each for each in dict.fromkeys(prompts) if each not in found]
        found |= dict(zip(plain, super().states(plain))) if plain else {}
        return torch.stack([found[each] for each in prompts])

    # The sentence

    @property
    def sentence(self) -> Sentence:
        """In words; analysed at the first call."""
        request = self.data.request
        if not self.known and request.images:
            self.known = self._read_concepts() or [self._look_at(number) for number in range(len(request.images))]
        analyses = [Analysis(each.foreground, each.background, each.action) for each in self.known]
        alone = self.hparams.tuner == "textual_inversion"
        return compose(request.prompt, analyses, self.identifiers(), [each.role for each in self.known], identifiers_alone=alone)

    def _read_concepts(self) -> list[Known]:
        """What ``concepts.json`` of the run says, where it is of these pictures."""
        rows = read_json(Path(self.trainer.default_root_dir) / CONCEPTS).get("concepts", [])
        try:
            found = [Known(**row) for row in rows]
        except TypeError as error:
            raise UserError(f"{CONCEPTS}: {error}; its rows have {', '.join(Known.__dataclass_fields__)}.") from error
        mine = [_hash(path) for path in self.data.request.images]
        return found if [each.hash for each in found] == mine else []

    def _look_at(self, number: int) -> Known:
        """One picture: what the user says, else what captioner and analyser say, kept by the picture's content and their names."""
        request = self.data.request
        path, said = request.images[number], request.concepts[number] if request.concepts else {}
        basis = Known(path.name, _hash(path), self.identifiers()[number], said.get("foreground", ""), role=said.get("role", ""))
        if basis.foreground:
            given = {key: said[key] for key in ("background", "action") if key in said}
            return Known(**{**asdict(basis), **given})
        if self.captioner is None:
            raise UserError(
                f"image {number + 1} ({path.name}): nobody says what it shows. Write it into data.concepts, such as "
                f'{{foreground: "a brown corgi"}}, or name a captioner: --model.captioner.class_path genlab.vlm.analysers.Blip'
            )
        key = content_key(basis.hash, self.captioner.weights, self.analyser.name)
        kept = cache_folder() / "concepts" / f"{key}.json"
        row = read_json(kept)
        if not row:
            caption = self.captioner.caption(self.data.picture(number)).removeprefix("arafed ")
            row = {"caption": caption, "analyser": self.analyser.name, **asdict(self.analyser.analyse(caption))}
            write_json(kept, row)
        return Known(**{**asdict(basis), **row, **{key: said[key] for key in ("background", "action") if key in said}})

    def prompt(self, template: str) -> str:
        """``{generation}`` and ``{evaluation}``, the sentence with and without identifiers; ``{1}``, ``{2}`` ... the concepts."""
        sentence = self.sentence
        words = {str(number): concept.replacement for number, concept in enumerate(sentence.concepts, 1)}
        words |= {"generation": sentence.generation, "evaluation": sentence.evaluation}
        for name, value in words.items():
            template = template.replace(f"{{{name}}}", value)
        return template

    # Training

    def on_fit_start(self) -> None:
        super().on_fit_start()
        h, data, sentence = self.hparams, self.data, self.sentence
        if not hasattr(data, "use_sources"):
            raise UserError("data: MultiModalPrompt needs a sentence with pictures; use datamodules.concepts.Concepts.")
        if self.trainer.is_global_zero:
            rows = [asdict(each) for each in self.known]
            prompts = {"prompt": data.request.prompt, "generation": sentence.generation, "evaluation": sentence.evaluation}
            write_json(Path(self.trainer.default_root_dir) / CONCEPTS, {**prompts, "concepts": rows})
            log.info("%s\n  is drawn as:    %s\n  is measured as: %s", *prompts.values())
        if data.hparams.analyse_only or not self.known:
            self.trainer.limit_train_batches = 0
            return
        if h.tuner != "textual_inversion" and h.prior_weight:
            batch_size, descriptions = data.hparams.eval_batch_size, [concept.description for concept in sentence.concepts]
            with lora_disabled(self.network) if h.tuner == "lora" else torch.no_grad():
                folders = [self.prior_folder(each, h.prior_images, batch_size) for each in descriptions]
            data.use_sources(folders, h.prior_images)

    def instance_prompts(self) -> list[str]:
        """What each picture is learned under."""
        bare = self.hparams.tuner in ("dreambooth", "lora")
        template = self.hparams.instance_prompt or ("{}" if bare else "A photo of {}")
        return [template.replace("{}", concept.replacement) for concept in self.sentence.concepts]

    def on_train_epoch_start(self) -> None:
        """One after the other: each concept begins with an optimizer of its own."""
        if self.data.hparams.schedule == "sequential" and self.current_epoch:
            cast(Any, self.optimizers()).state.clear()

    def on_train_epoch_end(self) -> None:
        """Ends the training once each concept has had its steps."""
        epochs = len(self.known) if self.data.hparams.schedule == "sequential" else 1
        if self.current_epoch + 1 >= epochs:
            self.trainer.should_stop = True

    def training_step(self, batch: ConceptBatch, batch_idx: int) -> Tensor:
        h, parts, step, data = self.hparams, self.parts, self.global_step, self.data
        numbers, concepts = batch["index"].tolist(), batch["concept"].tolist()
        texts, sentence = self.instance_prompts(), self.sentence
        prompts = [f"{prefix}{texts[concept]}" for prefix, concept in zip(batch["prefix"], concepts)]
        images, ids = batch["target"], list(batch["target_id"])
        if "source" in batch:
            images, ids, numbers = torch.cat([images, batch["source"]]), [*ids, *batch["source_id"]], numbers * 2
            prompts += [sentence.concepts[concept].description for concept in concepts]
        clean = self.latents(images, ids, numbers, step, bool(data.fixed_crop))
        noise, timesteps = self.noise(clean, ids, numbers, step), self.timesteps(ids, numbers, step)
        alphas = parts.alphas_cumprod.to(self.device)
        output = self.network(add_noise(clean, noise, timesteps, alphas), timesteps, self.states(prompts)).sample
        target = training_target(clean, noise, timesteps, alphas, parts.prediction)
        count = len(concepts)
        if "mask" in batch:
            mask = nn.functional.adaptive_max_pool2d(batch["mask"], clean.shape[-2:])
            losses = {"instance": masked_loss(output[:count], target[:count], mask, h.mean_channels)}
        else:
            losses = {"instance": diffusion_loss(output[:count], target[:count])}
        if len(output) > count:
            losses["prior"] = diffusion_loss(output[count:], target[count:])
        total = losses["instance"] + h.prior_weight * losses.get("prior", 0.0)
        return self.log_losses({"loss": total, **losses}, batch_size=count)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.parameters(), self.hparams.lr, self.hparams.weight_decay)

    def on_train_end(self) -> None:
        """Leaves what was trained where others read it: ``lora/``, ``unet/``, ``custom_diffusion/`` with diffusers' names, ``words/``."""
        h, folder = self.hparams, Path(self.trainer.default_root_dir)
        if not self.trainer.is_global_zero or not self.global_step:
            return
        match h.tuner:
            case "lora":
                facts = {"base_model": str(h.backbone), "method": "Multi-Modal Prompt (arXiv 2405.16501) with LoRA"}
                save_lora(folder / "lora", self.network, facts, self.sentence.generation)
            case "dreambooth":
                self.network.save_pretrained(folder / "unet")
            case "custom_diffusion":
                save_custom_diffusion(folder / "custom_diffusion", self.network, h.freeze)
        for word in self.words:
            token = cast(PlaceholderTokens, word)
            token.export(folder / "words" / f"{token.token.strip('<>')}.safetensors")

    # Pictures and their scores

    def on_test_start(self) -> None:
        """Gets ready to compare with each picture, and with the sentence without identifiers."""
        by = [settings.build().to(self.device) for settings in self.scored_by]
        pictures = self.data.real_pictures().to(self.device).float() / 255
        real = {str(number): picture[None] for number, picture in enumerate(pictures, 1)}
        self._scores = SceneScores(by[0], by[1], {"": self.sentence.evaluation}, real).to(self.device)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> Evaluated:
        rendered = self.rendered(batch)
        pictures = self.draw_batch(rendered)
        self._scores.update(pictures, torch.zeros(len(pictures), dtype=torch.long, device=pictures.device))
        return self.evaluated(rendered, pictures)

    def on_test_epoch_end(self) -> None:
        """Logs ``test/..._i_1`` and so on, for each picture, ``test/..._t`` and ``test/..._diversity``."""
        found = {name: value for name, value in self._scores.compute().items() if "/" not in name}
        self.log_dict({f"test/{name}": value.to(self.device) for name, value in found.items()})

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["concepts"] = [asdict(each) for each in self.known]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.known = [Known(**row) for row in checkpoint.get("concepts", [])]


def _hash(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()

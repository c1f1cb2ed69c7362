"""ComFusion: personalized subject generation in multiple specific scenes from a single image (arXiv 2402.11849, ECCV 2024).

One picture of a subject, and a list of scenes known beforehand. Two streams tune a Stable Diffusion:

    composite   L_inst + l_cs L_cs           noise prediction on the picture under "a V c", and on pictures of "a c s" that the plain model
                                             made, each under the text of its own scene s
    fusion      l_vis L_vis + l_txt L_txt    a coarse picture of "a V c s", by a few denoising steps, is pulled to the look of the subject's
                                             picture, and to the meaning of "a c s"

V is the identifier, c the class, s a scene. There is no released code, and the fusion stream's details could not be read: from where it
starts, how many steps, which encoders, the weights. Those are options here, with defaults of ours; docs/comfusion.md lists them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from genlab.batches import Evaluated, SceneBatch, ScenePromptBatch
from genlab.diffusion.components import load_unet
from genlab.diffusion.denoising import Denoising
from genlab.diffusion.export import save_lora
from genlab.diffusion.lora import attach_lora, lora_disabled
from genlab.diffusion.losses import diffusion_loss
from genlab.diffusion.prior_images import missing_pictures, read_pictures
from genlab.diffusion.schedule import add_noise, training_target
from genlab.errors import UserError
from genlab.files import write_json
from genlab.methods.comfusion.fusion import Fusion, coarse_pictures, matching
from genlab.methods.comfusion.pictures import ScenePictures, StepScores
from genlab.metrics.scenes import SceneScores
from genlab.models.picture_encoders import ClipEncoder, DinoEncoder, EncoderSettings, PictureEncoder
from genlab.reports import Report
from genlab.training.optimizers import adamw
from genlab.training.randomness import keyed_torch_generator
from genlab.training.text_to_image import TextToImage

log = logging.getLogger(__name__)

Trained = Literal["unet", "lora", "kv"]
Start = Literal["class_scene", "instance", "noise"]
MatchedText = Literal["class_scene", "instance_scene", "scene_only"]


class ComFusion(TextToImage):
    """A Stable Diffusion tuned on one picture and on scenes of its class.

    ``visual_weight`` and ``textual_weight`` 0 leave the fusion stream out; with an empty list of scenes that is DreamBooth.

    Args:
        backbone: Pipeline folder, hub id or ``tiny:sd``. The paper's version of Stable Diffusion is not known.
        identifier: V, a rare word.
        instance_prompt: ``{V}`` and ``{N}``, the class. Paper: a V c.
        class_prompt: Of the plain class; scenes follow both.
        trained: ``unet``, all of it; ``lora``; or ``kv``, keys and values of the attention to text. Not known of the paper.
        rank: Of the LoRA.
        images_per_scene: Pictures of each scene that the plain model draws first. Not known of the paper.
        class_scene_weight: l_cs.
        visual_weight: l_vis. Not known of the paper.
        textual_weight: l_txt. Likewise.
        visual: Encoder of L_vis; left out, DINO ViT-S/16. Not known of the paper.
        textual: Encoder of L_txt, which must know texts; left out, CLIP ViT-B/32. Likewise.
        fusion_start: Latents that are noised: of a ``class_scene`` picture, of the ``instance``, or ``noise`` alone. Ours.
        fusion_steps: K, denoising steps to the coarse picture. Ours: DomainGallery's 5.
        fusion_guidance: Of these steps; 1 is without.
        fusion_grad_steps: Steps that gradients go through, the last ones; ``null`` takes all. Fewer need less memory.
        fusion_every: Only every so many steps, with as many times the weight.
        fusion_t_range: Least and greatest timestep that coarse pictures start from.
        fusion_text: What L_txt compares with: a c s, a V c s, or the scene's words alone.
        scored_visual: Encoder that ``val/`` and ``test/`` compare pictures with; left out, DINO ViT-S/16. One that is in the loss flatters.
        scored_textual: Likewise of pictures and texts; left out, CLIP ViT-B/32.
        lr: Of AdamW. Ours: 2e-6 for the UNet, 1e-4 for LoRA, 1e-5 for ``kv``.
        weight_decay: Of AdamW.
        gradient_checkpointing: Compute activations again in the backward pass; saves memory.
        sampling_steps: DDIM steps of drawn pictures.
        guidance: Of classifier-free guidance.
        seed: Of noise, timesteps and drawn pictures.
    """

    def __init__(
        self,
        backbone: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
        identifier: str = "sks",
        instance_prompt: str = "a {V} {N}",
        class_prompt: str = "a {N}",
        trained: Trained = "unet",
        rank: int = 16,
        images_per_scene: int = 20,
        class_scene_weight: float = 1.0,
        visual_weight: float = 0.1,
        textual_weight: float = 0.1,
        visual: EncoderSettings | None = None,
        textual: EncoderSettings | None = None,
        fusion_start: Start = "class_scene",
        fusion_steps: int = 5,
        fusion_guidance: float = 1.0,
        fusion_grad_steps: int | None = None,
        fusion_every: int = 1,
        fusion_t_range: tuple[int, int] = (0, 999),
        fusion_text: MatchedText = "class_scene",
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
        counts = {"rank": rank, "images_per_scene": images_per_scene, "fusion_steps": fusion_steps, "fusion_every": fusion_every}
        counts |= {"sampling_steps": sampling_steps, "fusion_grad_steps": 1 if fusion_grad_steps is None else fusion_grad_steps}
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"model.{name}: {value} is too small; use 1 or more.")
        if min(class_scene_weight, visual_weight, textual_weight) < 0:
            raise UserError(f"model: {class_scene_weight=} {visual_weight=} {textual_weight=}; weights are 0 or more.")
        low, high = fusion_t_range
        if not 0 <= low <= high:
            raise UserError(f"model.fusion_t_range: {low} to {high} is no range of timesteps; use two numbers such as [0, 999].")
        self.matched_by = visual or DinoEncoder(), textual or ClipEncoder()
        self.scored_by = scored_visual or DinoEncoder(), scored_textual or ClipEncoder()
        self._encoders: dict[EncoderSettings, PictureEncoder] = {}
        self._wanted: dict[str, Tensor] = {}
        self.over_steps = StepScores()

    # Network

    @property
    def target_template(self) -> str:
        return self.hparams.instance_prompt

    @property
    def source_template(self) -> str:
        return self.hparams.class_prompt

    def attach(self) -> None:
        h = self.hparams
        if h.trained == "lora":
            attach_lora(self.network, h.rank)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(self._parameter_is_trained(f"unet.{name}"))
        if h.gradient_checkpointing:
            cast(Any, self.network).enable_gradient_checkpointing()

    def _parameter_is_trained(self, key: str) -> bool:
        match self.hparams.trained:
            case "unet":
                return True
            case "kv":
                return "attn2.to_k." in key or "attn2.to_v." in key
            case _:
                return super()._parameter_is_trained(key)

    def encoder(self, settings: EncoderSettings) -> PictureEncoder:
        """Built once, frozen, and no part of this module: neither trained nor saved."""
        if settings not in self._encoders:
            self._encoders[settings] = settings.build()
        return self._encoders[settings].to(self.device)

    @contextmanager
    def plain_network(self) -> Iterator[None]:
        """The UNet as it was before tuning."""
        parts, tuned = self.parts, self.network
        if self.hparams.trained == "lora":
            with lora_disabled(tuned):
                yield
        elif self.trainer.ckpt_path is None and self.global_step == 0:
            yield
        else:  # its weights have been replaced by a checkpoint's
            parts.unet = load_unet(self.hparams.backbone).to(self.device)
            try:
                yield
            finally:
                parts.unet = tuned

    @property
    def protocol(self) -> dict[str, Any]:
        """Switches that could make two numbers incomparable."""
        names = ("backbone", "identifier", "instance_prompt", "class_prompt", "trained", "sampling_steps", "guidance")
        return {name: self.hparams[name] for name in names}

    # Texts of scenes

    def in_scenes(self, template: str, scenes: Sequence[str] | None = None) -> list[str]:
        """Prompts of a template in each scene; without any, the plain prompt."""
        return self.data.in_scenes(self.prompt(template), scenes)

    def matched_texts(self) -> list[str]:
        """What the coarse picture of each scene is compared with."""
        match self.hparams.fusion_text:
            case "class_scene":
                return self.in_scenes("{source}")
            case "instance_scene":
                return self.in_scenes("{target}")
            case _:
                return self.data.scene_words()

    # Training

    def on_fit_start(self) -> None:
        super().on_fit_start()
        h, data = self.hparams, self.data
        if not hasattr(data, "scene_words"):
            raise UserError("data: ComFusion needs a subject and scenes; use datamodules.subject_scenes.SubjectScenes.")
        if data.wants_source:
            data.use_sources(self.class_folders(h.images_per_scene), h.images_per_scene)
        if h.textual_weight and h.fusion_text == "scene_only" and not data.scenes:
            raise UserError("model.fusion_text: scene_only, but data.scenes is empty.")
        if h.visual_weight:
            pictures = data.matched_pictures().to(self.device).float() / 255
            with torch.no_grad():
                self._wanted["visual"] = self.encoder(self.matched_by[0])(pictures)
        if h.textual_weight:
            self._wanted["textual"] = self.encoder(self.matched_by[1]).encode_text(self.matched_texts())

    def class_folders(self, count: int) -> list[Path]:
        """Pictures of the class in each scene by the plain model, ``count`` or more of each; drawn where they are missing."""
        prompts = self.in_scenes("{source}")
        if any(missing_pictures(self.prior_path(prompt), count) for prompt in prompts):
            with self.plain_network():
                return [self.prior_folder(prompt, count, self.data.hparams.eval_batch_size) for prompt in prompts]
        return [self.prior_path(prompt) for prompt in prompts]

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        h, parts, step, count = self.hparams, self.parts, self.global_step, len(batch["target"])
        ids, numbers = [*batch["target_id"], *batch["source_id"]], batch["index"].tolist() * 2
        images = torch.cat([batch["target"], batch["source"]])
        clean = self.latents(images, ids, numbers, step, bool(self.data.fixed_crop))
        noise, alphas = self.noise(clean, ids, numbers, step), parts.alphas_cumprod.to(self.device)
        timesteps = self.timesteps(ids, numbers, step)
        scenes, texts = batch["scene"].tolist(), self.in_scenes("{source}")
        states = self.states([self.prompt("{target}")] * count + [texts[scene] for scene in scenes])
        output = self.network(add_noise(clean, noise, timesteps, alphas), timesteps, states).sample
        target = training_target(clean, noise, timesteps, alphas, parts.prediction)
        losses = {name: diffusion_loss(output[part], target[part]) for name, part in _halves(count).items()}
        weights = {"instance": 1.0, "class_scene": h.class_scene_weight}
        if (h.visual_weight or h.textual_weight) and step % h.fusion_every == 0:
            weights |= {
                "visual": h.fusion_every * h.visual_weight,
                "textual": h.fusion_every * h.textual_weight,
            }  # as if it were run in every one
            losses |= self.fusion_losses(clean, batch, scenes)
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return self.log_losses({"loss": total, **losses}, batch_size=count)

    def fusion_losses(self, clean: Tensor, batch: SceneBatch, scenes: Sequence[int]) -> dict[str, Tensor]:
        """L_vis and L_txt of coarse pictures of the subject in the batch's scenes; one timestep for all.

        Args:
            clean: (2B, C, h, w), latents of the subject's and the class's pictures.
        """
        h, step, count = self.hparams, self.global_step, len(scenes)
        model = Denoising(self.network, self.parts.alphas_cumprod.to(self.device), self.parts.prediction)
        last = len(model.alphas) - 1
        low, high = (min(t, last) for t in h.fusion_t_range)
        timestep = int(torch.randint(low, high + 1, (), generator=keyed_torch_generator(h.seed, "fusion timestep", step)))
        start = clean[:count] if h.fusion_start == "instance" else clean[count:]
        noise = self.noise(start, batch["source_id"], batch["index"].tolist(), "fusion", step)
        noised = add_noise(start, noise, torch.full((count,), timestep, device=self.device), model.alphas)
        if h.fusion_start == "noise":
            timestep, noised = last, noise
        texts = self.in_scenes("{target}")
        fusion = Fusion(h.fusion_steps, h.fusion_guidance, h.fusion_grad_steps, h.gradient_checkpointing)
        text, empty = self.states([texts[scene] for scene in scenes]), self.states([""])[0]
        coarse = coarse_pictures(model, self.parts.vae, noised, timestep, text, empty, fusion)
        self.log("train/clamped_fraction", coarse.clamped, batch_size=count)
        seen = dict(zip(("visual", "textual"), self.matched_by))
        wanted = {"visual": (h.visual_weight, batch["picture"]), "textual": (h.textual_weight, batch["scene"])}
        with torch.autocast(self.device.type, enabled=False):
            return {
                name: matching(self.encoder(seen[name])(coarse.picture.float()), self._wanted[name][rows])
                for name, (weight, rows) in wanted.items()
                if weight
            }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.parameters(), self.hparams.lr, self.hparams.weight_decay)

    def on_train_end(self) -> None:
        """Leaves the LoRA in ``lora/`` of the run, or the UNet in ``unet/``, and ``comfusion.json``, which says what it was tuned for."""
        h, data = self.hparams, self.data
        if not self.trainer.is_global_zero:
            return
        folder = Path(self.trainer.default_root_dir)
        facts = {"base_model": str(h.backbone), "method": "ComFusion (arXiv 2402.11849), a reconstruction", "steps": str(self.global_step)}
        facts |= {"instance_prompt": self.prompt("{target}"), "class_prompt": self.prompt("{source}")}
        if h.trained == "lora":
            save_lora(folder / "lora", self.network, facts, self.prompt("{target}"))
        else:
            self.network.save_pretrained(folder / "unet")
        names = ("trained", "class_scene_weight", "visual_weight", "textual_weight")
        weights = {name: h[name] for name in names}
        write_json(folder / "comfusion.json", facts | {"identifier": h.identifier, "class": data.category, "scenes": data.scenes} | weights)

    # Pictures and their scores

    def on_validation_start(self) -> None:
        self._start_scoring({"": self.data.real_pictures()})

    def on_test_start(self) -> None:
        self._start_scoring({"": self.data.real_pictures(), "held_back": self.data.held_back()})

    def _start_scoring(self, real: dict[str, Tensor]) -> None:
        data = self.data
        pictures = {name: each.to(self.device).float() / 255 for name, each in real.items()}
        by = self.encoder(self.scored_by[0]), self.encoder(self.scored_by[1])
        trained = dict(zip(data.scenes or [""], self.in_scenes("{source}")))
        others = dict(zip(data.other_scenes, self.in_scenes("{source}", data.other_scenes)))
        self._scores = SceneScores(*by, trained, pictures).to(self.device)
        self._other_scores = SceneScores(*by, others, pictures, first=len(data.scenes)).to(self.device) if others else None
        self._grid = ScenePictures()

    def _drawn_and_scored(self, batch: ScenePromptBatch) -> Evaluated:
        rendered = self.rendered(batch)
        pictures = self.draw_batch(rendered)
        number = batch["scene"] if self.data.scenes else torch.zeros_like(batch["scene"])
        for scores in (self._scores, self._other_scores):
            if scores is not None:
                scores.update(pictures, number)
        self._grid.add(pictures, batch["scene"], batch["number"], rendered["prompt"])
        return {"rows": self.evaluated(rendered, pictures)["rows"]}

    def validation_step(self, batch: Any, batch_idx: int) -> Evaluated:
        return self._drawn_and_scored(batch)

    def test_step(self, batch: Any, batch_idx: int) -> Evaluated:
        return self._drawn_and_scored(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/...``, draws a grid of the scenes and the scores over the steps so far, and says which step is the best one."""
        found = self._finish("val", f"scenes_step{self.global_step:06d}")
        if self.trainer.sanity_checking or self.trainer.state.fn != TrainerFn.FITTING:
            return
        names = f"{self.encoder(self.scored_by[0]).name}_i", f"{self.encoder(self.scored_by[1]).name}_t"
        self.over_steps.add(self.global_step, *(float(found[name]) for name in names))
        if self.trainer.is_global_zero:
            self.over_steps.write(Path(self.trainer.default_root_dir), *names)

    def on_test_epoch_end(self) -> None:
        """Logs ``test/...``, over the trained scenes, and ``test/other_scenes_...`` over those that never were."""
        self._finish("test", "scenes")
        if self._other_scores is not None:
            values = self._other_scores.compute()
            self.log_dict({f"test/other_scenes_{name}": value.to(self.device) for name, value in values.items()})

    def _finish(self, stage: str, name: str) -> dict[str, Tensor]:
        found = self._scores.compute()
        self.log_dict({f"{stage}/{name}": value.to(self.device) for name, value in found.items()})
        beside: list[Tensor] = []
        if self.data.wants_source:
            count = min(2, self.hparams.images_per_scene)
            beside = [read_pictures(folder, count) for folder in self.class_folders(count)]
        self._grid.gather()
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            path = Path(self.trainer.default_root_dir) / "media" / f"{name}.png"
            self._grid.sheet(path, self.data.real_pictures()[0], beside)
        return found

    def add_to_report(self, report: Report) -> None:
        """The grid of the scenes, and the scores over the steps."""
        folder = Path(self.trainer.default_root_dir)
        grids = sorted((folder / "media").glob("scenes*.png"))
        if grids:
            report.heading("Scenes").picture(grids[-1], "The subject's picture, the plain model's of the class, and the tuned model's")
        if (plot := folder / "media" / StepScores.PLOT).is_file():
            report.picture(plot, f"Fidelity against scene; suggested: step {self.over_steps.best}")

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["over_steps"] = list(map(list, self.over_steps.points))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.over_steps = StepScores([(int(step), float(x), float(y)) for step, x, y in checkpoint.get("over_steps", [])])


def _halves(count: int) -> dict[str, slice]:
    return {"instance": slice(0, count), "class_scene": slice(count, None)}

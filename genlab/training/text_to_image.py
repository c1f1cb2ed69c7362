"""What methods that tune a text-to-image model have in common: its frozen parts, latents, keyed noise, prior pictures, and drawing."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from genlab.batches import Evaluated, PromptBatch, Strip
from genlab.diffusion.components import Components, encode_image, load_components, pipeline_options
from genlab.diffusion.estimates import StageCost, estimate_table, measure_pass
from genlab.diffusion.guidance import Enhancement, enhanced
from genlab.diffusion.prior_images import fill_folder
from genlab.diffusion.prompts import PromptCache, render
from genlab.errors import UserError
from genlab.files import cache_folder, write_json
from genlab.store import content_key
from genlab.training.base import Method
from genlab.training.features import weights_key
from genlab.training.generation_quality import Measures, Quality
from genlab.training.picture_sheets import Sheet
from genlab.training.randomness import keyed_torch_generator

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

log = logging.getLogger(__name__)


@runtime_checkable
class DomainSource(Protocol):
    """A datamodule of a few pictures, and of such as the plain model draws of their category."""

    category: str
    """N, the noun of its pictures."""
    wants_source: bool
    """Whether the plain model has to draw the source pictures."""
    fixed_crop: bool
    """Whether a picture is always cut the same."""

    def use_source(self, folder: Path, count: int | None = None) -> None:
        """From now on source pictures come from there, the first ``count`` of them."""

    def real_pictures(self) -> Tensor:
        """The few pictures (N, 3, S, S) uint8."""
        ...

    def reference_pictures(self) -> Tensor | None:
        """Many more of the domain, likewise, where there are any."""
        ...


def _is_domain(data: object) -> bool:
    return isinstance(data, DomainSource)


class TextToImage(Method):
    """A method that trains something in, or instead of parts of, a Stable Diffusion.

    Subclasses have the hyperparameters ``backbone``, ``identifier``, ``seed``, ``sampling_steps`` and ``guidance`` and define ``attach``,
    which makes what is trained. The text tower and the autoencoder are frozen. The datamodule is a :class:`DomainSource`; prompts are
    templates with ``{V}``, the identifier, and ``{N}``, the category.
    """

    def __init__(self, measures: Measures | None = None) -> None:
        super().__init__()
        self.measures = measures or Measures()
        self.components: Components | None = None
        self._kept_latents: dict[str, tuple[Tensor, Tensor]] = {}
        self._prompts: PromptCache | None = None

    def attach(self) -> None:
        """Makes what is trained, in ``self.unet`` or beside it."""
        raise NotImplementedError(f"{type(self).__name__} must define attach.")

    # Network

    def configure_model(self) -> None:
        if self.components is not None:
            return
        self.components = parts = load_components(self.hparams.backbone)
        self.vae, self.text_encoder, self.unet = parts.vae, parts.text_encoder, parts.unet
        self.freeze_part("vae")
        self.freeze_part("text_encoder")
        self.unet.requires_grad_(False).eval()
        self._prompts = PromptCache(parts.tokenizer, parts.text_encoder)
        self._weights = weights_key(cast(Any, self.unet))
        self.attach()

    @property
    def parts(self) -> Components:
        assert self.components is not None, "configure_model() has not run"
        return self.components

    @property
    def network(self) -> UNet2DConditionModel:
        """The UNet."""
        return self.parts.unet

    def train(self, mode: bool = True) -> TextToImage:
        super().train(mode)
        if self.components is not None:
            self.unet.eval()  # no dropout anywhere; what is trained in it does not care
        return self

    def is_frozen(self, key: str) -> bool:
        """Of the UNet, what is not trained."""
        if key.startswith("unet."):
            return not self._parameter_is_trained(key)
        return super().is_frozen(key)

    def _parameter_is_trained(self, key: str) -> bool:
        return "lora_" in key

    # Data and prompts

    @property
    def data(self) -> Any:
        """The datamodule.

        Raises:
            UserError: It is not a :class:`DomainSource`.
        """
        data = cast(Any, self.trainer).datamodule
        if not _is_domain(data):
            raise UserError(
                f"data: {type(self).__name__} needs a datamodule of a few pictures, such as datamodules.domain_images.DomainImages."
            )
        return data

    @property
    def target_template(self) -> str:
        """Of the prompt that the pictures are tied to; ``{target}`` in the datamodule's prompts."""
        return "a {V} {N}"

    @property
    def source_template(self) -> str:
        """Of the plain prompt; ``{source}`` in the datamodule's prompts."""
        return "a {N}"

    def prompt(self, template: str) -> str:
        """``{V}`` and ``{N}`` of a template filled in, and ``{target}`` and ``{source}``, the method's own prompts."""
        words = self.words_of_prompts()
        own = {"target": render(self.target_template, **words), "source": render(self.source_template, **words)}
        return render(template, **words, **own)

    def words_of_prompts(self) -> dict[str, str]:
        """What stands for ``{V}``, ``{N}`` ... in templates."""
        return {"V": str(self.hparams.identifier), "N": str(self.data.category)}

    def plain_prompt(self, prompt: str) -> str:
        """A prompt without the identifier, which means nothing to networks that were not tuned."""
        return " ".join(re.sub(rf"(?<!\S){re.escape(str(self.hparams.identifier))}(?!\w)", " ", prompt).split())

    def rendered(self, batch: PromptBatch) -> PromptBatch:
        """A batch of templates -> of prompts."""
        return {**batch, "prompt": [self.prompt(each) for each in batch["prompt"]]}

    # Inputs

    def states(self, prompts: Sequence[str]) -> Tensor:
        """Text states (B, L, D)."""
        assert self._prompts is not None, "configure_model() has not run"
        return self._prompts(list(prompts), self.device)

    def latents(self, images: Tensor, ids: Sequence[str], numbers: Sequence[int], step: int, keep: bool) -> Tensor:
        """x_0 drawn from q(z|x), keyed by step and sample: (B, 3, H, W) in [0, 1] -> (B, C, h, w).

        Args:
            ids: Of the pictures.
            numbers: Of the draws, where a picture comes several times.
            keep: Keep mean and deviation: for pictures that are always cut the same.
        """
        new = [i for i, name in enumerate(ids) if not keep or name not in self._kept_latents]
        found = dict(self._kept_latents)
        if new:
            with torch.autocast(self.device.type, enabled=False):
                # Kept ones one by one: in another company, as a resumed run has it, the last bits differ.
                parts = [encode_image(self.parts.vae, some) for some in images[new].split(1 if keep else len(new))]
            mean, std = (torch.cat(each) for each in zip(*parts))
            found |= {ids[i]: each for i, each in zip(new, zip(mean, std))}
            if keep:
                self._kept_latents = found
        mean, std = (torch.stack(each) for each in zip(*(found[name] for name in ids)))
        return mean + std * self.noise(mean, ids, numbers, "posterior", step)

    def noise(self, like: Tensor, ids: Sequence[str], numbers: Sequence[int], *keys: int | str) -> Tensor:
        """N(0, 1) in the shape of ``like``, a generator per sample: neither order nor number of processes matters."""
        return self._drawn(like.shape[1:], like, ids, numbers, *keys)

    def offsets(self, like: Tensor, ids: Sequence[str], numbers: Sequence[int], *keys: int | str) -> Tensor:
        """N(0, 1) of (B, C, 1, 1), likewise."""
        return self._drawn((like.shape[1], 1, 1), like, ids, numbers, "offset", *keys)

    def timesteps(self, ids: Sequence[str], numbers: Sequence[int], step: int) -> Tensor:
        """One timestep a sample (B,), uniformly, likewise."""
        count = len(self.parts.alphas_cumprod)
        keys = [keyed_torch_generator(self.hparams.seed, "timestep", step, name, number) for name, number in zip(ids, numbers)]
        return torch.stack([torch.randint(count, (), generator=each) for each in keys]).to(self.device)

    def _drawn(self, shape: Sequence[int], like: Tensor, ids: Sequence[str], numbers: Sequence[int], *keys: int | str) -> Tensor:
        generators = [keyed_torch_generator(self.hparams.seed, *keys, name, number) for name, number in zip(ids, numbers)]
        return torch.stack([torch.randn(tuple(shape), generator=each) for each in generators]).to(like)

    # Pictures

    def pipeline(self) -> Any:
        """The stock pipeline of the live parts, nothing loaded anew."""
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        parts = self.parts
        scheduler = DDIMScheduler.from_config(parts.scheduler.config, clip_sample=False)
        pipe = StableDiffusionPipeline(
            vae=parts.vae, text_encoder=parts.text_encoder, tokenizer=parts.tokenizer, unet=parts.unet, scheduler=scheduler,
            **pipeline_options(),
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        numbers: Sequence[int],
        enhancement: Enhancement = "off",
        base: str | Sequence[str] = "",
        strength: float = 1.0,
        key: str = "draw",
    ) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1]; noise is keyed by the seed, the prompt and the number.

        Args:
            enhancement: See :func:`genlab.diffusion.guidance.enhanced`.
            base: Its prompt, for all or for each.
            strength: Of it.
        """
        h, parts, pipe = self.hparams, self.parts, self.pipeline()
        side = int(cast(Any, parts.unet).config.sample_size)
        like = torch.empty(1, int(cast(Any, parts.vae).config.latent_channels), side, side, device=self.device)
        latents = self.noise(like, prompts, numbers, key)
        bases = self.states([base] if isinstance(base, str) else base)
        with torch.autocast(self.device.type, enabled=False), enhanced(pipe, enhancement, bases, strength):
            return pipe(
                prompt_embeds=self.states(prompts), negative_prompt_embeds=self.states([""] * len(prompts)), latents=latents,
                num_inference_steps=h.sampling_steps, guidance_scale=h.guidance, output_type="pt",
            ).images.float()  # fmt: skip

    def say_estimate(self, stages: Sequence[StageCost]) -> None:
        """One table in the log: memory and time of the training that begins. A pass of the network is measured for it."""
        if not self.trainer.is_global_zero:
            return
        unet, trained = cast(Any, self.network), [parameter for parameter in self.parameters() if parameter.requires_grad]
        latents = torch.randn(
            1, int(unet.config.in_channels), *2 * (int(unet.config.sample_size),), generator=keyed_torch_generator("pass")
        )
        with torch.autocast(self.device.type, enabled=False):
            one = measure_pass(unet, latents.to(self.device), self.states([self.prompt("{target}")]), trained)
        state = 2 if self.hparams.get("eight_bit_adam") else 8
        log.info("%s", estimate_table(one, self, stages, state))

    def prior_stage(self, count: int) -> StageCost:
        """The drawing of so many prior pictures, for the estimate; what the cache holds already is not known yet."""
        return StageCost("prior pictures that are missing, at most", count, 0, 2 * self.hparams.sampling_steps)

    def training_steps(self) -> int:
        """Of the whole run."""
        return max(int(self.trainer.max_steps), 0) or int(self.trainer.estimated_stepping_batches)

    def prior_path(self, prompt: str) -> Path:
        """Where pictures of a prompt by the plain model are kept, of these settings to sample."""
        h = self.hparams
        key = content_key("prior images", self._weights, prompt, h.sampling_steps, h.guidance, h.seed)
        return cache_folder() / "prior_images" / key

    def prior_folder(self, prompt: str, count: int, batch_size: int) -> Path:
        """Pictures of a prompt by the model as it is now, in the cache; drawn where they are missing, by all processes together."""
        h, folder = self.hparams, self.prior_path(prompt)
        made = fill_folder(
            folder, count, lambda numbers: self.draw([prompt] * len(numbers), numbers, key="prior"), batch_size,
            self.trainer.global_rank, self.trainer.world_size,
        )  # fmt: skip
        if made:
            about = {"prompt": prompt, "backbone": str(h.backbone), "steps": h.sampling_steps, "guidance": h.guidance, "seed": h.seed}
            write_json(folder / "about.json", about)
            log.info("prior pictures: %d of %r made now, in %s", made, prompt, folder)
        self.trainer.strategy.barrier("prior pictures")
        return folder

    # Evaluation: pictures of prompts

    def draw_batch(self, batch: PromptBatch) -> Tensor:
        """Pictures of a batch of prompts. Subclasses put their way to sample here."""
        return self.draw(batch["prompt"], batch["number"].tolist())

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> Evaluated:
        rendered = self.rendered(batch)
        return self.evaluated(rendered, self.draw_batch(rendered))

    def ways_to_draw(self, batch: PromptBatch) -> Iterator[tuple[str, PromptBatch, Tensor]]:
        """In ``predict``: name of a way to sample, a batch or part of it, and its pictures. Methods with several ways yield them all."""
        yield "", batch, self.draw_batch(batch)

    def on_predict_start(self) -> None:
        self._sheet = Sheet(Path(self.trainer.default_root_dir))

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> Evaluated:
        """Every picture becomes a file in ``pictures/``; at the end all are in ``media/grid.png``."""
        rows: list[dict[str, Any]] = []
        for way, part, pictures in self.ways_to_draw(self.rendered(batch)):
            named: PromptBatch = {**part, "id": [f"{name}-{way}" if way else name for name in part["id"]]}
            self._sheet.add(named["id"], [f"{prompt} ({way})" if way else prompt for prompt in part["prompt"]], pictures)
            rows += self.evaluated(named, pictures)["rows"]
        return {"rows": rows}

    def on_predict_epoch_end(self) -> None:
        self._sheet.finish(self.trainer.is_global_zero)

    def on_test_start(self) -> None:
        """Gets ready to measure drawn pictures against the datamodule's few real ones."""
        reference = self.data.reference_pictures()
        self.quality = Quality(
            self.measures, self.data.real_pictures().float() / 255, None if reference is None else reference.float() / 255
        ).to(self.device)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> Evaluated:
        rendered = self.rendered(batch)
        pictures = self.draw_batch(rendered)
        self.quality.update(pictures, batch["index"], [self.plain_prompt(each) for each in rendered["prompt"]])
        evaluated = self.evaluated(rendered, pictures)
        return evaluated if batch_idx == 0 else {"rows": evaluated["rows"]}

    def on_test_epoch_end(self) -> None:
        """Logs ``test/lite0_*`` and its like: the name says whose features they are."""
        self.log_dict({f"test/{name}": value.to(self.device) for name, value in self.quality.compute().items()})

    def evaluated(self, batch: PromptBatch, pictures: Tensor) -> Evaluated:
        """Rows and strips of drawn pictures."""
        rows: list[dict[str, Any]] = [
            {"id": name, "label": "", "score": "", "status": "ok", "prompt": prompt} for name, prompt in zip(batch["id"], batch["prompt"])
        ]
        frames = (pictures.permute(0, 2, 3, 1) * 255 + 0.5).byte().cpu().numpy()
        grouped: dict[str, list[int]] = {}
        for i, prompt in enumerate(batch["prompt"]):
            grouped.setdefault(prompt, []).append(i)
        strips: list[Strip] = [
            {"id": batch["id"][places[0]], "caption": prompt or "(no prompt)", "frames": frames[places[:8]], "heat": None}
            for prompt, places in grouped.items()
        ]
        return {"rows": rows, "strips": strips}


def part_of(batch: PromptBatch, places: Sequence[int]) -> PromptBatch:
    """Some prompts of a batch."""
    return {
        "prompt": [batch["prompt"][i] for i in places], "id": [batch["id"][i] for i in places],
        "number": batch["number"][list(places)], "index": batch["index"][list(places)],
    }  # fmt: skip

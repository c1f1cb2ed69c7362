"""MSTA: multi-modal spatio-temporal adapters for video action recognition (arXiv 2411.11223, CVPR 2025).

A frozen video-text network with a small adapter beside each adapted block of both towers: block k gives E_k(x) + lambda A(LN1_k(x)). The
adapters of block k share their inner projection W_s, so that video and text shape it together. The class texts w_c are tied to what the
frozen text tower makes of written descriptions: L = L_CE + alpha L_CC.

Notation: v, w_c embeddings of clip and class prompt; D_s^c, D_t^c mean embeddings of a class's spatial and temporal descriptions. The
authors' code is not published; which detail is from the paper, from their logs, or ours, is in docs/msta.md.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from genlab import figures
from genlab.batches import ActionBatch, Evaluated
from genlab.errors import MissingPath, UserError
from genlab.files import cache_folder, write_bytes
from genlab.losses.description_consistency import Averaging, description_consistency, description_means
from genlab.metrics.few_shot import harmonic_mean
from genlab.models.adapters import Adapters, Branches
from genlab.models.video_text import Kind, embed_texts
from genlab.store import content_key
from genlab.training.base import to_plain
from genlab.training.features import weights_key
from genlab.training.video_text import VideoTextMethod, classification_loss

log = logging.getLogger(__name__)

SHAPE = ("blocks", "bottleneck", "share", "branches", "temporal_kernel", "adapter_norm")  # what a file of adapters must agree in


class MSTA(VideoTextMethod):
    """Adapters on a frozen video-text network.

    Args:
        backbone: ``OpenGVLab/ViCLIP-B-16-hf`` (paper: ViCLIP-B/16), another hub id or folder, ``tiny:viclip``.
        network: ``viclip``, or ``clip`` for a CLIP that reads each frame by itself.
        blocks: First and last adapted block of the text tower, counted from 1; the video tower's are paired with them from the top.
            Paper: 1 to 12, few-shot 8 to 12.
        bottleneck: r. Paper: 256; the authors' logs: 128.
        scale: lambda. Paper: 0.005. 0 is the frozen network, bit for bit; it can be changed at any time.
        consistency_weight: alpha of L_CC. Paper: 1; 0 leaves it out, and the descriptions with it.
        description_averaging: See :func:`genlab.losses.description_consistency.description_means`.
        share: One W_s for both towers (paper).
        branches: Towers that are adapted. Paper: both.
        temporal_kernel: Steps of time in the video adapters' convolution; ``null`` leaves it out.
        adapter_norm: What the adapters read: ``ln1``, the block's input after its own first norm (as in MMA, whose adapter this is), or
            ``none``, the input itself.
        zero_init_up: Start exactly as the frozen network. Paper: Kaiming.
        adapters: A file of adapters (``genlab convert adapters``) to start from, or to evaluate.
        prompt_template: Of the class prompts, ``{}`` for the name. Paper: a video of {cls}.
        humanize: Turn names as ``ApplyEyeMakeup`` into words.
        cache_prefix: Keep what enters the first adapted block of the text tower: nothing before it ever changes.
        gradient_checkpointing: Compute activations of adapted blocks again in the backward pass; saves memory.
        test_scales: Values of lambda to measure in ``test`` besides ``scale``, for a plot.
        lr: Of AdamW. Paper: 1e-3 at 32 clips in all.
        weight_decay: Paper: 1e-3, on everything trained.
        warmup_epochs: Paper: 5.
    """

    def __init__(
        self,
        backbone: str = "OpenGVLab/ViCLIP-B-16-hf",
        network: Kind = "viclip",
        blocks: tuple[int, int] = (1, 12),
        bottleneck: int = 256,
        scale: float = 0.005,
        consistency_weight: float = 1.0,
        description_averaging: Averaging = "normalized",
        share: bool = True,
        branches: Branches = "both",
        temporal_kernel: int | None = 3,
        adapter_norm: Literal["ln1", "none"] = "ln1",
        zero_init_up: bool = False,
        adapters: str | None = None,
        prompt_template: str = "a video of {}.",
        humanize: bool = False,
        cache_prefix: bool = True,
        gradient_checkpointing: bool = False,
        test_scales: list[float] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-3,
        warmup_epochs: float = 5.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        for name, value in {"bottleneck": bottleneck, "blocks": min(blocks)}.items():
            if value < 1:
                raise UserError(f"model.{name}: {value} is too small; use 1 or more.")
        self.needs_checkpoint = adapters is None
        self.scale = scale
        self.adapters: Adapters | None = None
        self._entering: dict[tuple[str, ...], Tensor] = {}  # what enters the first adapted block of the text tower, by prompts
        self._means: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}  # by set and its classes
        self._texts_at: dict[tuple[str, float], Tensor] = {}  # class embeddings of a test, by set and lambda
        self._over_scales: dict[str, dict[float, list[tuple[Tensor, Tensor]]]] = {}

    @property
    def protocol(self) -> dict[str, Any]:
        return super().protocol | {"lambda": self.scale}

    def build(self) -> None:
        h, net = self.hparams, self.net
        first, last = h.blocks
        self.offset = net.vision_layers - net.text_layers  # towers of different depth are paired from the top
        if not 1 <= first <= last <= net.text_layers or first + self.offset < 1:
            raise UserError(f"model.blocks: {first} to {last}, but {h.backbone} has blocks 1 to {net.text_layers}.")
        self.freeze_part("backbone")
        self.adapters = Adapters(
            net.vision_width, net.text_width, h.bottleneck, range(first, last + 1), h.share, h.branches, h.temporal_kernel, h.zero_init_up
        )
        if h.adapters is not None:
            self.load_adapters(Path(h.adapters))

    @property
    def adapted(self) -> Adapters:
        assert self.adapters is not None, "configure_model() has not run"
        return self.adapters

    # Towers with adapters beside their blocks

    def encode_video(self, video: Tensor) -> Tensor:
        net, adapters = self.net, self.adapted
        x = net.embed_video(video)
        for layer in range(1, net.vision_layers + 1):
            k = layer - self.offset
            if self.scale and str(k) in adapters.vision:
                x = self._saving(self._video_block, layer, x, len(video))
            else:
                x = net.video_block(layer)(x)
        return net.project_video(x, len(video))

    def _video_block(self, layer: int, x: Tensor, clips: int) -> Tensor:
        net, block = self.net, self.net.video_block(layer)
        read = block.norm1(x) if self.hparams.adapter_norm == "ln1" else x
        tokens, first = net.by_patch(read, clips)
        added = net.by_frame(self.adapted.of_video(layer - self.offset, tokens, net.grid, first))
        return block(x) + self.scale * added

    def _text_block(self, k: int, x: Tensor) -> Tensor:
        block = self.net.text_block(k)
        read = block.norm1(x) if self.hparams.adapter_norm == "ln1" else x
        return block(x) + self.scale * self.adapted.of_text(k, read)

    def _saving(self, block: Any, *inputs: Any) -> Tensor:
        if self.hparams.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def encode_tokens(self, tokens: Tensor, entering: Tensor | None = None) -> Tensor:
        """Prompts (C, L) -> w (C, E).

        Args:
            entering: What enters the first adapted block, from :meth:`text_before`; left out, it is computed.
        """
        net, adapters = self.net, self.adapted
        x = self.text_before(tokens) if entering is None else entering
        for k in range(self.hparams.blocks[0], net.text_layers + 1):
            x = self._saving(self._text_block, k, x) if self.scale and str(k) in adapters.text else net.text_block(k)(x)
        return net.project_text(x, tokens)

    @torch.no_grad()
    def text_before(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C, L, D) as it enters the first adapted block."""
        x = self.net.embed_text(tokens)
        for k in range(1, self.hparams.blocks[0]):
            x = self.net.text_block(k)(x)
        return x

    def encode_prompts(self, name: str) -> Tensor:
        tokens = self.prompt_tokens(name)
        if not self.hparams.cache_prefix:
            return self.encode_tokens(tokens)
        prompts = tuple(self.prompts(name))
        if prompts not in self._entering or self._entering[prompts].device != tokens.device:
            with torch.inference_mode(False):  # an evaluation may come first, and training use it
                self._entering[prompts] = self.text_before(tokens)
        return self.encode_tokens(tokens, self._entering[prompts])

    # Descriptions

    def described(self, name: str) -> tuple[Tensor, Tensor]:
        """D_s and D_t (C, E) of a set's classes by the frozen text tower; kept on the disk."""
        key = (name, *self.data.class_names(name))
        if key not in self._means:
            averaging, weights = self.hparams.description_averaging, weights_key(self.net)
            found: list[Tensor] = []
            for kind, sentences in zip(("spatial", "temporal"), self.data.descriptions(name)):
                path = cache_folder() / "texts" / f"{content_key('descriptions', weights, sentences, averaging)}.safetensors"
                if not path.is_file():
                    embeds, cut = embed_texts(self.net, [each for some in sentences for each in some], self.device)
                    if cut:
                        log.warning("%d of %d %s descriptions are cut to %d tokens.", cut, len(embeds), kind, self.net.context_length)
                    write_bytes(path, save({"means": description_means(embeds, [len(some) for some in sentences], averaging).cpu()}))
                found.append(load_file(path)["means"].to(self.device))
            self._means[key] = found[0], found[1]
        return self._means[key]

    # Training

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._means = {}  # another datamodule may describe the same classes otherwise

    def training_step(self, batch: ActionBatch, batch_idx: int) -> Tensor:
        h = self.hparams
        w = self.encode_prompts("train")  # of all classes, in every step
        ce = classification_loss(self.logits(batch["video"][:, 0], w), batch["label"])
        losses = {"loss": ce, "ce": ce}
        if h.consistency_weight:
            losses["cc"] = description_consistency(w.float(), *self.described("train"))
            losses["loss"] = ce + h.consistency_weight * losses["cc"]
        self.log_substitutes(batch)
        return self.log_losses(losses, batch_size=len(batch["label"]))

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.hparams.consistency_weight and not self.trainer.sanity_checking:
            w = self.prepared(self.data.eval_sets("val")[0]).float()
            for kind, means in zip(("spatial", "temporal"), self.described("train")):  # how far the texts have drifted
                self.log(f"val/cosine_{kind}", F.cosine_similarity(w, means).mean(), sync_dist=True)

    # lambda over several values

    def on_test_start(self) -> None:
        super().on_test_start()
        self._over_scales, self._texts_at = {}, {}

    def test_step(self, batch: ActionBatch, batch_idx: int, dataloader_idx: int = 0) -> Evaluated:
        name = self.data.eval_sets("test")[dataloader_idx]
        with torch.no_grad():
            for scale in self.hparams.test_scales or []:
                right = self._right_at(scale, name, batch)
                self._over_scales.setdefault(name, {}).setdefault(scale, []).append((right, batch["readable"]))
        return super().test_step(batch, batch_idx, dataloader_idx)

    def _right_at(self, scale: float, name: str, batch: ActionBatch) -> Tensor:
        before, self.scale = self.scale, scale
        try:
            if (name, scale) not in self._texts_at:
                self._texts_at[name, scale] = self.encode_prompts(name)
            return self.view_chances(batch, self._texts_at[name, scale]).argmax(1) == batch["label"]
        finally:
            self.scale = before

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        points: dict[str, dict[float, float]] = {}
        for name in self.data.eval_sets("test") if self.hparams.test_scales else []:
            for scale in self.hparams.test_scales:
                parts = self._over_scales.get(name, {}).get(scale, [])
                counts = [sum(int((right & ok).sum()) for right, ok in parts), sum(int(ok.sum()) for _, ok in parts)]
                right, known = self.trainer.strategy.reduce(torch.tensor(counts, device=self.device), reduce_op="sum").tolist()
                points.setdefault(name, {})[scale] = right / max(known, 1)
                self.log(f"test/{name}/acc_at_lambda_{scale:g}", right / max(known, 1))
        if {"base", "novel"} <= points.keys():
            points["harmonic mean"] = {scale: harmonic_mean(points["base"][scale], value) for scale, value in points["novel"].items()}
        self._points = points

    def run_files(self, rows: list[dict[str, Any]]) -> dict[str, bytes]:
        files = super().run_files(rows)
        if getattr(self, "_points", {}):
            files["media/lambda.png"] = figures.png(figures.lines(self._points, "lambda", "accuracy"))
        return files

    # Adapters alone, to swap on a loaded network

    def save_adapters(self, path: Path) -> None:
        """Writes the adapters and their settings as safetensors: a few MB, without the network."""
        tensors = {f"adapters.{name}": value for name, value in self.adapted.state_dict().items()}
        write_adapters(path, tensors, dict(self.hparams) | {"scale": self.scale})

    def load_adapters(self, path: Path) -> None:
        """Puts adapters from :meth:`save_adapters` in the place of the present ones.

        Raises:
            MissingPath: There is no such file.
            UserError: It holds something else, or adapters of another shape.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise MissingPath(f"model.adapters: {path} is not there.")
        try:
            with safe_open(path, "pt") as file:
                settings = json.loads((file.metadata() or {}).get("msta", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"model.adapters: {path} is no safetensors file ({error}).") from error
        if settings is None:
            raise UserError(
                f"model.adapters: {path} holds no adapters of MSTA; make a file with: genlab convert adapters CHECKPOINT --out FILE."
            )
        mine = {name: to_plain(self.hparams[name]) for name in SHAPE}
        other = [f"{name} {settings.get(name)!r}, here {mine[name]!r}" for name in SHAPE if settings.get(name) != _listed(mine[name])]
        if other:
            raise UserError(f"model.adapters: {path} has {'; '.join(other)}. Set model.* so.")
        given, own = {name.removeprefix("adapters."): value for name, value in tensors.items()}, self.adapted.state_dict()
        wrong = [f"{name} is missing" for name in own if name not in given] + [f"{name} is unknown" for name in given if name not in own]
        wrong += [
            f"{name} is {tuple(given[name].shape)}, here {tuple(value.shape)}"
            for name, value in own.items()
            if name in given and given[name].shape != value.shape
        ]
        if wrong:  # before anything is loaded: what was there stays whole
            raise UserError(f"model.adapters: {path}, trained on {settings['backbone']}, does not fit {self.hparams.backbone}: {wrong[0]}.")
        self.adapted.load_state_dict(given)
        if settings["scale"] != self.scale:
            log.warning("model.scale: lambda is %g, the adapters were trained with %g.", self.scale, settings["scale"])
        self._prepared = {}


def write_adapters(path: Path, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Writes a file of adapters.

    Args:
        tensors: ``adapters.*``.
        settings: Hyperparameters of the method; those are kept that the adapters depend on.
    """
    kept = {name: to_plain(settings[name]) for name in (*SHAPE, "scale", "backbone")}
    write_bytes(path, save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {"msta": json.dumps(kept)}))


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

"""CLIPs of transformers, of open_clip and of OpenAI's own files, by name, behind the one interface of :mod:`genlab.models.clip`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from genlab.errors import MissingPath, UserError
from genlab.models.clip import ClipBackbone, TextBlock, TextTower, Words, one_projection, three_projections
from genlab.nearest import did_you_mean
from genlab.weights import load_pretrained, resolve

if TYPE_CHECKING:
    from transformers import CLIPModel


class TransformersWords:
    """Tokenizer of a folder in Hugging Face's format."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.start, self.end = tokenizer, int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)

    def __call__(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


class OpenClipWords:
    """OpenAI's vocabulary, as open_clip ships it."""

    def __init__(self) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self.tokenizer = SimpleTokenizer()
        self.start, self.end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id

    def __call__(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text))


class TransformersClip(ClipBackbone):
    """CLIP with a ViT, as transformers' ``CLIPModel``."""

    def __init__(self, model: CLIPModel, words: Words | None = None) -> None:
        super().__init__(words)
        text, vision = cast(Any, model.config.text_config), cast(Any, model.config.vision_config)
        if text.hidden_act != vision.hidden_act:
            raise UserError(
                f"model.backbone: its text tower has {text.hidden_act}, its image tower {vision.hidden_act}. Published models have "
                "the same in both; mend hidden_act in config.json."
            )
        self.model, self.heads = model, int(text.num_attention_heads)
        self.width, self.text_width = int(cast(Any, model.config).projection_dim), int(text.hidden_size)
        self.context_length, self.image_size = int(text.max_position_embeddings), int(vision.image_size)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def scale(self) -> float:
        return float(self.model.logit_scale.detach().exp())

    def text_tower(self) -> TextTower:
        text = self.model.text_model
        blocks = [
            TextBlock(
                layer.layer_norm1,
                three_projections(layer.self_attn),
                layer.self_attn.out_proj,
                layer.layer_norm2,
                layer.mlp,
            )
            for layer in text.encoder.layers
        ]
        embeddings = text.embeddings
        position = embeddings.position_embedding.weight
        return TextTower(embeddings.token_embedding, position, blocks, self.heads, text.final_layer_norm, self.model.text_projection)


class OpenClip(ClipBackbone):
    """CLIP as open_clip builds it, with a ViT or the modified ResNet of the first paper."""

    def __init__(self, model: Any, words: Words | None = None) -> None:
        super().__init__(words)
        if not all(hasattr(model, name) for name in ("transformer", "token_embedding", "ln_final", "text_projection", "attn_mask")):
            raise UserError(f"model.backbone: {type(model).__name__} of open_clip has another text tower than CLIP's; use RN50 or a ViT.")
        self.model = model
        self.context_length, self.text_width = model.positional_embedding.shape
        self.width, size = model.text_projection.shape[1], model.visual.image_size
        self.image_size = int(size[0] if isinstance(size, tuple) else size)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def scale(self) -> float:
        return float(self.model.logit_scale.detach().exp())

    def text_tower(self) -> TextTower:
        model = self.model
        blocks = [
            TextBlock(
                block.ln_1,
                one_projection(block.attn),
                block.attn.out_proj,
                block.ln_2,
                block.mlp,
            )
            for block in model.transformer.resblocks
        ]
        heads = model.transformer.resblocks[0].attn.num_heads
        return TextTower(
            model.token_embedding, model.positional_embedding, blocks, heads, model.ln_final, lambda x: x @ model.text_projection
        )


def load_clip(name: str) -> ClipBackbone:
    """A CLIP by name.

    Args:
        name: ``tiny:clip``, a hub id or folder for transformers (``openai/clip-vit-base-patch16``), ``open_clip:ARCH/TAG`` or
            ``open_clip:ARCH/FILE`` for open_clip (``open_clip:RN50-quickgelu/openai``), or ``openai:FILE.pt`` for a file as OpenAI
            published it.

    Raises:
        UserError: The weights are not there, or belong to a network with another activation.
    """
    kind, _, rest = name.partition(":")
    if kind == "open_clip":
        return _load_open_clip(rest)
    if kind == "openai":
        return _load_openai(Path(rest))
    return _load_transformers(rest if kind == "hf" else name)


def _load_transformers(name: str) -> ClipBackbone:
    from transformers import CLIPModel, CLIPTokenizer

    model = load_pretrained(CLIPModel, name)
    acts = {part.hidden_act for part in (model.config.text_config, model.config.vision_config)}
    if name.startswith("openai/") and acts != {"quick_gelu"}:
        raise UserError(
            f"weights: {name} was trained with quick_gelu, config.json says {', '.join(sorted(acts))}. Bring the published one."
        )
    try:
        tokenizer = CLIPTokenizer.from_pretrained(resolve(name), local_files_only=True)
    except (OSError, ValueError, TypeError):
        return TransformersClip(model.eval())  # what is missing is said when a text is tokenized
    # Without files, one that knows nothing but the special tokens is made in silence.
    return TransformersClip(model.eval(), TransformersWords(tokenizer) if len(tokenizer) > len(tokenizer.all_special_ids) + 1 else None)


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise UserError("model.backbone: this backbone needs open_clip; pip install 'genlab[fewshot]'.") from error
    return open_clip


def _load_open_clip(name: str) -> ClipBackbone:
    open_clip = _open_clip()
    arch, _, tag = name.partition("/")
    if arch not in open_clip.list_models():
        raise UserError(f"model.backbone: open_clip has no {arch!r}{did_you_mean(arch, open_clip.list_models()) or '.'}")
    if not tag:
        raise UserError(f"model.backbone: open_clip:{arch} has no weights; write open_clip:{arch}/openai, or a file in place of openai.")
    quick = bool(open_clip.get_model_config(arch).get("quick_gelu"))
    tags = open_clip.list_pretrained_tags_by_model(arch)
    config: Any = open_clip.get_pretrained_cfg(arch, tag) or {}
    trained_quick = bool(config.get("quick_gelu")) if config else "openai" in tag
    if trained_quick and not quick:
        raise UserError(
            f"model.backbone: the weights {tag!r} were trained with QuickGELU, {arch} has GELU, and all features would be wrong. Write "
            f"open_clip:{arch}-quickgelu/{tag}."
        )
    if Path(tag).is_file():
        path = tag
    elif tag not in tags:
        raise UserError(f"model.backbone: open_clip has no weights {tag!r} for {arch}; there are {', '.join(tags)}, or give a file.")
    else:
        path = _open_clip_file(config, arch, tag)
    model = open_clip.create_model(arch, pretrained=path, weights_only=True)
    return OpenClip(model.float().eval(), OpenClipWords())


def _open_clip_file(config: Any, arch: str, tag: str) -> str:
    """The file of a published tag, offline unless ``GENLAB_DOWNLOAD=1``."""
    from huggingface_hub import hf_hub_download

    hub = str(config.get("hf_hub", "")).strip("/")
    file = "open_clip_model.safetensors"
    own = Path(os.environ.get("GENLAB_WEIGHTS", "weights")) / hub / file
    if hub and own.is_file():
        return str(own)
    download = os.environ.get("GENLAB_DOWNLOAD", "") not in ("", "0")
    try:
        return str(hf_hub_download(hub, file, local_files_only=not download))
    except Exception as error:  # of many kinds: not cached, no network, no such repository
        raise MissingPath(
            f"weights: {arch}/{tag} ({hub}) is not on this machine (looked in {own} and the Hugging Face cache). Set GENLAB_DOWNLOAD=1 to "
            f"let the hub be asked, or give a file: open_clip:{arch}/FILE. ({str(error).splitlines()[0][:120]})"
        ) from error


def _load_openai(path: Path) -> ClipBackbone:
    """A file as OpenAI published it, or a state dict with the same names."""
    if not path.is_file():
        raise MissingPath(f"weights: {path} does not exist. openai: wants a file such as RN50.pt or ViT-B-16.pt.")
    open_clip = _open_clip()
    try:
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    except RuntimeError:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
    from open_clip.model import build_model_from_openai_state_dict

    try:
        model = build_model_from_openai_state_dict(dict(state), cast_dtype=torch.float32)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"weights: {path} is no CLIP of OpenAI's: {str(error).splitlines()[0][:120]}.") from error
    assert open_clip is not None
    return OpenClip(model.float().eval(), OpenClipWords())


BLOCKS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
WHOLE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "logit_scale": "logit_scale",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}


def openai_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of OpenAI's CLIP with a ViT, or of its text tower alone, as those of transformers' ``CLIPModel``."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in WHOLE:
            out[WHOLE[name]] = value
        elif name in TRANSPOSED:
            out[TRANSPOSED[name]] = value.T.contiguous()
        elif "transformer.resblocks." in name:
            tower, _, rest = name.rpartition("transformer.resblocks.")
            number, _, part = rest.partition(".")
            at = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}"
            own, _, kind = part.rpartition(".")
            if own == "attn" and kind.startswith("in_proj_"):
                for each, third in zip("qkv", value.chunk(3)):
                    out[f"{at}.self_attn.{each}_proj.{kind.removeprefix('in_proj_')}"] = third
            else:
                out[f"{at}.{BLOCKS[own]}.{kind}"] = value
    return out

"""CLIP (Radford et al. 2021): its vision tower as a frame-wise video backbone, and both towers for few-shot classification."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genlab.errors import MissingPath, UserError
from genlab.models.backbones import Backbone, GlobalFeature, VideoBackbone, clip_mean, frame_tokens
from genlab.nearest import did_you_mean
from genlab.weights import load_pretrained, resolve

if TYPE_CHECKING:
    from transformers import CLIPModel


@dataclass(frozen=True)
class CLIP(Backbone):
    """CLIP ViT, frame by frame: patch tokens after the last layer norm and the visual projection.

    Args:
        weights: Hub id or folder of a CLIP model.
        global_feature: ``mean``: average of all projected patch tokens (official CLIP variant of DeMamba); ``cls``: mean over frames
            of the projected class token (the CLIP-B baseline).
    """

    weights: str = "openai/clip-vit-base-patch16"
    global_feature: GlobalFeature = "mean"

    def build(self) -> VideoBackbone:
        from transformers import CLIPModel

        return CLIPTokens(load_pretrained(CLIPModel, self.weights), self.global_feature)


class CLIPTokens(VideoBackbone):
    """The network of :class:`CLIP`."""

    def __init__(self, model: CLIPModel, global_feature: GlobalFeature = "mean") -> None:
        super().__init__()
        self.encoder, self.projection, self.global_feature = model.vision_model, model.visual_projection, global_feature
        self.width, self.grid = self.projection.out_features, self.encoder.config.image_size // self.encoder.config.patch_size

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.encoder(pixel_values=video.flatten(0, 1)).last_hidden_state
        features = self.projection(self.encoder.post_layernorm(hidden))
        tokens = frame_tokens(features[:, 1:], video)
        return tokens, tokens.mean((1, 2, 3)) if self.global_feature == "mean" else clip_mean(features[:, 0], video)


# ---- CLIP with both towers, for few-shot classification

ROWS_AT_ONCE = 256  # texts in one pass of the text tower


class Words(Protocol):
    """A tokenizer: text -> ids without the special ones."""

    start: int
    end: int

    def __call__(self, text: str) -> list[int]: ...


class TextBlock(NamedTuple):
    """A residual block of the text tower, whatever library it comes from."""

    norm1: Callable[[Tensor], Tensor]
    qkv: Callable[[Tensor], Sequence[Tensor]]
    out: Callable[[Tensor], Tensor]
    norm2: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]


class TextTower(NamedTuple):
    """The text tower in parts, so that learned prompts can run through it and share what they have in common."""

    embed: Callable[[Tensor], Tensor]
    position: Tensor
    """(L, W)."""
    blocks: list[TextBlock]
    heads: int
    norm: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]


class ClipBackbone(nn.Module):
    """Both towers of a CLIP. Features are not normalised.

    Args:
        words: Its tokenizer; ``None`` where no text is tokenized.

    Attributes:
        width: D, of the common space.
        text_width: W, of token embeddings.
        context_length: Most tokens of a text.
        image_size: Pixels per side.
    """

    width: int
    text_width: int
    context_length: int
    image_size: int

    def __init__(self, words: Words | None) -> None:
        super().__init__()
        self._words = words

    @property
    def words(self) -> Words:
        if self._words is None:
            raise UserError("model.backbone: its folder holds no tokenizer (vocab.json and merges.txt, or tokenizer.json); add it.")
        return self._words

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W), normalised by CLIP's mean and deviation -> (B, D)."""
        raise NotImplementedError(f"{type(self).__name__} must define encode_image.")

    def text_tower(self) -> TextTower:
        raise NotImplementedError(f"{type(self).__name__} must define text_tower.")

    def scale(self) -> float:
        """What cosines are multiplied by, 1 / temperature: 100 in all published models, up to rounding."""
        raise NotImplementedError(f"{type(self).__name__} must define scale.")

    def tokenize(self, texts: Sequence[str], truncate: bool = True) -> Tensor:
        """Texts -> ids (n, L), as long as the longest needs, filled up with 0 behind the end token.

        Raises:
            UserError: A text is too long and is not to be truncated.
        """
        words, rows = self.words, []
        for text in texts:
            ids = words(text)
            if len(ids) > self.context_length - 2 and not truncate:
                raise UserError(f"{text!r} has {len(ids)} tokens; the text tower reads {self.context_length - 2}. Shorten it.")
            rows.append([words.start, *ids[: self.context_length - 2], words.end])
        out = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, ids in zip(out, rows):
            row[: len(ids)] = torch.tensor(ids)
        return out

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(n, L) -> (n, L, W), without positions."""
        return self.text_tower().embed(ids)

    @torch.no_grad()
    def encode_text(self, ids: Tensor, end: int | None = None) -> Tensor:
        """(n, L) -> (n, D), read off at the first end token; what lies behind the last one of all is not computed.

        Args:
            end: Id of the end token; left out, the tokenizer's.
        """
        at_end = (ids == (self.words.end if end is None else end)).int().argmax(1)
        return self.encode_prompts(self.embed_tokens(ids[:, : int(at_end.max()) + 1]), at_end)[0]

    def encode_prompts(self, suffix: Tensor, end: Tensor, prefix: Tensor | None = None, rows_at_once: int = ROWS_AT_ONCE) -> Tensor:
        """Embedded prompts -> features, exactly those of the whole texts.

        Attention is causal. So nothing behind the last end token is computed, and a prefix that many prompts begin with is computed once:
        its keys and values serve all of them. Prompts go through in chunks, whose activations are computed again in the backward pass.

        Args:
            suffix: (C, S, W) embeddings without positions.
            end: (C,) where in the suffix the end token is.
            prefix: (G, P, W) what stands before every suffix, in G versions; ``None`` for nothing.
            rows_at_once: Prompts in a chunk.

        Returns:
            (G, C, D); G is 1 without a prefix.
        """
        tower = self.text_tower()
        suffix = suffix[:, : int(end.max()) + 1]
        known, versions, before = _through_prefix(tower, prefix) if prefix is not None else ([], 1, 0)
        length = before + suffix.shape[1]
        if length > len(tower.position):
            raise UserError(
                f"model.n_ctx: prompts have {length} tokens, the text tower reads {len(tower.position)}. Use fewer context tokens."
            )
        step = max(1, rows_at_once // versions)
        chunks = list(zip(suffix.split(step), end.split(step)))
        parts: list[Tensor] = []
        for some, at in chunks:
            if len(chunks) > 1 and torch.is_grad_enabled():
                parts.append(checkpoint(_through, tower, some, at, known, versions, before, use_reentrant=False))
            else:
                parts.append(_through(tower, some, at, known, versions, before))
        return torch.cat(parts, 1)


Known = list[tuple[Tensor, Tensor]]


def _through_prefix(tower: TextTower, prefix: Tensor) -> tuple[Known, int, int]:
    """Keys and values (G, heads, P, d) of each block, G and P."""
    x, known = prefix + tower.position[: prefix.shape[1]], list[tuple[Tensor, Tensor]]()
    for block in tower.blocks:
        q, k, v = (_heads(each, tower.heads) for each in block.qkv(block.norm1(x)))
        known.append((k, v))
        x = x + block.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return known, prefix.shape[0], prefix.shape[1]


def _through(tower: TextTower, suffix: Tensor, end: Tensor, known: Known, versions: int, before: int) -> Tensor:
    """Suffixes (C, S, W) behind each of the prefixes -> features (G, C, D) at the end tokens."""
    count, length = suffix.shape[:2]
    x = (suffix + tower.position[before : before + length]).expand(versions, -1, -1, -1).flatten(0, 1)  # (G * C, S, W)
    allowed = torch.ones(length, before + length, dtype=torch.bool, device=x.device).tril(before)
    for number, block in enumerate(tower.blocks):
        q, k, v = (_heads(each, tower.heads) for each in block.qkv(block.norm1(x)))
        if known:
            earlier = (each[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1) for each in known[number])
            k, v = (torch.cat([one, other], 2) for one, other in zip(earlier, (k, v)))
        x = x + block.out(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    at_end = x[torch.arange(len(x), device=x.device), end.repeat(versions)]
    return tower.project(tower.norm(at_end)).unflatten(0, (versions, count))


def _heads(x: Tensor, heads: int) -> Tensor:
    """(n, L, W) -> (n, heads, L, W / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _three_projections(attention: Any) -> Callable[[Tensor], Sequence[Tensor]]:
    return lambda x: (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))


def _one_projection(attention: Any) -> Callable[[Tensor], Sequence[Tensor]]:
    return lambda x: F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)


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
                _three_projections(layer.self_attn),
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
                _one_projection(block.attn),
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

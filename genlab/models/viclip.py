"""ViCLIP: a video and a text transformer with a common space of embeddings (InternVid, Wang et al., arXiv 2307.06942).

The video tower is CLIP's with attention over all patches of all frames together, and a temporal position per frame; the text tower is
CLIP's with 32 tokens. Parameters have the official names, so that official files load as they are. Both towers can be walked block by block
(``embed``, ``blocks``, ``project``), which is how adapters get between the blocks.

Two settings that the official model does not have make it learn motion at a tiny size, where a patch of one frame shows none:
``tubelet`` and ``frame_differences``.
"""

from __future__ import annotations

import json
import logging
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.files import write_json
from genlab.weights import load_pretrained

log = logging.getLogger(__name__)

MIN_TEMP = 0.01
DIFFERENCE_GAIN = 4.0  # most pixels hardly change between frames: brings differences to about the range of the pixels
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what ViCLIP was trained with, not CLIP's
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class ViCLIPConfig:
    """Sizes of a ViCLIP; the defaults are ViCLIP-B/16.

    Args:
        image_size: Pixels per side.
        patch_size: Pixels per side of a token.
        num_frames: Frames that the temporal positions are made for; other numbers are interpolated.
        vision_width: D of the video tower.
        vision_layers: Its blocks.
        vision_heads: Its attention heads.
        text_width: D of the text tower.
        text_layers: Its blocks.
        text_heads: Its attention heads.
        context_length: Tokens of a text.
        vocab_size: Of the tokenizer.
        embed_dim: E, of the common space.
        tubelet: Frames of one token. Official: 1.
        frame_differences: Differences to the previous frame as three more input channels. Official: no.
    """

    image_size: int = 224
    patch_size: int = 16
    num_frames: int = 8
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    context_length: int = 32
    vocab_size: int = 49408
    embed_dim: int = 512
    tubelet: int = 1
    frame_differences: bool = False

    def __post_init__(self) -> None:
        for one, other in (
            ("image_size", "patch_size"), ("num_frames", "tubelet"), ("vision_width", "vision_heads"), ("text_width", "text_heads"),
        ):  # fmt: skip
            if getattr(self, other) < 1 or getattr(self, one) < 1 or getattr(self, one) % getattr(self, other):
                raise UserError(f"ViCLIP: {one} {getattr(self, one)} must be a multiple of {other} {getattr(self, other)}.")

    @property
    def grid(self) -> int:
        """G, patches per side of a frame."""
        return self.image_size // self.patch_size


def attention(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Softmax attention over (..., L, d)."""
    if query.device.type != "cpu" or query.dtype == torch.float32 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    # The same written out: in bfloat16 on a CPU the backward pass of the fused one is several times slower.
    weights = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if causal:
        length = query.shape[-2]
        weights = weights.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
    return weights.softmax(-1) @ value


class SelfAttention(nn.Module):
    """Multi-head self-attention, (B, L, D) -> (B, L, D); parameters named as in ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(attention(q, k, v, self.causal).transpose(1, 2).flatten(2))


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), as in OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Pre-norm transformer block, (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads, causal)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        layers = OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width))
        self.mlp = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks, initialised as CLIP's."""

    def __init__(self, width: int, layers: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, causal) for _ in range(layers))
        inner = width**-0.5 * (2 * layers) ** -0.5
        for block in self.blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=inner)
            nn.init.normal_(cast(nn.Linear, block.mlp.c_fc).weight, std=(2 * width) ** -0.5)
            nn.init.normal_(cast(nn.Linear, block.mlp.c_proj).weight, std=inner)

    @property
    def blocks(self) -> list[Block]:
        return cast(list[Block], list(self.resblocks))


class VideoTower(nn.Module):
    """(B, T, 3, H, W), ImageNet-normalised -> (B, E).

    Token 0 is the clip's class token; token 1 + n * T' + t is patch n (row by row) at time t, with T' = T / tubelet.
    """

    def __init__(self, config: ViCLIPConfig) -> None:
        super().__init__()
        self.config = config
        width, patch, scale = config.vision_width, config.patch_size, config.vision_width**-0.5
        size = (config.tubelet, patch, patch)
        self.conv1 = nn.Conv3d(6 if config.frame_differences else 3, width, size, size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(config.grid**2 + 1, width))
        self.temporal_positional_embedding = nn.Parameter(0.02 * torch.randn(1, config.num_frames // config.tubelet, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, config.vision_layers, config.vision_heads, causal=False)
        self.proj = nn.Parameter(scale * torch.randn(width, config.embed_dim))

    @property
    def blocks(self) -> list[Block]:
        return self.transformer.blocks

    def embed(self, video: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> tokens before the first block, (B, 1 + G*G * T', D)."""
        self._check(video)
        if self.config.frame_differences:
            differences = DIFFERENCE_GAIN * torch.diff(video, dim=1, prepend=video[:, :1])
            video = torch.cat([video, differences], dim=2)
        patches = self.conv1(video.transpose(1, 2)).flatten(3).permute(0, 3, 2, 1)  # (B, G*G, T', D)
        patches = patches + self.positional_embedding[1:, None] + self.temporal_positions(patches.shape[2])
        first = (self.class_embedding + self.positional_embedding[0]).expand(len(video), 1, -1)
        return self.ln_pre(torch.cat([first, patches.flatten(1, 2)], dim=1))

    def temporal_positions(self, steps: int) -> Tensor:
        """(1, steps, D): the table, interpolated along time where ``steps`` is not its length; for one step its mean."""
        table = self.temporal_positional_embedding
        if steps == table.shape[1]:
            return table
        if steps == 1:
            return table.mean(1, keepdim=True)
        return F.interpolate(table.transpose(1, 2), steps, mode="linear", align_corners=False).transpose(1, 2)

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens after the last block -> (B, E), not normalised."""
        return self.ln_post(tokens[:, 0]) @ self.proj

    def forward(self, video: Tensor) -> Tensor:
        tokens = self.embed(video)
        for block in self.blocks:
            tokens = block(tokens)
        return self.project(tokens)

    def _check(self, video: Tensor) -> None:
        size, tubelet = self.config.image_size, self.config.tubelet
        if video.shape[2:] != (3, size, size):
            raise UserError(
                f"ViCLIP reads 3 x {size} x {size} pixels, the clips have {' x '.join(map(str, video.shape[2:]))}. "
                f"Set data.image_size to {size}."
            )
        if video.shape[1] % tubelet:
            raise UserError(f"ViCLIP reads {tubelet} frames a token, the clips have {video.shape[1]}. Use a multiple of {tubelet}.")


class TextTower(nn.Module):
    """Token ids (C, L), padded behind the end token -> (C, E). L is at most the context length; shorter is faster and the same."""

    def __init__(self, config: ViCLIPConfig) -> None:
        super().__init__()
        self.config = config
        width = config.text_width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.context_length, width))
        self.transformer = Transformer(width, config.text_layers, config.text_heads, causal=True)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, config.embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    @property
    def blocks(self) -> list[Block]:
        return self.transformer.blocks

    def embed(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C, L, D) before the first block."""
        if tokens.shape[1] > self.config.context_length:
            raise UserError(
                f"ViCLIP reads {self.config.context_length} tokens, a text has {tokens.shape[1]}. Cut texts when they are tokenized."
            )
        return self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]

    def project(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Hidden states after the last block -> (C, E), not normalised: the row of the end token, which has the largest id."""
        ends = self.ln_final(hidden)[torch.arange(len(tokens), device=tokens.device), tokens.argmax(-1)]  # the first one of several
        return ends @ self.text_projection

    def forward(self, tokens: Tensor) -> Tensor:
        return self.project(self._walk(tokens), tokens)

    def states(self, tokens: Tensor) -> Tensor:
        """(C, L) -> (C, L, D) after the last norm."""
        return self.ln_final(self._walk(tokens))

    def _walk(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class ViCLIP(nn.Module):
    """The two towers and their temperature.

    Args:
        config: Sizes.
        temp: Initial temperature; not below 0.01.
    """

    def __init__(self, config: ViCLIPConfig, temp: float = MIN_TEMP) -> None:
        super().__init__()
        self.config = config
        self.vision_encoder, self.text_encoder = VideoTower(config), TextTower(config)
        self.temp = nn.Parameter(torch.tensor(temp))

    def encode_video(self, video: Tensor) -> Tensor:
        """(B, T, 3, H, W), ImageNet-normalised -> (B, E), not normalised."""
        return self.vision_encoder(video)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(C, L) token ids -> (C, E), not normalised."""
        return self.text_encoder(tokens)

    def logits(self, video_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Cosines over temperature, (B, E) and (C, E) -> (B, C)."""
        cosines = F.normalize(video_embeds.float(), dim=-1) @ F.normalize(text_embeds.float(), dim=-1).T
        return cosines / self.temp.clamp(min=MIN_TEMP)

    def forward(self, video: Tensor, tokens: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) and texts (C, L) -> logits (B, C)."""
        return self.logits(self.encode_video(video), self.encode_text(tokens))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``config.json`` and ``model.safetensors`` in the present precision."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", {"architectures": ["ViCLIP"], "model_type": "viclip"} | asdict(self.config))
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS[0], metadata={"format": "pt"})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, *, local_files_only: bool = True, output_loading_info: bool = False
    ) -> Any:
        """Reads a folder, a single file, or a hub repository, ours or official ones (``OpenGVLab/ViCLIP-B-16-hf``, the ``.pth`` release).

        Sizes come from the shapes of the tensors; the numbers of heads from ``config.json`` or, as the official ones do without, from
        CLIP's rule of 64 channels a head. `load_viclip` also knows ``tiny:viclip``.

        Raises:
            OSError: The files are not there.
            UserError: They hold another model, or lack parameters and ``output_loading_info`` does not ask for their names.
        """
        file, config_file = _locate(pretrained_model_name_or_path, local_files_only)
        state = _read_tensors(file)
        given = json.loads(config_file.read_text()) if config_file is not None else {}
        config = _infer_config(state, given, str(file))
        with torch.device("meta"):  # nothing to initialise
            model = cls(config)
        found = model.load_state_dict(state, strict=False, assign=True)
        if found.unexpected_keys:
            log.warning("weights: %s also holds what ViCLIP has no place for: %s", file, ", ".join(found.unexpected_keys[:5]))
        if found.missing_keys and not output_loading_info:
            raise UserError(f"weights: {file} lacks {len(found.missing_keys)} parameters of ViCLIP, such as {found.missing_keys[0]}.")
        info = {"missing_keys": found.missing_keys, "unexpected_keys": found.unexpected_keys, "mismatched_keys": []}
        return (model.eval(), info) if output_loading_info else model.eval()


def load_viclip(weights: str) -> ViCLIP:
    """The ViCLIP in a folder or file, under a hub id or of ``tiny:NAME``, in float32; see :func:`genlab.weights.load_pretrained`."""
    return load_pretrained(ViCLIP, weights)  # type: ignore[arg-type]  # whose options are named here


def _locate(name: str, local_files_only: bool) -> tuple[Path, Path | None]:
    """The file of weights, and ``config.json`` where there is one."""
    path = Path(name)
    if path.is_file():
        return path, None
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(name, local_files_only=local_files_only, allow_patterns=[*WEIGHTS, "config.json"]))
    file = next((path / each for each in WEIGHTS if (path / each).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{path} holds neither {' nor '.join(WEIGHTS)}")
    config = path / "config.json"
    return file, config if config.is_file() else None


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    content = torch.load(file, map_location="cpu", weights_only=True)
    return content.get("model", content)  # the official .pth files nest the weights


def _infer_config(state: Mapping[str, Tensor], given: Mapping[str, Any], file: str) -> ViCLIPConfig:
    try:
        conv, position = state["vision_encoder.conv1.weight"], state["vision_encoder.positional_embedding"]
        temporal = state["vision_encoder.temporal_positional_embedding"]
        vocab, text_width = state["text_encoder.token_embedding.weight"].shape
        context, embed_dim = len(state["text_encoder.positional_embedding"]), state["text_encoder.text_projection"].shape[1]
    except KeyError as error:
        raise UserError(f"weights: {file} does not hold a ViCLIP: there is no {error.args[0]} in it. Is it another model?") from error
    layers = {side: 1 + max(_block_numbers(state, f"{side}_encoder."), default=-1) for side in ("vision", "text")}
    width, _, tubelet, patch, _ = conv.shape
    heads: dict[str, Any] = {
        f"{side}_heads": int(given.get(f"{side}_heads", max(1, size // 64))) for side, size in (("vision", width), ("text", text_width))
    }
    sizes: dict[str, Any] = {
        "image_size": math.isqrt(len(position) - 1) * patch, "patch_size": patch, "num_frames": temporal.shape[1] * tubelet,
        "vision_width": width, "vision_layers": layers["vision"], "text_width": text_width, "text_layers": layers["text"],
        "context_length": context, "vocab_size": vocab, "embed_dim": embed_dim, "tubelet": tubelet,
        "frame_differences": conv.shape[1] == 6,
    }  # fmt: skip
    return ViCLIPConfig(**sizes, **heads)


def _block_numbers(state: Mapping[str, Tensor], prefix: str) -> set[int]:
    start = f"{prefix}transformer.resblocks."
    return {int(key.removeprefix(start).split(".")[0]) for key in state if key.startswith(start)}

"""Checkpoints of the official DeMamba code: their parameter names, and sizes that are read off them.

The official file is ``{"epoch": int, "model_state_dict": {...}}``, every name behind ``module.``. X-CLIP's encoder follows transformers
4.x, CLIP's visual tower follows OpenAI (query, key and value in one parameter). One table of pairs serves both ways.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.mamba import MambaBlock, MambaOptions

Variant = Literal["xclip", "clip"]
State = Mapping[str, Tensor]

OFFICIAL_MAMBA = MambaOptions(bidirectional="channel", second_direction_dt_init="linear")
NEVER_USED = re.compile(r"mamba\.mixer\.conv1d_b\.|bn1\.|clip_model\.(?!visual\.)|.*position_ids$")  # by the official forward pass
SECOND_DIRECTION = ("x_proj_b.weight", "dt_proj_b.weight", "dt_proj_b.bias", "A_b_log", "D_b")
ENCODER = {"xclip": "encoder.vision_model.", "clip": "clip_model.visual."}
PARTS = ("weight", "bias")


class Pair(NamedTuple):
    """The name of a parameter there and here."""

    official: str
    ours: tuple[str, ...]
    """One name, or those of query, key and value, which OpenAI's CLIP keeps in one parameter."""
    transposed: bool = False


@dataclass(frozen=True)
class FromOfficial:
    """What an official checkpoint holds.

    Attributes:
        weights: State dict of :class:`genlab.methods.demamba.DeMamba`, in float32.
        variant: Its backbone.
        layers: Of the backbone.
        width: C.
        grid: G, tokens per side of a frame.
        image_size: Pixels per side of a frame.
        zone_size: R, from the width of the classifier.
        mamba: Sizes of the Mamba block, with the official second direction.
        used, dropped, unknown: Official names without ``module.``: taken over; there, but never used by the official code; no part of
            the official model at all.
    """

    weights: dict[str, Tensor]
    variant: Variant
    layers: int
    width: int
    grid: int
    image_size: int
    zone_size: int
    mamba: MambaOptions
    used: list[str]
    dropped: list[str]
    unknown: list[str]


@dataclass(frozen=True)
class ToOfficial:
    """A state dict for the official code.

    Attributes:
        weights: With ``module.`` before every name.
        variant: Its backbone.
        used: Our names that were taken over.
        created: Official names without ``module.`` that we have no use for, made of zeros for strict loading.
    """

    weights: dict[str, Tensor]
    variant: Variant
    used: list[str]
    created: list[str]


def from_official(state: State) -> FromOfficial:
    """Translates the ``model_state_dict`` of an official checkpoint, with or without ``module.``.

    Raises:
        UserError: It is not DeMamba's, parameters are missing, or sizes do not fit each other.
    """
    state = _official_names(state)
    variant: Variant
    if any(name.startswith(ENCODER["xclip"]) for name in state):
        variant = "xclip"
    elif any(name.startswith(ENCODER["clip"]) for name in state):
        variant = "clip"
    else:
        raise UserError(
            f"this is no official DeMamba checkpoint: it has neither X-CLIP's parameters ({ENCODER['xclip']}...) nor CLIP's "
            f"({ENCODER['clip']}...), but {_few(state)}."
        )
    mamba = {name.removeprefix("mamba."): value for name, value in state.items() if name.startswith("mamba.")}
    width, options = _mamba_sizes(mamba)
    layers = _layers(state, r"encoder\.vision_model\.encoder\.layers\.(\d+)\.|clip_model\.visual\.transformer\.resblocks\.(\d+)\.")
    expected = _mamba_shapes(width, options)
    table = pairs(variant, layers, expected)
    missing = [pair.official for pair in table if pair.official not in state]
    if missing:
        raise UserError(f"this is no whole official DeMamba checkpoint: {len(missing)} parameters are missing: {_few(missing)}.")
    for name, shape in expected.items():
        if mamba[name].shape != shape:
            raise UserError(f"mamba.{name} is {tuple(mamba[name].shape)}, the other sizes of the Mamba block ask for {tuple(shape)}.")
    grid, patch_size = _grid(state, variant)
    zone_size = _zone_size(state["fc1.weight"], width, grid)
    weights = {name: value for pair in table for name, value in zip(pair.ours, _take(state[pair.official], pair))}
    used = {pair.official for pair in table}
    rest = [name for name in state if name not in used]
    dropped = [name for name in rest if NEVER_USED.match(name)]
    unknown = [name for name in rest if name not in dropped]
    return FromOfficial(
        weights, variant, layers, width, grid, grid * patch_size, zone_size, options, sorted(used), sorted(dropped), sorted(unknown)
    )


def to_official(weights: State) -> ToOfficial:
    """Translates the whole state dict of a :class:`genlab.methods.demamba.DeMamba` on X-CLIP or CLIP.

    A model with one direction gets a second one of zeros, which adds nothing to its scores.

    Raises:
        UserError: The official code has no such model.
    """
    ours = {name.removeprefix("head.mamba."): value for name, value in weights.items() if name.startswith("head.mamba.")}
    if not ours:
        raise UserError("the checkpoint has no Mamba block; the official format is for head: demamba alone.")
    layers = _layers(weights, r"backbone\.encoder\.encoder\.layers\.(\d+)\.")
    variant: Variant = "clip" if "backbone.projection.weight" in weights else "xclip"
    table = pairs(variant, layers, ours)
    missing = [name for pair in table for name in pair.ours if name not in weights]
    unknown = sorted(weights.keys() - {name for pair in table for name in pair.ours} - {"backbone.encoder.embeddings.position_ids"})
    if missing or unknown or not layers:
        raise UserError(
            "the official code knows DeMamba on X-CLIP and on CLIP only; of these "
            f"{len(missing)} parameters are missing ({_few(missing)}), and {len(unknown)} are unknown ({_few(unknown)})."
        )
    official = {pair.official: _give([weights[name] for name in pair.ours], pair) for pair in table}
    created = _never_used(official, variant)
    return ToOfficial(
        {f"module.{name}": value for name, value in (official | created).items()},
        variant,
        sorted(name for pair in table for name in pair.ours),
        sorted(created),
    )


def pairs(variant: Variant, layers: int, mamba: Iterable[str]) -> list[Pair]:
    """All parameters that take part in the computation.

    Args:
        variant: The backbone.
        layers: Of the backbone.
        mamba: Names within the Mamba block; they are the same on both sides.
    """
    table = [Pair(f"mamba.{name}", (f"head.mamba.{name}",)) for name in mamba]
    head = ("fc_norm", "fc_norm2", "fc1") if variant == "xclip" else ("fc1",)
    table += [Pair(f"{layer}.{part}", (f"head.{layer}.{part}",)) for layer in head for part in PARTS]
    return table + (_xclip_pairs(layers) if variant == "xclip" else _clip_pairs(layers))


def _xclip_pairs(layers: int) -> list[Pair]:
    """transformers 4.x has one level more than 5.x."""
    projections = [f"{kind}_attn.{name}_proj" for kind in ("self", "message") for name in ("q", "k", "v", "out")]
    layer = [*projections, "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", "message_fc", "message_ln"]
    modules = ["pre_layernorm", "post_layernorm", *(f"encoder.layers.{i}.{name}" for i in range(layers) for name in layer)]
    names = [f"embeddings.{name}" for name in ("class_embedding", "patch_embedding.weight", "position_embedding.weight")]
    names += [f"{module}.{part}" for module in modules for part in PARTS]
    return [Pair(ENCODER["xclip"] + name, (f"backbone.encoder.{name}",)) for name in names]


def _clip_pairs(layers: int) -> list[Pair]:
    """OpenAI's names on the left, those of transformers on the right."""
    there, here = ENCODER["clip"], "backbone.encoder."
    table = [
        Pair(f"{there}class_embedding", (f"{here}embeddings.class_embedding",)),
        Pair(f"{there}conv1.weight", (f"{here}embeddings.patch_embedding.weight",)),
        Pair(f"{there}positional_embedding", (f"{here}embeddings.position_embedding.weight",)),
        Pair(f"{there}proj", ("backbone.projection.weight",), transposed=True),
    ]
    modules = [("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")]
    layer = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1"}
    layer |= {"mlp.c_proj": "mlp.fc2"}
    for i in range(layers):
        block, ours = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        modules += [(f"{block}.{a}", f"{ours}.{b}") for a, b in layer.items()]
        for part in PARTS:
            thirds = tuple(f"{here}{ours}.self_attn.{name}_proj.{part}" for name in "qkv")
            table.append(Pair(f"{there}{block}.attn.in_proj_{part}", thirds))
    return table + [Pair(f"{there}{a}.{part}", (f"{here}{b}.{part}",)) for a, b in modules for part in PARTS]


def _take(value: Tensor, pair: Pair) -> list[Tensor]:
    """An official parameter as ours; OpenAI's CLIP is in half precision on GPUs."""
    value = value.float().T if pair.transposed else value.float()
    return [part.clone(memory_format=torch.contiguous_format) for part in value.chunk(len(pair.ours))] if value.dim() else [value]


def _give(values: list[Tensor], pair: Pair) -> Tensor:
    value = torch.cat(values) if len(values) > 1 else values[0]
    return (value.T if pair.transposed else value).float().contiguous()


def _never_used(official: State, variant: Variant) -> dict[str, Tensor]:
    """What the official model has beyond ``official``, as zeros. They are one number each, expanded, and take no room in a file."""
    width, inner = official["mamba.norm.weight"].shape[0], official["mamba.mixer.D"].shape[0]
    shapes: dict[str, tuple[int, ...]] = {"mamba.mixer.conv1d_b.weight": tuple(official["mamba.mixer.conv1d.weight"].shape)}
    if "mamba.mixer.conv1d.bias" in official:
        shapes["mamba.mixer.conv1d_b.bias"] = (inner,)
    for name in SECOND_DIRECTION:  # with B = C = D = 0 its scan is zero
        first = name.replace("_b", "", 1)
        shapes[f"mamba.mixer.{name}"] = tuple(official[f"mamba.mixer.{first}"].shape)
    if variant == "clip":
        shapes |= {f"bn1.{name}": (width,) for name in ("weight", "bias", "running_mean", "running_var")}
        shapes |= text_tower_shapes(width)
    created = {name: torch.zeros(1).expand(shape) if shape else torch.zeros(()) for name, shape in shapes.items()}
    if variant == "clip":
        created["bn1.num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    return {name: value for name, value in created.items() if name not in official}


def text_tower_shapes(
    embed_dim: int, width: int = 512, layers: int = 12, vocabulary: int = 49408, context: int = 77
) -> dict[str, tuple[int, ...]]:
    """Shapes of OpenAI's ViT-B/16 text tower (Radford et al. 2021, Sec. 2.4), which the official CLIP variant carries along."""
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (context, width),
        "text_projection": (width, embed_dim),
        "logit_scale": (),
        "token_embedding.weight": (vocabulary, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    for i in range(layers):
        block = f"transformer.resblocks.{i}."
        shapes |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)}
        for name, (rows, columns) in {
            "attn.out_proj": (width, width),
            "mlp.c_fc": (4 * width, width),
            "mlp.c_proj": (width, 4 * width),
        }.items():
            shapes |= {f"{block}{name}.weight": (rows, columns), f"{block}{name}.bias": (rows,)}
        shapes |= {f"{block}{name}.{part}": (width,) for name in ("ln_1", "ln_2") for part in PARTS}
    return {f"clip_model.{name}": shape for name, shape in shapes.items()}


def _official_names(state: State) -> dict[str, Tensor]:
    """Without DataParallel's prefix, and with the level that transformers 5.x took out."""
    names = {name: name.removeprefix("module.") for name in state}
    if not any(name.startswith(ENCODER["xclip"]) for name in names.values()):
        names = {old: re.sub(r"^encoder\.", ENCODER["xclip"], new) for old, new in names.items()}
    return {names[name]: value for name, value in state.items()}


def _layers(state: State, pattern: str) -> int:
    numbers = [int(next(filter(None, match.groups()))) for match in map(re.compile(pattern).match, state) if match]
    return max(numbers, default=-1) + 1


def _shape(state: State, name: str, axes: int) -> tuple[int, ...]:
    if name not in state:
        raise UserError(f"this is no whole official DeMamba checkpoint: {name} is missing; there is {_few(state)}.")
    if state[name].dim() != axes:
        raise UserError(f"{name} has the shape {tuple(state[name].shape)}; in an official DeMamba checkpoint it has {axes} axes.")
    return tuple(state[name].shape)


def _mamba_sizes(mamba: State) -> tuple[int, MambaOptions]:
    """Channels C, and the options that show in the shapes."""
    (width,) = _shape(mamba, "norm.weight", 1)
    inner, d_state = _shape(mamba, "mixer.A_log", 2)
    rank, d_conv = _shape(mamba, "mixer.dt_proj.weight", 2)[1], _shape(mamba, "mixer.conv1d.weight", 3)[2]
    return width, replace(
        OFFICIAL_MAMBA,
        d_state=d_state,
        d_conv=d_conv,
        expand_factor=inner // width,
        dt_rank=None if rank == math.ceil(width / 16) else rank,
        bias="mixer.in_proj.bias" in mamba,
        conv_bias="mixer.conv1d.bias" in mamba,
        bidirectional="channel" if "mixer.A_b_log" in mamba else "none",
    )


def _mamba_shapes(width: int, options: MambaOptions) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: value.shape for name, value in MambaBlock(width, options).state_dict().items()}


def _grid(state: State, variant: Variant) -> tuple[int, int]:
    """Tokens per side, and pixels per side of a token."""
    names = {"xclip": ("embeddings.position_embedding.weight", "embeddings.patch_embedding.weight")}
    names["clip"] = ("positional_embedding", "conv1.weight")
    positions, patches = (ENCODER[variant] + name for name in names[variant])
    tokens = _shape(state, positions, 2)[0] - 1  # the class token has a position too
    grid = math.isqrt(max(tokens, 0))
    if grid == 0 or grid * grid != tokens:
        raise UserError(f"{positions} has {tokens + 1} rows; a class token and a square of tokens were expected.")
    return grid, _shape(state, patches, 4)[3]


def _zone_size(classifier: Tensor, width: int, grid: int) -> int:
    """R from the classifier's (P + 1) * C columns."""
    columns = _shape({"fc1.weight": classifier}, "fc1.weight", 2)[1]
    possible = {((grid // r) ** 2 + 1) * width: r for r in range(1, grid + 1) if grid % r == 0}
    if columns not in possible:
        fitting = ", ".join(f"{n} (R = {r})" for n, r in possible.items())
        raise UserError(
            f"fc1.weight has {columns} columns, and no zones of a {grid} x {grid} grid of {width} channels give that; {fitting}."
        )
    return possible[columns]


def _few(names: Iterable[str], count: int = 5) -> str:
    names = sorted(names)
    return ", ".join(names[:count]) + (" ..." if len(names) > count else "") if names else "none"

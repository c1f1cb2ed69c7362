"""Custom Diffusion (Kumari et al., arXiv 2212.04488): of a UNet only keys and values of the attention to text are trained.

As in the authors' code, no gradient goes through the keys and values of the first token, which is the same in all prompts. Files are those
of diffusers' example, ``pytorch_custom_diffusion_weights.bin``; diffusers 0.42 itself cannot read them back without a pipeline, and then
says nothing, so they are put straight into the layers here.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from genlab.errors import MissingPath, UserError
from genlab.files import write_bytes

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

WEIGHTS = "pytorch_custom_diffusion_weights.bin"

Freeze = Literal["crossattn_kv", "crossattn"]
"""What stays trainable: keys and values, or queries and outputs as well."""

LAYERS: dict[str, tuple[str, ...]] = {"crossattn_kv": ("to_k", "to_v"), "crossattn": ("to_k", "to_v", "to_q", "to_out.0")}


def text_attentions(unet: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Attentions to text, by name."""
    return ((name, module) for name, module in unet.named_modules() if name.endswith("attn2"))


def attach_custom_diffusion(unet: UNet2DConditionModel, freeze: Freeze = "crossattn_kv") -> None:
    """Makes these layers trainable and all others not; nothing changes yet."""
    unet.requires_grad_(False)
    for _, attention in text_attentions(unet):
        for layer in LAYERS[freeze]:
            attention.get_submodule(layer).requires_grad_(True)
        for layer in ("to_k", "to_v"):
            attention.get_submodule(layer).register_forward_hook(_first_token_is_constant)


def _first_token_is_constant(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return torch.cat([output[:, :1].detach(), output[:, 1:]], 1) if output.requires_grad else output


def custom_diffusion_state(unet: nn.Module, freeze: Freeze = "crossattn_kv") -> dict[str, Tensor]:
    """Its weights by the layers' own names, ``<block>.attn2.to_k.weight``."""
    parts = {f"{name}.{layer}": attention.get_submodule(layer) for name, attention in text_attentions(unet) for layer in LAYERS[freeze]}
    return {f"{name}.{key}": value for name, layer in parts.items() for key, value in layer.state_dict().items()}


def load_custom_diffusion_state(unet: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts weights into the layers.

    Raises:
        UserError: They belong to another network.
    """
    own = custom_diffusion_state(unet, "crossattn")
    wrong = [name for name in state if name not in own or own[name].shape != state[name].shape]
    if missing := sorted(custom_diffusion_state(unet).keys() - state.keys()):
        wrong += missing
    if wrong:
        raise UserError(f"Custom Diffusion: {len(wrong)} tensors do not fit this UNet, such as {wrong[0]}; another Stable Diffusion?")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)  # state_dict hands out the parameters' own memory


def save_custom_diffusion(folder: Path, unet: nn.Module, freeze: Freeze = "crossattn_kv") -> Path:
    """Writes the file that diffusers' example writes, with an empty entry for each attention of pictures to themselves."""
    entries: dict[str, Any] = {}
    for name, _ in unet.named_modules():
        if name.endswith("attn1"):
            entries[f"{name}.processor"] = {}
    for name, value in custom_diffusion_state(unet, freeze).items():
        attention, _, rest = name.partition(".attn2.")
        layer, _, key = rest.partition(".")
        inner = f"{layer}_custom_diffusion.{key}"
        entries[f"{attention}.attn2.processor.{inner}"] = value.detach().cpu().clone()
    buffer = io.BytesIO()
    torch.save(entries, buffer)
    return write_bytes(folder / WEIGHTS, buffer.getvalue())


def read_custom_diffusion(path: Path) -> dict[str, Tensor]:
    """Weights by the layers' own names, from diffusers' file, ``.bin`` or ``.safetensors``. Nothing in the file is executed.

    Raises:
        MissingPath: It is not there.
        UserError: It is damaged, or holds something else.
    """
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise MissingPath(f"Custom Diffusion: {path} is not there; name the file {WEIGHTS}, or its folder.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            held: Any = load_file(path)
        else:
            held = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"Custom Diffusion: {path} cannot be read as weights ({str(error).splitlines()[0][:120]}).") from error
    found: dict[str, Tensor] = {}
    for name, value in held.items() if isinstance(held, dict) else ():
        attention, _, inner = name.partition(".attn2.processor.")
        if isinstance(value, Tensor) and "_custom_diffusion." in inner:
            found[f"{attention}.attn2.{inner.replace('_custom_diffusion', '')}"] = value
    if not found:
        raise UserError(f"Custom Diffusion: {path} holds no keys and values of Custom Diffusion.")
    return found

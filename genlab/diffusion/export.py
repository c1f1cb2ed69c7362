"""LoRA files for others: diffusers' folder, and the format of the web interfaces (kohya), each with what it was trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save
from torch import Tensor

from genlab.diffusion.lora import NAME, lora_state
from genlab.files import write_bytes

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

DIFFUSERS, KOHYA = "pytorch_lora_weights.safetensors", "kohya_lora.safetensors"


def save_diffusers(folder: Path, unet: UNet2DConditionModel, facts: Mapping[str, str]) -> Path:
    """Writes what ``pipe.load_lora_weights(folder)`` reads, alpha included.

    Args:
        facts: Base model, prompts ..., kept as metadata.
    """
    from diffusers.utils import convert_state_dict_to_diffusers

    plain = cast(dict[str, Tensor], convert_state_dict_to_diffusers(lora_state(cast(Any, unet))))
    tensors = {f"unet.{name}": value.detach().cpu().contiguous() for name, value in plain.items()}
    config = cast(Any, unet).peft_config[NAME].to_dict()
    plain_config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    adapter = json.dumps({f"unet.{key}": value for key, value in plain_config.items()}, default=str)
    return write_bytes(folder / DIFFUSERS, save(tensors, {"format": "pt", "lora_adapter_metadata": adapter, **facts}))


def save_kohya(folder: Path, unet: UNet2DConditionModel, facts: Mapping[str, str]) -> Path:
    """Writes the file that web interfaces read: ``lora_unet_<module>.lora_down.weight``, ``.lora_up.weight``, ``.alpha``."""
    config, tensors = cast(Any, unet).peft_config[NAME], dict[str, Tensor]()
    for name, value in lora_state(cast(Any, unet)).items():
        module, _, part = name.removesuffix(".weight").rpartition(".")
        key = f"lora_unet_{module.replace('.', '_')}"
        tensors[f"{key}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = value.detach().cpu().contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(config.lora_alpha))
    return write_bytes(folder / KOHYA, save(tensors, {"format": "pt", **facts}))


def save_lora(folder: Path, unet: UNet2DConditionModel, facts: Mapping[str, str], prompt: str) -> None:
    """Both files, and a page that says what they are.

    Args:
        facts: Base model, method, prompts ...
        prompt: That it was tuned for.
    """
    save_diffusers(folder, unet, facts)
    save_kohya(folder, unet, facts)
    usage = f'pipe.load_lora_weights("{folder.name}")\npipe("{prompt}").images[0]'
    write_bytes(folder / "README.md", model_card(f"LoRA of {prompt!r}", facts, usage))


def model_card(title: str, facts: Mapping[str, str], usage: str) -> bytes:
    """``README.md`` of a folder of weights: what they were trained with, and how they are loaded."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    text = f"# {title}\n\n| | |\n|---|---|\n{rows}\n\n```python\n{usage}\n```\n"
    return f"{text}\nPictures made with it are synthetic; say so where you show them.\n".encode()

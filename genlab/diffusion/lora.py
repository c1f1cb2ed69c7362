"""LoRA in a frozen network of diffusers (Hu et al., arXiv 2106.09685), by peft: attach, switch off for a while, read and write.

Names of tensors are peft's, ``<module>.lora_A.weight`` (r, in) and ``<module>.lora_B.weight`` (out, r).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import Tensor, nn

from genlab.errors import MissingPath, UserError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")  # of every attention, to itself and to text
NAME = "default"

Init = Literal["gaussian", "zero"]


def attach_lora(unet: UNet2DConditionModel, rank: int, alpha: float | None = None, targets: Sequence[str] = ATTENTION) -> None:
    """Puts LoRA beside the layers of these names; it alone requires gradients then. A ~ N(0, 1/rank^2), B = 0: nothing changes yet.

    Args:
        rank: r.
        alpha: The update is scaled by alpha / r; left out, by 1.
        targets: Ends of the layers' names.
    """
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=cast(int, alpha or rank), init_lora_weights="gaussian", target_modules=list(targets))
    cast(Any, unet).add_adapter(config)


@contextmanager
def lora_disabled(unet: UNet2DConditionModel) -> Iterator[None]:
    """The plain network within the block; gradients that are under way are not disturbed."""
    cast(Any, unet).disable_adapters()
    try:
        yield
    finally:
        cast(Any, unet).enable_adapters()


def lora_state(unet: nn.Module) -> dict[str, Tensor]:
    """Its tensors by name."""
    from peft.utils import get_peft_model_state_dict

    return cast(dict[str, Tensor], get_peft_model_state_dict(cast(Any, unet), adapter_name=NAME))


def load_lora_state(unet: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts tensors into an attached LoRA.

    Raises:
        UserError: They belong to another network, other layers or another rank.
    """
    from peft.utils import set_peft_model_state_dict

    own = lora_state(unet)
    wrong = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise UserError(f"LoRA: {len(wrong)} of {len(own)} tensors do not fit, such as {wrong[0]}; another network, other layers or rank?")
    set_peft_model_state_dict(cast(Any, unet), state, adapter_name=NAME)


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a UNet's LoRA in a file of diffusers (either of its spellings), under peft's names, and what the file says of itself.

    Raises:
        MissingPath: It is not there.
        UserError: It holds no such LoRA.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingPath(f"LoRA: {path} is not there. It is pytorch_lora_weights.safetensors of a run's folder lora/.")
    try:
        with safe_open(path, "pt") as file:
            facts, state = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"LoRA: {path} cannot be read ({error}). Is it whole?") from error
    spelled = {
        key.removeprefix("unet.").replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B."): value
        for key, value in state.items()
        if key.startswith("unet.")
    }
    if not spelled or any("lora_A" not in key and "lora_B" not in key for key in spelled):
        raise UserError(f"LoRA: {path} has no tensors such as unet.(module).lora_A.weight; diffusers' format is read.")
    return spelled, facts

"""A third branch in a stock pipeline's guidance, by hooks on its UNet: attribute enhancement (DomainGallery, arXiv 2411.04571)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from genlab.errors import UserError

Enhancement = Literal["off", "v-uncond", "vn-n"]


@contextmanager
def enhanced(pipe: Any, mode: Enhancement, base: Tensor, strength: float = 1.0) -> Iterator[None]:
    """Strengthens what an identifier stands for while the pipeline samples with classifier-free guidance of scale g.

    Eq. 6. ``v-uncond``: e = e("") + g (e(prompt) - e("")) + g l (e(V) - e("")).
    ``vn-n``: e = e("") + g (e(prompt) - e("")) + g l (e(prompt) - e(N)).
    The UNet is called on three branches in place of two; schedulers and pipeline are as they were.

    Args:
        pipe: A pipeline that calls ``unet`` on ``[unconditional; conditional]``.
        mode: Which; ``off`` changes nothing.
        base: (1, L, D), text states of V, or of N; or (B, L, D), one a picture.
        strength: l.

    Raises:
        UserError: The pipeline does not guide, so there are no two branches.
    """
    if mode == "off":
        yield
        return

    def widen(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        latents, states = args[0], kwargs["encoder_hidden_states"]
        if len(states) % 2 or not getattr(pipe, "do_classifier_free_guidance", True):
            raise UserError("enhancement needs guidance: set its scale above 1.")
        count = len(states) // 2
        more = base.to(states).expand(count, -1, -1)
        return (torch.cat([latents, latents[:count]]), *args[1:]), kwargs | {"encoder_hidden_states": torch.cat([states, more])}

    def fold(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output.sample
        without, conditional, other = value.chunk(3)
        change = other - without if mode == "v-uncond" else conditional - other
        return (torch.cat([without, conditional + strength * change]),)

    hooks = [
        pipe.unet.register_forward_pre_hook(widen, with_kwargs=True),
        pipe.unet.register_forward_hook(fold, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

"""Fine-tuning vision-language models of transformers: what stays as it is, LoRA (by peft) in the rest, inputs with completions, folders.

The parts go by the names that transformers gives them, whatever the model: Qwen2-VL, Qwen2.5-VL, InternVL, LLaVA.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.vlm.masking import placeholders
from genlab.weights import load_pretrained, resolve

VISION_TOWERS = ("visual", "vision_tower", "vision_model")  # what models of transformers call them; Qwen's holds the projector too
PROJECTORS = ("multi_modal_projector", "connector")
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates beside every linear layer of the language model, its head apart (Hu et al., arXiv 2106.09685).

    Args:
        rank: r. Released recipe: 8.
        alpha: Updates are scaled by alpha / r. Released recipe: 32.
        dropout: On what goes into them. Released recipe: 0.
    """

    rank: int = 8
    alpha: int = 32
    dropout: float = 0.0


def load_for_tuning(weights: str) -> tuple[Any, Any]:
    """A model and its processor from a folder, a hub id or ``tiny:NAME``; of a folder of peft's, the base with the adapter merged in.

    Raises:
        UserError: See :func:`genlab.weights.load_pretrained`; or there is no processor.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    source = Path(resolve(weights))
    if (source / ADAPTER).is_file():
        model, processor = merged(source)
    else:
        try:
            model = load_pretrained(AutoModelForImageTextToText, weights)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"model.weights: {weights} is no vision-language model ({str(error).splitlines()[0]}).") from error
        try:
            processor = AutoProcessor.from_pretrained(str(source), local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(f"model.weights: {weights} has no processor ({str(error).splitlines()[0]}); put it there.") from error
    return model, processor


def vision_parts(model: nn.Module) -> list[str]:
    """Names of the picture tower and the projector, the outermost ones.

    Raises:
        UserError: There are none: it is a language model, or one with names of its own.
    """
    wanted = (*VISION_TOWERS, *PROJECTORS)
    names = [name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in wanted]
    outermost = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    if not outermost:
        raise UserError(f"model.weights: {type(model).__name__} has no picture tower of a known name ({', '.join(VISION_TOWERS)}).")
    return outermost


def attach_lora(model: nn.Module, lora: LoRA, base: str) -> Any:
    """The model with LoRA, as peft wraps it; only that requires gradients. Nothing changes yet: B is 0.

    Args:
        base: What ``adapter_config.json`` names as the model that it belongs to.
    """
    from peft import LoraConfig, get_peft_model

    outside = "|".join(re.escape(name) for name in vision_parts(model))
    head = model.get_output_embeddings()  # type: ignore[operator]
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and part is not head]
    leaves = sorted({name.rsplit(".", 1)[-1] for name in linear if not re.match(rf"(?:{outside})\.", name)})
    targets = rf"(?!(?:{outside})\.).*\.(?:{'|'.join(leaves)})"
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config)
    wrapped.peft_config["default"].base_model_name_or_path = base
    return wrapped


def frozen_twin(model: nn.Module) -> nn.Module:
    """A copy of the model that stays as it is; frozen parts are shared, not copied."""
    shared = {id(part): part for part in model.modules() if not any(p.requires_grad for p in part.parameters())}
    return copy.deepcopy(model, dict(shared)).requires_grad_(False).eval()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block, and then every part's own mode again."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def repeat_rows(inputs: Mapping[str, Tensor], times: int, processor: Any) -> dict[str, Tensor]:
    """Each conversation so many times, one after the other, its pictures with it.

    Rows of ``pixel_values`` (patches, tiles) are dealt out by the number of tokens that stand for pictures in each conversation: of one
    model, all tokens take equally many.

    Raises:
        UserError: They do not go up, so the model's pictures cannot be told apart.
    """
    ids = inputs["input_ids"]
    counts = torch.isin(ids, torch.tensor(sorted(placeholders(processor)), device=ids.device)).sum(1).tolist()
    found: dict[str, Tensor] = {}
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            continue
        if name == "pixel_values" and value.shape[0] != len(ids):
            if not sum(counts) or any(value.shape[0] * count % sum(counts) for count in counts):
                raise UserError(f"model.weights: {value.shape[0]} rows of pixels do not share among {counts} picture tokens.")
            pieces = value.split([value.shape[0] * count // sum(counts) for count in counts])
            found[name] = torch.cat([piece for each in pieces for piece in [each] * times])
        else:
            found[name] = value.repeat_interleave(times, 0)
    return found


def with_completions(inputs: Mapping[str, Tensor], completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Inputs whose conversations, padded on the left, go on with completions (N, C); ``mask`` is 1 where these count."""
    found = dict(inputs)
    found["input_ids"] = torch.cat([inputs["input_ids"], completions], 1)
    found["attention_mask"] = torch.cat([inputs["attention_mask"], mask.to(inputs["attention_mask"].dtype)], 1)
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            found[name] = torch.cat([inputs[name], torch.zeros_like(completions, dtype=inputs[name].dtype)], 1)
    return found


def unspeakable(processor: Any) -> list[int]:
    """Ids that must not be sampled: stand-ins for pictures and films and their borders; a forward pass would ask for the pictures."""
    tokenizer = getattr(processor, "tokenizer", processor)
    names = (
        "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<image>", "<video>", "<img>", "</img>",
        "<IMG_CONTEXT>",
    )  # fmt: skip
    vocabulary = tokenizer.get_vocab()
    return sorted(placeholders(processor) | {vocabulary[name] for name in names if name in vocabulary})


# ---- folders


def write_folder(model: Any, processor: Any, folder: Path) -> Path:
    """Writes what ``from_pretrained`` reads: a model, or of LoRA peft's adapter, the processor beside it.

    ``transformers serve`` takes a model; an adapter has to be merged first, since the server asks for a configuration beside it and, where
    it finds one, for the base's weights there too.

    It is written beside its place and renamed, so that a reader never sees half of it.
    """
    beside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    model.save_pretrained(beside)
    processor.save_pretrained(beside)
    (beside / "README.md").unlink(missing_ok=True)  # peft's, all blanks to be filled in
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        beside.rename(folder)
        shutil.rmtree(old)
    else:
        beside.rename(folder)
    return folder


def merged(folder: Path) -> tuple[Any, Any]:
    """The base model of a folder of peft's with its adapter added in, and the processor.

    Raises:
        UserError: It is no such folder, or names no base.
        MissingPath: The base is not on this machine.
    """
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if not (folder / ADAPTER).is_file():
        raise UserError(f"{folder}: there is no {ADAPTER} in it; name a folder that peft has written.")
    base = json.loads((folder / ADAPTER).read_text()).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{folder / ADAPTER}: base_model_name_or_path is empty; write the base model's folder or hub id there.")
    model = load_pretrained(AutoModelForImageTextToText, base)
    try:
        whole = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{folder}: the adapter does not fit {base} ({str(error).splitlines()[0][:200]}).") from error
    own = folder if any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")) else resolve(base)
    return whole, AutoProcessor.from_pretrained(str(own), local_files_only=True)


def shifted_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of all labelled tokens, and their number: (B, L, V), (B, L) -> two scalars; -100 is left out."""
    wanted = labels[:, 1:]
    total = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted.flatten(), ignore_index=-100, reduction="sum")
    return total, (wanted != -100).sum()


def decode(processor: Any, tokens: Tensor | Sequence[Sequence[int]], stop: Iterable[int]) -> list[str]:
    """Completions as texts up to their end tokens; special tokens for regions stay, since they are part of what is said."""
    tokenizer, ends = getattr(processor, "tokenizer", processor), set(stop)
    texts = []
    for row in tokens.tolist() if isinstance(tokens, Tensor) else tokens:
        end = next((i for i, token in enumerate(row) if token in ends), len(row))
        texts.append(str(tokenizer.decode(row[:end], skip_special_tokens=False)))
    return texts

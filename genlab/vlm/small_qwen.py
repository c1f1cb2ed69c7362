"""Small vision-language models of transformers' Qwen2-VL classes, built from nothing: network, tokenizer, chat template and processor.

What `build` returns saves and loads like the published ones, so that whatever works with a small model works with a large one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from genlab.errors import UserError

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

END, START_TURN, END_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE, VIDEO, START_VISION, END_VISION = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
GROUNDING = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")  # what Qwen's models name regions with
SPECIAL = (END, START_TURN, END_TURN, *GROUNDING, START_VISION, END_VISION, IMAGE, VIDEO)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type in ("image", "image_url") -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == "video" -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == "text" -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def learn_byte_tokenizer(texts: Iterable[str], vocab_size: int = 512) -> Qwen2Tokenizer:
    """Byte-level pair encoding learned from texts; the same texts give the same tokenizer, in any order. It can spell everything.

    Args:
        texts: To learn from; merging stops at ``vocab_size`` or once every word is a single token.
        vocab_size: Largest number of tokens: 256 bytes, the special tokens, and merges.

    Raises:
        UserError: ``vocab_size`` has no room for the bytes.
    """
    from tokenizers import trainers

    least = 256 + len(SPECIAL)
    if vocab_size < least:
        raise UserError(f"model.vocab_size: {vocab_size} is too small; all bytes and the special tokens need {least}.")
    learner = byte_tokenizer([]).backend_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(SPECIAL), min_frequency=0, show_progress=False, initial_alphabet=_alphabet())
    learner.train_from_iterator(sorted(texts), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return byte_tokenizer(merges[: vocab_size - least])


def byte_tokenizer(merges: Sequence[Sequence[str]]) -> Qwen2Tokenizer:
    """The tokenizer with these merges, best first: ids are bytes, merges, special tokens."""
    from transformers import Qwen2Tokenizer

    pairs = [(first, second) for first, second in merges]
    symbols = [*_alphabet(), *("".join(pair) for pair in pairs)]
    vocab = {symbol: i for i, symbol in enumerate([*dict.fromkeys(symbols), *SPECIAL])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=cast(Any, pairs), eos_token=END_TURN, pad_token=END, additional_special_tokens=list(SPECIAL),
        model_max_length=2048,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def merges_of(tokenizer: Any) -> list[list[str]]:
    """What `byte_tokenizer` needs to make it again."""
    return [list(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


@dataclass(frozen=True)
class SmallQwen:
    """Sizes of a Qwen2-VL. The defaults read a picture as 8 x 8 patches, which reach the language model as 4 x 4 tokens.

    Args:
        width: Of the language model.
        layers: Of the language model.
        heads: Of the language model; half as many for keys and values. ``width / heads`` is a multiple of 16.
        mlp: Width within the language model's MLPs.
        vision_width: Of the picture tower.
        vision_layers: Of the picture tower.
        vision_heads: Of the picture tower; ``vision_width / vision_heads`` is a multiple of 4.
        patch_size: Pixels per side of a patch; 2 x 2 of them make a token.
        min_tokens: Smaller pictures are enlarged to so many tokens.
        max_tokens: Larger pictures are reduced to so many tokens.
        spread: Standard deviation of the first weights. The published networks' 0.02 suits widths of thousands.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    mlp: int = 128
    vision_width: int = 48
    vision_layers: int = 3
    vision_heads: int = 4
    patch_size: int = 14
    min_tokens: int = 16
    max_tokens: int = 16
    spread: float = 0.06

    def build(self, tokenizer: Qwen2Tokenizer) -> tuple[Qwen2VLForConditionalGeneration, Qwen2VLProcessor]:
        """A network with random weights for the tokenizer's vocabulary, and its processor."""
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

        ids = {name: int(cast(int, tokenizer.convert_tokens_to_ids(name))) for name in SPECIAL}
        half = self.width // self.heads // 2
        text: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
        }
        text |= {"num_attention_heads": self.heads, "num_key_value_heads": max(1, self.heads // 2), "max_position_embeddings": 2048}
        sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]  # of time, height and width, as in the published ones
        text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}}
        text |= {"eos_token_id": ids[END_TURN], "pad_token_id": ids[END], "bos_token_id": None, "tie_word_embeddings": True}
        vision: dict[str, Any] = {
            "depth": self.vision_layers,
            "embed_dim": self.vision_width,
            "hidden_size": self.width,
            "num_heads": self.vision_heads,
        }
        vision |= {"mlp_ratio": 2, "patch_size": self.patch_size, "spatial_merge_size": 2, "temporal_patch_size": 2}
        for part in (text, vision):
            part["initializer_range"] = self.spread
        config = Qwen2VLConfig(
            text_config=text, vision_config=vision, image_token_id=ids[IMAGE], video_token_id=ids[VIDEO],
            vision_start_token_id=ids[START_VISION], vision_end_token_id=ids[END_VISION], tie_word_embeddings=True,
        )  # fmt: skip
        model = Qwen2VLForConditionalGeneration(config)
        settings = cast(Any, model.generation_config)
        settings.do_sample, settings.eos_token_id, settings.pad_token_id = False, ids[END_TURN], ids[END]
        return model, self._processor(tokenizer)

    def _processor(self, tokenizer: Qwen2Tokenizer) -> Qwen2VLProcessor:
        from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

        token = (2 * self.patch_size) ** 2  # pixels
        size = {"shortest_edge": self.min_tokens * token, "longest_edge": self.max_tokens * token}
        sides: Any = {"size": size, "patch_size": self.patch_size, "merge_size": 2, "temporal_patch_size": 2}
        return Qwen2VLProcessor(
            image_processor=Qwen2VLImageProcessor(**sides), tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor(**sides),
            chat_template=CHAT_TEMPLATE,
        )  # fmt: skip

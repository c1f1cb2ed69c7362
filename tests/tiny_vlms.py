"""Small networks of the classes that published vision-language models have, with their processors, in folders of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from genlab.vlm.small_qwen import CHAT_TEMPLATE, END, END_TURN, IMAGE, SPECIAL, VIDEO, byte_tokenizer, learn_byte_tokenizer, merges_of

TEXTS = ["user", "assistant", "<think>", "</think>", "<verdict>", "</verdict>", "real", "generated", "is it real?", "the whole is dark"]
TEXT: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "max_position_embeddings": 512, "tie_word_embeddings": False}
OWN = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<ref>", "</ref>", "<box>", "</box>")
INTERN_TEMPLATE = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n").replace(
    "<|vision_start|><|video_pad|><|vision_end|>", "<video>\n"
)


def tiny_qwen25(folder: Path) -> Path:
    """Qwen2.5-VL: one token for 28 x 28 pixels, four to nine tokens a picture."""
    torch.manual_seed(0)
    tokenizer = learn_byte_tokenizer(TEXTS, 320)
    ids = {name: int(cast(int, tokenizer.convert_tokens_to_ids(name))) for name in SPECIAL}
    text = TEXT | {"vocab_size": len(tokenizer), "eos_token_id": ids[END_TURN], "pad_token_id": ids[END], "bos_token_id": None}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": 14}
    vision |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids[IMAGE], video_token_id=ids[VIDEO],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=False,
    )  # fmt: skip
    size = {"shortest_edge": 4 * 784, "longest_edge": 9 * 784}
    sides: Any = {"size": size, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sides), tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor(**sides),
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    return _write(Qwen2_5_VLForConditionalGeneration(config), processor, ids, folder)


def tiny_internvl(folder: Path) -> Path:
    """InternVL: tiles of 56 x 56 pixels, four tokens each, up to four of them and a thumbnail."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(merges_of(learn_byte_tokenizer(TEXTS, 320)))
    tokenizer = Qwen2Tokenizer(
        vocab=tokenizer.get_vocab(), merges=[tuple(pair) for pair in merges_of(tokenizer)], eos_token=END_TURN, pad_token=END,
        model_max_length=512,
        extra_special_tokens={
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
        },
    )  # fmt: skip
    tokenizer.add_tokens([name for name in (*SPECIAL, *OWN) if name not in tokenizer.get_vocab()], special_tokens=True)
    ids = {name: int(cast(int, tokenizer.convert_tokens_to_ids(name))) for name in (*SPECIAL, *OWN)}
    text = TEXT | {"model_type": "qwen2", "vocab_size": len(tokenizer), "eos_token_id": ids[END_TURN], "pad_token_id": ids[END]}
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = InternVLConfig(
        text_config=text | {"bos_token_id": None}, vision_config=vision | {"image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=ids["<IMG_CONTEXT>"], image_seq_length=4, downsample_ratio=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    sides: Any = {"size": {"height": 56, "width": 56}}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(**sides, crop_to_patches=True, min_patches=1, max_patches=4), tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(**sides), image_seq_length=4, chat_template=INTERN_TEMPLATE,
    )  # fmt: skip
    return _write(InternVLForConditionalGeneration(config), processor, ids, folder)


def _write(model: Any, processor: Any, ids: dict[str, int], folder: Path) -> Path:
    settings = model.generation_config
    settings.do_sample, settings.eos_token_id, settings.pad_token_id = False, ids[END_TURN], ids[END]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


FAMILIES = {"qwen": tiny_qwen25, "internvl": tiny_internvl}

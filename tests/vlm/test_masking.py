"""What is trained: the assistant's texts and their end tokens, exactly, whatever the template and the processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from genlab.errors import UserError
from genlab.vlm.masking import (
    IGNORED,
    Conversation,
    answer_labels,
    answer_spans,
    assistant,
    chat_text,
    question_batch,
    training_batch,
    user,
)
from genlab.vlm.small_qwen import SmallQwen, byte_tokenizer, learn_byte_tokenizer, merges_of

TEXTS = ["is there a red star?", "what is it? a star, red.", "yes no real generated"]
SIZES = SmallQwen(32, 1, 2, 32, 16, 1, 4, min_tokens=1, max_tokens=9)
LONG: Conversation = [
    {"role": "system", "content": "assistant: yes"},
    user("is there a red star?", 2),
    assistant("assistant"),  # as the header says
    user("what is it?\nyes", 1),
    assistant(" a star, red.\n"),
    user("again?"),
    assistant("yes"),
]
SHORT: Conversation = [user("is there a star?", 1), assistant("no")]


def pictures(*sides: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.full((3, *side), 100, dtype=torch.uint8) for side in sides]


@pytest.fixture(scope="module")
def qwen() -> Any:
    return SIZES.build(learn_byte_tokenizer(TEXTS))[1]


def llava(template: str) -> Any:
    """LLaVA's processor with a SentencePiece-like tokenizer, which joins a word and the space before it."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()  # type: ignore[assignment]
    letters = sorted({letter for text in ["USER: ASSISTANT: [INST] [/INST] \n again assistant", *TEXTS] for letter in text} | {"▁"})
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    core.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=200, special_tokens=special, initial_alphabet=letters, show_progress=False)
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    square = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return LlavaProcessor(
        square, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template
    )


def turns(user_form: str, assistant_form: str) -> str:
    part = "{{ p.text if p.type == 'text' else '<image>' }}"
    content = "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}" + part + "{% endfor %}{% endif %}"
    asked, said = user_form.replace("TEXT", content), assistant_form.replace("TEXT", content)
    return "{% for m in messages %}{% if m.role == 'assistant' %}" + said + "{% else %}" + asked + "{% endif %}{% endfor %}"


def parts(labels: torch.Tensor) -> list[list[int]]:
    """Stretches of labels that are not ignored."""
    found: list[list[int]] = [[]]
    for label in labels.tolist():
        if label == IGNORED:
            found.append([])
        else:
            found[-1].append(label)
    return [part for part in found if part]


def test_exactly_what_the_assistant_says(qwen: Any) -> None:
    batch = training_batch(qwen, [LONG, SHORT], [pictures((40, 90), (28, 28), (70, 70)), pictures((56, 56))])
    said = [[qwen.tokenizer.decode(part) for part in parts(row)] for row in batch["labels"]]
    assert said == [["assistant<|im_end|>", " a star, red.\n<|im_end|>", "yes<|im_end|>"], ["no<|im_end|>"]]
    kept = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
    assert not batch["attention_mask"][1, -1] and batch["image_grid_thw"].shape == (4, 3)


def test_agrees_with_the_long_way(qwen: Any) -> None:
    """A turn's tokens are those that the processor adds to the conversation that ends with the turn's header, pictures and all."""
    images = pictures((40, 90), (28, 28), (70, 70))
    batch = training_batch(qwen, [LONG], [images])
    wanted = torch.full_like(batch["labels"], IGNORED)
    for number, message in enumerate(LONG):
        if message["role"] == "assistant":
            seen = sum(part["type"] == "image" for each in LONG[1 : number + 1] for part in each["content"])
            before = question_batch(qwen, [LONG[:number]], [images[:seen]])["input_ids"].shape[1]
            text = chat_text(qwen, LONG[: number + 1]).removesuffix("\n")  # it ends with the end token
            end = qwen(text=[text], images=[images[:seen]], return_tensors="pt")["input_ids"].shape[1]
            wanted[0, before:end] = batch["input_ids"][0, before:end]
    assert torch.equal(batch["labels"], wanted)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (turns("USER: TEXT ", "ASSISTANT: TEXT</s>"), ["a star, red.</s>", "yes</s>"]),
        (turns("[INST] TEXT [/INST]", " {% set x = 1 %}TEXT </s>"), ["a star, red. </s>", "yes </s>"]),
        (
            turns("{% if loop.first %}<s>{% endif %}USER: TEXT ", "ASSISTANT: TEXT "),
            ["a star, red.", "yes</s>"],
        ),  # no end token, so the last text gets one
    ],
)
def test_other_templates_and_a_tokenizer_that_joins_spaces(template: str, said: list[str]) -> None:
    processor = llava(template)
    chat = [user("what is it?", 1), assistant("a star, red."), user("again?", 1), assistant("yes")]
    batch = training_batch(processor, [chat, SHORT], [pictures((28, 28), (40, 30)), pictures((30, 30))])
    found = [processor.tokenizer.decode(part).replace(" </s>", "</s>").strip() for part in parts(batch["labels"][0])]
    assert found == [each.replace(" </s>", "</s>") for each in said]
    ids = batch["input_ids"]
    assert (ids == processor.tokenizer.convert_tokens_to_ids("<image>")).sum() == 3 * 4, "four tokens for each picture"
    assert ((ids == processor.tokenizer.bos_token_id).sum(1) == 1).all(), "one start token, whoever writes it"


def test_a_template_that_trims_is_followed_and_one_that_rewrites_is_refused(qwen: Any) -> None:
    text = "{{ (m.content if m.content is string else m.content[-1].text) | trim }}"
    trimmed = "{% for m in messages %}<|im_start|>{{ m.role }}\n" + text + "<|im_end|>\n{% endfor %}"
    chat: Conversation = [{"role": "user", "content": "again?"}, assistant(" yes \n")]
    processor = SIZES.build(byte_tokenizer(merges_of(qwen.tokenizer)))[1]
    processor.chat_template = trimmed
    text, spans = answer_spans(processor, chat)
    assert [text[first:end] for first, end in spans] == ["yes"]
    processor.chat_template = trimmed.replace("| trim", "| upper")
    with pytest.raises(UserError, match=r"does not write the assistant's text as it is \(turn 2: ' yes"):
        answer_spans(processor, chat)
    processor.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        answer_spans(processor, chat)


def test_tokens_of_another_text_are_refused(qwen: Any) -> None:
    text, spans = answer_spans(qwen, SHORT)
    ids = training_batch(qwen, [SHORT], [pictures((28, 28))])["input_ids"][0].tolist()
    assert answer_labels(qwen, text, spans, ids).count(IGNORED) == len(ids) - 2
    with pytest.raises(UserError, match="other tokens of a conversation"):
        answer_labels(qwen, text, spans, [*ids, ids[0]])
    with pytest.raises(UserError, match="other tokens of a conversation"):
        answer_labels(qwen, text, spans, ids[1:])


def test_tokenizer_spells_everything_and_does_not_depend_on_the_order() -> None:
    tokenizer = learn_byte_tokenizer(TEXTS)
    assert merges_of(learn_byte_tokenizer(TEXTS[::-1])) == merges_of(tokenizer)
    for text in ("is there a red star?", "Ünïcode 日本 <|im_end|>\n x  y"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer.tokenize("is there a red star?")) == 6
    with pytest.raises(UserError, match=r"model.vocab_size: 100 is too small"):
        learn_byte_tokenizer(TEXTS, 100)

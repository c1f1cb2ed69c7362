"""Multi-Modal Prompt: sentences with pictures in them, put into words."""

from __future__ import annotations

from pathlib import Path

import pytest

from genlab.errors import UserError
from genlab.methods.multimodal_prompt.grammar import compose, identifier_of
from genlab.vlm.concepts import Analysis
from tests.golden_files import golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("multimodal_prompt", "prompt_parsing"))
def test_sentences_of_the_reference(path: Path) -> None:
    """Where the authors' code breaks, more identifiers do, or it is said which picture is meant."""
    meta, _ = load_golden(path)
    for case in meta["cases"]:
        count = case["prompt"].count(meta["placeholder"])
        wrapped = "custom_diffusion" in case["kind"] or case["kind"] == "textual_inversion"
        identifiers = [f"<{identifier_of(i)}>" if wrapped else identifier_of(i) for i in range(count)]
        if case["kind"] == "blip_direct":
            identifiers = [""] * count
        if case["kind"] in ("finetune_direct", "textual_inversion"):
            analyses = [Analysis("")] * count
        elif case["classes"] is not None:
            analyses = [Analysis(name) for name in case["classes"]]
        else:
            analyses = [Analysis(*each) for each in case["analyses"] or []]
        identifiers_alone = case["kind"] in ("finetune_direct", "textual_inversion")
        if case.get("error") == "AssertionError":
            with pytest.raises(UserError, match="image 1"):
                compose(case["prompt"], analyses, identifiers)
            continue
        found = compose(case["prompt"], analyses, identifiers, identifiers_alone=identifiers_alone)
        if "error" in case:
            assert found.generation == "sks a cat, olis a dog, sigue a cup and sks2 a vase"
        else:
            assert found.generation == case["generation_prompt"]
            assert [concept.replacement for concept in found.concepts] == case["replacements"]
        if "eval_prompt" in case:
            assert found.evaluation == case["eval_prompt"]
        if case["kind"].startswith("updated"):
            for concept, stage in zip(found.concepts, case.get("stages", [])):
                assert concept.description == stage["class_prompt"]
                template = "{}" if case["kind"] == "updated_dreambooth" else "A photo of {}"
                assert template.format(concept.replacement) == stage["instance_prompt"]


def test_roles_can_be_given_and_numbers_must_match() -> None:
    scene = Analysis("a bench", "park")
    assert compose("at [img]", [scene], ["sks"], ["background"]).generation == "at sks park with a bench"
    assert compose("x on the background of [img]", [scene], ["sks"], ["object"]).generation == "x on the background of sks a bench"
    assert compose("x on the background of [img]", [scene], ["sks"], [""]).evaluation == "x on the background of park with a bench"
    with pytest.raises(UserError, match=r"2 \[img\] for 1 pictures"):
        compose("[img] [img]", [scene], ["sks"])
    assert len({identifier_of(number) for number in range(12)}) == 12

"""Multi-Modal Prompt: sentences with pictures in them, put into words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genlab.errors import UserError
from genlab.methods.multimodal_prompt.grammar import compose, identifier_of
from genlab.metrics.scenes import SceneScores
from genlab.metrics.t2i import frechet_distance
from genlab.vlm.concepts import Analysis
from tests.golden_files import assert_close, golden_files, load_golden
from tests.small_encoders import Prepared, encoders


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


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("multimodal_prompt", "metrics"))
def test_scores_of_the_reference(path: Path) -> None:
    """To the picture that was given, to all real ones, and to the sentence; the order of pictures does not matter."""
    meta, given = load_golden(path)
    clip, dino = encoders(meta, {"clip": meta["clip_weights_seed"], "dino": meta["dino_weights_seed"]})
    expected, tol = meta["results"], meta["tol"]
    ids, made, real = given["input_ids"], given["generated"], given["real"]
    assert_close(clip.encode(made).detach(), given["clip_image_features_generated"], tol, "clip")
    assert_close(clip.encode_ids(ids.long()).detach(), given["clip_text_features"], tol, "text")
    assert_close(dino.encode(made).detach(), given["dino_cls_generated"], tol, "dino")
    for order in (torch.arange(len(made)), torch.arange(len(made)).flip(0)):
        scores = SceneScores(Prepared(dino, clip, ids), Prepared(clip, clip, ids), {"": ""}, {"given": real[:1], "all": real})
        scores.update(made[order], torch.zeros(len(made), dtype=torch.long))
        found = scores.compute()
        for name, value in (
            ("clip_i_given", "clip_i"),
            ("dino_i_given", "dino"),
            ("clip_i_all", "clip_i_all_pairs"),
            ("dino_i_all", "dino_all_pairs"),
        ):
            assert_close(found[name], torch.tensor(expected[value]), tol, value)
        assert_close(found["clip_t"].clamp(min=0), torch.tensor(expected["clip_t"]), tol, "clip_t")
    for place, value in enumerate(expected["clip_i_per_image"]):
        one = SceneScores(Prepared(dino, clip, ids), Prepared(clip, clip, ids), {"": ""}, {"": real[:1]})
        one.update(made[place : place + 1], torch.zeros(1, dtype=torch.long))
        assert_close(one.compute()["clip_i"], torch.tensor(value), tol, f"clip_i of {place}")
    a, b = given["frechet_a"].double(), given["frechet_b"].double()
    assert_close(frechet_distance(a, b), torch.tensor(expected["frechet"]), tol, "frechet")
    repeated = frechet_distance(a[:1].expand(len(a), -1), b)
    assert_close(repeated, torch.tensor(expected["frechet_single_real_repeated"]), tol, "frechet of one")

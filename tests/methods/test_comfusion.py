"""ComFusion: reference losses and gradients, scores, texts of scenes, and what the fusion stream teaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.subject_scenes import in_scene
from genlab.diffusion.components import decoded, frozen
from genlab.diffusion.denoising import Denoising, denoised
from genlab.diffusion.losses import diffusion_loss
from genlab.diffusion.prompts import render
from genlab.diffusion.schedule import add_noise, predict_x0, scaled_linear, sub_schedule
from genlab.methods.comfusion.fusion import Coarse, Fusion, coarse_pictures, matching
from genlab.methods.comfusion.pictures import best_step
from genlab.metrics.scenes import SceneScores, diversity, fidelity
from genlab.models.picture_encoders import ClipPictures, DinoPictures
from tests.filled import fill_by_name, legacy_normal
from tests.golden_files import assert_close, golden_files, load_golden
from tests.small_encoders import Prepared, encoders


def parts(meta: dict[str, Any], seeds: dict[str, int]) -> tuple[Any, Any, ClipPictures, DinoPictures]:
    """UNet, autoencoder and encoders of a reference file."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = fill_by_name(UNet2DConditionModel(**meta["unet_config"]), seeds["unet"])
    vae = fill_by_name(AutoencoderKL(**meta["vae_config"]), seeds["vae"])
    return unet, frozen(vae), *encoders(meta, seeds)


def gradients(loss: Tensor, unet: Any) -> dict[str, float]:
    """Norms: ``total``, and of each parameter."""
    names, values = zip(*unet.named_parameters())
    found = dict(zip(names, torch.autograd.grad(loss, values, allow_unused=True)))
    norms = {name: float(grad.norm()) for name, grad in found.items() if grad is not None}
    return norms | {"total": sum(value**2 for value in norms.values()) ** 0.5}


def compare(found: dict[str, float], expected: dict[str, float], tol: dict[str, Any], what: str) -> None:
    for name, value in expected.items():
        assert_close(torch.tensor(found[name]), torch.tensor(value), tol, f"{what}: {name}")


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("comfusion", "losses"))
def test_losses_and_gradients_of_the_reference(path: Path) -> None:
    meta, given = load_golden(path)
    unet, vae, clip, dino = parts(meta, meta["weights_seed"])
    expected, tol = meta["results"], meta["tol"]
    s = meta["scheduler"]
    alphas = scaled_linear(s["num_train_timesteps"], s["beta_start"], s["beta_end"])
    composite: dict[str, float] = {}
    for name in ("instance", "class_scene"):
        noise, at = given[f"noise_{name}"], given[f"t_{name}"].long()
        output = unet(add_noise(given[f"z_{name}"], noise, at, alphas), at, given[f"emb_{name}"]).sample
        loss = diffusion_loss(output, noise)
        composite[f"loss_{name}"] = float(loss.detach())
        compare(gradients(loss, unet), expected[f"grad_norm_{name}"], tol, name)
    compare(composite, {name: expected[name] for name in composite}, tol, "composite stream")
    wanted_look = dino(given["instance_image"] / 2 + 0.5).detach()
    assert_close(wanted_look, given["feat_instance_dino"], tol, "features of the instance")
    wanted_text = clip.encode_ids(given["ids_class_scene"].long())
    assert_close(wanted_text, given["feat_text_clip"], tol, "features of the texts")
    model = Denoising(unet, alphas, "epsilon")
    assert expected["fusion"]
    for case in expected["fusion"]:
        assert sub_schedule(case["t_fusion"], case["num_steps"]) == case["timesteps"]
        at = torch.full((len(given["z_class_scene"]),), case["t_fusion"])
        noised = add_noise(given["z_class_scene"], given["noise_fusion"], at, alphas)
        fusion = Fusion(case["num_steps"], case["guidance_scale"], case["grad_steps"], recompute=True)
        text, empty = given["emb_instance_scene"], given["emb_empty"][0]
        coarse = coarse_pictures(model, vae, noised, case["t_fusion"], text, empty, fusion)
        name = f"case {case['k']}"
        for key, value in (("coarse_latent", coarse.latents), ("coarse_image01", coarse.picture)):
            if f"{key}_{case['k']}" in given:
                assert_close(value, given[f"{key}_{case['k']}"], tol, f"{name} {key}")
        visual, textual = matching(dino(coarse.picture), wanted_look), matching(clip(coarse.picture), wanted_text)
        weighted = 0.1 * visual + 0.1 * textual
        found = {"loss_visual": visual, "loss_textual": textual, "loss_weighted_0.1_0.1": weighted, "clamped_fraction": coarse.clamped}
        found["loss_total_1_1_0.1_0.1"] = weighted + composite["loss_instance"] + composite["loss_class_scene"]
        compare({key: float(value.detach()) for key, value in found.items()}, {key: case[key] for key in found}, tol, name)
        compare(gradients(weighted, unet), case["grad_norm"], tol, name)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("comfusion", "metrics"))
def test_scores_of_the_reference(path: Path) -> None:
    meta, given = load_golden(path)
    clip, dino = encoders(meta, meta["weights_seed"])
    expected, tol = meta["results"], meta["tol"]
    count, each = given["generated"].shape[:2]
    scenes, ids = {str(number): "" for number in range(count)}, given["ids_class_scene"]
    scores = SceneScores(Prepared(dino, clip, ids), Prepared(clip, clip, ids), scenes, {"": given["real"]})
    order = torch.randperm(count * each, generator=torch.Generator().manual_seed(0))
    pictures, number = given["generated"].flatten(0, 1)[order], torch.arange(count).repeat_interleave(each)[order]
    scores.update(pictures[:4], number[:4])
    scores.update(pictures[4:], number[4:])
    found = scores.compute()
    for name in ("dino_i", "clip_i", "clip_t", "dino_diversity"):
        assert_close(found[name], torch.tensor(expected[name]), tol, name)
        rows = torch.stack([found[f"{name}/{scene}"] for scene in scenes])
        assert_close(rows, torch.tensor(expected[f"{name}_per_scene"]), tol, name)
        assert torch.allclose(rows.mean(), found[name])
    assert torch.allclose(fidelity(given["real"].flatten(1), given["real"].flatten(1)), torch.tensor(1.0))
    assert diversity(torch.ones(1, 3)).isnan() and diversity(torch.ones(2, 3)).abs() < 1e-6


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("comfusion", "scene_prompts"))
def test_prompts_of_the_reference(path: Path) -> None:
    meta, _ = load_golden(path)
    for case in meta["cases"]:
        target = render("a {V} {N}", V=case["identifier"], N=case["class_name"])
        assert target == case["instance_prompt"]
        for scene in case["scenes"]:
            assert in_scene(target, scene["scene"]) == scene["instance_scene_prompt"]
            assert in_scene(render("a {N}", N=case["class_name"]), scene["scene"]) == scene["class_scene_prompt"]
    assert in_scene("a dog", "a painting of {subject} at sea") == "a painting of a dog at sea"


def oracle(clean: Tensor, alphas: Tensor) -> Any:
    """A network that always finds the noise that leads back to ``clean``."""

    def unet(latents: Tensor, timesteps: Tensor, states: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        a = alphas[timesteps][:, None, None, None]
        return ((latents - a.sqrt() * clean) / (1 - a).sqrt(),)

    return unet


def test_few_steps_with_a_perfect_network_lead_back() -> None:
    alphas, clean, text = scaled_linear(), legacy_normal(0, 2, 4, 8, 8), torch.zeros(1, 3, 4).expand(2, -1, -1)
    noise = legacy_normal(1, 2, 4, 8, 8)
    for timestep in (2, 5, 300, 601, 900):
        noised = add_noise(clean, noise, torch.full((2,), timestep), alphas)
        for steps in (1, 2, 4, 7):
            chain = sub_schedule(timestep, steps)
            assert len(chain) <= steps and chain == sorted(set(chain), reverse=True)
            found = denoised(Denoising(oracle(clean, alphas), alphas, "epsilon"), noised, timestep, text, text[0], steps, 1.0)
            assert (found - clean).abs().max() < 1e-3 if timestep == 2 else (found - clean).abs().max() < 1e-4
    assert sub_schedule(2, 4) == [2, 1, 0] and sub_schedule(601, 4) == [601, 451, 300, 150] and sub_schedule(5, 5) == [5, 4, 3, 2, 1]


def learning_parts() -> tuple[Any, Any, ClipPictures, DinoPictures]:
    meta, _ = load_golden(Path(golden_files("comfusion", "losses")[0].values[0]))
    return parts(meta, {"unet": 0, "vae": 1, "clip": 2, "dino": 3})


def test_gradient_steps_change_gradients_alone_and_one_step_is_the_usual_estimate() -> None:
    unet, vae, *_ = learning_parts()
    alphas, text = scaled_linear(), legacy_normal(3, 2, 7, 32)
    model, x = Denoising(unet, alphas, "epsilon"), legacy_normal(2, 2, 4, 8, 8)

    def run(steps: int, grad_steps: int | None) -> Coarse:
        return coarse_pictures(model, vae, x, 601, text, text[0], Fusion(steps, 1.0, grad_steps))

    whole, part = run(3, None), run(3, 1)
    assert torch.equal(whole.picture, part.picture)
    norms = [gradients(each.latents.square().mean(), unet)["total"] for each in (whole, part)]
    assert norms[1] < 0.9 * norms[0]
    with torch.no_grad():
        output = unet(x, 601, text).sample
        assert torch.allclose(run(1, None).latents, predict_x0(output, x, torch.tensor(601), alphas, "epsilon"), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in vae.parameters())


@pytest.mark.slow
def test_fusion_pulls_coarse_pictures_to_the_look_and_to_the_text() -> None:
    """From the tiny random networks of the reference: without it neither is reached."""
    alphas = scaled_linear()
    instance, scenes = legacy_normal(1, 1, 4, 8, 8), legacy_normal(2, 8, 4, 8, 8)
    text_i, text_cs = legacy_normal(3, 1, 7, 32), legacy_normal(4, 1, 7, 32)
    text_is = (text_i + text_cs) / 2

    def train(visual: float, textual: float) -> tuple[float, float]:
        unet, vae, clip, dino = learning_parts()
        model, draws = Denoising(unet, alphas, "epsilon"), torch.Generator().manual_seed(0)
        with torch.no_grad():
            look = dino(decoded(vae, instance).clamp(0, 1))
        meaning = clip.encode_ids(torch.tensor([[98, 5, 17, 33, 99]]))
        optimizer = torch.optim.AdamW(unet.parameters(), 1e-3, weight_decay=1e-2)
        for step in range(120):
            clean = torch.cat([instance, scenes[step % 8 : step % 8 + 1]])
            noise, at = torch.randn(clean.shape, generator=draws), torch.randint(1000, (2,), generator=draws)
            output = unet(add_noise(clean, noise, at, alphas), at, torch.cat([text_i, text_cs])).sample
            loss = diffusion_loss(output[:1], noise[:1]) + diffusion_loss(output[1:], noise[1:])
            t = int(torch.randint(1000, (), generator=draws))
            noised = add_noise(clean[1:], torch.randn(clean[1:].shape, generator=draws), torch.tensor([t]), alphas)
            if visual or textual:
                picture = coarse_pictures(model, vae, noised, t, text_is, text_is[0], Fusion(2)).picture
                loss = loss + visual * matching(dino(picture), look) + textual * matching(clip(picture), meaning)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
        found = torch.zeros(2)
        noise = torch.randn(scenes.shape, generator=torch.Generator().manual_seed(9))
        for t in (100, 300, 500, 700, 900):
            with torch.no_grad():
                noised = add_noise(scenes, noise, torch.full((8,), t), alphas)
                picture = coarse_pictures(model, vae, noised, t, text_is.expand(8, -1, -1), text_is[0], Fusion(2)).picture
                found += torch.stack([matching(dino(picture), look), matching(clip(picture), meaning)]) / 5
        return float(found[0]), float(found[1])

    look, meaning = train(0, 0)
    assert look > 0.25 and meaning > 0.85
    assert train(1, 0)[0] < 0.2
    assert train(0, 1)[1] < 0.7


def test_the_best_step_lacks_least_of_both() -> None:
    assert best_step([(100, 0.2, 0.9), (200, 0.6, 0.8), (300, 0.7, 0.3)]) == 200
    assert best_step([(100, 0.5, 0.5), (200, 0.5, 0.5)]) == 100
    assert best_step([(100, float("nan"), 1.0), (200, 0.1, 0.1)]) == 200
    with pytest.raises(ValueError, match="no step"):
        best_step([])

"""DomainGallery: reference losses and gradients in both precisions, enhancement through the stock pipeline, and what trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from datamodules.domain_images import DomainImages
from genlab.diffusion.components import encode_text, pipeline_options
from genlab.diffusion.denoising import Denoising
from genlab.diffusion.features import unet_encoder_features
from genlab.diffusion.guidance import enhanced
from genlab.diffusion.lora import attach_lora, load_lora_state, lora_disabled, lora_state
from genlab.diffusion.schedule import add_noise, offset_noise, scaled_linear, sub_schedule, training_target
from genlab.losses.similarity_consistency import other_similarities, similarity_consistency
from genlab.methods.domaingallery import DomainGallery
from genlab.methods.domaingallery.losses import Similarity, Texts, erasure_losses, finetuning_losses, similar_pictures
from tests.golden_files import assert_close, golden_files, load_golden

TERMS = {"prior": "prior", "erase": "erasure", "disen": "disen", "target": "target", "sim": "sim"}  # ours -> the file's


def golden_unet(path: Path, meta: dict[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**meta["config"]["unet"])
    unet.load_state_dict(load_file(path.with_name("tiny_unet.safetensors")))
    attach_lora(unet, meta["config"]["rank"])
    load_lora_state(unet, load_file(path.with_name("tiny_lora.safetensors")))
    return unet.eval()


def close(found: float, expected: float, tol: dict[str, float], what: str) -> None:
    assert abs(found - expected) <= tol["atol"] + tol["rtol"] * abs(expected), f"{what}: {found}, expected {expected}"


@pytest.mark.golden
@pytest.mark.slow
@pytest.mark.parametrize("path", golden_files("domaingallery", "cases"))
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_losses_and_gradients_of_the_reference(path: Path, precision: str) -> None:
    meta, given = load_golden(path)
    unet, dtype, tol = golden_unet(path, meta), torch.float64 if precision == "fp64" else torch.float32, meta["tol"]
    unet = unet.double() if precision == "fp64" else unet
    alphas = meta["scheduler"]
    cumulated = scaled_linear(alphas["num_train_timesteps"], alphas["beta_start"], alphas["beta_end"]).to(dtype)
    texts = Texts(*(given[f"emb_{name}"][0].to(dtype) for name in ("tgt", "src", "uncond")))
    weights = meta["weights"] | {"target": 1.0}
    lora = {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}
    tuned = {name: case for name, case in meta["cases"].items() if case["settings"]["mode"] in ("prior_attribute_erasure", "finetuning")}
    assert tuned
    for name, case in tuned.items():
        s, expected = case["settings"], case[f"expected_{precision}"]
        prediction = s.get("prediction_type", "epsilon")
        model = Denoising(unet, cumulated, prediction)
        x0 = given[f"{name}.x0"].to(dtype)
        noise = offset_noise(given[f"{name}.base_noise"].to(dtype), given[f"{name}.offset_noise"].to(dtype), s.get("offset", 0.0))
        at = torch.full((len(x0),), s["t"])
        noised, wanted = add_noise(x0, noise, at, cumulated), training_target(x0, noise, at, cumulated, prediction)
        count = s["B"]
        settings = Similarity(s.get("n", 5), s.get("g", 1.0))
        if s["mode"] == "finetuning":
            parts = (noised[:count], wanted[:count]), (noised[count:], wanted[count:])
            losses = finetuning_losses(model, *parts, s["t"], texts, similarity=settings)
        else:
            losses = erasure_losses(model, noised, wanted, s["t"], texts)
        term_weights = {**weights, "sim": s.get("sim_w", 1.0)}
        losses["loss"] = sum(term_weights[TERMS[term]] * value for term, value in losses.items())  # type: ignore[assignment]
        for term, value in losses.items():
            key = f"{TERMS[term]}_loss" if term != "loss" else "loss"
            close(float(value.detach()), expected[key], tol.get(f"{precision}_{key}", tol[precision]), f"{name} {key}")
            norm, grads = 0.0, list[Tensor | None]()
            if value.requires_grad:
                grads = list(torch.autograd.grad(value, list(lora.values()), retain_graph=True, allow_unused=True))
                norm = float(torch.stack([grad.double().square().sum() for grad in grads if grad is not None]).sum().sqrt())
            close(norm, expected[f"grad_norm_{key}"], tol.get(f"{precision}_grad_norm_{key}", tol[precision]), f"{name} gradient of {key}")
            if term == "loss" and precision == "fp32":
                by_name = {each.replace(".default", ""): grad for each, grad in zip(lora, grads)}
                for each in (each for each in given if each.startswith(f"{name}.grad.")):
                    grad = by_name[each.removeprefix(f"{name}.grad.")]
                    assert grad is not None
                    assert_close(grad, given[each], tol["tensors_fp32"], each)
        if "pred_timesteps" not in expected:
            continue
        assert sub_schedule(s["t"], s.get("n", 5)) == expected["pred_timesteps"]
        turned, kept = similar_pictures(model, noised[count:], s["t"], texts, settings)
        assert [list(each.shape) for each in turned.features] == expected["feature_shapes"]
        if precision == "fp64":  # in fp32 the reference's numbers of single layers are within its rounding errors
            layers = similarity_consistency(turned.features, kept.features)[1]
            for found, layer in zip(layers, expected["sim_loss_per_layer"], strict=True):
                close(float(found.detach()), layer, tol[precision], f"{name} L_sim of a layer")
            continue
        compared = {"pred_s2t": turned.latents, "pred_src": kept.latents, "simmat_s2t.0": other_similarities(turned.features[0])}
        compared |= {"simmat_src.0": other_similarities(kept.features[0])}
        for key, value in compared.items():
            if f"{name}.{key}" in given:
                assert_close(value, given[f"{name}.{key}"], tol["tensors_fp32"], f"{name} {key}")
        for i, feature in enumerate(turned.features):
            if f"{name}.feat_sum_s2t.{i}" in given:  # sums of up to 64 numbers
                bound = {"atol": 10 * tol["tensors_fp32"]["atol"], "rtol": tol["tensors_fp32"]["rtol"]}
                assert_close(feature.sum((2, 3)), given[f"{name}.feat_sum_s2t.{i}"], bound, f"{name} feature {i}")


def golden_pipeline(path: Path, meta: dict[str, Any], prediction: str) -> Any:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    vae = AutoencoderKL(**meta["config"]["vae"])
    vae.load_state_dict(load_file(path.with_name("tiny_vae.safetensors")))
    text_encoder = CLIPTextModel(CLIPTextConfig(**meta["config"]["te"]))
    text_encoder.load_state_dict(load_file(path.with_name("tiny_text_encoder.safetensors")))
    s = meta["scheduler"]
    shared = {key: s[key] for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "clip_sample")}
    scheduler = DDIMScheduler(**shared, **s["ddim"], prediction_type=prediction)
    parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": None, "unet": golden_unet(path, meta), "scheduler": scheduler}
    pipe = StableDiffusionPipeline(**parts, **pipeline_options())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("domaingallery", "cases"))
def test_text_and_latents_of_the_reference(path: Path) -> None:
    meta, given = load_golden(path)
    pipe = golden_pipeline(path, meta, "epsilon")

    class Tokens:
        """The ids that the file has, whatever the prompt."""

        model_max_length = 77

        def __call__(self, prompts: list[str], **_: Any) -> Any:
            return type("Ids", (), {"input_ids": torch.cat([given[f"ids_{each}"] for each in prompts]).long()})

    names = list(meta["prompts"])
    with torch.no_grad():
        found = encode_text(Tokens(), pipe.text_encoder, names)  # type: ignore[arg-type]
    for name, each in zip(names, found):
        assert_close(each[None], given[f"emb_{name}"], meta["tol"]["text_embedding"], name)
    posterior = pipe.vae.encode(given["vae.pixels"]).latent_dist
    assert_close(posterior.mean, given["vae.mean"], meta["tol"]["tensors_fp32"], "mean")
    latents = (posterior.mean + posterior.std * given["vae.eps"]) * pipe.vae.config.scaling_factor
    assert_close(latents, given["vae.latents"], meta["tol"]["tensors_fp32"], "latents")


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("domaingallery", "cases"))
def test_enhancement_of_the_reference(path: Path) -> None:
    """Through the stock pipeline; afterwards, also after an exception, it is as it was."""
    meta, given = load_golden(path)
    cases = {name: case for name, case in meta["cases"].items() if name.startswith("enh")}
    assert cases
    for name, case in cases.items():
        s = case["settings"]
        pipe = golden_pipeline(path, meta, s.get("prediction_type", "epsilon"))
        plain = dict(pipe.unet._forward_hooks)
        seen: list[Tensor] = []
        step = pipe.scheduler.step

        def watched(output: Tensor, *args: Any, seen: list[Tensor] = seen, step: Any = step, **more: Any) -> Any:
            seen.append(output)
            return step(output, *args, **more)

        pipe.scheduler.step = watched
        call = {
            "prompt_embeds": given[f"emb_{s['prompt']}"].expand(s["B"], -1, -1),
            "negative_prompt_embeds": given["emb_uncond"].expand(s["B"], -1, -1),
            "latents": given[f"{name}.latents_in"], "num_inference_steps": s["steps"], "guidance_scale": s["w1"], "output_type": "latent",
        }  # fmt: skip
        with torch.no_grad(), enhanced(pipe, s["mode"].lower(), given[f"emb_{s['base']}"], s["w2"]):
            out = pipe(**call).images
        assert pipe.scheduler.timesteps.tolist() == case["timesteps"]
        assert_close(seen[0], given[f"{name}.noise_pred_step0"], meta["tol"]["enhanced_noise_fp32"], name)
        assert_close(out, given[f"{name}.latents_out"], meta["tol"]["enhanced_noise_fp32"], name)
        if s["w2"] == 0:
            with torch.no_grad():
                assert torch.allclose(pipe(**call).images, out, atol=1e-5)
        with pytest.raises(ZeroDivisionError), enhanced(pipe, s["mode"].lower(), given[f"emb_{s['base']}"]):
            1 / 0  # noqa: B018
        assert dict(pipe.unet._forward_hooks) == plain and not pipe.unet._forward_pre_hooks


def test_features_are_what_feeds_the_skip_connections() -> None:
    path = Path(golden_files("domaingallery", "cases")[0].values[0])
    meta, given = load_golden(path)
    unet, seen = golden_unet(path, meta), []
    hooks = [block.register_forward_hook(lambda module, args, output: seen.extend(output[1])) for block in unet.down_blocks]
    hooks.append(unet.conv_in.register_forward_hook(lambda module, args, output: seen.append(output)))
    x, text, at = torch.randn(2, 4, 8, 8), given["emb_src"].expand(2, -1, -1), torch.tensor([0, 7])
    with torch.no_grad():
        unet(x, at, text)
        expected = list(seen)
        found = unet_encoder_features(unet, x, at, text)
    assert len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected))
    assert hooks


def test_invariances_of_the_similarities() -> None:
    torch.manual_seed(0)
    target, source = ([torch.randn(4, 3, 5, 5), torch.randn(4, 8)] for _ in range(2))
    loss, _ = similarity_consistency(target, source)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(similarity_consistency([x[order] for x in target], [x[order] for x in source])[0], loss, atol=1e-7)
    assert torch.allclose(similarity_consistency([7 * x for x in target], source)[0], loss, atol=1e-7)
    assert similarity_consistency(source, source)[0].abs() < 1e-9
    assert torch.allclose(similarity_consistency(target, source, "batchmean")[0], 3 * loss, rtol=1e-5)
    assert similarity_consistency([x[:2] for x in target], [x[:2] for x in source])[0] == 0
    with pytest.raises(ValueError, match="take three or more"):
        similarity_consistency([x[:1] for x in target], [x[:1] for x in source])


def test_only_the_lora_learns_and_disabling_leaves_no_trace() -> None:
    path = Path(golden_files("domaingallery", "cases")[0].values[0])
    meta, given = load_golden(path)
    unet = golden_unet(path, meta)
    trained = [name for name, parameter in unet.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    x, text = torch.randn(3, 4, 8, 8), given["emb_src"].expand(3, -1, -1)
    with torch.no_grad():
        with_lora = unet(x, 10, text).sample
        with lora_disabled(unet):
            assert not torch.allclose(unet(x, 10, text).sample, with_lora, atol=1e-4)
        assert torch.equal(unet(x, 10, text).sample, with_lora)
    assert [name for name, parameter in unet.named_parameters() if parameter.requires_grad] == trained
    fresh = type(unet)(**meta["config"]["unet"])
    attach_lora(fresh, 4)
    model, texts = Denoising(fresh, scaled_linear(), "epsilon"), Texts(*(given[f"emb_{name}"][0] for name in ("tgt", "src", "uncond")))
    losses = erasure_losses(model, x, torch.randn_like(x), 100, texts)
    assert losses["disen"] == 0, "B = 0 changes nothing yet"
    assert set(lora_state(fresh)) == set(lora_state(unet))


def test_as_many_parameters_as_the_released_code_trains() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        attach_lora(unet, 4)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    assert len(trained) == 256 and sum(parameter.numel() for parameter in trained) == 797_184
    assert sum(parameter.numel() for parameter in unet.parameters()) - 797_184 == 859_520_964


def test_kept_latents_are_the_same_in_any_company() -> None:
    """A resumed run meets its pictures in other batches than the unbroken one."""
    method = DomainGallery("tiny:sd", rank=2)
    method.configure_model()
    images, ids = torch.rand(3, 3, 64, 64), ["a", "b", "c"]
    together = method.latents(images, ids, [0, 1, 2], 5, keep=True)
    again = DomainGallery("tiny:sd", rank=2)
    again.configure_model()
    again.latents(images[1:2], ids[1:2], [7], 4, keep=True)
    assert torch.equal(again.latents(images.flip(0), ids[::-1], [2, 1, 0], 5, keep=True).flip(0), together)


def test_more_pictures_in_the_cache_change_nothing(tmp_path: Path) -> None:
    """They are of another run, which wanted more."""
    for i in range(5):
        Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(tmp_path / f"{i:05d}.png")
    data = DomainImages(str(tmp_path), category="star", image_size=16)
    data.use_source(tmp_path, 3)
    assert [path.name for path in data.source] == ["00000.png", "00001.png", "00002.png"]

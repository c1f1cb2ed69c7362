"""Custom Diffusion: reference losses and gradients, what trains, and files that go there and back."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from genlab.diffusion.custom_diffusion import (
    WEIGHTS,
    attach_custom_diffusion,
    custom_diffusion_state,
    load_custom_diffusion_state,
    read_custom_diffusion,
    save_custom_diffusion,
)
from genlab.diffusion.losses import diffusion_loss, masked_loss, min_snr_weights, prior_preservation_loss, signal_to_noise
from genlab.diffusion.schedule import add_noise, scaled_linear, training_target
from genlab.errors import UserError
from tests.filled import fill_by_name
from tests.golden_files import assert_close, golden_files, load_golden


def network(meta: dict[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel

    return fill_by_name(UNet2DConditionModel(**meta["unet_config"]), meta["unet_weights_seed"])


def close(found: Any, expected: float, tol: dict[str, Any], what: str) -> None:
    assert_close(torch.as_tensor(found).detach().float(), torch.tensor(expected), tol, what)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("multimodal_prompt", "custom_diffusion_loss"))
@pytest.mark.parametrize("detached", [True, False])
def test_losses_and_gradients_of_custom_diffusion(path: Path, detached: bool) -> None:
    meta, given = load_golden(path)
    unet, tol, expected = network(meta), meta["tol"], meta["results"]
    if detached:
        attach_custom_diffusion(unet)
    else:
        unet.requires_grad_(False)
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(".attn2.to_k." in name or ".attn2.to_v." in name)
        expected = {**expected, **expected["no_detach"]}
    states, alphas = given["encoder_hidden_states"].requires_grad_(), scaled_linear()
    at = given["timesteps"].long()
    output = unet(add_noise(given["latents"], given["noise"], at, alphas), at, states).sample
    assert_close(output, given["model_pred"], tol, "prediction")
    half = len(output) // 2
    instance = masked_loss(output[:half], given["noise"][:half], given["mask"][:half])
    prior = diffusion_loss(output[half:], given["noise"][half:])
    total = instance + prior
    close(instance, expected["loss_instance_masked"], tol, "instance")
    close(prior, expected["loss_prior"], tol, "prior")
    close(total, expected["loss_total"], tol, "total")
    per_channel = masked_loss(output[:half], given["noise"][:half], given["mask"][:half], mean_channels=True)
    close(per_channel, expected["loss_instance_masked_channel_mean"], tol, "mean over channels")
    total.backward()
    assert states.grad is not None
    close(states.grad[:, 0].norm(), expected["grad_encoder_hidden_states_token0_norm"], tol, "first token")
    close(states.grad.norm(), expected["grad_encoder_hidden_states_norm"], tol, "texts")
    norms = {name: float(parameter.grad.norm()) for name, parameter in unet.named_parameters() if parameter.grad is not None}
    plain = {name.replace(".processor", "").replace("_custom_diffusion.weight", ""): value for name, value in expected["grad_norm"].items()}
    assert {f"{name}.weight" for name in plain} == norms.keys()
    for name, value in plain.items():
        close(norms[f"{name}.weight"], value, tol, name)
    if detached:
        assert_close(states.grad, given["grad_encoder_hidden_states"], tol, "gradient of the texts")
        assert sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad) == expected["trainable_parameters"]


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("multimodal_prompt", "dreambooth_loss"))
def test_losses_and_gradients_of_dreambooth(path: Path) -> None:
    meta, given = load_golden(path)
    alphas, at, half = scaled_linear(), given["timesteps"].long(), len(given["latents"]) // 2
    for prediction, expected in meta["results"].items():
        unet, tol = network(meta), meta["tol"]
        noisy = add_noise(given["latents"], given["noise"], at, alphas)
        assert_close(noisy, given["noisy"], tol, "noised")
        output = unet(noisy, at, given["encoder_hidden_states"]).sample
        target = training_target(given["latents"], given["noise"], at, alphas, prediction)
        loss, instance, prior = prior_preservation_loss(output, target, 1.0)
        weights = min_snr_weights(signal_to_noise(alphas[at[:half]]), 5.0, prediction)
        found = {
            "loss_instance": instance, "loss_prior": prior, "loss_total_w1": loss,
            "loss_total_w0.5": prior_preservation_loss(output, target, 0.5)[0],
            "loss_instance_min_snr5": diffusion_loss(output[:half], target[:half], weights),
        }  # fmt: skip
        loss.backward()
        grads = {name: parameter.grad for name, parameter in unet.named_parameters() if parameter.grad is not None}
        for name, value in found.items():
            close(value, expected[name], tol, f"{prediction} {name}")
        for name, value in expected["grad_norm"].items():
            close(grads[name].norm(), value, tol, f"{prediction} {name}")
        close(torch.stack([grad.square().sum() for grad in grads.values()]).sum().sqrt(), expected["grad_norm_total"], tol, prediction)


def test_masks() -> None:
    output, target = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    ones = torch.ones(2, 1, 8, 8)
    assert torch.allclose(masked_loss(output, target, ones), 4 * (output - target).square().mean())
    assert torch.allclose(masked_loss(output, target, ones, mean_channels=True), (output - target).square().mean())
    mask = ones.clone()
    mask[..., 4:] = 0
    other = output.clone()
    other[..., 4:] += 7
    assert torch.equal(masked_loss(output, target, mask), masked_loss(other, target, mask))
    assert masked_loss(output, target, torch.zeros_like(mask)) == 0


def test_files_go_there_and_back_and_nothing_changes_at_first(tmp_path: Path) -> None:
    meta, given = load_golden(Path(golden_files("multimodal_prompt", "custom_diffusion_loss")[0].values[0]))
    states, at = given["encoder_hidden_states"], given["timesteps"].long()

    def drawn(unet: Any) -> torch.Tensor:
        with torch.no_grad():
            return unet(given["latents"], at, states).sample

    plain, tuned = network(meta), network(meta)
    attach_custom_diffusion(tuned)
    assert torch.equal(drawn(plain), drawn(tuned))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    file = save_custom_diffusion(tmp_path, tuned)
    assert not torch.allclose(drawn(plain), drawn(tuned), atol=1e-3)
    held = torch.load(file, weights_only=True)
    assert held["mid_block.attentions.0.transformer_blocks.0.attn1.processor"] == {}
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_v_custom_diffusion.weight" in held
    load_custom_diffusion_state(plain, read_custom_diffusion(tmp_path))
    assert torch.equal(drawn(plain), drawn(tuned))
    whole = network(meta)
    attach_custom_diffusion(whole, "crossattn")
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias" in custom_diffusion_state(whole, "crossattn")
    save_custom_diffusion(tmp_path / "all", whole, "crossattn")
    load_custom_diffusion_state(network(meta), read_custom_diffusion(tmp_path / "all"))
    state = custom_diffusion_state(tuned)
    with pytest.raises(UserError, match="do not fit this UNet"):
        load_custom_diffusion_state(plain, {name: value[:3] for name, value in state.items()})
    with pytest.raises(UserError, match="do not fit this UNet"):
        load_custom_diffusion_state(plain, dict(list(state.items())[1:]))
    with pytest.raises(UserError, match="is not there"):
        read_custom_diffusion(tmp_path / "nowhere")
    (tmp_path / WEIGHTS).write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(UserError, match="cannot be read as weights"):
        read_custom_diffusion(tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match="holds no keys and values"):
        read_custom_diffusion(tmp_path)


def test_as_many_parameters_as_the_paper_trains() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        attach_custom_diffusion(unet)
    assert sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad) == 19_169_280
    assert len(custom_diffusion_state(unet)) == 32


def test_several_new_words_learn_and_the_table_stays(tmp_path: Path) -> None:
    """All of them, also with weight decay; in the authors' code the last one never does, and all rows decay."""
    from transformers import CLIPTextModel, CLIPTokenizer

    from genlab.diffusion.components import encode_text
    from genlab.diffusion.tokens import PlaceholderTokens
    from tests.diffusion.tiny_parts import write_parts

    parts = write_parts(tmp_path)
    tokenizer, tower = CLIPTokenizer.from_pretrained(parts / "tokenizer"), CLIPTextModel.from_pretrained(parts / "text_encoder")
    tower.requires_grad_(False).eval()
    table, plain = tower.get_input_embeddings().weight.clone(), encode_text(tokenizer, tower, ["red star"])
    words = [PlaceholderTokens(tokenizer, tower, f"<{i}>", 1, start) for i, start in enumerate(["red", "red", "star"])]
    optimizer = torch.optim.AdamW([word.embeds for word in words], 0.1, weight_decay=0.1)
    before = [word.embeds.detach().clone() for word in words]
    encode_text(tokenizer, tower, ["<0> <1> <2>"]).square().sum().backward()
    optimizer.step()
    assert all((word.embeds != old).any() for word, old in zip(words, before))
    assert not torch.equal(words[0].embeds, words[1].embeds)
    assert torch.equal(tower.get_input_embeddings().weight, table) and torch.equal(encode_text(tokenizer, tower, ["red star"]), plain)

"""Region attention and its losses: reference numbers, nothing at the start, and nothing outside of the regions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from genlab.errors import UserError
from genlab.losses.regions import contact_map, orthogonality, region_weighted_loss, region_weights
from genlab.models.region_attention import RegionLatentAttention, frame_positions, region_tokens
from tests.golden_files import assert_close, golden_files, load_golden


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("interanimate", "region_interaction"))
def test_reference_numbers(path: Path) -> None:
    meta, given = load_golden(path)
    c, tol = meta["config"], meta["tol"]
    size = (c["h"], c["w"])
    weights = region_tokens(given["mask"], size)
    assert_close(weights, given["mask_tokens"], tol, "tokens' weights")
    assert_close(frame_positions(*given["pe"].shape), given["pe"], tol, "positions")
    variants = sorted({name.partition(".")[0] for name in given if name.endswith(".latents") and not name.startswith("orth")})
    assert variants
    for name in variants:
        module = RegionLatentAttention(c["dim"], c["latent_dim"], c["heads"], name.endswith("_gather"), name.startswith("temporal"))
        module.load_state_dict({k.removeprefix(f"{name}.P."): v for k, v in given.items() if k.startswith(f"{name}.P.")})
        x, latents = given[f"{name}.x"].clone().requires_grad_(), given[f"{name}.latents"].clone().requires_grad_()
        out = module(x, weights, latents.expand(len(x), -1, -1, -1), c["frames"])
        assert_close(out, given[f"{name}.out"], tol, name)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        assert x.grad is not None and latents.grad is not None
        assert_close(x.grad, given[f"{name}.grad_x"], tol, f"{name} gradient of the tokens")
        assert_close(latents.grad, given[f"{name}.grad_latents"], tol, f"{name} gradient of the latents")
    latents = given["orth.latents"].clone().requires_grad_()
    loss = orthogonality(latents)
    loss.backward()
    assert latents.grad is not None
    assert_close(loss, given["orth.loss"], tol, "orthogonality")
    assert_close(latents.grad, given["orth.grad"], tol, "its gradient")
    assert_close(orthogonality(given["orth.orthogonal_rows"]), given["orth.loss_of_orthogonal_rows"], tol, "orthogonal rows")
    small = F.adaptive_avg_pool2d(given["mask"].flatten(0, 2)[:, None], size).view_as(given["mask_small"])
    assert_close(small, given["mask_small"], tol, "small masks")
    weight = region_weights(small, given["loss.lambda"])
    assert_close(weight, given["loss.weight"], tol, "weights")
    output = given["loss.pred"].clone().requires_grad_()
    loss = region_weighted_loss(output, given["loss.target"], weight)
    loss.backward()
    assert output.grad is not None
    assert_close(loss, given["loss.value"], tol, "loss")
    assert_close(output.grad, given["loss.grad"], tol, "its gradient")
    plain = region_weighted_loss(given["loss.pred"], given["loss.target"], region_weights(small, torch.zeros_like(given["loss.lambda"])))
    assert_close(plain, given["loss.value_lambda0"], tol, "without weights")
    contacts = [name for name in given if name.startswith("contact.out_r")]
    assert contacts
    for name in contacts:
        radius = int(name.removeprefix("contact.out_r"))
        assert_close(contact_map(given["contact.hand"], given["contact.face"], radius), given[name], tol, name)


@pytest.mark.parametrize("gather", [True, False])
def test_changes_its_regions_alone(gather: bool) -> None:
    torch.manual_seed(0)
    module = RegionLatentAttention(16, 8, 2, gather, frame_positions=True)
    x, latents = torch.randn(6, 20, 16), torch.randn(6, 2, 3, 8)
    masks = torch.zeros(2, 2, 3, 8, 10)
    masks[:, 0, :, :4, :4] = 1
    masks[:, 1, :, 6:, 2:8] = 1
    weights = region_tokens(masks, (4, 5))
    assert torch.equal(module(x, weights, latents, 3), x), "nothing at the start"
    torch.nn.init.normal_(module.to_out.weight)
    changed = (module(x, weights, latents, 3) - x).abs().sum(-1) > 0
    assert torch.equal(changed, weights.sum(1) > 0)
    swapped = module(x, weights.flip(1), latents.flip(1), 3)
    assert torch.allclose(swapped, module(x, weights, latents, 3), atol=1e-6)
    assert torch.equal(module(x, torch.zeros_like(weights), latents, 3), x)
    with pytest.raises(UserError, match="3 heads do not divide"):
        RegionLatentAttention(16, 8, 3)

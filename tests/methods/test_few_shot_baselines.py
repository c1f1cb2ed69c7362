"""The baselines of few-shot classification against the official code's numbers, and what ties them to each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.methods.baselines.clip_adapter import Bottleneck, mixed
from genlab.methods.baselines.cocoop import CoCoOp
from genlab.methods.baselines.coop import coop_rate
from genlab.methods.baselines.tip_adapter import cache_logits, search
from genlab.models.clip_loading import TransformersClip
from genlab.models.official_few_shot import coop_from_official, coop_to_official
from genlab.models.prompts import ContextPrompts, NameTokens
from genlab.models.visual_prototypes import cache_keys, class_means
from tests.golden_files import assert_close, golden_files, load_golden

TIP = golden_files("cpr", "tip_clip_adapter")
COOP = golden_files("cpr", "coop_cocoop")


@pytest.mark.golden
@pytest.mark.parametrize("path", TIP)
def test_tip_adapter(path: Path) -> None:
    meta, golden = load_golden(path)
    tol, labels = meta["tol"], golden["train_labels"].long()
    x, text, y = golden["test_features"], golden["clip_weights"], golden["test_labels"].long()
    for suffix, order in (("", None), ("_shuffled", golden["perm"].long())):
        keys = cache_keys(golden["aug_features"], order=order)
        assert_close(keys.T, golden[f"cache_keys{suffix}"], tol["features"], f"cache_keys{suffix}")
        means = class_means(keys, labels if order is None else labels[order[0]], meta["C"])
        assert_close(means, golden[f"visual_prototypes{suffix}"], tol["features"], f"visual_prototypes{suffix}")
    keys, values = cache_keys(golden["aug_features"]), F.one_hot(labels, meta["C"]).float()
    assert_close(values, golden["cache_values"], tol["features"], "cache_values")
    plain = 100 * x @ text
    assert_close(plain, golden["zs_logits"], tol["logits"], "zs_logits")
    logits = {}
    for beta, alpha in meta["beta_alpha"]:
        logits[beta] = plain + alpha * cache_logits(x, keys, values, beta)
        assert_close(logits[beta], golden[f"tip_logits_b{beta}_a{alpha}"], tol["logits"], f"tip_logits beta {beta}")
    val = golden["val_features"]
    options = meta["search"]
    beta, alpha = search(val, golden["val_labels"].long(), 100 * val @ text, keys, values, options["scale"], options["step"])
    found, expected = torch.tensor([beta, alpha]), torch.tensor([options["best_beta"], options["best_alpha"]])
    assert_close(found.double(), expected.double(), tol["search"], "search")
    searched = plain + alpha * cache_logits(x, keys, values, beta)
    assert_close(searched, golden["tip_logits_searched"], tol["logits"], "tip_logits_searched")
    for name, each in (("zs", plain), ("tip_b1", logits[meta["beta_alpha"][0][0]]), ("tip_searched", searched)):
        assert_close(100 * (each.argmax(1) == y).double().mean()[None], torch.tensor([meta["acc_percent"][name]]), tol["acc"], name)

    tipf = meta["tipf"]
    weight = torch.nn.Parameter(keys.clone())
    batch = F.normalize(golden["aug_features"][0], dim=-1)
    loss = F.cross_entropy(100 * batch @ text + tipf["alpha"] * cache_logits(batch, weight, values, tipf["beta"]), labels)
    assert_close(loss[None], golden["tipf_loss"], tol["loss"], "tipf_loss")
    loss.backward()
    assert_close(weight.grad, golden["tipf_grad"], tol["grad"], "tipf_grad")
    torch.optim.AdamW([weight], tipf["lr"], eps=tipf["eps"], weight_decay=tipf["weight_decay"]).step()
    assert_close(weight.detach(), golden["tipf_step1_weight"], tol["step1"], "tipf_step1_weight")


@pytest.mark.golden
@pytest.mark.parametrize("path", TIP)
def test_clip_adapter(path: Path) -> None:
    meta, golden = load_golden(path)
    tol, options, x = meta["tol"], meta["clip_adapter"], golden["test_features"]
    adapter = Bottleneck(meta["D"], options["reduction"])
    adapter.load_state_dict({key.removeprefix("ca."): golden[key] for key in golden if key.startswith("ca.")})
    features = mixed(x, adapter(x), options["ratio"])
    assert_close(features, golden["ca_features"], tol["features"], "ca_features")
    logits = 100 * features @ golden["clip_weights"]
    assert_close(logits, golden["ca_logits"], tol["logits"], "ca_logits")
    loss = F.cross_entropy(logits, golden["test_labels"].long())
    assert_close(loss[None], golden["ca_loss"], tol["loss"], "ca_loss")
    loss.backward()
    for name, parameter in adapter.named_parameters():
        assert_close(parameter.grad, golden[f"ca_grad.{name}"], tol["grad"], f"gradient of {name}")
    torch.testing.assert_close(mixed(7 * x, adapter(7 * x), options["ratio"]), features, atol=1e-6, rtol=0)
    torch.testing.assert_close(mixed(x, adapter(x), 0.0), x, atol=1e-6, rtol=0)


def golden_clip(meta: dict[str, Any], golden: dict[str, Tensor]) -> TransformersClip:
    from transformers import CLIPConfig, CLIPModel

    model = CLIPModel(CLIPConfig(**meta["config"]))
    model.load_state_dict({key.removeprefix("clip."): value for key, value in golden.items() if key.startswith("clip.")})
    return TransformersClip(model.eval()).requires_grad_(False)


def golden_names(meta: dict[str, Any], golden: dict[str, Tensor], clip: TransformersClip) -> NameTokens:
    ids, n_ctx = golden["tokenized_prompts"].long(), meta["n_ctx"]
    embeds = clip.embed_tokens(ids)
    end = (ids == meta["config"]["text_config"]["eos_token_id"]).int().argmax(1)
    return NameTokens(embeds[0, :1], embeds[:, 1 + n_ctx :], golden["name_lens"].long(), end - 1 - n_ctx)


@pytest.mark.golden
@pytest.mark.parametrize("path", COOP)
def test_coop(path: Path) -> None:
    meta, golden = load_golden(path)
    tol, labels = meta["tol"], golden["labels"].long()
    clip = golden_clip(meta, golden)
    names, scale = golden_names(meta, golden, clip), meta["logit_scale_exp"]
    assert clip.scale() == pytest.approx(scale, rel=1e-5)
    features = clip.encode_image(golden["pixel_values"])
    assert_close(features, golden["image_features"], tol["features"], "image_features")
    x = F.normalize(features, dim=-1)
    written = clip.encode_text(golden["tokenized_prompts"].long(), meta["config"]["text_config"]["eos_token_id"])
    assert_close(written, golden["zeroshot_text_features"], tol["features"], "zeroshot_text_features")
    assert_close(scale * x @ F.normalize(written, dim=-1).T, golden["zeroshot_logits"], tol["logits"], "zeroshot_logits")
    for position in ("end", "middle", "front"):
        for kind in ("shared", "csc"):
            at = f"coop.{position}.{kind}"
            prompts = ContextPrompts(clip.text_width, meta["n_ctx"], meta["C"] if kind == "csc" else None, position)
            official = {"ctx": golden[f"{at}.param.ctx"], "token_prefix": torch.zeros(1)}
            prompts.load_state_dict({k.removeprefix("prompt_learner."): v for k, v in coop_from_official(official).items()})
            logits = scale * x @ prompts(clip, names).T
            assert_close(logits, golden[f"{at}.logits"], tol["logits"], f"{at}.logits")
            loss = F.cross_entropy(logits, labels)
            assert_close(loss[None], golden[f"{at}.loss"].reshape(1), tol["loss"], f"{at}.loss")
            loss.backward()
            assert_close(prompts.ctx.grad, golden[f"{at}.grad.ctx"], tol["grad"], f"{at}.grad.ctx")


@pytest.mark.golden
@pytest.mark.parametrize("path", COOP)
def test_cocoop(path: Path) -> None:
    meta, golden = load_golden(path)
    tol, labels = meta["tol"], golden["labels"].long()
    model = CoCoOp(n_ctx=meta["n_ctx"], ctx_init=None)
    model.backbone = golden_clip(meta, golden)
    model.freeze_part("backbone")
    model.build()
    names = golden_names(meta, golden, model.backbone)
    official = {key.removeprefix("cocoop.param."): value for key, value in golden.items() if key.startswith("cocoop.param.")}
    missing, unexpected = model.load_state_dict(coop_from_official(official, conditional=True), strict=False)
    assert not unexpected and all(key.startswith("backbone.") for key in missing)
    assert coop_to_official(model.state_dict()).keys() == official.keys()
    x = F.normalize(golden["image_features"], dim=-1)
    logits = model.conditional_logits(x, names)
    assert_close(logits, golden["cocoop.logits"], tol["logits"], "cocoop.logits")
    loss = F.cross_entropy(logits, labels)
    assert_close(loss[None], golden["cocoop.loss"].reshape(1), tol["loss"], "cocoop.loss")
    loss.backward()
    for name, value in coop_to_official({k: p for k, p in model.named_parameters() if p.requires_grad}).items():
        assert_close(value.grad, golden[f"cocoop.grad.{name}"], tol["grad"], f"gradient of {name}")
    with torch.no_grad():  # a meta-net that says nothing leaves CoOp
        for parameter in model.meta_net.parameters():
            parameter.zero_()
        plain = model.logits(x, model.prompt_learner(model.clip, names))
        torch.testing.assert_close(model.conditional_logits(x, names), plain, atol=1e-5, rtol=0)


def test_coop_warms_up_for_an_epoch() -> None:
    rates = [2e-3 * coop_rate(epoch, 50, 2e-3) for epoch in range(50)]
    assert rates[0] == 1e-5 and rates[1] == 2e-3 and rates[26] == pytest.approx(1e-3) and 0 < rates[49] < 1e-5 * 3

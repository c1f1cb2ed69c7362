"""CPR against the official model's numbers, in the cheap form and in the literal one, and its own promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.methods.cpr import CPR, NNR, ConditionalAdapter, conditional_logits, conditional_prototypes, consistency_loss
from genlab.models.clip_loading import OpenClipWords, TransformersClip, openai_to_transformers
from genlab.models.official_few_shot import cpr_from_official, cpr_to_official
from genlab.models.prompts import ContextPrompts, NameTokens, class_texts, mean_of_texts
from genlab.models.rectification import Rectifier, top_positions
from tests.golden_files import assert_close, golden_files, load_golden

FORWARD = golden_files("cpr", "cpr_forward")
END = 49407


def text_clip(meta: dict[str, Any], tensors: dict[str, Tensor]) -> TransformersClip:
    """The golden text tower in a CLIP whose image tower does not matter."""
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": meta["text_width"], "num_hidden_layers": meta["text_layers"], "num_attention_heads": meta["text_heads"]}
    text |= {"intermediate_size": 4 * meta["text_width"], "max_position_embeddings": meta["context_length"], "vocab_size": 49408}
    text |= {"hidden_act": "quick_gelu", "bos_token_id": END - 1, "eos_token_id": END}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=meta["D"]))
    prefix = "sd.text_encoder."
    weights = openai_to_transformers({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    table = torch.zeros(49408, meta["text_width"])
    table[tensors["used_token_ids"].long()] = tensors["used_token_rows"]
    missing, unexpected = model.load_state_dict(weights | {"text_model.embeddings.token_embedding.weight": table}, strict=False)
    assert not unexpected and not [key for key in missing if key.startswith("text_") and "position_ids" not in key]
    return TransformersClip(model.eval(), OpenClipWords())


def golden_model(meta: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[CPR, NameTokens]:
    """The method with the official file's weights, read by the importer, and the golden names' tokens."""
    model = CPR(n_ctx=meta["n_ctx"], lambda_align=meta["lambda_align"], nnr=NNR(meta["k"], meta["alpha"]))
    model.backbone = text_clip(meta, tensors)
    model.freeze_part("backbone")
    model.build()
    model.prototypes = tensors["prototypes"]
    official = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
    missing, unexpected = model.load_state_dict(cpr_from_official(official), strict=False)
    assert not unexpected and all(key.startswith(("backbone.", "prototypes")) for key in missing)
    for key, value in cpr_to_official(model.state_dict()).items():
        assert torch.equal(value, official[key]), key
    ids = tensors["tokenized_prompts"].long()
    end = (ids == END).int().argmax(1)
    assert torch.equal(end, tensors["eot_index"].long())
    embeds, n_ctx = model.clip.embed_tokens(ids), meta["n_ctx"]
    return model, NameTokens(embeds[0, :1], embeds[:, 1 + n_ctx :], end - n_ctx - 2, end - n_ctx - 1)


def loss_of(model: CPR, names: NameTokens, x: Tensor, labels: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = model.prompt_learner(model.clip, names)
    r = model.adapter(x, model.prototypes, t)
    ce, consistency = F.cross_entropy(conditional_logits(x, t, r), labels), consistency_loss(t, r, u)
    return ce + model.hparams.lambda_align * consistency, ce, consistency


def official_names(model: CPR) -> dict[str, Tensor]:
    """Trained parameters by their official names."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name.replace("adapter.", ""): p for name, p in own.items()}


@pytest.mark.golden
@pytest.mark.parametrize("path", FORWARD)
def test_forward_losses_and_gradients(path: Path) -> None:
    meta, golden = load_golden(path)
    tol, (model, names) = meta["tol"], golden_model(meta, golden)
    x, labels, u, p = golden["x"], golden["labels"].long(), golden["cupl_weights"], golden["prototypes"]
    t = model.prompt_learner(model.clip, names)
    assert_close(t, golden["text_features"], tol["forward"], "text_features")
    for name, memory in (("visual", p), ("text", t)):
        assert_close(model.adapter.attention(x, memory), golden[f"attn_{name}"], tol["forward"], f"attn_{name}")
        assert_close(model.adapter.branch(x, memory), golden[f"residual_{name}"], tol["forward"], f"residual_{name}")
    r = model.adapter(x, p, t)
    literal = conditional_prototypes(t, r)
    assert_close(literal, golden["all_prompts"], tol["forward"], "all_prompts")
    assert_close(meta["logit_scale"] * torch.einsum("bcd,bd->bc", literal, x), golden["logits"], tol["logits"], "logits, literal")
    assert_close(conditional_logits(x, t, r), golden["logits"], tol["logits"], "logits, cheap")
    loss, ce, consistency = loss_of(model, names, x, labels, u)
    for name, value in (("total", loss), ("ce", ce), ("align", consistency)):
        assert_close(value[None], golden[f"loss_{name}"], tol["forward"], f"loss_{name}")
    loss.backward()
    trained = official_names(model)
    assert sorted(trained) == sorted(meta["trainable"]) and sum(p.numel() for p in trained.values()) == meta["n_trainable"]
    for name, parameter in trained.items():
        assert_close(parameter.grad, golden[f"grad.{name}"], tol["grad"], f"gradient of {name}")
    assert trained["key.bias"].grad.abs().max() < 1e-6


@pytest.mark.golden
@pytest.mark.parametrize("path", FORWARD)
def test_training(path: Path) -> None:
    meta, golden = load_golden(path)
    adamw = {**meta["adamw"], "betas": tuple(meta["adamw"]["betas"])}
    model, names = golden_model(meta, golden)
    assert {key: model.hparams[key] for key in ("lr", "eps", "weight_decay")} == {k: adamw[k] for k in ("lr", "eps", "weight_decay")}
    loss_of(model, names, golden["x"], golden["labels"].long(), golden["cupl_weights"])[0].backward()
    torch.optim.AdamW(official_names(model).values(), **adamw).step()
    for name, parameter in official_names(model).items():
        assert_close(parameter.detach(), golden[f"step1.{name}"], meta["tol"]["step1"], f"step1 {name}")
    model, names = golden_model(meta, golden)
    trained, run = official_names(model), meta["train"]
    optimizer = torch.optim.AdamW(trained.values(), **adamw)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run["epochs"] * run["batches_per_epoch"])
    for _ in range(run["epochs"]):
        for x, labels in zip(golden["train_x"], golden["train_y"].long()):
            optimizer.zero_grad()
            loss_of(model, names, x, labels, golden["cupl_weights"])[0].backward()
            optimizer.step()
            schedule.step()
    for name, parameter in trained.items():
        assert_close(parameter.detach(), golden[f"trained.{name}"], meta["tol"]["trained"], f"trained {name}")
    t = model.prompt_learner(model.clip, names)
    logits = conditional_logits(golden["x"], t, model.adapter(golden["x"], model.prototypes, t))
    assert_close(logits.detach(), golden["trained_logits"], meta["tol"]["trained_logits"], "trained_logits")


@pytest.mark.golden
@pytest.mark.parametrize("path", FORWARD)
@torch.no_grad()
def test_rectification_and_texts(path: Path) -> None:
    meta, golden = load_golden(path)
    tol, (model, names) = meta["tol"], golden_model(meta, golden)
    x, labels, bank = golden["x"], golden["labels"].long(), golden["unlabeled"]
    t = model.prompt_learner(model.clip, names)
    r = model.adapter(x, model.prototypes, t)
    logits = conditional_logits(x, t, r)
    rectifier = Rectifier(t, bank, meta["k"], meta["alpha"])
    rectified, near = rectifier.logits(logits, x, r)
    assert torch.equal(near.sort(-1).values, golden["nnr_topk_sorted"].long())
    assert_close(rectified, golden["nnr_logits"], tol["logits"], "nnr_logits")
    prompts = meta["alpha"] * conditional_prototypes(t, r) + (1 - meta["alpha"]) * bank[near].mean(2)
    assert_close(prompts, golden["nnr_prompts"], tol["forward"], "nnr_prompts")
    found = rectifier.classes(logits, x, r)
    assert torch.equal(found.label, golden["nnr_logits"].argmax(1)), "the pruned search"
    for name, called in (("acc_plain", logits.argmax(1)), ("acc_nnr", found.label)):
        assert_close(100 * (called == labels).double().mean()[None], torch.tensor([meta[name]]), tol["acc"], name)
    tokens, classes = golden["cupl_tokens"].long(), golden["cupl_class_index"].long()
    u = mean_of_texts(model.clip.encode_text(tokens), torch.bincount(classes).tolist())
    assert_close(u, golden["cupl_weights"], tol["forward"], "cupl_weights")
    spoken = [name.replace("_", " ") for name in meta["classnames"]]
    texts = class_texts(spoken, meta["templates"], [meta["cupl"][name] for name in spoken])
    own = model.clip.tokenize([text for some in texts for text in some])
    assert torch.equal(F.pad(own, (0, tokens.shape[1] - own.shape[1])), tokens), "the tokenizer gives the stored ids"


@pytest.fixture(scope="module")
def parts() -> dict[str, Tensor]:
    torch.manual_seed(0)
    made = {name: F.normalize(torch.randn(n, 32), dim=-1) for name, n in {"x": 9, "t": 7, "u": 7, "p": 5, "bank": 60}.items()}
    return made | {"r": torch.randn(9, 32)}


def test_the_cheap_forms_are_the_literal_ones(parts: dict[str, Tensor]) -> None:
    x, t, u, r = (parts[name] for name in "xtur")
    for size in (1e-6, 1.0, 50.0):
        prompts = conditional_prototypes(t, size * r)
        torch.testing.assert_close(conditional_logits(x, t, size * r), 100 * torch.einsum("bcd,bd->bc", prompts, x), atol=2e-4, rtol=0)
        literal = 1 - F.cosine_similarity(prompts, u[None], dim=-1).mean()
        torch.testing.assert_close(consistency_loss(t, size * r, u), literal, atol=1e-6, rtol=0)
    assert torch.equal(consistency_loss(t, 0 * r, t).abs() < 1e-6, torch.tensor(True))
    torch.testing.assert_close(conditional_logits(x, t, 0 * r), 100 * x @ t.T)


def test_what_the_adapter_does_not_know(parts: dict[str, Tensor]) -> None:
    x, t, p = (parts[name] for name in "xtp")
    torch.manual_seed(1)
    adapter = ConditionalAdapter(32)
    r = adapter(x, p, t).detach()  # the memory has another size than the classes
    assert 0.5 < float(r.norm(dim=-1).mean()) / (2 * 32**0.5) < 1.5, "at the start about 2 sqrt(D)"
    logits, order = conditional_logits(x, t, r), torch.randperm(7)
    torch.testing.assert_close(conditional_logits(x, t[order], adapter(x, p, t[order])), logits[:, order], atol=1e-3, rtol=0)
    torch.testing.assert_close(adapter(x, p[torch.randperm(5)], t), r, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("width", "text_width", "count"), [(512, 512, 1_322_496), (1024, 512, 5_258_240)])
def test_trained_parameters_are_the_official_ones(width: int, text_width: int, count: int) -> None:
    parts = ConditionalAdapter(width), ContextPrompts(text_width, 16)
    assert sum(p.numel() for part in parts for p in part.parameters()) == count


def test_rectification_keeps_its_promises(parts: dict[str, Tensor]) -> None:
    x, t, r, bank = (parts[name] for name in ("x", "t", "r", "bank"))
    logits = conditional_logits(x, t, r)
    torch.testing.assert_close(Rectifier(t, bank, alpha=1.0).logits(logits, x, r)[0], logits)
    same = bank[:1].expand(5, -1)
    torch.testing.assert_close(Rectifier(t, same).logits(logits, x, r)[0], 0.95 * logits + 5 * x @ same[0][:, None])
    expected = Rectifier(t, bank).logits(logits, x, r)[0]
    torch.testing.assert_close(Rectifier(t, bank.flip(0)).logits(logits, x, r)[0], expected)
    own = torch.arange(9)
    with_self = torch.cat([x, bank])
    near = Rectifier(t, with_self, k=20).logits(logits, x, 5 * x, own)[1]
    assert (
        not (near == own[:, None, None]).any() and (Rectifier(t, with_self, k=20).logits(logits, x, 5 * x)[1] == own[:, None, None]).any()
    )
    found = Rectifier(t, with_self, k=20).classes(logits, x, 5 * x, own)
    assert not (found.neighbours == own[:, None]).any()


@pytest.mark.parametrize("spread", [0.02, 1.0])
def test_pruning_finds_the_winner_of_all(spread: float) -> None:
    """Many classes with close logits, a bank large enough for the search in blocks."""
    torch.manual_seed(3)
    bank = F.normalize(torch.randn(1, 16) + spread * torch.randn(5000, 16), dim=-1)
    x, t, r = bank[:50], F.normalize(bank.mean(0) + 0.3 * torch.randn(40, 16), dim=-1), torch.randn(50, 16)
    rectifier, logits = Rectifier(t, bank, alpha=0.6), conditional_logits(x, t, r)
    full, near = rectifier.logits(logits, x, r)
    found = rectifier.classes(logits, x, r, rows=7, at_once=20)
    torch.testing.assert_close(found.logit, full.amax(1), atol=1e-3, rtol=0)
    if spread == 1.0:
        assert (found.label != logits.argmax(1)).any(), "it changes something"
    chosen = near[torch.arange(50), found.label]
    assert torch.equal(chosen.sort(1).values, found.neighbours.sort(1).values)


def test_largest_of_many() -> None:
    scores = torch.randn(3, 2, 4999)
    assert torch.equal(top_positions(scores, 5).sort(-1).values, scores.topk(5).indices.sort(-1).values)
    scores[..., -1] = 10  # in the rest that fills no block
    assert (top_positions(scores, 5) == 4998).any(-1).all()


@pytest.mark.slow
def test_learns() -> None:
    """Six classes, eight pictures each, features whose centres lie partly along the names' texts; the median of three seeds.

    A seed in four ends lower (.85 in training, .78 in test): which one depends on the text tower's random weights.
    """
    outcomes = torch.tensor([learned(seed) for seed in range(3)])
    train, test, consistency = outcomes.median(0).values.tolist()
    assert train >= 0.95 and test >= 0.90 and consistency < 0.15, outcomes


def learned(seed: int) -> tuple[float, float, float]:
    """Accuracy in training and in test, and the consistency loss, after 60 epochs."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "hidden_act": "quick_gelu"}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 16, "patch_size": 8}
    clip = TransformersClip(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)).eval(), OpenClipWords())
    clip.requires_grad_(False)
    clip.model.text_model.embeddings.token_embedding.weight.normal_(std=0.5)
    words = ["cat", "dog", "seal", "owl", "forest", "river"]
    tau = F.normalize(clip.encode_text(clip.tokenize([f"a photo of a {word}." for word in words])), dim=-1)
    u = F.normalize(tau + 0.05 * torch.randn(6, 64), dim=-1)
    centre = F.normalize(0.65 * torch.randn(6, 64) / 8 + 0.35 * F.normalize(tau - tau.mean(0), dim=-1), dim=-1)
    model = CPR()
    model.backbone = clip
    model.build()

    def sample(per: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(6).repeat_interleave(per)
        return F.normalize(centre[labels] + 0.12 * torch.randn(6 * per, 64), dim=-1), labels

    from genlab.models.prompts import name_tokens

    (x, y), (test_x, test_y) = sample(8), sample(50)
    model.prototypes = torch.stack([x[y == c].mean(0) for c in range(6)])
    names = name_tokens(clip, words)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3, eps=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60 * 6)
    first = loss_of(model, names, x, y, u)
    assert abs(float(first[1]) - torch.tensor(6.0).log()) < 0.2 and 0.8 < float(first[2]) < 1.1
    for _ in range(60):
        for some in torch.randperm(48).split(8):
            optimizer.zero_grad()
            loss_of(model, names, x[some], y[some], u)[0].backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        t = model.prompt_learner(clip, names)
        right = [(conditional_logits(a, t, model.adapter(a, model.prototypes, t)).argmax(1) == b).double().mean() for a, b in
                 ((x, y), (test_x, test_y))]  # fmt: skip
        return float(right[0]), float(right[1]), float(loss_of(model, names, x, y, u)[2])

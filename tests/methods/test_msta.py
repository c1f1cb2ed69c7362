"""MSTA: reference numbers, the frozen network at lambda 0, who learns from what, and exact caches."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.batches import ActionBatch
from genlab.errors import UserError
from genlab.losses.description_consistency import description_consistency, description_means
from genlab.methods.baselines.adaptformer import AdaptFormer
from genlab.methods.baselines.video_fine_tuning import VideoFineTuning
from genlab.methods.baselines.video_lora import VideoLoRA
from genlab.methods.msta import MSTA
from genlab.models.viclip import ViCLIP, ViCLIPConfig
from genlab.models.video_text import CLIPVideoText, ViCLIPVideoText, VideoText
from genlab.verbs.convert import main as convert
from tests.golden_files import assert_close, golden_files, load_golden

NAMES = ["MovingUp", "MovingDown", "Spinning"]
SMALL = ViCLIPConfig(
    image_size=16, patch_size=8, num_frames=4, vision_width=64, vision_layers=4, vision_heads=2, text_width=48, text_layers=4, text_heads=2,
    context_length=40, vocab_size=300, embed_dim=32,
)  # fmt: skip


class Letters:
    """A tokenizer of characters."""

    start, end = 298, 299

    def __call__(self, text: str) -> list[int]:
        return [ord(letter) % 256 for letter in text]


class Source:
    """Class names and descriptions without clips."""

    def eval_sets(self, stage: str) -> list[str]:
        return ["val"]

    def class_names(self, name: str) -> list[str]:
        return NAMES

    def descriptions(self, name: str) -> tuple[list[list[str]], list[list[str]]]:
        return [[f"{each} on top", "a video"] for each in NAMES], [[f"first {each}"] for each in NAMES]


def network(config: ViCLIPConfig = SMALL) -> ViCLIPVideoText:
    torch.manual_seed(0)
    model = ViCLIP(config)
    torch.nn.init.normal_(model.vision_encoder.temporal_positional_embedding, std=0.3)
    return ViCLIPVideoText(model, Letters())


def clip_network() -> CLIPVideoText:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
    text = sizes | {"hidden_size": 48, "vocab_size": 300, "max_position_embeddings": 40, "eos_token_id": 299, "bos_token_id": 298}
    vision = sizes | {"hidden_size": 32, "image_size": 16, "patch_size": 8}
    return CLIPVideoText(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval(), Letters())


def method(net: VideoText | None = None, kind: type[Any] = MSTA, **options: Any) -> Any:
    """With a network that is there, and a trainer that has nothing but class names."""
    defaults: dict[str, Any] = {"blocks": (3, 4), "bottleneck": 32, "scale": 0.5} if kind is MSTA else {}
    torch.manual_seed(1)
    model = kind(**(defaults | options))
    model.backbone = net or network()
    model.build()
    model._trainer = SimpleNamespace(datamodule=Source(), sanity_checking=False)
    model._fabric = None
    return model


def batch(count: int = 3, steps: int = 4, size: int = 16) -> ActionBatch:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (count, 1, steps, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % len(NAMES)
    yes = torch.ones(count, dtype=torch.bool)
    ids = [f"{i}.mp4" for i in range(count)]
    return {"video": video, "label": labels, "id": ids, "index": torch.arange(count), "readable": yes, "substituted": ~yes}


def loss(model: MSTA, given: ActionBatch, consistency: bool = True, classification: bool = True) -> Tensor:
    w = model.encode_prompts("train")
    total = torch.zeros(())
    if classification:
        total = total + F.cross_entropy(model.logits(given["video"][:, 0], w), given["label"])
    return total + description_consistency(w, *model.described("train")) if consistency else total


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("msta", "model"))
def test_network_with_adapters_of_the_reference(path: Path) -> None:
    meta, given = load_golden(path)
    c, tol = meta["config"], meta["tol"]
    config = ViCLIPConfig(
        image_size=c["image"], patch_size=c["patch"], num_frames=c["num_frames"], vision_width=c["vision_width"],
        vision_layers=c["vision_layers"], vision_heads=c["vision_heads"], text_width=c["text_width"], text_layers=c["text_layers"],
        text_heads=c["text_heads"], context_length=c["context"], vocab_size=c["vocab"], embed_dim=c["embed_dim"],
    )  # fmt: skip
    frozen = ViCLIP(config)
    frozen.load_state_dict({k: v for k, v in given.items() if k.startswith(("vision_encoder.", "text_encoder.")) or k == "temp"})
    model = method(
        ViCLIPVideoText(frozen), blocks=(c["adapter_start"], c["adapter_end"]), bottleneck=c["bottleneck"], scale=c["lambda"],
        consistency_weight=c["alpha"],
    )  # fmt: skip
    model.adapters.load_state_dict({k.removeprefix("adapters."): v for k, v in given.items() if k.startswith("adapters.")})
    video, tokens = given["in.video"], given["in.class_tokens"].long()
    means = [
        description_means(model.net.encode_text(given[f"in.{kind}_tokens"].long()), [c["n_desc"]] * c["classes"])
        for kind in ("spatial", "temporal")
    ]
    for kind, found in zip(("spatial", "temporal"), means):
        assert_close(found, given[f"out.{kind}_mean"], tol, kind)
    v, w = model.encode_video(video), model.encode_tokens(tokens)
    assert_close(v, given["out.video_embed"], tol, "video")
    assert_close(w, given["out.text_embed"], tol, "text")
    logits = model.net.scale() * F.normalize(v, dim=-1) @ F.normalize(w, dim=-1).T
    assert_close(logits, given["out.logits"], tol, "logits")
    ce, cc = F.cross_entropy(logits, given["in.label"].long()), description_consistency(w, *means)
    total = ce + c["alpha"] * cc
    for name, value in {"loss_ce": ce, "loss_cc": cc, "loss": total}.items():
        assert_close(value[None], given[f"out.{name}"], tol, name)
    total.backward()
    for name, parameter in model.adapters.named_parameters():
        assert_close(parameter.grad, given[f"grad.adapters.{name}"], tol, name)
    model.scale = 0.0
    assert torch.equal(model.encode_video(video), frozen.encode_video(video))
    assert torch.equal(model.encode_tokens(tokens), frozen.encode_text(tokens))


@pytest.mark.parametrize("make", [network, clip_network])
def test_lambda_nought_is_the_frozen_network(make: Any) -> None:
    model = method(make(), blocks=(2, 3))
    video, tokens = model.net.normalise(batch()["video"][:, 0]), model.prompt_tokens("train")
    plain = model.net.encode_video(video), model.net.encode_text(tokens)
    adapted = model.encode_video(video), model.encode_tokens(tokens)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(adapted, plain))
    model.scale = 0.0
    assert torch.equal(model.encode_video(video), plain[0]) and torch.equal(model.encode_tokens(tokens), plain[1])
    fresh = method(make(), blocks=(2, 3), zero_init_up=True)
    assert torch.equal(fresh.encode_video(video), plain[0]) and torch.equal(fresh.encode_tokens(tokens), plain[1])


def test_clip_is_transformers_clip() -> None:
    net = clip_network()
    video, (tokens, _) = net.normalise(batch()["video"][:, 0]), net.tokenize(["a video", "of it all"])
    frames = net.model.get_image_features(pixel_values=video.flatten(0, 1)).pooler_output.unflatten(0, video.shape[:2])
    assert torch.allclose(net.encode_video(video), frames.mean(1), atol=1e-5)
    assert torch.allclose(net.encode_text(tokens), net.model.get_text_features(input_ids=tokens).pooler_output, atol=1e-5)
    x = torch.randn(6, 1 + net.grid**2, 32)
    assert torch.equal(net.by_frame(net.by_patch(x, 2)[0]), x)


def test_gradients_go_to_adapters_and_nowhere_else() -> None:
    model, given = method(), batch()
    loss(model, given).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("adapters."), name
    both = {k: p.grad.clone() for k, p in model.adapters.shared.named_parameters()}
    parts = [{name: torch.zeros_like(value) for name, value in both.items()} for _ in "vt"]
    w, v = model.encode_prompts("train"), model.encode_video(model.net.normalise(given["video"][:, 0]))
    for found, (one, other) in zip(parts, ((v.detach(), w), (v, w.detach()))):
        model.zero_grad()
        logits = model.net.scale() * F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T
        total = F.cross_entropy(logits, given["label"])
        if other.requires_grad:
            total = total + description_consistency(other, *model.described("train"))
        total.backward(retain_graph=True)
        found |= {k: p.grad.clone() for k, p in model.adapters.shared.named_parameters()}
    for name, value in both.items():
        assert torch.allclose(value, parts[0][name] + parts[1][name], atol=1e-6, rtol=1e-4), name
    model.zero_grad()
    loss(model, given, classification=False).backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in model.adapters.vision.parameters())
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in [*model.adapters.text.parameters(), *model.adapters.shared.parameters()]
    )


@pytest.mark.parametrize("options", [{"cache_prefix": False}, {"gradient_checkpointing": True}])
def test_caches_change_nothing(options: dict[str, Any]) -> None:
    plain, given = method(cache_prefix=True), batch()
    other = method(**options)
    other.adapters.load_state_dict(plain.adapters.state_dict())
    a, b = loss(plain, given), loss(other, given)
    assert (a - b).abs() < 1e-5
    a.backward()
    b.backward()
    for one, two in zip(plain.adapters.parameters(), other.adapters.parameters()):
        assert torch.allclose(one.grad, two.grad, atol=1e-5)


def test_short_prompts_give_the_same_as_padded_ones() -> None:
    model = method()
    tokens = model.prompt_tokens("train")
    assert tokens.shape[1] < SMALL.context_length
    padded = F.pad(tokens, (0, SMALL.context_length - tokens.shape[1]))
    assert torch.allclose(model.encode_tokens(tokens), model.encode_tokens(padded), atol=1e-6)


def test_order_of_frames_matters_through_the_temporal_path_alone() -> None:
    net = network()
    torch.nn.init.zeros_(net.model.vision_encoder.temporal_positional_embedding)
    model = method(net)
    video = net.normalise(batch()["video"][:, 0])
    shuffled = video[:, [2, 0, 3, 1]]
    assert not torch.allclose(model.encode_video(video), model.encode_video(shuffled), atol=1e-4)
    without = method(net, temporal_kernel=None)
    assert torch.allclose(without.encode_video(video), without.encode_video(shuffled), atol=1e-5)


def test_the_way_of_time_is_not_learned_without_the_temporal_path() -> None:
    """Of clips and their reversed copies exactly half are right, for all training."""
    net = network()
    torch.nn.init.zeros_(net.model.vision_encoder.temporal_positional_embedding)
    model = method(net, temporal_kernel=None)
    model._trainer.datamodule.class_names = lambda name: ["forward", "back"]
    video = batch(4)["video"][:, 0]
    clips, labels = torch.cat([video, video.flip(1)]), torch.arange(2).repeat_interleave(4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model.logits(clips, model.encode_prompts("train")), labels).backward()
        optimizer.step()
    with torch.no_grad():
        called = model.logits(clips, model.encode_prompts("train"))
    assert torch.allclose(called[:4], called[4:], atol=1e-3)  # cosines times 100
    assert (called.argmax(1) == labels).float().mean() == 0.5


def test_another_datamodule_brings_its_own_classes_and_descriptions() -> None:
    class Other(Source):
        def class_names(self, name: str) -> list[str]:
            return ["Left", "Right"]

        def descriptions(self, name: str) -> tuple[list[list[str]], list[list[str]]]:
            return [["to one side"], ["to the other"]], [["it goes left"], ["it goes right"]]

    model, fresh = method(), method()
    with torch.inference_mode():
        model.encode_prompts("val")
    model.described("train")
    loss(model, batch()).backward()  # on what the evaluation left
    for each in (model, fresh):
        each._trainer.datamodule = Other()
    assert torch.equal(model.encode_prompts("val"), fresh.encode_prompts("val"))
    assert all(torch.equal(a, b) for a, b in zip(model.described("train"), fresh.described("train")))


@pytest.mark.slow
def test_learns_motion_with_a_random_frozen_network() -> None:
    """Eight fixed clips of four directions: two of three seeds get all of them in 120 steps, the other most."""
    moves = [(0, 1), (0, -1), (1, 0), (-1, 0)]
    clips = torch.zeros(8, 4, 3, 16, 16, dtype=torch.uint8)
    for i in range(8):
        y, x = moves[i % 4]
        for t in range(4):
            top, left = 6 + 2 * y * (t - 2) + i // 4, 6 + 2 * x * (t - 2) + i // 4
            clips[i, t, :, top : top + 4, left : left + 4] = 255
    labels, names = torch.arange(8) % 4, ["right", "left", "down", "up"]
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = method(ViCLIPVideoText(ViCLIP(SMALL), Letters()))
        model._trainer.datamodule.class_names = lambda name: names
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
        for _ in range(120):
            optimizer.zero_grad()
            F.cross_entropy(model.logits(clips, model.encode_prompts("train")), labels).backward()
            optimizer.step()
        found.append(float((model.logits(clips, model.encode_prompts("train")).argmax(1) == labels).float().mean()))
    assert sorted(found)[1] == 1.0 and min(found) > 0.5, found


def test_adapters_swap_on_one_network(tmp_path: Path) -> None:
    one, two = method(), method()
    for parameter in two.adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    video = one.net.normalise(batch()["video"][:, 0])
    before = one.encode_video(video)
    for name, each in (("one", one), ("two", two)):
        each.save_adapters(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "one.safetensors").stat().st_size < 4 * sum(p.numel() for p in one.adapters.parameters()) + 10_000
    one.load_adapters(tmp_path / "two.safetensors")
    assert torch.equal(one.encode_video(video), two.encode_video(video))
    one.load_adapters(tmp_path / "one.safetensors")
    assert torch.equal(one.encode_video(video), before)
    with pytest.raises(UserError, match=r"bottleneck 32, here 16. Set model"):
        method(bottleneck=16).load_adapters(tmp_path / "one.safetensors")
    wide = method(network(dataclasses.replace(SMALL, vision_width=32)))
    wide.save_adapters(tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match=r"does not fit .*vision.3.down.weight is \(32, 32\), here \(32, 64\)"):
        one.load_adapters(tmp_path / "wide.safetensors")
    assert torch.equal(one.encode_video(video), before), "what was there stays whole"
    (tmp_path / "other.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match="no safetensors file"):
        one.load_adapters(tmp_path / "other.safetensors")


def test_adapters_out_of_a_checkpoint(tmp_path: Path) -> None:
    model, other = method(), method()
    for parameter in model.adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model._trainer = None
    model.on_save_checkpoint(checkpoint)
    assert all(name.startswith("adapters.") for name in checkpoint["state_dict"])
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert convert(["adapters", str(tmp_path / "last.ckpt"), "--out", str(tmp_path / "a.safetensors")]) == 0
    other.load_adapters(tmp_path / "a.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.adapters.parameters(), other.adapters.parameters()))
    torch.save(checkpoint | {"method": "another"}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="checkpoint of another, not of MSTA"):
        convert(["adapters", str(tmp_path / "other.ckpt"), "--out", str(tmp_path / "b.safetensors")])


@pytest.mark.parametrize(("kind", "expected"), [(VideoFineTuning, None), (VideoLoRA, "lora_"), (AdaptFormer, "")])
def test_baselines_start_as_the_frozen_network_and_learn(kind: type[Any], expected: str | None) -> None:
    net = network()
    video, tokens = net.normalise(batch()["video"][:, 0]), net.tokenize([f"a video of {name}." for name in NAMES])[0]
    plain = net.encode_video(video).detach(), net.encode_text(tokens).detach()
    model = method(copy.deepcopy(net), kind)
    assert torch.allclose(model.encode_video(video), plain[0], atol=1e-6)
    assert torch.allclose(model.encode_prompts("train"), plain[1], atol=1e-6)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if expected is None:
        assert not any("token_embedding" in name or name.endswith("temp") for name in trained) and len(trained) > 50
    else:
        assert trained and all(expected in name and (expected or not name.startswith("backbone.")) for name in trained)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    given, losses = batch(), []
    for _ in range(8):
        optimizer.zero_grad()
        value = F.cross_entropy(model.logits(given["video"][:, 0], model.encode_prompts("train")), given["label"])
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < losses[0]


def test_as_many_parameters_as_the_paper_counts_for_baselines() -> None:
    with torch.device("meta"):
        net = ViCLIPVideoText(ViCLIP(ViCLIPConfig()))
        tuned, adapted = method(copy.deepcopy(net), VideoFineTuning), method(net, AdaptFormer)
    count = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert round(count / 1e6, 1) == 124.3
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == 7_885_824


def test_blocks_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="has blocks 1 to 4"):
        method(blocks=(3, 12))


@pytest.mark.slow
def test_learns_colours_that_it_has_not_seen_the_places_of() -> None:
    """Fresh clips in every step and in the test; the median of three seeds."""
    names = ["red", "green", "blue", "white"]
    paints = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]) * 255

    def clips(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(4, (count,), generator=generator)
        video = torch.randint(0, 60, (count, 4, 3, 16, 16), generator=generator, dtype=torch.uint8)
        for i in range(count):
            top, left = torch.randint(0, 9, (2,), generator=generator).tolist()
            video[i, :, :, top : top + 7, left : left + 7] = paints[labels[i]][:, None, None].byte()
        return video, labels

    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = method(ViCLIPVideoText(ViCLIP(SMALL), Letters()), scale=0.1)
        model._trainer.datamodule.class_names = lambda name: names
        optimizer, generator = (
            torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3),
            torch.Generator().manual_seed(seed),
        )
        for _ in range(200):
            video, labels = clips(8, generator)
            optimizer.zero_grad()
            F.cross_entropy(model.logits(video, model.encode_prompts("train")), labels).backward()
            optimizer.step()
        with torch.no_grad():
            video, labels = clips(128, generator)
            found.append(float((model.logits(video, model.encode_prompts("train")).argmax(1) == labels).float().mean()))
    assert sorted(found)[1] >= 0.85, found

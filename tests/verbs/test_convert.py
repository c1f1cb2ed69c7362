"""``genlab convert demamba``: official checkpoints give the official scores, come back unchanged, and other files are refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genlab.cli import main as door
from genlab.errors import MissingPath, UserError
from genlab.methods.demamba import DeMamba
from genlab.models.backbones import TinyPatch
from genlab.models.mamba import MambaOptions
from genlab.models.official_demamba import from_official, text_tower_shapes, to_official
from genlab.models.xclip import XCLIP
from genlab.verbs.convert import main
from tests.golden_files import ROOT, assert_close, golden_files, load_golden
from tests.system.programs import run

CASES = [
    pytest.param(variant, path, name, id=f"{path.stem}-{name}")
    for variant in ("xclip", "clip")
    for path in sorted((ROOT / "demamba").glob(f"{variant}_demamba*.json"))
    for name in json.loads(path.read_text())["cases"]
]
GOLDEN = [path.values[0] for path in golden_files("demamba", "xclip_demamba")]


def official_state(tensors: dict[str, Tensor], case: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{case}/sd/"): value for key, value in tensors.items() if key.startswith(f"{case}/sd/")}


def write_weights(folder: Path, variant: str, case: dict[str, Any]) -> None:
    """A pretrained model of the case's sizes, where GenLab looks for the backbone; its weights are others."""
    from transformers import CLIPConfig, CLIPModel, XCLIPConfig, XCLIPModel

    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 8}
    text |= {"bos_token_id": 0, "eos_token_id": 1}
    vision = {"image_size": case["image_size"], "patch_size": case["patch_size"]}
    if variant == "clip":
        width = case["width"]
        vision |= {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
        config = CLIPConfig(
            text_config=text, vision_config=vision | {"num_hidden_layers": case["layers"]}, projection_dim=case["embed_dim"]
        )
        CLIPModel(config).save_pretrained(folder / "openai/clip-vit-base-patch16")
        return
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_frames")
    vision |= {name: case[name] for name in names}
    vision |= {"mit_hidden_size": 8, "mit_num_hidden_layers": 1, "mit_num_attention_heads": 1, "mit_intermediate_size": 8}
    XCLIPModel(XCLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(
        folder / "microsoft/xclip-base-patch16"
    )


def case_of(path: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    meta, tensors = load_golden(path)
    return meta["cases"][name], tensors, meta["tol"].get("forward", meta["tol"])


def test_there_are_golden_cases() -> None:
    assert {case.values[0] for case in CASES} == {"xclip", "clip"}


@pytest.mark.golden
@pytest.mark.parametrize(("variant", "path", "name"), CASES)
def test_scores_are_the_official_ones(
    variant: str, path: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Converted, and loaded as ``genlab test`` loads it."""
    case, tensors, tol = case_of(path, name)
    frames = case.get("num_frames") or case["T"]
    torch.save({"epoch": 3, "model_state_dict": official_state(tensors, name)}, tmp_path / "last.pth")
    assert main(["demamba", str(tmp_path / "last.pth"), "--out", str(tmp_path), "--num_frames", str(frames)]) == 0
    printed = capsys.readouterr().out
    assert "mamba.mixer.conv1d_b (2)" in printed and "missed: 0" in printed and "unknown" not in printed
    assert ("bn1" in printed) == (variant == "clip")
    assert ("zone_size" in printed) == (case["R"] != 1) and f"--model.mamba.d_state={case['mamba']['d_state']}" in printed

    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["method"] == "genlab.methods.demamba.DeMamba" and checkpoint["epoch"] == 3
    write_weights(tmp_path, variant, case)
    monkeypatch.setenv("GENLAB_WEIGHTS", str(tmp_path))
    model = DeMamba.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True).eval()
    assert model.hparams.zone_size == case["R"] and model.hparams.zone_order == "official"
    with torch.no_grad():
        assert_close(model(tensors[f"{name}/x"])[:, None], tensors[f"{name}/logits"], tol, f"{name} logits")


@pytest.mark.parametrize(("variant", "path", "name"), CASES)
def test_there_and_back(variant: str, path: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = official_state(load_golden(path)[1], name)
    torch.save({"epoch": 3, "model_state_dict": state}, tmp_path / "a.pth")
    for source, target, to in (("a.pth", "b.ckpt", "genlab"), ("b.ckpt", "c.pth", "official"), ("c.pth", "d.ckpt", "genlab")):
        assert main(["demamba", str(tmp_path / source), "--out", str(tmp_path / target), "--to", to]) == 0
    assert "warning" not in capsys.readouterr().out
    back = torch.load(tmp_path / "c.pth", weights_only=True)
    assert back["epoch"] == 3 and state.keys() <= back["model_state_dict"].keys()
    unused = re.compile(r"module\.(mamba\.mixer\.conv1d_b|bn1|clip_model\.(?!visual))")
    for key, value in back["model_state_dict"].items():
        if unused.match(key):
            assert not value.any() and (key not in state or (value.shape == state[key].shape and value.dtype == state[key].dtype))
        else:
            assert torch.equal(value, state[key]), key
    first, second = (torch.load(tmp_path / file, weights_only=True)["state_dict"] for file in ("b.ckpt", "d.ckpt"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert (tmp_path / "c.pth").stat().st_size < 2**20, "made of zeros, the text tower takes no room"


def testtext_tower_shapes_is_openais() -> None:
    """Strict loading needs all of it: 63.4 M parameters, with the visual tower's 86.2 M CLIP ViT-B/16's 149.6 M."""
    assert sum(torch.Size(shape).numel() for shape in text_tower_shapes(512).values()) == 149_620_737 - 86_192_640


@pytest.mark.parametrize(("zone_size", "count"), [(1, 125_710_849), (2, 125_372_161)])
def test_size_is_the_official_one(zone_size: int, count: int) -> None:
    """Paper, Table 10: 125.37 M, which is the official code with zones of 2 x 2 and with the convolution that it never uses."""
    from transformers import XCLIPVisionConfig, XCLIPVisionModel

    from genlab.methods.demamba import DeMambaHead
    from genlab.models.xclip import XCLIPTokens

    with torch.device("meta"):
        backbone = XCLIPTokens(XCLIPVisionModel(XCLIPVisionConfig(patch_size=16)))
        head = DeMambaHead(768, 14, 8, zone_size)
    weights = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    weights |= {f"head.{key}": value for key, value in head.state_dict().items()}
    assert sum(value.numel() for value in to_official(weights).weights.values()) == count


def small_official(**changes: Tensor) -> dict[str, Tensor]:
    return {**official_state(load_golden(GOLDEN[0])[1], "R2"), **changes}


def test_names_without_prefix_and_of_transformers_5_are_read() -> None:
    state = small_official()
    plain = {key.removeprefix("module.").replace("encoder.vision_model.", "encoder."): value for key, value in state.items()}
    a, b = from_official(state), from_official(plain)
    assert a.weights.keys() == b.weights.keys() and a.used == b.used
    more = from_official(state | {"module.encoder.vision_model.embeddings.position_ids": torch.arange(17), "module.extra": torch.ones(1)})
    assert "encoder.vision_model.embeddings.position_ids" in more.dropped and more.unknown == ["extra"]


def test_one_direction_becomes_two_with_the_same_scores() -> None:
    from genlab.methods.demamba import DeMambaHead

    state = {k: v for k, v in small_official().items() if not re.search(r"_b[._]|_b$", k)}
    one = from_official(state)
    assert one.mamba.bidirectional == "none"
    converted = to_official(one.weights)
    assert "mamba.mixer.A_b_log" in converted.created
    two = from_official(converted.weights)
    tokens, vector, logits = torch.randn(2, 4, 4, 4, 16), torch.randn(2, 16), []
    for model in (one, two):
        head = DeMambaHead(16, 4, 4, 2, "official", mamba=model.mamba).eval()
        head.load_state_dict({k.removeprefix("head."): v for k, v in model.weights.items() if k.startswith("head.")})
        logits.append(head(tokens, vector))
    torch.testing.assert_close(*logits)


def write_ours(path: Path, model: DeMamba) -> None:
    model.configure_model()
    checkpoint: dict[str, Any] = {"epoch": 1, "state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)


@pytest.mark.parametrize("train_backbone", [True, False])
def test_our_own_model_in_the_official_format(
    train_backbone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A frozen backbone is not in the checkpoint, but belongs into the official one; other zones than the official code's are told."""
    write_weights(tmp_path, "xclip", load_golden(GOLDEN[0])[0]["cases"]["R2"])
    monkeypatch.setenv("GENLAB_WEIGHTS", str(tmp_path))
    model = DeMamba(XCLIP(), num_frames=4, mamba=MambaOptions(d_state=4), train_backbone=train_backbone)
    write_ours(tmp_path / "ours.ckpt", model)
    assert main(["demamba", str(tmp_path / "ours.ckpt"), "--out", str(tmp_path), "--to", "official"]) == 0
    printed = capsys.readouterr().out
    assert "trained with zone_order: paper" in printed and "trained with mamba.bidirectional: time" in printed
    state = torch.load(tmp_path / "ours.pth", weights_only=True)["model_state_dict"]
    assert state.keys() == small_official().keys()
    again = from_official(state).weights
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


WRONG = {
    "truncated": "is it whole",
    "truncated, old format": "is it whole",
    "empty": "is it whole",
    "text": "is it whole",
    "stranger": "could run code",
    "whole model": "could run code",
    "another network": "neither X-CLIP's parameters",
    "bare": "no entry model_state_dict",
    "list": "holds a list",
    "no tensors": "no dict of tensors",
    "zones": r"fc1.weight has 96 columns.*80 \(R = 2\)",
    "not square": "square of tokens",
    "half": "parameters are missing",
    "no mamba": "norm.weight is missing",
    "other shapes": "mixer.x_proj.weight is",
    "ours": "the way back is --to official",
}


class Stranger:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def write_wrong(kind: str, path: Path) -> None:
    state = small_official()
    if kind in ("empty", "text"):
        path.write_bytes(b"" if kind == "empty" else b"hello, world\n")
        return
    if kind.startswith("truncated"):
        torch.save({"epoch": 0, "model_state_dict": state}, path, _use_new_zipfile_serialization=not kind.endswith("old format"))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 9 // 10])
        return
    changed = {
        "another network": {"fc.weight": torch.ones(2, 2)},
        "no tensors": {"epoch": 3},
        "zones": state | {"module.fc1.weight": torch.ones(1, 96)},
        "not square": state | {"module.encoder.vision_model.embeddings.position_embedding.weight": torch.ones(16, 16)},
        "half": {k: v for k, v in state.items() if "layers.0.self_attn" not in k},
        "no mamba": {k: v for k, v in state.items() if "mamba" not in k},
        "other shapes": state | {"module.mamba.mixer.x_proj.weight": torch.ones(3, 3)},
    }
    contents: dict[str, Any] = {
        "stranger": {"epoch": 0, "model_state_dict": state, "extra": Stranger()},
        "whole model": {"epoch": 0, "model_state_dict": torch.nn.Linear(1, 1)},
        "bare": state,
        "list": [state],
        "ours": {"state_dict": {}, "method": "genlab.methods.demamba.DeMamba"},
    }
    torch.save(contents.get(kind, {"epoch": 0, "model_state_dict": changed.get(kind)}), path)


@pytest.mark.parametrize("kind", WRONG)
def test_other_files_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_wrong(kind, tmp_path / "a.pth")
    with pytest.raises(UserError, match=WRONG[kind]) as caught:
        main(["demamba", "a.pth", "--out", "b.ckpt"])
    assert "a.pth" in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"], "nothing ran, nothing was written"


def test_the_way_back_takes_demamba_on_xclip_or_clip_alone(tmp_path: Path) -> None:
    for name, options in (("patch", {}), ("pool", {"head": "pool"})):
        write_ours(tmp_path / name, DeMamba(TinyPatch(16), **options))
        with pytest.raises(UserError, match=r"X-CLIP and on CLIP only|no Mamba block"):
            main(["demamba", str(tmp_path / name), "--out", str(tmp_path / "b.pth"), "--to", "official"])
    torch.save({"epoch": 0, "model_state_dict": small_official()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="official format already"):
        main(["demamba", str(tmp_path / "a.pth"), "--out", str(tmp_path / "b.pth"), "--to", "official"])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"epoch": 0, "model_state_dict": small_official()}, tmp_path / "a.pth")
    assert door(["convert", "demamba", str(tmp_path / "a.pth"), "--out", str(tmp_path / "new/b.ckpt")]) == 0
    assert door(["convert", "demamba", str(tmp_path / "a.pth"), "--out", str(tmp_path / "new/b.ckpt")]) == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(UserError, match="no converter for 'demambo'"):
        main(["demambo", "a", "--out", "b"])
    with pytest.raises(MissingPath, match="not a file"):
        main(["demamba", str(tmp_path / "nowhere.pth"), "--out", "b"])


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.parametrize(("variant", "path", "name"), [CASES[0], CASES[-1]])
def test_the_printed_command_runs(variant: str, path: Path, name: str, tmp_path: Path, tiny_genvideo: Path) -> None:
    case, tensors, _ = case_of(path, name)
    torch.save({"epoch": 3, "model_state_dict": official_state(tensors, name)}, tmp_path / "last.pth")
    write_weights(tmp_path / "weights", variant, case)
    frames = case.get("num_frames") or case["T"]
    printed = run("convert", "demamba", "last.pth", "--out", "converted.ckpt", f"--num_frames={frames}", cwd=tmp_path)
    command = next(line for line in printed.splitlines() if "python -m genlab test" in line)
    words = command.replace("DIR", str(tiny_genvideo)).split()[3:]
    more = ["-c", "trainer/cpu", "--data.num_workers=0", "--trainer.enable_progress_bar=false"]
    run(*words, *more, cwd=tmp_path, GENLAB_WEIGHTS=str(tmp_path / "weights"))
    assert list((tmp_path / "runs").rglob("predictions.csv"))

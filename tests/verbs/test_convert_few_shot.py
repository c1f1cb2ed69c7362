"""Trained parts of official few-shot code to ours and back, through the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.methods.cpr import CPR, ConditionalAdapter
from genlab.models.official_few_shot import read_text_weights
from genlab.models.prompts import ContextPrompts
from genlab.verbs.convert import main


def official(method: str) -> dict[str, Tensor]:
    """A made-up state dict with the official names, in half precision, with what is to be left out."""
    torch.manual_seed(0)
    if method == "cpr":
        own = {"prompt_learner.ctx": torch.randn(4, 16), **ConditionalAdapter(16).state_dict()}
        extra = {"prompt_learner.token_prefix": torch.zeros(3, 1, 16), "text_encoder.ln_final.weight": torch.ones(16)}
        return {key: value.half() for key, value in (own | extra).items()}
    own = {"ctx": torch.randn(4, 16)}
    if method == "cocoop":
        own |= {
            f"meta_net.linear{i}.{kind}": torch.randn(2, *([2] if kind == "weight" else [])) for i in (1, 2) for kind in ("weight", "bias")
        }
    return own | {"token_prefix": torch.zeros(3, 1, 16), "token_suffix": torch.zeros(3, 9, 16)}


@pytest.mark.parametrize("method", ["cpr", "coop", "cocoop"])
def test_there_and_back(method: str, tmp_path: Path) -> None:
    state = official(method)
    torch.save(state if method == "cpr" else {"state_dict": state, "epoch": 50}, tmp_path / "official.pt")
    assert main([method, str(tmp_path / "official.pt"), "--out", str(tmp_path / "ours.ckpt")]) == 0
    assert main([method, str(tmp_path / "ours.ckpt"), "--to", "official", "--out", str(tmp_path / "back.pt")]) == 0
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    back = back if method == "cpr" else back["state_dict"]
    kept = {key: value for key, value in state.items() if "token_" not in key and "text_encoder" not in key}
    assert back.keys() == kept.keys() and all(torch.equal(back[key], value.float()) for key, value in kept.items())
    with pytest.raises(UserError, match="exists already"):
        main([method, str(tmp_path / "official.pt"), "--out", str(tmp_path / "ours.ckpt")])


def test_an_official_checkpoint_is_whole_but_for_its_prototypes(tmp_path: Path) -> None:
    torch.save(official("cpr"), tmp_path / "official.pt")
    main(["cpr", str(tmp_path / "official.pt"), "--out", str(tmp_path / "ours.ckpt")])
    held, model = torch.load(tmp_path / "ours.ckpt", weights_only=True), CPR(n_ctx=4)
    model.prompt_learner, model.adapter = ContextPrompts(16, 4), ConditionalAdapter(16)
    model.register_buffer("prototypes", torch.zeros(3, 16))
    model.on_load_checkpoint(held)
    assert model._lacks_prototypes
    assert model.load_state_dict(held["state_dict"], strict=False).missing_keys == ["prototypes"]


def test_tip_adapter_keys_need_their_labels(tmp_path: Path) -> None:
    torch.save(torch.nn.Parameter(torch.randn(6, 8).half()), tmp_path / "best_F_2shots.pt")
    torch.save(torch.eye(3).repeat_interleave(2, 0).half(), tmp_path / "values_2shots.pt")
    words = ["tip_adapter_f", str(tmp_path / "best_F_2shots.pt"), "--out", str(tmp_path / "x.ckpt")]
    with pytest.raises(UserError, match="--values"):
        main(words)
    assert main([*words, "--values", str(tmp_path / "values_2shots.pt")]) == 0
    assert {k: tuple(v.shape) for k, v in torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"].items()} == {
        "keys": (6, 8),
        "values": (6, 3),
    }


def test_wrong_files(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="no checkpoint of the official CPR code"):
        main(["cpr", str(tmp_path / "other.pt"), "--out", str(tmp_path / "x.ckpt")])
    torch.save(ConditionalAdapter(8), tmp_path / "module.pt")  # a pickled module could run code
    with pytest.raises(UserError, match="cannot be read as tensors and plain values"):
        main(["cpr", str(tmp_path / "module.pt"), "--out", str(tmp_path / "x.ckpt")])
    assert not (tmp_path / "x.ckpt").exists()


def test_text_weights(tmp_path: Path) -> None:
    """The authors' files: half precision, (1024, classes), unit columns."""
    path = tmp_path / "text_weights_cupl_t.pt"
    weights = torch.nn.functional.normalize(torch.randn(1024, 5), dim=0)
    torch.save(weights.half(), path)
    found = read_text_weights(path, 1024, 5)
    torch.testing.assert_close(found, weights.T, atol=1e-3, rtol=0)
    with pytest.raises(UserError, match="width 1024, the backbone has 512: they belong to another backbone"):
        read_text_weights(path, 512, 5)
    with pytest.raises(UserError, match="of 5 classes, the dataset has 4"):
        read_text_weights(path, 1024, 4)

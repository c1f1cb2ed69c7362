"""Keyed random numbers: the same for the same key, on every machine and however they are asked for."""

from __future__ import annotations

import numpy as np
import torch

from genlab.training.randomness import fold_key, keyed_rng, keyed_torch_generator


def test_keys_name_streams() -> None:
    assert keyed_rng(1, "clip", 0, "a.mp4").random() == keyed_rng(1, "clip", 0, "a.mp4").random()
    draws = [keyed_rng(*key).random() for key in [(1, "a"), (1, "b"), (2, "a"), ("1", "a"), (1, "a", 0), ("1a",)]]
    assert len(set(draws)) == len(draws), "neither types nor boundaries between keys are lost"


def test_streams_are_the_same_everywhere() -> None:
    """Written down once: a change here would change every experiment."""
    assert fold_key(1, "clip") == 0x9CABF6F564DC891F1B17E1A15287FCC4
    np.testing.assert_allclose(keyed_rng(7, "noise").standard_normal(2), [-1.4634713510365995, -0.9148209383642499])


def test_torch_generators_are_keyed_too() -> None:
    one, two = (torch.randn(3, generator=keyed_torch_generator(3, "noise", step)) for step in (0, 0))
    other = torch.randn(3, generator=keyed_torch_generator(3, "noise", 1))
    assert torch.equal(one, two) and not torch.equal(one, other)

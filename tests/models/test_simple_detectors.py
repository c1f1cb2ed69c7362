"""Detectors without an MLLM: what they tell apart, and which classes of a published one mean fake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genlab.errors import UserError
from genlab.models.logistic import fit_logistic
from genlab.models.simple_detectors import ImageClassifier, SpectrumDetector, edge_share, radial_spectrum
from genlab.training.randomness import keyed_rng


def picture(number: int, fake: int, size: int = 64) -> Image.Image:
    """A flat colour with noise; a generated one has a weak pattern of 7 pixels, as upsampling leaves it."""
    rng = keyed_rng("spectrum", number, fake)
    grid = np.indices((size, size)).sum(0) // 7 % 2
    values = rng.integers(60, 190, 3) + rng.normal(0, 8, (size, size, 3)) + (fake * 6 * (2 * grid - 1))[..., None]
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def test_the_spectrum_tells_patterns_and_other_noise_not() -> None:
    train = [(picture(i, i % 2), i % 2) for i in range(40)]
    detector = SpectrumDetector.fit([image for image, _ in train], [label for _, label in train])
    fresh = [(picture(100 + i, i % 2), i % 2) for i in range(40)]
    assert sum((detector(image) >= 0.5) == bool(label) for image, label in fresh) >= 38
    alike = [(picture(i, 0), i % 2) for i in range(40)]
    blind = SpectrumDetector.fit([image for image, _ in alike], [label for _, label in alike])
    right = sum((blind(picture(200 + i, 0)) >= 0.5) == bool(i % 2) for i in range(40))
    assert 10 <= right <= 30
    with pytest.raises(UserError, match="only one kind"):
        SpectrumDetector.fit([picture(0, 0)], [0])


@pytest.mark.parametrize("size", [8, 33, 64])
def test_a_wave_is_at_its_frequency_whatever_its_contrast(size: int) -> None:
    wave = np.sin(np.arange(size) * np.pi / 2)  # half of the highest frequency
    spectra = []
    for contrast in (20, 80):
        rows = np.clip(128 + contrast * wave, 0, 255).astype(np.uint8)
        spectra.append(radial_spectrum(Image.fromarray(np.tile(rows, (size, 1))), bins=8))
    assert spectra[0].argmax() in (3, 4) and np.isfinite(spectra[0]).all()


def test_edges_are_a_share() -> None:
    assert edge_share(Image.new("RGB", (32, 32))) == 0.0
    half = Image.new("RGB", (32, 32))
    half.paste((255, 255, 255), (16, 0, 32, 32))
    assert 0 < edge_share(half) < 0.1


def test_logistic_regression_of_one_feature_by_hand() -> None:
    """Two points at -1 and 1: by symmetry no bias, and the slope w solves sigmoid(-w) = w / 2."""
    weights, bias = fit_logistic([[-1.0], [1.0]], [0, 1])
    w = float(weights[0])
    assert bias == pytest.approx(0, abs=1e-6) and 1 / (1 + np.exp(w)) == pytest.approx(w / 2, abs=1e-6)


def vit(folder: Path, names: list[str]) -> str:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 16, "patch_size": 8}
    config = ViTConfig(**sizes, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("names", "fake"), [(["Fake", "Real"], 0), (["human", "artificial"], 1), (["real", "AI-generated"], 1), (["nature", "ai"], 1)]
)
def test_which_class_means_fake_is_told_by_its_name(tmp_path: Path, names: list[str], fake: int) -> None:
    assert ImageClassifier(vit(tmp_path, names)).fake == [fake]


def test_a_published_classifier_gives_probabilities_of_fake(tmp_path: Path) -> None:
    weights = vit(tmp_path / "two", ["cat", "dog"])
    with pytest.raises(UserError, match=r"cat, dog means fake\? Say so with --fake_label"):
        ImageClassifier(weights)
    images = [picture(i, i % 2) for i in range(5)]
    cat, dog = (ImageClassifier(weights, name)(images, batch_size=2) for name in ("cat", "dog"))
    assert np.add(cat, dog) == pytest.approx(np.ones(5), abs=1e-6)
    with pytest.raises(UserError, match="no class 'cow'"):
        ImageClassifier(weights, "cow")
    one = ImageClassifier(vit(tmp_path / "one", ["score"]))(images)
    assert len(one) == 5 and all(0 < p < 1 for p in one)

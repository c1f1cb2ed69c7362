"""Detectors of generated pictures without an MLLM: edges, the spectrum, and published image classifiers through transformers. 1 = fake."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genlab.errors import UserError
from genlab.models.logistic import fit_logistic
from genlab.weights import load_pretrained, resolve

EDGES = 0.0672  # share of edge pixels above which the released code of arXiv 2504.14245 says real
LARGEST = 512  # pixels per side of what the spectrum is taken of
FAKE_NAMES = re.compile(r"fake|generated|\bai\b|artificial|synthetic|machine|\bgan\b|diffusion|spoof", re.I)
REAL_NAMES = re.compile(r"real|human|\bhum\b|natural|nature|authentic|genuine|photo|camera", re.I)


def edge_share(image: Image.Image) -> float:
    """Share of pixels on an edge (Canny 100/200 on the grey picture), in [0, 1]."""
    import cv2

    gray = cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2GRAY)
    return float((cv2.Canny(gray, 100, 200) > 0).mean())


def radial_spectrum(image: Image.Image, bins: int = 32) -> NDArray[np.float64]:
    """Log power over the frequency, averaged over directions (Durall et al., CVPR 2020): (bins,) from 0 to the highest along an axis.

    The middle of the picture, at most 512 x 512, with a Hann window; relative to the mean, so that contrast does not count.
    """
    gray = np.asarray(image.convert("L"), np.float64)
    side = min(*gray.shape, LARGEST)
    top, left = ((length - side) // 2 for length in gray.shape)
    part = gray[top : top + side, left : left + side]
    window = np.hanning(side + 2)[1:-1]
    power = np.abs(np.fft.fftshift(np.fft.fft2((part - part.mean()) * np.outer(window, window)))) ** 2
    axis = np.arange(side) - side // 2
    radius = np.hypot(axis[:, None], axis[None]) / (side / 2)
    place = np.minimum((radius * bins).astype(int), bins)  # the last one, the corners, is left out
    sums, counts = (np.bincount(place.ravel(), weights, bins + 1)[:bins] for weights in (power.ravel(), None))
    logs = np.log(sums / np.maximum(counts, 1) + 1e-8)
    empty = counts == 0
    logs[empty] = np.interp(np.flatnonzero(empty), np.flatnonzero(~empty), logs[~empty])
    return logs - logs.mean()


@dataclass(frozen=True)
class SpectrumDetector:
    """Logistic regression on the radial spectrum.

    Args:
        mean, deviation: Of the features on the pictures that it was fitted on, (bins,).
        weights: (bins,).
        bias: Of the log-odds.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    weights: NDArray[np.float64]
    bias: float

    @classmethod
    def fit(cls, images: Iterable[Image.Image], labels: Sequence[int]) -> SpectrumDetector:
        """Fits to pictures whose truth is known.

        Raises:
            UserError: Only one class is there.
        """
        features = np.stack([radial_spectrum(image) for image in images])
        if len(set(labels)) < 2:
            raise UserError("frequency baseline: it is fitted on real and generated pictures, only one kind is there.")
        mean, deviation = features.mean(0), features.std(0) + 1e-6
        return cls(mean, deviation, *fit_logistic((features - mean) / deviation, labels))

    def __call__(self, image: Image.Image) -> float:
        """P(fake)."""
        logit = float((radial_spectrum(image) - self.mean) / self.deviation @ self.weights + self.bias)
        return float(np.exp(-np.logaddexp(0, -logit)))


class ImageClassifier:
    """A published detector: any image classifier of transformers (ViT, Swin, ...) with a class for fake and one for real, or one logit.

    Args:
        weights: Hub id or folder.
        fake_label: The name of the class that means fake; None: told by the classes' names.
    """

    def __init__(self, weights: str, fake_label: str | None = None) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        self.model: Any = load_pretrained(AutoModelForImageClassification, weights).eval()
        self.processor: Any = AutoImageProcessor.from_pretrained(resolve(weights), local_files_only=True)
        self.names = [str(self.model.config.id2label[i]) for i in range(self.model.config.num_labels)]
        self.fake = self._fake(weights, fake_label)

    def _fake(self, weights: str, fake_label: str | None) -> list[int]:
        if len(self.names) == 1:
            return [0]
        if fake_label is not None:
            if fake_label not in self.names:
                raise UserError(f"{weights}: there is no class {fake_label!r}; there are {', '.join(self.names)}.")
            return [self.names.index(fake_label)]
        fakes = [i for i, name in enumerate(self.names) if FAKE_NAMES.search(name) and not REAL_NAMES.search(name)]
        reals = [i for i, name in enumerate(self.names) if REAL_NAMES.search(name) and not FAKE_NAMES.search(name)]
        if not fakes or not reals or len(fakes) + len(reals) < len(self.names):
            raise UserError(f"{weights}: which of the classes {', '.join(self.names)} means fake? Say so with --fake_label NAME.")
        return fakes

    def __call__(self, images: Iterable[Image.Image], batch_size: int = 16) -> list[float]:
        """P(fake) of each picture."""
        import torch

        found: list[float] = []
        with torch.no_grad():
            rest = iter(images)
            while some := list(islice(rest, batch_size)):
                logits = self.model(**self.processor(images=[image.convert("RGB") for image in some], return_tensors="pt")).logits
                scores = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
                found += scores[:, self.fake].sum(1).tolist()
        return found

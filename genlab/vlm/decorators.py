"""What runs before a prompt is rendered: regions cut out, example pictures, replies to be fused. Each sets variables in place.

A fixed table: a prompt file names functions of it by ``module.function``, and can import nothing.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from genlab.errors import MissingPath, UserError
from genlab.vlm.data_urls import data_url, from_data_url
from genlab.vlm.regions import roi_adaptive, roi_dinov2, roi_energy, roi_pyramid
from genlab.weights import load_pretrained, resolve

Decorator = Callable[[dict[str, Any]], None]
REAL_ANALYSIS = (
    "Reflections and shadows agree with the light around. Surfaces have small, irregular imperfections, the lens blurs what is near "
    "and far, and the background continues behind the subject without a seam. Nothing is repeated or melts into something else.\nreal"
)
FAKE_ANALYSIS = (
    "Parts that are needed are missing or too few, straight edges are askew, perspectives do not meet, a shadow falls where nothing casts "
    "it, and one thing has no meaning when looked at closely. Together these have no natural explanation.\ngenerated"
)
DINOV2 = "facebook/dinov2-small"


@dataclass(frozen=True)
class Examples:
    """Two pictures of your own that prompts with examples show, and what is to be seen in them. They may not be among those judged.

    Args:
        real: A photograph.
        fake: A generated picture.
        real_analysis: The scripted answer to the photograph, ending in the word; better about this very picture than the general default.
        fake_analysis: The same for the generated picture.
    """

    real: str
    fake: str
    real_analysis: str = REAL_ANALYSIS
    fake_analysis: str = FAKE_ANALYSIS

    def files(self) -> tuple[bytes, bytes]:
        """The bytes of both.

        Raises:
            MissingPath: One is not there.
            UserError: One is no picture.
        """
        found = []
        for name in (self.real, self.fake):
            path = Path(name)
            if not path.is_file():
                raise MissingPath(f"model.examples: {path} is not there; give a photograph and a generated picture of your own.")
            content = path.read_bytes()
            try:
                data_url(content)
            except UnidentifiedImageError:
                raise UserError(f"model.examples: {path} is no picture.") from None
            found.append(content)
        return found[0], found[1]

    def digests(self) -> tuple[str, str]:
        """SHA-256 of both files."""
        real, fake = (hashlib.sha256(content).hexdigest() for content in self.files())
        return real, fake


def shots(examples: Examples) -> dict[str, Decorator]:
    """The decorators of prompts with examples: one (a generated one) or two, the photograph first."""
    real, fake = (data_url(content) for content in examples.files())

    def two(variables: dict[str, Any]) -> None:
        variables |= {"few_shot_image_url_0": real, "few_shot_image_url_1": fake}
        variables |= {"few_shot_result_0": examples.real_analysis, "few_shot_result_1": examples.fake_analysis}

    def one(variables: dict[str, Any]) -> None:
        variables |= {"few_shot_image_url": fake, "few_shot_result": examples.fake_analysis}

    return {"two_shot.v1": two, "two_shot.v2": two, "fake_one_shot.v1": one}


def _picture(variables: dict[str, Any]) -> Image.Image:
    with Image.open(io.BytesIO(from_data_url(variables["image_url"]))) as picture:
        return picture.convert("RGB")


def _set_region(variables: dict[str, Any], crop: Image.Image, box: tuple[int, int, int, int]) -> None:
    buffer = io.BytesIO()
    crop.save(buffer, "PNG", compress_level=1)
    variables |= {"roi_url": data_url(buffer.getvalue()), "roi_box": list(box)}


def energy(variables: dict[str, Any]) -> None:
    """Sets ``roi_url``: the square of half the shorter side with the strongest edges, as PNG."""
    image = _picture(variables)
    box, _ = roi_energy(image)
    _set_region(variables, image.crop(box), box)


def adaptive(variables: dict[str, Any]) -> None:
    """Sets ``roi_url``: the largest outline of the thresholded picture, set upright; the whole picture where there is none."""
    _set_region(variables, *roi_adaptive(_picture(variables)))


def pyramid(variables: dict[str, Any]) -> None:
    """Sets ``roi_url``: the largest outline over a pyramid of edges."""
    _set_region(variables, *roi_pyramid(_picture(variables)))


def dinov2(variables: dict[str, Any]) -> None:
    """Sets ``roi_url``: what DINOv2's class token attends to.

    Raises:
        MissingPath: Its weights are not on this machine.
    """
    image = _picture(variables)
    box = roi_dinov2(image, _dinov2(resolve(DINOV2)))
    _set_region(variables, image.crop(box), box)


@cache
def _dinov2(weights: str) -> Any:
    from transformers import Dinov2Model

    try:
        return load_pretrained(Dinov2Model, weights, attn_implementation="eager").eval()
    except UserError as error:
        raise MissingPath(f"roi.dinov2: {error} roi.energy needs no weights (model.roi: energy).") from error


def fusion_v1(variables: dict[str, Any]) -> None:
    """``a1`` to ``a6``, the replies to be fused, are set by whoever asked them; here only what a dry rendering lacks."""
    for k in range(1, 7):
        variables.setdefault(f"a{k}", "-")


def _no_examples(variables: dict[str, Any]) -> None:
    raise UserError("this prompt shows two example pictures: give model.examples.real and model.examples.fake, files of your own.")


BUILT_IN: dict[str, Decorator] = {
    "roi.energy": energy,
    "roi.dinov2": dinov2,
    "roi.adaptive": adaptive,
    "roi.pyramid": pyramid,
    "fake_one_shot.v1": _no_examples,
    "two_shot.v1": _no_examples,
    "two_shot.v2": _no_examples,
    "fusion.v1": fusion_v1,
}

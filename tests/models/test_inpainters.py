"""Inpainters: what each fills in, that a batch changes nothing, and those that live elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genlab.errors import MissingPath, UserError
from genlab.models.inpainters import (
    SANITY,
    Constant,
    Degraded,
    Harmonic,
    Inpainter,
    Mean,
    Noise,
    OpenCV,
    fill_in_batches,
    to_uint8,
)
from genlab.models.inpainters_external import Command, Precomputed, TorchScript

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "inpaint_command.py"


def ramp(count: int = 3, size: int = 24) -> tuple[Tensor, Tensor, list[int]]:
    """Ramps with a box hidden, 0 inside, and seeds."""
    x = torch.linspace(0.2, 0.8, size).expand(size, size)
    images = torch.stack([torch.stack([x, x.T, 1 - x]) * (1 - 0.1 * n) for n in range(count)])
    holes = torch.zeros(count, 1, size, size)
    for n in range(count):
        holes[n, :, 5 + n : 14 + n, 6 : 15 + n] = 1
    return images, holes, [11 + n for n in range(count)]


CLASSICAL: list[Inpainter] = [Constant(0.25), Mean(), Noise(), Harmonic(300), OpenCV("telea"), OpenCV("ns")]
CLASSICAL += [Degraded(Harmonic(10), how, amount if how != "shuffle" else 3) for how, amount in SANITY]


@pytest.mark.parametrize("fills", CLASSICAL, ids=lambda each: each.name)
def test_batches_change_nothing_and_known_pixels_stay(fills: Inpainter) -> None:
    images, holes, seeds = ramp(5)
    hidden = images * (1 - holes)
    whole = fills.fill(hidden, holes, seeds=seeds)
    fills.batch_size = 2
    assert torch.equal(fill_in_batches(fills, hidden, holes, seeds=seeds), whole)
    assert whole.shape == images.shape and whole.min() >= 0 and whole.max() <= 1
    known = holes.expand_as(images) == 0
    assert (whole[known] - images[known]).abs().max() <= 0.5 / 255 + 1e-6
    assert (whole[~known] > 0).float().mean() > 0.9
    blind = fills.fill(torch.zeros_like(images), torch.ones_like(holes), seeds=seeds)
    assert torch.isfinite(blind).all(), "a picture of which nothing is known"


def test_what_is_filled_in() -> None:
    images, holes, seeds = ramp(1)
    hidden, inside = images * (1 - holes), holes.expand_as(images) == 1
    assert (Constant(0.25).fill(hidden, holes, seeds=seeds)[inside] == 0.25).all()
    mean = (images * (1 - holes)).sum((0, 2, 3)) / (1 - holes).sum()
    assert torch.allclose(Mean().fill(hidden, holes, seeds=seeds)[0, :, 8, 8], mean)
    assert (Harmonic(2000).fill(hidden, holes, seeds=seeds) - images).abs().max() < 1e-3, "a ramp solves Laplace's equation"
    for method in ("telea", "ns"):
        assert float((OpenCV(method).fill(hidden, holes, seeds=seeds) - images)[inside].abs().mean()) < 0.03
    noise = Noise()
    one, two = noise.fill(hidden, holes, seeds=[1]), noise.fill(hidden, holes, seeds=[2])
    assert not torch.equal(one, two) and torch.equal(one, noise.fill(hidden, holes, seeds=[1]))


def test_what_spoils_a_result() -> None:
    images, holes, seeds = ramp(1, 32)
    images = (images + 0.1 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    inside = holes.expand_as(images) == 1

    def spoiled(how: str, amount: float) -> Tensor:
        found = Degraded(Mean(), how, amount).spoil(images, holes, seeds)  # type: ignore[arg-type]
        assert torch.equal(found[~inside], images[~inside])
        return found

    noise = (spoiled("noise", 0.1) - images)[inside]
    assert 0.07 < float(noise.std()) < 0.13
    steps = [(each[..., 6:12, 8:13] - each[..., 6:12, 7:12]).abs().mean() for each in (images, spoiled("blur", 2.0))]
    assert steps[1] < 0.5 * steps[0]
    half = spoiled("blend", 0.5)
    mean = (images * (1 - holes)).sum((2, 3), keepdim=True) / (1 - holes).sum()
    assert torch.allclose(half[inside], (0.5 * images + 0.5 * mean)[inside])
    shuffled = spoiled("shuffle", 3)
    assert torch.equal(shuffled[inside].sort().values, images[inside].sort().values) and not torch.equal(shuffled, images)


def test_keys_say_what_a_result_depends_on() -> None:
    assert OpenCV("telea", threads=1).key() == OpenCV("telea", threads=4, name="x", batch_size=1).key() != OpenCV("ns").key()
    assert Degraded(Mean(), "noise", 0.1).key() != Degraded(Harmonic(), "noise", 0.1).key()
    assert Harmonic(10).name == "harmonic10"
    with pytest.raises(UserError, match="methods are telea and ns"):
        OpenCV("lama")  # type: ignore[arg-type]


# Those that live elsewhere.


class Shift(torch.nn.Module):
    def forward(self, image: Tensor, hole: Tensor) -> Tensor:
        assert image.shape[2] % 8 == 0 and image.shape[3] % 8 == 0
        return image * (1 - hole) + hole * 1.5


def test_a_scripted_network_sees_multiples_of_eight(tmp_path: Path) -> None:
    torch.jit.script(Shift()).save(str(tmp_path / "big-lama.pt"))
    fills = TorchScript(str(tmp_path / "big-lama.pt"))
    fills.load(torch.device("cpu"))
    images, holes, seeds = ramp(2, 21)
    found = fills.fill(images * (1 - holes), holes, seeds=seeds)
    assert found.shape == images.shape and (found[holes.expand_as(images) == 1] == 1).all() and fills.name == "big-lama"
    (tmp_path / "no.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="no TorchScript file"):
        TorchScript(str(tmp_path / "no.pt")).load(torch.device("cpu"))
    with pytest.raises(MissingPath, match="is not there"):
        TorchScript(str(tmp_path / "gone.pt")).load(torch.device("cpu"))


@pytest.mark.system
def test_the_worked_example_of_a_program(tmp_path: Path) -> None:
    images, holes, seeds = ramp(3)
    command = f"{sys.executable} '{EXAMPLE}' {{images}} {{masks}} {{results}}"
    found = Command(command, "mirror").fill(images * (1 - holes), holes, seeds=seeds)
    known = holes.expand_as(images) == 0
    assert (found[known] - images[known]).abs().max() <= 0.5 / 255 + 1e-6
    row = found[0, 0, 8]
    assert abs(float(row[6] - row[4])) < 1e-6 and abs(float(row[7] - row[3])) < 1e-6, "mirrored at column 5"
    program = tmp_path / "broken.py"
    program.write_text("import sys; sys.exit('no weights')")
    with pytest.raises(UserError, match=r"(?s)exit code 1.*no weights"):
        Command(f"{sys.executable} {program} {{images}} {{masks}} {{results}}", "x").fill(images, holes, seeds=seeds)
    program.write_text("")
    with pytest.raises(UserError, match="of 3 pictures 3 were not written"):
        Command(f"{sys.executable} {program} {{images}} {{masks}} {{results}}", "x").fill(images, holes, seeds=seeds)
    with pytest.raises(UserError, match=r"lacks \{masks\}"):
        Command("fill {images} {results}", "x")


def test_finished_pictures_are_found_by_name(tmp_path: Path) -> None:
    images, holes, seeds = ramp(2, 16)
    for name, pixels in zip(("a", "sub/b"), to_uint8(images)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    fills = Precomputed(str(tmp_path))
    fills.load(torch.device("cpu"))
    found = fills.fill(images, holes, seeds=seeds, ids=["images/a.jpg", "sub/b.png"])
    assert np.array_equal(to_uint8(found), to_uint8(images))
    with pytest.raises(UserError, match=r"has no picture for images/c\.jpg\. Bring them"):
        fills.check(["a.png", "images/c.jpg"])
    with pytest.raises(UserError, match="is 16 x 16, the pictures are judged at 8 x 8"):
        fills.fill(images[..., :8, :8], holes[..., :8, :8], seeds=seeds, ids=["a.png", "sub/b.png"])
    with pytest.raises(UserError, match="not judge"):
        fills.fill(images, holes, seeds=seeds)

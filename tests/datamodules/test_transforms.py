"""Crop, resize, normalise by hand-worked numbers; augmentation by its strengths, its frequencies and its determinism."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datamodules.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    TrainAugmentation,
    blur,
    edge_crop,
    gaussian_noise,
    jpeg,
    normalise,
    resize,
)
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng

NOTHING = {"flip": 0.0, "jpeg": 0.0, "noise": 0.0, "blur": 0.0, "gray": 0.0}


def random_clip(frames: int = 8, height: int = 48, width: int = 64) -> torch.Tensor:
    return torch.from_numpy(keyed_rng("clip", frames, height, width).integers(0, 256, (frames, 3, height, width), dtype=np.uint8))


def still_clip(frames: int = 8, side: int = 48) -> torch.Tensor:
    """The same smooth frame throughout: whatever differs between frames was added."""
    ramp = torch.linspace(40, 200, side)
    picture = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.full((side, side), 128.0)])
    return picture.to(torch.uint8).expand(frames, 3, side, side).contiguous()


@pytest.mark.parametrize(("size", "cropped"), [((60, 100), (60, 80)), ((100, 60), (80, 60)), ((50, 50), (40, 50)), ((9, 19), (9, 17))])
def test_edge_crop_cuts_both_ends_of_the_longer_side(size, cropped):
    video = random_clip(2, *size)
    out = edge_crop(video, 0.1)
    assert tuple(out.shape[-2:]) == cropped
    top, left = (size[0] - cropped[0]) // 2, (size[1] - cropped[1]) // 2
    assert torch.equal(out, video[..., top : top + cropped[0], left : left + cropped[1]])


def test_edge_crop_limits():
    video = random_clip(1)
    assert torch.equal(edge_crop(video, 0.0), video)
    for fraction in (0.5, -0.1):
        with pytest.raises(UserError, match="edge crop"):
            edge_crop(video, fraction)


@pytest.mark.parametrize("size", [(48, 64), (224, 224), (20, 31)])
def test_resize_is_bilinear_without_antialiasing(size):
    video = random_clip()
    exact = F.interpolate(video.double(), size, mode="bilinear", antialias=False)
    assert (resize(video, size) - exact).abs().max() < 1.01
    from_decoder = video.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels last in memory, as decoders give them
    assert (resize(from_decoder, size) - exact).abs().max() < 1.01


def test_normalise_by_hand():
    video = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    expected = [(1 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD)]
    torch.testing.assert_close(normalise(video)[1, :, 2, 3], torch.tensor(expected))
    clip = normalise(torch.zeros_like(video), CLIP_MEAN, CLIP_STD)
    torch.testing.assert_close(clip[0, :, 0, 0], torch.tensor([-m / s for m, s in zip(CLIP_MEAN, CLIP_STD)]))


def test_padding_is_zero_after_normalisation():
    video = random_clip(5)
    whole = normalise(video)
    out = normalise(video, lengths=3)
    assert torch.equal(out[:3], whole[:3]) and (out[3:] == 0).all()
    batch = normalise(torch.stack([video, video, video]), lengths=torch.tensor([5, 2, 0]))
    assert torch.equal(batch[0], whole) and torch.equal(batch[1, :2], whole[:2])
    assert (batch[1, 2:] == 0).all() and (batch[2] == 0).all()


@pytest.mark.parametrize("mode", ["clip", "official"])
def test_same_key_same_clip(mode):
    augment = TrainAugmentation(mode=mode)
    video = random_clip()
    for sample in range(12):
        before = video.clone()
        one, two = (augment(video, keyed_rng(0, "augment", 3, sample, 0)) for _ in range(2))
        assert torch.equal(one, two) and torch.equal(video, before)
        assert one.dtype == torch.uint8 and one.shape == video.shape
    assert len({augment(video, keyed_rng(0, "augment", 3, 7, k)).numpy().tobytes() for k in range(8)}) > 1


def test_no_augmentation_leaves_the_clip():
    video = random_clip()
    assert torch.equal(TrainAugmentation(**NOTHING)(video, keyed_rng("x")), video)


def test_each_step_does_what_it_says():
    video = random_clip()

    def only(**step):
        return TrainAugmentation(**(NOTHING | step))(video, keyed_rng("step"))

    assert torch.equal(only(flip=1.0), video.flip(-1))
    assert torch.equal(only(jpeg=1.0, jpeg_quality=(60, 60)), jpeg(video, 60))
    assert any(torch.equal(only(blur=1.0), blur(video, kernel)) for kernel in (3, 5))
    gray = only(gray=1.0)
    assert torch.equal(gray[:, 0], gray[:, 1]) and torch.equal(gray[:, 0], gray[:, 2])
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert (gray[:, 0] - (video * weights).sum(1)).abs().max() < 1.1  # truncated, and the weights are rounded


@pytest.mark.parametrize("variance", [10.0, 50.0])
def test_noise_has_its_variance_and_is_new_in_each_frame(variance):
    video = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    noise = gaussian_noise(video, variance, keyed_rng("noise")).float() - 128
    assert noise.mean().abs() < 0.05 and noise.var().item() == pytest.approx(variance + 1 / 12, rel=0.03)  # rounding adds 1/12
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(noise[:, 0], noise[:, 1])
    white = gaussian_noise(torch.full((1, 3, 64, 64), 255, dtype=torch.uint8), variance, keyed_rng("noise"))
    assert white.max() == 255 and white.min() > 200  # clipped, not wrapped


@pytest.mark.parametrize(("kernel", "sigma"), [(3, 0.8), (5, 1.1), (7, 1.4)])
def test_blur_kernel(kernel, sigma):
    video = torch.zeros(1, 3, 15, 15, dtype=torch.uint8)
    video[..., 7, 7] = 255
    taps = torch.exp(-0.5 * (torch.arange(kernel) - kernel // 2) ** 2 / sigma**2)
    taps /= taps.sum()
    out = blur(video, kernel)[0, 0]
    half = kernel // 2
    assert (out[7 - half : 8 + half, 7 - half : 8 + half] - 255 * taps[:, None] * taps).abs().max() <= 0.51
    assert out.count_nonzero() <= kernel**2


def test_jpeg_quality_orders_the_error():
    video = random_clip()
    errors = [(jpeg(video, quality).int() - video.int()).abs().float().mean() for quality in (100, 75, 50, 35)]
    assert errors == sorted(errors) and errors[0] < errors[-1]


def test_frequencies_are_the_papers():
    """Which of the steps happened is read off a picture that each of them changes in its own way."""
    video, n = still_clip(2, 16), 1500
    augment = TrainAugmentation(noise=0.0, blur=0.0, jpeg=0.0)
    flips = sum(bool((augment(video, keyed_rng("often", k))[0, 0, 0, 0] > 100).item()) for k in range(n))
    assert flips / n == pytest.approx(0.5, abs=0.04)
    for name, probability in (("jpeg", 0.5), ("noise", 0.3), ("blur", 0.3)):
        augment = TrainAugmentation(**(NOTHING | {name: probability}))
        clip = random_clip(1, 16, 16)
        changed = sum(not torch.equal(augment(clip, keyed_rng(name, k)), clip) for k in range(n))
        assert changed / n == pytest.approx(probability, abs=0.04)
    defaults = TrainAugmentation()
    assert (defaults.flip, defaults.jpeg, defaults.noise, defaults.blur, defaults.gray) == (0.5, 0.5, 0.3, 0.3, 0.001)


def test_kernel_five_is_twice_as_frequent_as_three():
    clip, augment = random_clip(1, 16, 16), TrainAugmentation(**(NOTHING | {"blur": 1.0}))
    threes = sum(torch.equal(augment(clip, keyed_rng("kernel", k)), blur(clip, 3)) for k in range(600))
    assert threes / 600 == pytest.approx(1 / 3, abs=0.06)


def test_official_mode_flickers_and_clip_mode_does_not():
    video = still_clip(32)
    for step in ({"jpeg": 1.0, "jpeg_quality": (50, 50)}, {"blur": 1.0}):
        steady = TrainAugmentation(**(NOTHING | step))(video, keyed_rng("flicker"))
        assert (steady == steady[:1]).all()
        flickering = TrainAugmentation(**(NOTHING | step), mode="official")(video, keyed_rng("flicker"))
        assert len({frame.numpy().tobytes() for frame in flickering}) == 2  # touched or not, kernel 3 or 5
    grey = torch.full((32, 3, 48, 48), 128, dtype=torch.uint8)

    def variances(mode):
        out = TrainAugmentation(**(NOTHING | {"noise": 1.0}), mode=mode)(grey, keyed_rng("flicker"))
        return out.float().flatten(1).var(1)

    assert variances("clip").std() < 2 < 8 < variances("official").std()


@pytest.mark.parametrize(
    ("argument", "value"),
    [("flip", 1.5), ("noise", -0.1), ("jpeg_quality", (0, 50)), ("jpeg_quality", (90, 50)), ("noise_variance", (50, 10))],
)
def test_wrong_settings_are_named(argument, value):
    with pytest.raises(UserError, match=f"augmentation.{argument}"):
        TrainAugmentation(**{argument: value})

"""The autoencoder of tiny:sd: its terms by hand, and pictures that survive it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader

from genlab.methods.pretraining.autoencoder import Autoencoder, crop_batch, fresh_autoencoder, kl_divergence, normalise_latents, psnr


def batches(count: int = 32, size: int = 16) -> DataLoader[Any]:
    """Discs of random colour and place on grey, as the batches of a datamodule."""
    generator = torch.Generator().manual_seed(0)
    colour, place = torch.rand(count, 3, 1, 1, generator=generator), torch.rand(count, 2, 1, 1, generator=generator)
    grid = torch.linspace(0, 1, size)
    inside = ((grid[None, :, None] - place[:, 0]) ** 2 + (grid[None, None] - place[:, 1]) ** 2 < 0.1)[:, None].float()
    pictures = 0.5 + inside * (colour - 0.5)

    def collate(numbers: list[int]) -> dict[str, Any]:
        batch = {"image": pictures[numbers], "caption": ["a disc"] * len(numbers), "id": [str(i) for i in numbers], "labels": {}}
        return batch | {"occurrence": torch.zeros(len(numbers), dtype=torch.int64)}

    return DataLoader(range(count), batch_size=16, collate_fn=collate)  # type: ignore[arg-type]


def test_terms_by_hand() -> None:
    mean, logvar = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, -2.0]])
    normal = torch.distributions.Normal(mean, (logvar / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    assert kl_divergence(mean, logvar).item() == pytest.approx(expected.item())
    black, grey = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.1)
    assert psnr(grey, black).tolist() == pytest.approx([20.0])  # an error of a tenth everywhere


def test_crops_are_parts_of_their_picture_and_keyed() -> None:
    pictures = torch.arange(2 * 6 * 6.0).reshape(2, 1, 6, 6)
    crops = crop_batch(pictures, 4, ["a", "b"], 0, "crop", 3)
    for number, crop in enumerate(crops):
        top_left = int(crop[0, 0, 0]) - 36 * number
        y, x = divmod(top_left, 6)
        assert torch.equal(crop, pictures[number, :, y : y + 4, x : x + 4])
    assert torch.equal(crops[1:], crop_batch(pictures[1:], 4, ["b"], 0, "crop", 3)), "whatever it is drawn with"
    assert any(not torch.equal(crops, crop_batch(pictures, 4, ["a", "b"], 0, "crop", step)) for step in range(4, 8))


def test_normalising_latents_changes_no_picture() -> None:
    torch.manual_seed(0)
    vae = fresh_autoencoder([8, 8], 4, 1).eval()
    pictures = 2 * torch.rand(8, 3, 16, 16) - 1
    with torch.no_grad():
        before = vae.encode(pictures).latent_dist
        shown = vae.decode(before.mean).sample
        normalise_latents(vae, before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3)))
        after = vae.encode(pictures).latent_dist
        assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-5)
        assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(4), atol=1e-4)
        assert torch.allclose(after.std / before.std, (1 / before.mean.std((0, 2, 3)))[:, None, None].expand_as(after.std), rtol=1e-4)
        assert torch.allclose(vae.decode(after.mean).sample, shown, atol=1e-5)


@pytest.mark.slow
def test_learns_and_exports_what_it_learnt(tmp_path: Path) -> None:
    L.seed_everything(0)
    model = Autoencoder(channels=[8, 16], latent_channels=4, lr=3e-3, warmup=5, crop=8, crop_steps=20)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=500, check_val_every_n_epoch=10, default_root_dir=tmp_path, **options)
    trainer.fit(model, batches(), batches())
    learnt = float(trainer.callback_metrics["val/psnr"])
    assert learnt > 24, "a mean colour per picture alone gives about 17"
    model.export(tmp_path)
    vae = AutoencoderKL.from_pretrained(tmp_path, subfolder="vae", torch_dtype=torch.float16).float()
    image = torch.cat([batch["image"] for batch in batches()])  # the mean and deviation are those over all
    with torch.no_grad():
        latents = vae.encode(2 * image - 1).latent_dist.mean
    assert abs(float(latents.mean())) < 0.1
    assert float(latents.std()) == pytest.approx(1, abs=0.1)
    trainer = L.Trainer(**options)
    again = trainer.test(Autoencoder(weights=str(tmp_path)), batches(), verbose=False)[0]["test/psnr"]
    assert again == pytest.approx(learnt, abs=0.1)

"""VideoMAE as a backbone: which token is which place and time, the baseline's norms, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genlab.errors import UserError
from genlab.methods.demamba import DeMamba, PoolHead
from genlab.models.mamba import MambaOptions
from genlab.models.videomae import VideoMAE, VideoMAETokens


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pretraining checkpoint as the hub's: encoder, its norm, and a decoder."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    torch.manual_seed(0)
    config = VideoMAEConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8, num_frames=4,
        decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=1, decoder_intermediate_size=8,
        use_mean_pooling=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("videomae")
    VideoMAEForPreTraining(config).save_pretrained(folder)
    return str(folder)


def test_tokens_lie_where_their_pixels_are(weights: str) -> None:
    """Without attention a token depends on its own 2 x 8 x 8 pixels; with it, on everything."""
    backbone = VideoMAE(weights).build().eval()
    assert isinstance(backbone, VideoMAETokens) and (backbone.width, backbone.grid, backbone.token_frames(4)) == (24, 4, 2)
    video = torch.randn(2, 4, 3, 32, 32)
    changed = video.clone()
    changed[1, 3, :, 9, 30] += 5  # frame 3, row 9, column 30: token (1, 1, 3) of clip 1
    with torch.no_grad():
        (tokens, vector), (other, _) = backbone(video), backbone(changed)
        assert tokens.shape == (2, 2, 4, 4, 24) and torch.equal(vector, tokens.mean((1, 2, 3)))
        assert torch.equal(tokens[0], other[0]) and (tokens[1] != other[1]).all(-1).all()
        backbone.encoder.encoder.layer = torch.nn.ModuleList()
        moved = (backbone(video)[0] - backbone(changed)[0]).abs().sum(-1).nonzero()
    assert moved.tolist() == [[1, 1, 1, 3]]


@pytest.mark.parametrize("head", ["pool", "demamba"])
def test_every_parameter_learns(weights: str, head: str) -> None:
    model = DeMamba(VideoMAE(weights), head=head, num_frames=4, mamba=MambaOptions(d_state=4))  # type: ignore[arg-type]
    model.configure_model()
    model.train()(torch.randn(2, 4, 3, 32, 32)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_baseline_normalises_over_the_batch(weights: str) -> None:
    """Mean of the tokens, layer norm, batch norm, one linear layer: in training a clip's logit depends on the others of its batch."""
    model = DeMamba(VideoMAE(weights, "batch_norm"), head="pool", num_frames=4)
    model.configure_model()
    assert isinstance(model.head.fc_norm2, torch.nn.Identity)
    video = torch.randn(3, 4, 3, 32, 32)
    with torch.no_grad():
        vector = model.train().features(video)[1]
        torch.testing.assert_close(vector.mean(0), torch.zeros(24), atol=1e-5, rtol=0)
        model.eval()
        torch.testing.assert_close(model(video)[:1], model(video[:1]))
    model.train()
    with pytest.raises(UserError, match="one clip at a time"):
        model(video[:1])


def test_the_baselines_linear_layer_starts_normal(weights: str) -> None:
    """Glorot's two distributions have one deviation, sqrt(2 / (fan in + fan out)); the uniform one ends at sqrt(3) of it."""
    model = DeMamba(VideoMAE(weights, "batch_norm"), head="pool", num_frames=4)
    model.configure_model()
    assert model.backbone.linear_init == "normal" and VideoMAE(weights).build().linear_init == "uniform"
    torch.manual_seed(0)
    deviation = (2 / 4097) ** 0.5
    spread = {init: PoolHead(4096, linear_init=init).fc1.weight.detach() / deviation for init in ("uniform", "normal")}
    assert all(abs(float(weight.std()) - 1) < 0.05 for weight in spread.values())
    assert float(spread["uniform"].abs().max()) <= 3**0.5 < 3 < float(spread["normal"].abs().max())


def test_size_is_the_papers() -> None:
    """Paper, Table 10: 86.54 M. That is ours with the 400 classes of a Kinetics head, which detection has no use for."""
    from transformers import VideoMAEConfig, VideoMAEModel

    with torch.device("meta"):
        backbone = VideoMAETokens(VideoMAEModel(VideoMAEConfig()), "batch_norm")
        count = sum(p.numel() for m in (backbone, PoolHead(768, backbone.feature_norms)) for p in m.parameters())
    assert (backbone.grid, backbone.token_frames(16)) == (14, 8)
    assert count == 86_229_505 and round((count + 768 * 400 + 400) / 1e6, 2) == 86.54


def test_other_clips_are_refused_with_the_remedy(weights: str) -> None:
    backbone = VideoMAE(weights).build()
    with pytest.raises(UserError, match=r"exactly 4 frames, the clips have 8.*data\.num_frames"):
        backbone(torch.zeros(1, 8, 3, 32, 32))
    with pytest.raises(UserError, match=r"32 x 32 pixels.*data\.image_size to 32"):
        backbone(torch.zeros(1, 4, 3, 32, 40))
    with pytest.raises(UserError, match="use a multiple of 2"):
        VideoMAE(weights, num_frames=5).build()
    assert VideoMAE(weights, num_frames=8).build()(torch.zeros(1, 8, 3, 32, 32))[0].shape == (1, 4, 4, 4, 24)


def test_another_model_is_refused(tmp_path: Path) -> None:
    from transformers import VideoMAEConfig, VideoMAEModel

    model = VideoMAEModel(VideoMAEConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16))
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "mlp" not in k and "dense" not in k})
    with pytest.raises(UserError, match="parameters are missing"):
        VideoMAE(str(tmp_path)).build()

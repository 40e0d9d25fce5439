import pytest
import torch

from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.modeling.any2point.point_tokenizer import ALPHA, BETA, PointTokenizer, normalize_offsets
from hf_any3d.modeling.point_ops import farthest_point_sample
from tests.tiny_encoders import SMALL, clouds


def tokenizer(hidden_size=48, **kwargs):
    torch.manual_seed(4)
    return PointTokenizer(Any2PointConfig(**(SMALL | kwargs)), hidden_size).eval()


@pytest.mark.parametrize(("hidden", "width"), [(48, 48), (64, 384), (384, 384), (768, 768), (1024, 384), (50, 384)])
def test_width_is_that_of_the_encoder_if_it_fits(hidden, width):
    made = tokenizer(hidden)
    assert made.embed.out_features == width // 8
    assert isinstance(made.project, torch.nn.Identity if width == hidden else torch.nn.Linear)
    with torch.no_grad():
        assert made(clouds(1)).tokens.shape == (1, 8, hidden)


def test_own_width_is_projected_to_the_encoder():
    made = tokenizer(48, tokenizer_width=24)
    assert made.project.weight.shape == (48, 24)
    assert made(clouds(1)).tokens.shape == (1, 8, 48)


def test_too_few_points_are_named_with_the_number_needed():
    with pytest.raises(ValueError, match="32 or more points"):
        tokenizer()(clouds(points=31))
    assert tokenizer()(clouds(points=32)).tokens.shape == (3, 8, 48)
    with pytest.raises(ValueError, match="40 or more points"):
        tokenizer(tokenizer_neighbors=40)(clouds(points=32))


def test_only_the_released_normalization_depends_on_the_other_clouds():
    offsets = torch.randn(2, 5, 4, 3) * torch.tensor([1.0, 9.0]).view(2, 1, 1, 1)
    for how in ("group_max", "cloud_std", "batch_std"):
        together = normalize_offsets(offsets, how, 1e-5)
        alone = torch.cat([normalize_offsets(cloud[None], how, 1e-5) for cloud in offsets])
        assert torch.allclose(together, alone) == (how != "batch_std")


def test_equal_points_give_finite_tokens():
    made = tokenizer()
    tokens = made(torch.full((2, 48, 3), 0.5)).tokens
    assert tokens.isfinite().all()


def test_scaled_tokens_have_the_spread_of_their_norm():
    made = tokenizer(token_scale=2.0).train()
    torch.nn.init.constant_(made.token_norm.weight, 0.05)
    tokens = made(clouds()).tokens.flatten(0, 1)  # (batch * tokens, hidden)
    spread = tokens.std(dim=0, correction=0).detach()
    assert spread.max() <= 0.0501 and spread.median() == pytest.approx(0.05, rel=0.05)


def plain_stage(stage, xyz, features, centers, centers_index, config):
    """Compute a stage for one cloud, center by center."""
    tokens = []
    for center, own in zip(centers, centers_index.tolist(), strict=True):
        near = (xyz - center).square().sum(dim=-1).argsort(stable=True)[: config.tokenizer_neighbors]
        offsets = xyz[near] - center
        offsets = offsets / (offsets.abs().amax(dim=0) + config.released.offset_eps)
        rows = torch.cat([features[near], features[own].expand(len(near), -1)], dim=-1)
        steps = torch.arange(stage.width // 6) / (stage.width // 6)
        phase = offsets[:, :, None] * BETA / ALPHA**steps
        rows = rows + torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(1)
        for block in stage.blocks:
            hidden = block.reduce_norm(block.reduce(rows)).relu()
            rows = (block.expand_norm(block.expand(hidden)) + rows).relu()
        tokens.append(rows.amax(dim=0))
    return torch.stack(tokens)


@torch.no_grad()
def test_tokenizer_equals_the_plain_program():
    made = tokenizer()
    for name, tensor in made.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    found = made(clouds())
    for points, tokens in zip(clouds(), found.tokens, strict=True):
        xyz, features = points, made.embed_norm(made.embed(points)).relu()
        index = farthest_point_sample(points[None], 32)[0]
        for stage in made.stages:
            centers = xyz[index]
            features = plain_stage(stage, xyz, features, centers, index, made.config)
            xyz, index = centers, torch.arange(len(centers) // 2)
        torch.testing.assert_close(made.project(features), tokens, rtol=1e-3, atol=1e-4)

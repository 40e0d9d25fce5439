"""The patch tokenizer against a plain mini-PointNet, and its errors."""

import torch

from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.modeling.any2point.point_tokenizer import PatchTokenizer

SMALL = {"tokenizer": "patch", "num_tokens": 8, "tokenizer_neighbors": 4, "tokenizer_width": 16}


def clouds(channels: int = 3) -> torch.Tensor:
    return torch.randn(3, 40, channels, generator=torch.Generator().manual_seed(0))


def tokenizer(**changes) -> PatchTokenizer:
    torch.manual_seed(1)
    return PatchTokenizer(Any2PointConfig(**(SMALL | changes)), hidden_size=24).eval()


def test_level_features_of_a_point_are_the_mean_over_its_patches():
    made = tokenizer()
    points = clouds()
    found = made(points, with_levels=True)
    (level,) = found.levels
    assert level.centers is None and torch.equal(found.tokens, made(points).tokens)
    seen = [[[] for _ in range(40)] for _ in range(3)]
    for cloud in range(3):
        for token in range(8):
            center = points[cloud, found.index[cloud, token]]
            nearest = (points[cloud] - center).norm(dim=1).argsort()[:4]
            rows = made.local.point_features((points[cloud, nearest] - center)[None, None])[0, 0]
            for point, row in zip(nearest.tolist(), rows, strict=True):
                seen[cloud][point].append(row)
    for cloud in range(3):
        for point, rows in enumerate(seen[cloud]):
            expected = torch.stack(rows).mean(dim=0) if rows else torch.zeros(16)
            torch.testing.assert_close(level.features[cloud, point], expected, rtol=1e-5, atol=1e-5)


def test_further_channels_join_the_offsets():
    made = tokenizer(in_channels=6)
    points = clouds(6)
    gray = points.clone()
    gray[..., 3:] = 0.5
    assert not torch.allclose(made(points).tokens, made(gray).tokens)

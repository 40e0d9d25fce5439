"""Hand-made descriptors: what they do not depend on, what they tell apart, and degenerate clouds."""

import numpy as np
import pytest
import torch

from hf_any3d.modeling.point_features.descriptors import describe
from tests.common.case import varied_clouds


# Extents, eigenvalues and moments come first; then histograms, which a turn about the up axis leaves alone.
def shares(values: np.ndarray, low: float, high: float, bins: int) -> np.ndarray:
    """How much each value belongs to each bin, as a table."""
    places = np.clip((values - low) / (high - low) * (bins - 1), 0, bins - 1)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(bins)), 0)


def plainly_described(cloud: np.ndarray) -> np.ndarray:
    """The descriptors of a cloud `(points, 3)` with y up, by a solver and double precision."""
    xyz = cloud - cloud.mean(axis=0)
    xyz /= np.sqrt((xyz**2).sum(axis=1).mean())
    covariance = xyz.T @ xyz / len(xyz)
    values = np.linalg.eigvalsh(covariance)[::-1]
    large, middle, small = np.sqrt(values)
    narrow, wide = np.sqrt(np.linalg.eigvalsh(covariance[::2, ::2]))
    linear, planar, round_ = (large - middle) / large, (middle - small) / large, small / large
    weinmann = [linear, planar, round_, np.prod(values) ** (1 / 3), -(values * np.log(values)).sum()]
    horizontal = [narrow / wide, covariance[0, 2], covariance[0, 0] + covariance[2, 2]]
    deviation = np.sqrt((xyz**2).mean(axis=0))
    # Partners of a point by its number; the golden ratio in 1024ths.
    steps = [1 + len(xyz) * share // 1024 for share in (633, 242, 874, 483)]
    pairs = np.concatenate([np.roll(xyz, -step, axis=0) - xyz for step in steps])
    radius = np.hypot(xyz[:, 0], xyz[:, 2])
    described = [
        np.ptp(xyz, axis=0),
        [large, middle, small, *weinmann, *horizontal],
        [*deviation, *((xyz / deviation) ** 3).mean(axis=0)],
        shares(np.linalg.norm(pairs, axis=1), 0, 3, 12).mean(axis=0),
        shares(np.abs(pairs[:, 1]), 0, 3, 12).mean(axis=0),
        shares(np.hypot(pairs[:, 0], pairs[:, 2]), 0, 3, 12).mean(axis=0),
        shares(np.linalg.norm(xyz, axis=1), 0, 2, 12).mean(axis=0),
        shares(xyz[:, 1], -2, 2, 12).mean(axis=0),
        (shares(xyz[:, 1], -2, 2, 6).T @ shares(radius, 0, 2, 4)).ravel() / len(xyz),
    ]
    return np.concatenate(described)


def test_descriptors_are_those_of_their_definitions():
    sizes, tilt = torch.tensor([1.0, 0.6, 0.3]), torch.tensor([[1.0, 0.2, 0.5], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]])
    clouds = (varied_clouds(3, 150) ** 2 * sizes) @ tilt
    for cloud, found in zip(clouds.double().numpy(), describe(clouds), strict=True):
        np.testing.assert_allclose(found.numpy(), plainly_described(cloud), rtol=0, atol=2e-3)


@pytest.mark.parametrize("sizes", [(1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)], ids=["plate", "line", "point"])
def test_flat_clouds_have_finite_descriptors_and_gradients(sizes):
    points = (varied_clouds(2, 60) * torch.tensor(sizes)).requires_grad_()
    found = describe(points)
    found.sum().backward()
    assert found.isfinite().all() and found.abs().max() < 10
    assert points.grad.isfinite().all()

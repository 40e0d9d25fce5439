"""Levels of PointNet++ against plain loops, in training and in evaluation, with clouds that are filled up."""

import pytest
import torch

from hf_any3d.modeling.point_encoders.set_abstraction import (
    NEIGHBOR_ORDERS,
    SetAbstraction,
    ball_neighbors,
    sample_centers,
)
from tests.common.case import spread_weights, varied_clouds


def farthest(cloud: torch.Tensor, count: int, first: int = 0) -> list[int]:
    chosen = [first]
    while len(chosen) < count:
        chosen.append(int(torch.cdist(cloud, cloud[chosen]).amin(dim=1).argmax()))
    return chosen


def ball(center: torch.Tensor, cloud: torch.Tensor, radius: float, count: int, order: str) -> list[int]:
    distance = (cloud - center).norm(dim=1)
    inside = [number for number in range(len(cloud)) if distance[number] <= radius]
    if order == "nearest":
        inside.sort(key=lambda number: float(distance[number]))
    inside = inside[:count]
    return inside + [inside[0]] * (count - len(inside))


def test_centers_are_far_from_each_other_and_points_of_their_cloud():
    clouds = varied_clouds(2, 9)
    index, mask = sample_centers(clouds, 9)
    assert mask is None and [own.tolist() for own in index] == [farthest(cloud, 9) for cloud in clouds]
    index, mask = sample_centers(clouds, 11)
    assert index.shape == (2, 11) and index[:, 9:].tolist() == [[0, 0], [0, 0]]
    assert mask.tolist() == [[True] * 9 + [False] * 2] * 2
    # Padding may be anywhere, and is never a center.
    kept = torch.tensor([[False] * 2 + [True] * 7, [True, False, True] + [False] * 6])
    index, mask = sample_centers(clouds, 4, kept)
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    places = kept[0].nonzero()[:, 0]
    assert index[0].tolist() == places[farthest(clouds[0][kept[0]], 4)].tolist()
    assert index[1].tolist() == [0, 2, 0, 0]


def test_centers_may_leave_out_points_near_the_origin():
    clouds = varied_clouds(1, 9)
    clouds[:, 3:7] *= 1e-3
    without, _ = sample_centers(clouds, 5, min_squared_norm=1e-3)
    assert set(without[0].tolist()) == {0, 1, 2, 7, 8}
    assert set(sample_centers(clouds, 6)[0][0].tolist()) > {0, 1, 2, 7, 8}


@pytest.mark.parametrize("order", NEIGHBOR_ORDERS)
@pytest.mark.parametrize(("radius", "count"), [(0.4, 3), (0.9, 12), (5.0, 40)])
def test_balls_hold_the_first_or_the_nearest_points_inside(order, radius, count):
    clouds = varied_clouds(2, 30)
    centers = clouds[:, [0, 7, 11]]
    found = ball_neighbors(centers, clouds, radius, count, order)
    expected = [
        [ball(center, cloud, radius, count, order) for center in own]
        for own, cloud in zip(centers, clouds, strict=True)
    ]
    assert found.tolist() == expected


@pytest.mark.parametrize("order", NEIGHBOR_ORDERS)
def test_padding_is_in_no_ball(order):
    clouds = varied_clouds(2, 20) - 3
    mask = torch.arange(20) < torch.tensor([[20], [8]])
    centers = clouds[:, :3]
    found = ball_neighbors(centers, clouds, 5.0, 12, order, mask)
    assert found[1].max() < 8 and found[0].max() > 8
    alone = ball_neighbors(centers[1:], clouds[1:, :8], 5.0, 12, order)
    assert torch.equal(found[1:], alone)


def level(**settings) -> SetAbstraction:
    made = SetAbstraction(2, 5, 0.6, 7, (8, 6), **settings)
    spread_weights(made)
    for norm in (layer.norm for layer in made.layers):
        norm.running_mean.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(0))
        norm.running_var.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return made


@torch.no_grad()
@pytest.mark.parametrize("scale_offsets", [False, True])
@pytest.mark.parametrize("order", NEIGHBOR_ORDERS)
def test_a_level_is_the_maximum_of_layers_over_each_ball(order, scale_offsets):
    made = level(scale_offsets=scale_offsets, neighbor_order=order).eval()
    clouds, features = varied_clouds(2, 30), varied_clouds(2, 30, channels=3, seed=9)[..., :2]
    groups = made(clouds, features)
    assert groups.mask is None and groups.features.shape == (2, 5, 6)
    for cloud, own, index, centers, found in zip(
        clouds, features, groups.index, groups.centers, groups.features, strict=True
    ):
        assert index.tolist() == farthest(cloud, 5) and torch.equal(centers, cloud[index])
        for center, pooled in zip(centers, found, strict=True):
            inside = ball(center, cloud, 0.6, 7, order)
            offsets = (cloud[inside] - center) / (0.6 if scale_offsets else 1)
            rows = torch.cat([offsets, own[inside]], dim=1)
            for layer in made.layers:
                rows = torch.relu(layer.norm(layer.linear(rows)))
            torch.testing.assert_close(pooled, rows.amax(dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reason", ["nothing", "training", "weights", "features", "hook"])
def test_features_are_the_same_whether_norms_are_part_of_the_weights_or_not(reason):
    made, clouds, features = level(), varied_clouds(2, 30), varied_clouds(2, 30, seed=9)[..., :2]
    made.train(reason == "training").requires_grad_(reason == "weights")
    features.requires_grad_(reason == "features")
    if reason == "hook":
        made.layers[1].linear.register_forward_hook(lambda *_: None)
    found = made(clouds, features).features
    assert found.requires_grad is (reason in ("weights", "features"))
    if reason != "training":
        with torch.no_grad():
            torch.testing.assert_close(found, level().eval()(clouds, features).features, rtol=1e-4, atol=1e-5)


def test_a_level_uses_the_mask_and_the_least_norm_and_returns_features_in_their_precision():
    made = level(min_squared_norm=1e-3).eval()
    clouds, features = varied_clouds(2, 30), varied_clouds(2, 30, seed=9)[..., :2]
    clouds[:, 6:] *= 1e-3
    mask = torch.arange(30) < torch.tensor([[30], [3]])
    groups = made(clouds, features, mask)
    assert groups.index[0].max() < 6 and groups.index[1].tolist()[3:] == [0, 0]
    assert groups.mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    half = made.bfloat16().requires_grad_(False)(clouds, features)
    assert half.features.dtype == torch.bfloat16 and half.centers.dtype == torch.float32

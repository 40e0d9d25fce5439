"""Depth views, and the copies over which features are averaged."""

import pytest
import torch

from hf_any3d import PointFeaturesConfig
from hf_any3d.modeling.point_features.depth_views import depth_views
from hf_any3d.modeling.point_features.modeling_point_features import make_copies
from tests.common.case import varied_clouds


def config(**settings) -> PointFeaturesConfig:
    return PointFeaturesConfig(**({"features": ["descriptors"]} | settings))


def test_the_first_copy_is_the_cloud_and_the_others_differ_within_the_limits():
    clouds = varied_clouds(3, 200)
    given = config(copies=6, copy_turn=10.0, copy_scale=(0.9, 1.1), copy_jitter=0.0)
    copies = make_copies(clouds, given)
    assert copies.shape == (3, 6, 200, 3) and torch.equal(copies[:, 0], clouds)
    factors = copies[:, 1:, :, 1] / clouds[:, None, :, 1]  # of heights, which turns do not change
    assert factors.min() > 0.9 - 1e-4 and factors.max() < 1.1 + 1e-4 and factors.std(dim=1).min() > 0.01
    straight = make_copies(clouds, config(copies=6, copy_turn=10.0, copy_scale=(1.0, 1.0), copy_jitter=0.0))[:, 1:]
    before, after = clouds[:, None, :, [0, 2]], straight[..., [0, 2]]
    cosines = (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)
    angles = cosines.clamp(-1, 1).acos().rad2deg()
    assert 2 < angles.max() <= 10.1
    assert torch.equal(make_copies(clouds[1:2], given), copies[1:2])


def test_jitter_is_a_share_of_the_radius():
    clouds = varied_clouds(2, 400) * 100
    copies = make_copies(clouds, config(copies=4, copy_turn=0.0, copy_scale=(1.0, 1.0), copy_jitter=0.02))
    moved = (copies[:, 1:] - clouds.unsqueeze(1)).abs()
    radius = (clouds - clouds.mean(1, keepdim=True)).norm(dim=-1).amax(dim=1)
    assert (moved.amax(dim=(1, 2, 3)) <= 0.02 * radius * 1.001).all()
    assert (moved.amax(dim=(1, 2, 3)) > 0.015 * radius).all()
    shares = moved.mean(dim=2) / radius[:, None, None]  # alike in all copies and along all axes
    assert shares.std() < 0.1 * shares.mean()


def test_normals_are_turned_and_colors_are_kept():
    clouds = varied_clouds(2, 50, 9)
    copies = make_copies(clouds, config(copies=3, in_channels=9, normals=True, copy_turn=30.0, up_axis="z"))
    assert torch.equal(copies[..., 6:], clouds[:, None, :, 6:].expand(-1, 3, -1, -1))
    normals = copies[:, 1:, :, 3:6]
    torch.testing.assert_close(normals.norm(dim=-1), clouds[:, None, :, 3:6].norm(dim=-1).expand(-1, 2, -1))
    torch.testing.assert_close(normals[..., 2], clouds[:, None, :, 5].expand(-1, 2, -1))
    assert (normals[..., 0] - clouds[:, None, :, 3]).abs().max() > 0.05
    colored = make_copies(clouds, config(copies=3, in_channels=9))
    assert torch.equal(colored[..., 3:], clouds[:, None, :, 3:].expand(-1, 3, -1, -1))


def test_one_copy_is_the_cloud():
    clouds = varied_clouds(2, 50)
    assert torch.equal(make_copies(clouds, config(copies=1)), clouds.unsqueeze(1))


def test_a_plate_fills_the_views_from_its_sides():
    generator = torch.Generator().manual_seed(0)
    plate = (torch.rand(1, 3000, 3, generator=generator) * 2 - 1) * torch.tensor([1.0, 0.8, 0.01])
    views = depth_views(plate, 48)
    assert views.shape == (1, 6, 48, 48) and views.min() >= 0 and views.max() <= 1
    filled = (views > 0).float().mean(dim=(2, 3))[0]  # front, right, back, left, top, bottom
    assert (filled[[0, 2]] > 0.4).all() and (filled[[1, 3, 4, 5]] < 0.1).all()
    upright = depth_views(plate[..., [2, 0, 1]], 48, up_axis="z")
    torch.testing.assert_close(upright, views)


def test_near_points_are_bright_and_hide_those_behind():
    two = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [0.9, 0.0, -1.0]]])
    front = depth_views(two, 33, views=1)[0, 0]
    left, right = front[14:19, 7:12].max(), front[14:19, 21:26].max()
    assert left > 0.9 and 0.2 < right < 0.3


def test_a_far_point_beside_a_near_one_keeps_its_own_depth():
    two = torch.tensor([[[-1.0, 0.0, 63.0], [1.0, 0.0, -63.0]]])  # one pixel apart
    shown = depth_views(two, 64, views=1)[0, 0, 32]
    assert shown.nonzero().flatten().tolist() == [30, 31, 32, 33]
    # Only the empty pixels beside them take a neighbor's depth.
    torch.testing.assert_close(shown[30:34], torch.tensor([1.0, 1.0, 0.2, 0.2]), rtol=0, atol=1e-3)


SIDES = {  # to the right, up, and toward the viewer
    "front": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "right": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    "back": ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "left": ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
    "top": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "bottom": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
}


@pytest.mark.parametrize("number, side", enumerate(SIDES))
def test_each_view_shows_a_point_where_it_is_seen_from_there(number, side):
    point = torch.tensor([2.0, 1.0, -3.0])
    shown = depth_views(torch.stack([point, -point])[None] + 7, 64)[0, number]
    right, up, near = (float(point @ torch.tensor(axis).float() / point.norm()) for axis in SIDES[side])
    for sign in (1, -1):
        column, row = (round((1 + sign * place) / 2 * 63) for place in (right, -up))
        assert float(shown[row, column]) == pytest.approx(0.2 + 0.8 * (1 + sign * near) / 2, abs=1e-3)


@pytest.mark.parametrize("views", [1, 4])
def test_as_many_views_as_are_asked_for(views):
    assert depth_views(varied_clouds(2, 40), 16, views).shape == (2, views, 16, 16)

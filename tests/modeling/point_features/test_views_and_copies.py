"""Depth views, and the copies over which features are averaged."""

import pytest
import torch

from hf_any3d import PointFeaturesConfig
from hf_any3d.modeling.point_features.depth_views import depth_views
from hf_any3d.modeling.point_features.modeling_point_features import make_copies
from tests.common.case import varied_clouds


def config(**settings) -> PointFeaturesConfig:
    return PointFeaturesConfig(**({"features": ["descriptors"]} | settings))


def test_one_copy_is_the_cloud():
    clouds = varied_clouds(2, 50)
    assert torch.equal(make_copies(clouds, config(copies=1)), clouds.unsqueeze(1))


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

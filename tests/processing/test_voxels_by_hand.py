"""`PointTransformerV3Processor` against plain loops: places, cells, channels, fragments, and what it refuses."""

import numpy as np
import pytest

from hf_any3d import PointTransformerV3Processor
from hf_any3d.data.files import PointCloudData
from tests.errors import raises

FINE = 1e-3  # each point has a cell of its own


def cloud(count=40, seed=0, **more):
    """Points of a box that is off the origin, with another extent along each axis."""
    return PointCloudData(
        np.random.default_rng(seed).random((count, 3)) * [1, 0.5, 0.75] + [0.5, -0.25, 0.125], **more
    )


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ([0, 255], None),
        ([0, 0], "no intensity"),
        ([0, 1], None),
        ([1, 1.5], None),
        ([-1, 5], "intensity from -1 to 5; expected the sensor's bytes, 0 to 255"),
        ([0, 256], "intensity from 0 to 256"),
        ([0.5, 1], "intensity from 0.5 to 1"),
        ([0, 0.5], "intensity from 0 to 0.5"),
    ],
)
def test_an_intensity_in_another_unit_is_refused(values, refused):
    processor = PointTransformerV3Processor(features=["xyz", "intensity"], grid_size=FINE, intensity_range="bytes")
    given = cloud(4, intensity=np.array([*values, values[0], values[1]], float))
    if refused is not None:
        with pytest.raises(ValueError, match=refused):
            processor(given)
        return
    made = processor(given, return_tensors="np")
    own = made["points"][0][made["inverse"][0]][:, 3]
    np.testing.assert_allclose(own, np.array([*values, *values]) / 255, atol=1e-7)


def test_larger_clouds_are_reduced_and_smaller_ones_refused():
    settings = {"features": ["xyz"], "grid_size": FINE, "box_center": None, "sampling": "first"}
    processor = PointTransformerV3Processor(num_points=9, min_points=5, **settings)
    for count, kept in ((40, 9), (9, 9), (6, 6), (5, 5)):
        made = processor(cloud(count), return_tensors="np")
        own = made["points"][0][made["inverse"][0]]
        np.testing.assert_allclose(own, cloud(count).points[:kept], atol=1e-6)
    assert processor(cloud(40), num_points=7)["points"].shape == (1, 7, 3)
    with raises(ValueError, naming="4 points"):
        processor(cloud(4))
    with raises(ValueError, naming="cloud 1: 4 points"):
        processor([cloud(9), cloud(4)])
    faces = PointCloudData([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0.5]], faces=np.array([[0, 1, 2], [1, 2, 3]]))
    assert processor(faces)["inverse"].shape == (1, 9)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"box_center": "middle"}, "box_center='middle'; expected one of 'ground', 'half_ground', 'across', None"),
        ({"small_clouds": "masked"}, "small_clouds"),
        ({"color_range": "bytes"}, "color_range"),
        ({"intensity_range": "unit"}, "intensity_range"),
        ({"model_axes": ["x", "y"]}, "model_axes"),
        ({"model_axes": ["x", "-x", "z"]}, "model_axes"),
        ({"model_axes": ["x", "y", "+z"]}, "model_axes"),
        ({"model_axes": ["x", "y", "z"], "center_voxels": True}, "model_axes"),
        ({"model_axes": ["x", "y", "z"], "views": [[1, 0]]}, "model_axes"),
        ({"scale": "box"}, "scale"),
    ],
)
def test_settings_that_would_mean_something_else_are_refused(settings, named):
    with raises(ValueError, naming=named):
        PointTransformerV3Processor(**settings)

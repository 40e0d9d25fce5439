"""Numbers of a layout: ranges and bins, their place in dicts and boxes, and lines that are nearly of the language."""

import math

import numpy as np
import pytest

from hf_any3d.modeling.spatiallm import Box, Door, Layout, Wall, Window
from tests.errors import raises

ROOM = Layout(
    (Wall(3, 1, 2, 0.5, 5, 2, 0.5, 2.5, 0.2), Wall(1, 5, 2, 0, 5, 8, 0, 2.25)),
    (Door(0, 1, 5, 4, 1, 0.875, 2),),
    (Window(2, 3, 2, 2, 1.5, 1.25, 0.75),),
    (Box(7, "bed", 3, 4, 0.5, -0.25, 2, 1.5, 0.75), Box(1234, "lamp", 1.5, 7, 1, -1.5, 0.25, 0.125, 0.5)),
)


def test_a_layout_becomes_a_dict_and_comes_back():
    content = ROOM.to_dict()
    assert list(content) == ["walls", "doors", "windows", "boxes", "up_axis"] and content["up_axis"] == "z"
    assert content["doors"] == [{"id": 0, "wall_id": 1, "x": 5, "y": 4, "z": 1, "width": 0.875, "height": 2}]
    assert content["walls"][1] == {
        **{"id": 1, "ax": 5, "ay": 2, "az": 0, "bx": 5, "by": 8, "bz": 0, "height": 2.25, "thickness": 0.0}
    }
    assert Layout.from_dict(content) == ROOM and Layout.from_dict({}) == Layout()
    lying = ROOM.with_up_axis("y")
    assert lying.to_dict()["up_axis"] == "y" and Layout.from_dict(lying.to_dict()) == lying
    with raises(TypeError, naming="colors"):
        Layout.from_dict({"walls": [{"colors": 0}]})
    for axis in ("w", "zx", ""):
        with pytest.raises(ValueError):
            Layout(up_axis=axis)


def test_entities_are_boxes_along_their_walls():
    sloped = Layout.of(
        [Wall(0, 0, 0, 0, 3, 4, 12, 2, 0.5), Wall(0, 9, 9, 9, 9, 9, 9, 9, 9), Window(5, 0, 1, 2, 3, 4, 5)]
    )
    rows, labels = sloped.as_boxes()
    angle = math.atan2(4, 3)
    assert labels == ["wall", "wall", "window"] and rows.dtype == np.float64
    assert rows[0].tolist() == pytest.approx([1.5, 2, 7, 13, 0.5, 2, angle])
    assert rows[2].tolist() == pytest.approx([1, 2, 3, 4, 0.5, 5, angle])  # in the first of the walls of this number
    lying = ROOM.with_up_axis("y")
    upright = ROOM.as_boxes()[0]
    np.testing.assert_allclose(lying.as_boxes()[0][:, 3:], upright[:, 3:])
    np.testing.assert_allclose(lying.as_boxes()[0][:, :3], upright[:, :3] @ lying.upright_rotation, atol=1e-12)
    assert ROOM.corners().shape == (6, 8, 3)
    bottom = ROOM.corners()[1]  # of a wall along y
    assert sorted(set(bottom[:, 2].round(9))) == [0, 2.25] and (bottom[:4, 2] == 0).all()

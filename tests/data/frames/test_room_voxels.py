"""Voxels of rooms against plain loops, and layouts on their way to the scan and back."""

import dataclasses

import numpy as np
import pytest

from hf_any3d.data.frames.room_voxels import VoxelizedRoom, clean_room
from hf_any3d.data.frames.scan_frames import ScanFrame
from hf_any3d.modeling.spatiallm import Box, Layout, Wall
from tests.errors import raises


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_voxels_all_stay(count):
    points = np.eye(3)[:count] * 5
    found, colors = clean_room(points, points * 2, 0.5)
    assert sorted(map(tuple, found)) == sorted(map(tuple, points)) and (colors == found * 2).all()


LAYOUT = Layout(
    (Wall(0, 1.0, 2.0, 0.5, 4.0, 2.0, 0.5, 2.5, 0.1),), boxes=(Box(0, "bed", 2.0, 3.0, 1.0, 0.25, 1.0, 2.0, 0.5),)
)
TURNED = ScanFrame("y", (0.1, float(np.sqrt(1 - 0.01)), 0.0), unit=0.01, angle=0.3, floor=0.4)


def room_with(frame, offset=None) -> VoxelizedRoom:
    nothing = np.zeros((0, 3))
    corner = np.array([0.5, -1.0, 2.0])
    return VoxelizedRoom(
        nothing, nothing, corner, nothing, nothing, frame, None if offset is None else np.array(offset)
    )


@pytest.mark.parametrize("frame", [None, ScanFrame("z"), ScanFrame("x", unit=2.0), TURNED])
@pytest.mark.parametrize("offset", [None, (500.0, -600, 7)])
def test_layouts_go_to_the_scan_and_back(frame, offset):
    room = room_with(frame, offset)
    moved = room.to_scan(LAYOUT)
    assert moved.up_axis == ("z" if frame is None else frame.up_axis)
    (box,), (before,) = moved.boxes, LAYOUT.boxes
    place = np.array([before.x, before.y, before.z]) + room.corner
    expected = place if frame is None else frame.undo(place[None])[0]
    expected = expected + (0 if offset is None else np.array(offset))
    np.testing.assert_allclose([box.x, box.y, box.z], expected, atol=1e-9)
    unit = 1 if frame is None else frame.unit
    np.testing.assert_allclose([box.sx, box.sy, box.sz], np.array([1, 2, 0.5]) / unit)
    back = room.from_scan(moved)
    # Boxes look the same after half a turn.
    assert np.sin(back.boxes[0].angle - before.angle) == pytest.approx(0, abs=1e-6)
    boxes = (dataclasses.replace(back.boxes[0], angle=before.angle),)
    for one, other in zip((*back.walls, *boxes), (*LAYOUT.walls, *LAYOUT.boxes), strict=True):
        numbers, others = ([v for v in dataclasses.astuple(part) if isinstance(v, float)] for part in (one, other))
        np.testing.assert_allclose(numbers, others, atol=1e-6)
    if frame is not None and frame.angle == 0:
        assert box.angle == before.angle


def test_layouts_of_another_up_axis_are_refused():
    with raises(ValueError, naming="up_axis"):
        room_with(TURNED).from_scan(LAYOUT)

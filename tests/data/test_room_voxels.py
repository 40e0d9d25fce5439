"""Voxels of rooms against plain loops, and layouts on their way to the scan and back."""

import dataclasses

import numpy as np
import pytest

from hf_any3d.data.room_voxels import VoxelizedRoom, clean_room, voxelize_room
from hf_any3d.data.scan_frames import ScanFrame
from hf_any3d.modeling.spatiallm import Box, Layout, Wall
from tests.errors import raises

BINS = 64
EDGE = 0.5  # 32 m in 64 bins


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray]:
    """Points of a room around no round number, many in some cells, and their colors."""
    generator = np.random.default_rng(0)
    points = np.concatenate([generator.uniform(-3, 4, (60, 3)), generator.normal(1, 0.2, (40, 3))]) + [0.123, 5, -7]
    return points, generator.integers(0, 256, (100, 3)).astype(np.float64)


def cells_of(points: np.ndarray) -> dict[tuple[int, ...], list[int]]:
    """The points of each cell, in the order of the released program's hash."""
    found: dict[tuple[int, ...], list[int]] = {}
    for number, point in enumerate(points - points.min(axis=0)):
        found.setdefault(tuple(min(int(value // EDGE), BINS - 1) for value in point), []).append(number)

    def key(cell: tuple[int, ...]) -> int:
        value = 14695981039346656037
        for number in cell:
            value = (value * 1099511628211) % 2**64 ^ number
        return value

    return {cell: found[cell] for cell in sorted(found, key=key)}


@pytest.mark.parametrize("draws", ["middle", "generator", "numbers"])
def test_of_each_cell_one_point_is_kept(scan, draws):
    points, colors = scan
    cells = cells_of(points)
    most = max(map(len, cells.values()))
    assert most > 3 and len(cells) > 30
    drawn = np.random.default_rng(3).integers(0, most, len(cells))
    given, numbers = {
        "middle": (None, [most // 2] * len(cells)),
        "generator": (np.random.default_rng(3), drawn),
        "numbers": (drawn + 2, drawn + 2),
    }[draws]
    room = voxelize_room(points, colors, BINS, given)
    index = [own[number % len(own)] for own, number in zip(cells.values(), numbers, strict=True)]
    assert room.index.tolist() == index
    np.testing.assert_array_equal(room.grid_coord, list(cells))
    np.testing.assert_array_equal(room.corner, points.min(axis=0))
    expected = np.concatenate([points - points.min(axis=0), colors / 127.5 - 1], axis=1)[index]
    np.testing.assert_allclose(room.points, expected, atol=1e-12)
    for number, own in enumerate(cells.values()):
        assert (room.inverse[own] == number).all()
    assert len(room.inverse) == len(points) and room.frame is None and room.offset is None
    assert room.count_tokens(3) == len({tuple(value // 3 for value in cell) for cell in cells})


def test_without_colors_voxels_are_black_and_beyond_the_last_cell_all_is_in_it():
    room = voxelize_room(np.array([[0.0, 0, 0], [100, 0.75, 31.9], [200, 0.75, 40]]), None, BINS)
    assert room.points[:, 3:].tolist() == [[-1, -1, -1]] * 2
    assert sorted(map(tuple, room.grid_coord.tolist())) == [(0, 0, 0), (63, 1, 63)]


def test_voxels_far_from_all_others_are_removed(scan):
    points, colors = scan
    points = np.concatenate([points, [[40.0, 40, 40]]])
    colors = np.concatenate([colors, [[1.0, 2, 3]]])
    found, found_colors = clean_room(points, colors, 0.5)
    cells: dict[tuple[int, ...], list[int]] = {}
    for number, point in enumerate(points - points.min(axis=0) + 0.25):
        cells.setdefault(tuple((point // 0.5).astype(int).tolist()), []).append(number)
    means = np.array([points[cells[cell]].mean(axis=0) for cell in sorted(cells)])
    mean_colors = np.array([colors[cells[cell]].mean(axis=0) for cell in sorted(cells)])
    own = np.sort(np.linalg.norm(means[:, None] - means, axis=-1), axis=1)[:, :15].mean(axis=1)
    kept = own < own.mean() + 2 * own.std(ddof=1)
    assert 0 < (~kept).sum() < len(kept) / 4 and not kept[-1]
    np.testing.assert_allclose(found, means[kept], atol=1e-12)
    np.testing.assert_allclose(found_colors, mean_colors[kept], atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_voxels_all_stay(count):
    points = np.eye(3)[:count] * 5
    found, colors = clean_room(points, points * 2, 0.5)
    assert sorted(map(tuple, found)) == sorted(map(tuple, points)) and (colors == found * 2).all()


LAYOUT = Layout(
    (Wall(0, 1.0, 2.0, 0.5, 4.0, 2.0, 0.5, 2.5, 0.1),),
    boxes=(Box(0, "bed", 2.0, 3.0, 1.0, 0.25, 1.0, 2.0, 0.5),),
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

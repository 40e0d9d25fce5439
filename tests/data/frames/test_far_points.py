"""Points far from all others of a place: which they are, and that no sound scan has any."""

from pathlib import Path

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData, read_point_cloud
from hf_any3d.data.frames.far_points import find_far_points, without_far_points

REAL = next((path for up in Path(__file__).parents if (path := up / "shared/data/real").is_dir()), Path("none"))
CORNER = np.array([500_000.0, 5_000_000.0, 300.0])


def ground(width=60.0, count=4000, seed=0, depth=None, height=4.0):
    """Points of a place at map coordinates, on a gentle slope."""
    generator = np.random.default_rng(seed)
    flat = generator.uniform(0, 1, (count, 2)) * (width, depth or width)
    return np.column_stack([flat, height * flat[:, 0] / width]).round(2) + CORNER


def group(count, place, spread=0.0, seed=1):
    return np.random.default_rng(seed).normal(0, spread, (count, 3)).round(2) + place


FAR = {
    "a zero": np.zeros((1, 3)),
    "zeros, a third of all": np.zeros((2000, 3)),
    "more zeros than points": np.zeros((9000, 3)),
    "zero in x alone": np.array([[0, CORNER[1], CORNER[2]]]),
    "a sentinel in z": np.array([[*CORNER[:2], -9999.0]]),
    "a huge sentinel": np.full((3, 3), 1e30),
    "negative ones": np.full((2, 3), -1e10),
    "a small group": group(20, CORNER + (9000, 0, 0), 3.0),
    "a lone one within some kilometers": (CORNER + (0, -2500, 0))[None],
    "a cloud in the sky": group(15, CORNER + (30, 30, 6000), 10.0),
    "scattered ones": np.random.default_rng(3).uniform(-1e8, 1e8, (60, 3)).round(2),
    "two kinds": np.concatenate([np.zeros((500, 3)), np.full((1, 3), -9999.0)]),
}


@pytest.mark.parametrize("unit", [1.0, 0.3048, None])
@pytest.mark.parametrize("name", FAR)
def test_far_points_are_found_and_the_cloud_without_them_is_that_of_the_file_without_them(name, unit):
    place = ground()
    order = np.random.default_rng(2).permutation(len(place) + len(FAR[name]))
    points = np.concatenate([place, FAR[name]])[order]
    intensity = np.arange(len(points), dtype=np.float32)
    cloud = PointCloudData(points, intensity=intensity, up_axis="z", meters_per_unit=unit)
    far = find_far_points(cloud)
    is_far = order >= len(place)
    assert far is not None and np.array_equal(far.is_far, is_far)
    first = points[is_far.argmax()]
    for words in (f"{is_far.sum():,} point", ", ".join(f"{value:.12g}" for value in first), "from all others"):
        assert words in str(far)
    near = without_far_points(cloud, far)
    alone = PointCloudData(points[~is_far], up_axis="z", meters_per_unit=unit)
    assert np.array_equal(near.points, alone.points) and near.points.dtype == alone.points.dtype
    assert np.array_equal(near.offset, alone.offset) and near.up_axis == "z" and near.meters_per_unit == unit
    assert np.array_equal(near.intensity, intensity[~is_far])
    assert np.array_equal(far.spread(near.intensity, -1)[~is_far], near.intensity)
    assert find_far_points(near) is None


SOUND = {
    "a tile": ground(),
    "two strips with a gap": np.concatenate([ground(60, depth=900), ground(60, depth=900, seed=1) + (3000, 0, 0)]),
    "two places": np.concatenate([ground(), ground(seed=1) + (400_000, 0, 0)]),
    "a mountain": ground(900, height=2500.0),
    "a rock off a corner of land": np.concatenate([ground(100), group(20, CORNER + (900, 300, 0), 4.0)]),
    "an island off a town": np.concatenate([ground(1000, 20_000), group(40, CORNER + (1900, 500, 0), 9.0)]),
    "returns on a lake": np.concatenate([ground(200), CORNER + np.arange(1, 8)[:, None] * (180.0, 60.0, 0.0)]),
    "a bird": np.concatenate([ground(), (CORNER + (30, 30, 180))[None]]),
    "a mast": np.concatenate([ground(), CORNER + np.arange(0, 800, 9.0)[:, None] * (0, 0, 1.0)]),
    "an overview of a country": np.random.default_rng(0).uniform(0, 3e5, (400, 3)) * (1, 1, 0.01),
    "points of a grid of 2 km": np.stack(np.meshgrid(np.arange(9), np.arange(9), [0]), -1).reshape(-1, 3) * 2000.0,
    "one place": np.full((50, 3), 7.0),
    "two points": np.array([[0.0, 0, 0], [1e6, 0, 0]]),
    "a room": np.random.default_rng(0).uniform(0, 5, (500, 3)),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_scans_have_none(name):
    assert find_far_points(PointCloudData(SOUND[name], up_axis="z")) is None


def real_files():
    return sorted(path for path in REAL.glob("*/*") if path.suffix in (".las", ".laz", ".ply", ".pcd", ".e57"))


@pytest.mark.skipif(not REAL.is_dir(), reason="real scans are not at hand")
@pytest.mark.filterwarnings("ignore")
def test_real_scans_have_none():
    for path in real_files():
        assert find_far_points(read_point_cloud(path, on_invalid="drop")) is None, path.name


def test_meshes_and_degrees_are_left_alone():
    points = np.concatenate([ground(), np.zeros((1, 3))])
    assert find_far_points(PointCloudData(points, faces=np.array([[0, 1, 2]]))) is None
    assert find_far_points(PointCloudData(points, in_degrees=True)) is None

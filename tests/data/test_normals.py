"""Estimated normals: within degrees of the true ones, to the side from which a cloud was seen."""

from __future__ import annotations

import struct
import warnings

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData, read_point_cloud
from hf_any3d.data.normals import estimate_normals, with_normals
from tests.data.files.builders import e57, paged, pcd, ptx

GENERATOR = np.random.default_rng(0)
COUNT = 4000


def sphere() -> tuple[np.ndarray, np.ndarray]:
    normals = GENERATOR.normal(size=(COUNT, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return normals * 3 + 100, normals


def box(inwards: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return points on the sides of a box of 6 by 5 by 3, away from its edges."""
    side = GENERATOR.integers(0, 6, COUNT)
    points = GENERATOR.uniform(-0.9, 0.9, (COUNT, 3))
    normals = np.zeros((COUNT, 3))
    axis = side // 2
    sign = side % 2 * 2.0 - 1
    points[np.arange(COUNT), axis] = sign
    normals[np.arange(COUNT), axis] = -sign if inwards else sign
    return points * [3, 2.5, 1.5], normals


def sheet(noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    points = np.c_[GENERATOR.uniform(0, 10, (COUNT, 2)), GENERATOR.normal(0, noise, COUNT)]
    return points, np.tile([0.0, 0, 1], (COUNT, 1))


def angles(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the angles between directions, in degrees; those to opposite sides are above 90."""
    return np.degrees(np.arccos(np.einsum("ij,ij->i", found, true).clip(-1, 1)))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6], ids=["tiny", "meters", "large"])
@pytest.mark.parametrize(
    ("shape", "arguments", "median", "most"),
    [
        (sphere(), {}, 2, 8),
        (box(), {}, 0.1, 46),
        (box(inwards=True), {"up_axis": "z"}, 0.1, 46),
        (sheet(), {"up_axis": "z"}, 0.01, 0.1),
        (sheet(0.02), {"up_axis": "z"}, 4, 20),
    ],
    ids=["sphere", "box", "room", "plane", "noisy sheet"],
)
def test_estimated_normals_are_within_degrees_of_the_true_ones(shape, arguments, median, most, scale):
    points, true = shape
    found, without = estimate_normals((points * scale).astype(np.float32), **arguments)
    assert found.dtype == np.float32 and without == 0
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    wrong = angles(found, true)
    assert np.median(wrong) < median and np.quantile(wrong, 0.995) < most


@pytest.mark.parametrize("axis", "xyz")
def test_normals_of_a_terrain_point_up_whichever_axis_that_is(axis):
    x, y = GENERATOR.uniform(0, 100, (2, COUNT))
    terrain = np.c_[x, y, 8 * np.sin(x / 15) + 5 * np.cos(y / 20)]
    up = "xyz".index(axis)
    points = np.roll(terrain, up - 2, axis=1)
    found, _ = estimate_normals(points, up_axis=axis)
    assert (found[:, up] > 0).all()


@pytest.mark.parametrize("place", [[0.0, 0, 5], [0.0, 0, -5], [30.0, 2, 0.1]])
def test_normals_point_to_the_scanner(place):
    points, _ = sheet()
    found, _ = estimate_normals(points, scanner=np.array(place))
    assert (np.einsum("ij,ij->i", found, place - points) >= 0).all()


def test_each_scan_of_several_has_its_own_scanner():
    points, true = sheet()
    scanner = np.tile([5.0, 5, 4], (COUNT, 1))
    scanner[::2, 2] = -4
    found, _ = estimate_normals(points, scanner=scanner)
    assert (found[::2, 2] < -0.99).all() and (found[1::2, 2] > 0.99).all()


@pytest.mark.parametrize(
    ("points", "without"),
    [
        (np.ones((50, 3)), 50),
        (np.linspace(0, 1, 60)[:, None] * [1, 2, 3], 60),
        (np.array([[0.0, 0, 0], [1, 0, 0]]), 2),
        (np.array([[1e6, 2, 3]]), 1),
        # Each point 30 times, so that its nearest neighbors are itself.
        (np.repeat(sheet()[0][:300], 30, axis=0), 0),
    ],
    ids=["one place", "line", "two points", "one point", "repeated"],
)
@pytest.mark.parametrize("up_axis", [None, "z"])
def test_neighbors_that_span_no_plane_give_unit_normals_and_a_word(points, without, up_axis):
    found, counted = estimate_normals(points, up_axis=up_axis)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert counted == without
    with pytest.warns(UserWarning, match="span no plane" if without else "estimated from 24 neighbors"):
        with_normals(PointCloudData(points.astype(np.float32)), up_axis)


def sweep_around(scanner: np.ndarray) -> np.ndarray:
    """Return points on the ground and on a wall behind, (points, 3), as a scanner sees them."""
    ground = np.c_[GENERATOR.uniform(-4, 4, (300, 2)), np.full(300, -2.0)]
    wall = np.c_[np.full(300, 6.0), GENERATOR.uniform(-5, 5, 300), GENERATOR.uniform(-2, 4, 300)]
    return np.concatenate([ground, wall]) + scanner


def of_e57(place: np.ndarray) -> PointCloudData:
    # The builder writes whole numbers, so that all is a hundred times as large.
    whole = (sweep_around(np.zeros(3)) * 100).astype(int)
    logical = e57([(f"cartesian{axis}", -900, 900, whole[:, n]) for n, axis in enumerate("XYZ")], is_paged=False)
    texts = "".join(
        f'<{axis} type="Float">{value}</{axis}>' for axis, value in zip("xyz", place.tolist(), strict=True)
    )
    pose = f'<pose type="Structure"><translation type="Structure">{texts}</translation></pose>'.encode()
    size = struct.unpack_from("<Q", logical, 32)[0] + len(pose)
    logical = logical[:32] + struct.pack("<Q", size) + logical[40:].replace(b"<points", pose + b"<points")
    return read_point_cloud(paged(logical), file_type="e57")


def of_ptx(place: np.ndarray) -> PointCloudData:
    transform = np.eye(4)
    transform[3, :3] = place
    local = np.c_[sweep_around(np.zeros(3)), np.full(600, 0.5)]
    # Of a scan from elsewhere, all points are on the other side of the ground.
    other = transform + [[0] * 4, [0] * 4, [0] * 4, [100, 0, -5, 0]]
    mirrored = local * [1, 1, -1, 1]
    return read_point_cloud(ptx((local, transform), (mirrored, other)), file_type="ptx")


def of_kitti(_: np.ndarray) -> PointCloudData:
    table = np.c_[sweep_around(np.zeros(3)), GENERATOR.random(600)]
    return read_point_cloud(table.astype("<f4").tobytes(), file_type="kitti")


def of_pcd(place: np.ndarray) -> PointCloudData:
    body = sweep_around(place).astype("<f8").tobytes()
    view = f"{' '.join(map(str, place.tolist()))} 1 0 0 0"
    # An image of a camera that has not moved.
    sizes = {"WIDTH": "300", "HEIGHT": "2", "VIEWPOINT": view}
    return read_point_cloud(pcd("x y z", "8 8 8", "F F F", body, 600, **sizes), file_type="pcd")


@pytest.mark.parametrize("read", [of_e57, of_ptx, of_kitti, of_pcd])
@pytest.mark.parametrize("place", [[0.0, 0, 0], [4.0, -2, 30], [500_000.0, 5_000_000.0, 200]], ids=str)
def test_files_that_know_the_scanner_give_normals_towards_it(read, place):
    cloud = read(np.array(place))
    with pytest.warns(UserWarning, match="to the scanner"):
        found = with_normals(cloud).normals
    assert (found[:300, 2] > 0.99).mean() > 0.9, "the ground is below the scanner"
    assert (found[300:600, 0] < -0.99).mean() > 0.9, "the wall is in front of it"
    if read is of_ptx:
        assert (found[600:900, 2] < -0.99).mean() > 0.9, "what is above another scanner"


def test_an_empty_pose_beside_map_coordinates_is_no_scanner():
    points = sweep_around(np.array([500_000.0, 5_000_000.0, 200]))
    table = np.c_[points, np.full(600, 0.5)]
    assert read_point_cloud(ptx((table, np.eye(4))), file_type="ptx").scanner is None


def test_normals_and_faces_of_a_file_stay(tmp_path):
    points = sheet()[0].astype(np.float32)
    own = PointCloudData(points, normals=np.tile(np.float32([1, 0, 0]), (COUNT, 1)))
    mesh = PointCloudData(points, faces=np.array([[0, 1, 2]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert with_normals(own) is own and with_normals(mesh) is mesh

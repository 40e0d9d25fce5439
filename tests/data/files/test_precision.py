"""No door moves a point by more than half a step of its file: tiles of maps in meters, feet and degrees."""

import io
import warnings

import numpy as np
import pytest

from hf_any3d import load_point_dataset
from hf_any3d.data.files import PointCloudData, PointCloudError, read_point_cloud, write_point_cloud
from hf_any3d.data.files.point_cloud import points_of_integers
from hf_any3d.data.inputs import to_cloud
from tests.cli.conftest import run

from .builders import e57_of_doubles, pcd, ply

# Corner of a tile, decimals of x and y, of z, and units in a meter along x and y, and z; None for no map.
FRAMES = {
    "meters": ((412_345.0, 5_653_210.0, 87.0), 3, 3, 1.0, 1.0),
    "centimeters, near the equator": ((412_345.0, 12_345.0, 87.0), 2, 2, 1.0, 1.0),
    "feet": ((1_312_345.0, 13_653_210.0, 287.0), 3, 3, 3.28084, 3.28084),
    "degrees": ((-74.012345, 40.712345, 12.0), 8, 3, 1 / 111_320, 1.0),
    "geocentric": ((4_075_542.0, 931_737.0, 4_801_629.0), 3, 3, 1.0, None),
    "a local grid": ((0.0, 0.0, 0.0), 3, 3, 1.0, 1.0),
}
EXTENTS = (100, 1_000, 10_000, 100_000)


def tile(frame, extent, count=600):
    """Coordinates (count, 3) in float64, and half a step along each axis (3,)."""
    corner, flat, up, unit, height = FRAMES[frame]
    size = np.array([extent * unit, extent * unit, extent if height is None else 100 * height])
    places = np.random.default_rng(0).random((count, 3)) * size + corner
    places[0], places[1] = corner, corner + size
    return np.column_stack([places[:, :2].round(flat), places[:, 2].round(up)]), np.array(
        [10.0**-flat] * 2 + [10.0**-up]
    ) / 2


def las(xyz, steps):
    import laspy

    header = laspy.LasHeader(point_format=6, version="1.4")
    header.scales, header.offsets = 2 * steps, np.floor(xyz.mean(axis=0))
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = xyz.T
    return cloud


def write(path, xyz, steps):
    """Write coordinates in the way of a format that holds them."""
    doubles = xyz.astype("<f8").tobytes()
    if path.suffix in (".las", ".laz"):
        las(xyz, steps).write(path)
    elif path.suffix == ".txt":
        decimals = np.rint(-np.log10(2 * steps)).astype(int)
        np.savetxt(path, xyz, fmt=[f"%.{number}f" for number in decimals])
    elif path.suffix == ".npy":
        np.save(path, xyz)
    elif path.suffix == ".ply":
        names = "\n".join(f"property double {axis}" for axis in "xyz")
        path.write_bytes(ply(f"element vertex {len(xyz)}\n{names}", doubles))
    elif path.suffix == ".pcd":
        path.write_bytes(pcd("x y z", "8 8 8", "F F F", doubles, len(xyz)))
    else:
        path.write_bytes(
            e57_of_doubles({f"cartesian{axis}": column for axis, column in zip("XYZ", xyz.T, strict=True)})
        )


def moved(cloud, xyz):
    """Return how far any point is from its place, along each axis (3,)."""
    whole = cloud.points.astype(np.float64) + (0 if cloud.offset is None else cloud.offset)
    return np.abs(whole - xyz).max(axis=0)


@pytest.mark.parametrize("ending", ["las", "laz", "txt", "npy", "ply", "pcd", "e57"])
@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("frame", FRAMES)
def test_a_tile_is_read_and_written_within_half_a_step(frame, extent, ending, tmp_path):
    xyz, half = tile(frame, extent)
    write(tmp_path / f"tile.{ending}", xyz, half)
    cloud = read_point_cloud(tmp_path / f"tile.{ending}")
    # One part in a million for the rounding of these sums in float64.
    assert (moved(cloud, xyz) <= half * (1 + 1e-6)).all(), (moved(cloud, xyz), half)
    assert cloud.points.dtype == np.float32 or extent >= 10_000


@pytest.mark.parametrize("ending", ["las", "laz", "txt", "npy", "ply", "pcd", "e57"])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("frame", FRAMES)
def test_points_in_one_place_are_read_and_written_within_half_a_step(frame, count, ending, tmp_path):
    whole, half = tile(frame, 1_000)
    xyz = np.tile(whole[7], (count, 1))
    write(tmp_path / f"tile.{ending}", xyz, half)
    cloud = read_point_cloud(tmp_path / f"tile.{ending}")
    assert (moved(cloud, xyz) <= half * (1 + 1e-6)).all(), (moved(cloud, xyz), half)
    assert cloud.points.dtype == np.float32
    for kind in ("ply", "npz", "obj"):
        write_point_cloud(tmp_path / f"copy.{kind}", cloud)
        copy = read_point_cloud(tmp_path / f"copy.{kind}")
        assert (moved(copy, xyz) <= half * (1 + 1e-6)).all(), kind


@pytest.mark.parametrize("number", [0.1, 2 / 3, 1 / 3 + 5e6])
def test_a_single_place_keeps_numbers_without_decimals_and_needs_no_offset_where_float32_holds_it(number):
    xyz = np.full((2, 3), number)
    cloud = PointCloudData(xyz)
    assert (moved(cloud, xyz) <= max(number * 2.0**-32, 0.05 * (number == 0.1))).all()
    assert PointCloudData(np.full((2, 3), 0.5)).offset is None and PointCloudData(np.zeros((1, 3))).offset is None


@pytest.mark.parametrize("extent", [EXTENTS[0], EXTENTS[-1]])
@pytest.mark.parametrize("frame", FRAMES)
def test_commands_and_rows_keep_a_tile_within_half_a_step(frame, extent, tmp_path):
    xyz, half = tile(frame, extent)
    (tmp_path / "in" / "tiles").mkdir(parents=True)
    write(tmp_path / "in" / "tiles" / "a.las", xyz, half)
    for kind in ("ply", "npz", "obj"):
        target = tmp_path / f"shown.{kind}"
        assert run("show", tmp_path / "in" / "tiles" / "a.las", "--output", target).code == 0
        assert run("data", "convert", tmp_path / "in", "--to", kind, "--output", tmp_path / kind).code == 0
        for path in (target, *(tmp_path / kind).rglob(f"*.{kind}")):
            assert (moved(read_point_cloud(path), xyz) <= half * (1 + 1e-6)).all(), path
    assert run("show", tmp_path / "in", "--output", tmp_path / "a.html").code == 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        row = load_point_dataset("folder", data_dir=tmp_path / "in", columns=["offset"])["train"][0]
    apart = np.abs(row["points"].astype(np.float64) + row["offset"] - xyz).max(axis=0)
    # Rows are float32, which moves no point by a share of the extent that changes a shape.
    assert (apart <= np.maximum(half, 1e-7 * np.ptp(xyz, axis=0).max()) * (1 + 1e-6)).all(), apart
    assert not any("float32" in str(warning.message) for warning in said)


def test_an_offset_that_rows_leave_out_is_said(tmp_path):
    (tmp_path / "tiles").mkdir()
    np.save(tmp_path / "tiles" / "a.npy", tile("meters", 100)[0])
    with pytest.warns(UserWarning, match="relative to an offset, which is lost; add 'offset' to columns"):
        load_point_dataset("folder", data_dir=tmp_path)


def test_coordinates_without_a_step_keep_a_millionth_of_the_extent():
    from hf_any3d.data.files import PointCloudData

    shape = np.random.default_rng(0).random((500, 3))
    for far in (0, 3, 30, 3000):
        cloud = PointCloudData(shape * np.pi + far)
        assert (moved(cloud, shape * np.pi + far) <= 5e-7 * np.pi).all() and cloud.points.dtype == np.float32
        assert (cloud.offset is None) == (far <= 3)


def test_the_order_of_bytes_costs_no_digits():
    xyz, half = tile("meters", 100)
    path = io.BytesIO()
    np.save(path, xyz.astype(">f8"))
    cloud = read_point_cloud(path.getvalue(), file_type="npy")
    assert (moved(cloud, xyz) <= half * (1 + 1e-6)).all()
    swapped, plain = (to_cloud(xyz.astype(order)) for order in (">f8", "<f8"))
    np.testing.assert_array_equal(swapped.points, plain.points)
    np.testing.assert_array_equal(swapped.offset, plain.offset)


@pytest.mark.parametrize(
    ("scale", "offset"),
    [
        (0.001, 0.0),
        (0.01, 6_860_000.0),
        (-0.01, 6_860_000.0),  # numbers fall where integers rise
        (1e-7, 2.0),  # degrees
        (1e-9, 0.0),  # finer than float32 holds of this extent: points stay float64
        (1e300, 0.0),  # beyond float32
        (float("nan"), 0.0),
        (0.0, 5.0),  # all in one place
        (1.0, 0.0),
    ],
)
@pytest.mark.parametrize("spread", [10, 10**5, 2**31 - 1])
def test_integers_that_become_points_in_place_are_those_of_a_cloud_in_double_precision(scale, offset, spread):
    """Both take whatever type and offset the extent needs, and agree in every bit or in their error."""
    integers = np.random.default_rng(0).integers(-spread, spread, (40_000, 3)).astype(np.int32)  # several blocks
    scales = np.array([scale, scale, abs(scale)])
    offsets = np.array([offset, offset, 0.0])
    with np.errstate(all="ignore"):
        exact = integers * scales + offsets
    points, shift = points_of_integers(integers.copy(), scales, offsets)
    expected, error = _cloud_or_error(exact, scales)
    found, other_error = _cloud_or_error(points, scales, offset=shift)
    assert error == other_error
    if expected is not None and found is not None:
        assert found.points.dtype == expected.points.dtype
        assert found.points.tobytes() == expected.points.tobytes()
        np.testing.assert_array_equal(found.offset, expected.offset)


def _cloud_or_error(points, scales, **fields):
    try:
        return PointCloudData(points, step=np.abs(scales), **fields), None
    except PointCloudError as error:
        return None, str(error)

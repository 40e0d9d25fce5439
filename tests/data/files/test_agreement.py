"""Points, extents, colors, normals, intensities and classes are those that other programs read.

Compared with laspy, pye57, plyfile and trimesh, where they are installed, on files that their writers made, files of
this repository and, where a folder shared/data is beside it, scans of other projects.
"""

from pathlib import Path

import numpy as np
import pytest

from hf_any3d.data.files import read_point_cloud

from .builders import las
from .conftest import FILES
from .test_precision import tile

# Next to the checkout, at any height.
_SCANS = next(
    (path for up in Path(__file__).parents if (path := up / "shared/data/real/scans").is_dir()), Path("none")
)


def files(*endings):
    folders = (FILES, _SCANS)
    return sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.suffix in endings)


def assert_same(path, **expected):
    """Compare what is read of a file, with an error in `step` halves of coordinates allowed."""
    cloud = read_point_cloud(path)
    points, step = expected.pop("points"), expected.pop("step", 0)
    whole = cloud.points.astype(np.float64) + (0 if cloud.offset is None else cloud.offset)
    apart = np.abs(whole - points)
    assert (apart.max(axis=0) <= np.maximum(np.broadcast_to(step, 3) / 2, 1e-6 * np.ptp(points, axis=0).max())).all()
    np.testing.assert_allclose(np.ptp(whole, axis=0), np.ptp(points, axis=0), atol=2 * apart.max())
    for name in ("colors", "normals", "intensity", "labels"):
        value = expected.get(name)
        assert (getattr(cloud, name) is None) == (value is None), name
        if value is not None:
            np.testing.assert_allclose(getattr(cloud, name), value, rtol=1e-6, atol=1e-6, err_msg=name)


def assert_as_laspy(path):
    laspy = pytest.importorskip("laspy")
    scan = laspy.read(path)
    colors = None
    if "red" in scan.point_format.dimension_names:
        rgb = np.column_stack([scan.red, scan.green, scan.blue])
        # Some writers fill 8 of the 16 bits.
        colors = rgb / (255 if rgb.max() <= 255 else 65535) if rgb.any() else None
    intensity = np.asarray(scan.intensity)
    assert_same(
        path,
        points=np.asarray(scan.xyz),
        step=scan.header.scales,
        colors=colors,
        intensity=intensity if intensity.any() else None,
        labels=np.asarray(scan.classification),
    )


@pytest.mark.parametrize("path", files(".las", ".laz"), ids=lambda path: path.name)
def test_scans_of_other_projects_are_as_laspy_reads_them(path):
    assert_as_laspy(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("point_format", [0, 1, 2, 3, 6, 7, 8])
def test_files_of_laspy_are_as_it_reads_them(point_format, compressed, tmp_path):
    path = tmp_path / ("a.laz" if compressed else "a.las")
    path.write_bytes(las(compressed, point_format)[1])
    assert_as_laspy(path)


def assert_as_pye57(path):
    pye57 = pytest.importorskip("pye57")
    scans = pye57.E57(str(path))
    parts = [
        scans.read_scan(number, intensity=True, colors=True, ignore_missing_fields=True)
        for number in range(scans.scan_count)
    ]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    colors = None
    if "colorRed" in whole:
        colors = np.column_stack([whole[f"color{name}"] for name in ("Red", "Green", "Blue")]) / 255
    points = np.column_stack([whole[f"cartesian{axis}"] for axis in "XYZ"])
    assert_same(path, points=points, colors=colors, intensity=whole.get("intensity"))


@pytest.mark.parametrize("path", files(".e57"), ids=lambda path: path.name)
def test_scans_of_other_projects_are_as_pye57_reads_them(path):
    assert_as_pye57(path)


@pytest.mark.parametrize("extent", [100, 10_000, 100_000])
def test_scans_written_by_pye57_are_as_it_reads_them(extent, tmp_path):
    pye57 = pytest.importorskip("pye57")
    xyz, _ = tile("meters", extent)
    generator = np.random.default_rng(0)
    fields = {f"cartesian{axis}": column.copy() for axis, column in zip("XYZ", xyz.T, strict=True)}
    fields |= {f"color{name}": generator.integers(0, 256, len(xyz), np.uint8) for name in ("Red", "Green", "Blue")}
    fields["intensity"] = generator.random(len(xyz), np.float32)
    file = pye57.E57(str(tmp_path / "a.e57"), mode="w")
    file.write_scan_raw(fields)
    file.close()
    assert_as_pye57(tmp_path / "a.e57")


def assert_as_plyfile(path):
    plyfile = pytest.importorskip("plyfile")
    vertices = plyfile.PlyData.read(path)["vertex"].data
    names = vertices.dtype.names

    def columns(*wanted):
        if not set(wanted) <= set(names):
            return None
        return np.column_stack([vertices[name].astype(np.float64) for name in wanted])

    colors = columns("red", "green", "blue")
    assert_same(
        path,
        points=columns("x", "y", "z"),
        step=0.001 if vertices["x"].dtype == np.float64 else 0,
        colors=None if colors is None else colors / 255,
        normals=columns("nx", "ny", "nz"),
        intensity=None if "intensity" not in names else vertices["intensity"],
        labels=None if "label" not in names else vertices["label"],
    )


@pytest.mark.parametrize("path", files(".ply"), ids=lambda path: path.name)
def test_files_are_as_plyfile_reads_them(path):
    assert_as_plyfile(path)


@pytest.mark.parametrize("is_text", [False, True])
@pytest.mark.parametrize("extent", [100, 10_000, 100_000])
def test_files_written_by_plyfile_are_as_it_reads_them(extent, is_text, tmp_path):
    plyfile = pytest.importorskip("plyfile")
    xyz, _ = tile("meters", extent)
    generator = np.random.default_rng(0)
    kinds = [("x", "f8"), ("y", "f8"), ("z", "f8"), ("nx", "f4"), ("ny", "f4"), ("nz", "f4")]
    kinds += [("red", "u1"), ("green", "u1"), ("blue", "u1"), ("intensity", "f4"), ("label", "i4")]
    rows = np.empty(len(xyz), kinds)
    for axis, column in zip("xyz", xyz.T, strict=True):
        rows[axis], rows[f"n{axis}"] = column, generator.normal(size=len(xyz))
    for name in ("red", "green", "blue", "label"):
        rows[name] = generator.integers(0, 256, len(xyz))
    rows["intensity"] = generator.random(len(xyz))
    plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")], text=is_text).write(tmp_path / "a.ply")
    assert_as_plyfile(tmp_path / "a.ply")

"""Paths, bytes and file objects, file types by signature, and the name in every error."""

import io

import numpy as np
import pytest

from hf_any3d.data.files import (
    PointCloudData,
    PointCloudFileError,
    file_type_of,
    point_cloud_bytes,
    read_point_cloud,
    supported_file_types,
)
from tests.data.files.conftest import FILES
from tests.errors import raises


def test_a_path_bytes_and_a_file_object_give_the_same(files):
    path = files / "chair.ply"
    expected = read_point_cloud(path).points
    with open(path, "rb") as file:
        for source, kind in ((str(path), None), (path.read_bytes(), "ply"), (bytearray(path.read_bytes()), ".PLY")):
            assert (read_point_cloud(source, file_type=kind).points == expected).all()
        assert (read_point_cloud(file).points == expected).all()
    assert (read_point_cloud(io.BytesIO(path.read_bytes()), file_type="ply").points == expected).all()


def test_endings_may_be_upper_case_and_file_type_overrides_them(tmp_path):
    (tmp_path / "A.XYZ").write_text("1 2 3\n")
    (tmp_path / "b.dat").write_text("1 2 3\n")
    assert len(read_point_cloud(tmp_path / "A.XYZ")) == len(read_point_cloud(tmp_path / "b.dat", file_type="xyz")) == 1


@pytest.mark.parametrize("kind", supported_file_types())
def test_an_empty_file_is_one_clear_error_in_every_type(kind, tmp_path):
    path = tmp_path / f"nothing.{kind}"
    path.touch()
    with pytest.raises(PointCloudFileError):
        read_point_cloud(path)


def test_inputs_that_are_not_files_are_explained(tmp_path):
    (tmp_path / "folder.ply").mkdir()
    pointer = tmp_path / "pointer.ply"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    for source in (
        tmp_path,
        tmp_path / "folder.ply",
        tmp_path / "missing.ply",
        "https://example.org/chair.ply",
        tmp_path / "chair.fbx",
        tmp_path / "chair",
        pointer,
        b"ply",
        "nul\0.ply",
    ):
        with pytest.raises(PointCloudFileError):
            read_point_cloud(source)
    # The caller's slip, and no damaged file
    with raises(ValueError, naming="'rb'"):
        read_point_cloud(io.StringIO("1 2 3"), file_type="xyz")
    with pytest.raises(PointCloudFileError):
        read_point_cloud(b"1 2 3", file_type="fbx")
    with raises(TypeError, naming="list"):
        read_point_cloud([1, 2, 3])


SILENT = {"obj", "xyz", "pts", "txt"}


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.iterdir() if path.suffix not in (".md", ".mtl")))
def test_bytes_give_the_type_of_their_file_or_none(name):
    file_type = name.rpartition(".")[2]
    assert file_type_of((FILES / name).read_bytes()) == (None if file_type in SILENT else file_type)


@pytest.mark.parametrize(
    ("data", "file_type"),
    [
        (b"COFF\n3 1 0\n", "off"),
        (b"noff 3 1 0\n", "off"),
        (b"CNOFF\n3 1 0\n", "off"),
        (b"\nOFF216 254 0\n", "off"),
        (b"ply \r\nformat", "ply"),
        (b"#.PCD v0.7\n", "pcd"),
        (b"FIELDS x y z\n", "pcd"),
        (b"solid\nfacet normal", "stl"),
    ],
)
def test_types_are_known_by_all_ways_to_begin_a_file(data, file_type):
    assert file_type_of(data) == file_type


@pytest.mark.parametrize("data", [b"", b"\0" * 83, b"\0" * 84 + b"x", b"v 0 0 0", b"Office furniture"])
def test_other_bytes_have_no_type(data):
    assert file_type_of(data) is None


@pytest.mark.parametrize("file_type", ["ply", "npz"])
def test_clouds_become_bytes_with_a_signature(file_type):
    data = point_cloud_bytes(PointCloudData([[1.0, 2.0, 3.0]], labels=[7]), file_type)
    assert file_type_of(data) == file_type
    cloud = read_point_cloud(data, file_type=file_type)
    assert cloud.points.tolist() == [[1, 2, 3]] and cloud.labels.tolist() == [7]


def test_invalid_points_are_left_out_on_request_with_a_warning_that_counts_them(tmp_path):
    points = np.random.default_rng(0).normal(size=(6, 3))
    points[[1, 4], [0, 2]] = np.nan, np.inf
    np.save(tmp_path / "scan.npy", points)
    with pytest.raises(PointCloudFileError):
        read_point_cloud(tmp_path / "scan.npy")
    with pytest.warns(UserWarning, match="scan.npy: 2 of 6 points have NaN or infinite coordinates"):
        cloud = read_point_cloud(tmp_path / "scan.npy", on_invalid="drop")
    np.testing.assert_array_equal(cloud.points, points[[0, 2, 3, 5]].astype(np.float32))
    with raises(ValueError, naming="on_invalid"):
        read_point_cloud(tmp_path / "scan.npy", on_invalid="skip")

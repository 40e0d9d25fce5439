"""COLMAP: points of a sparse model by its files' names and contents."""

from pathlib import Path

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, file_type_of, read_point_cloud
from hf_any3d.data.files.input_files import list_files

from .builders import COLMAP_COLORS, COLMAP_POINTS, colmap_binary, colmap_text, sweep

LEFT_OUT = "ignored: point ids, reprojection errors, tracks"


def read(path, **options):
    with pytest.warns(UserWarning, match=LEFT_OUT):
        return read_point_cloud(path, **options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("points3D.txt", colmap_text()),
        ("sparse.txt", colmap_text()),
        ("points3D.txt", colmap_text(titled=False)),
        ("points3D.bin", colmap_binary()),
        ("sparse.bin", colmap_binary()),
    ],
)
def test_points_and_colors_are_those_written(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    cloud = read(tmp_path / name)
    points = cloud.points.astype(np.float64) + (0 if cloud.offset is None else cloud.offset)
    np.testing.assert_allclose(points, COLMAP_POINTS, atol=5e-4)
    assert (np.rint(cloud.colors * 255) == COLMAP_COLORS).all()
    assert cloud.up_axis is None and cloud.meters_per_unit is None
    assert len(read(content, file_type="colmap")) == 3


def test_a_table_and_a_sweep_of_their_endings_stay_what_they_are(tmp_path):
    (tmp_path / "points3D.txt").write_text("1 2 3\n4 5 6\n7 8 10\n")
    assert read_point_cloud(tmp_path / "points3D.txt").points[2].tolist() == [7, 8, 10]
    (tmp_path / "a.bin").write_bytes(sweep(4, 41))
    assert len(read_point_cloud(tmp_path / "a.bin")) == 41
    assert file_type_of(colmap_text()) == file_type_of(colmap_binary()) == "colmap"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("points3D.bin", colmap_binary()[:-5]),
        ("points3D.bin", (10**6).to_bytes(8, "little") + colmap_binary()[8:]),
        ("points3D.bin", colmap_binary()[:51] + (10**6).to_bytes(8, "little") + colmap_binary()[59:]),
        ("points3D.txt", colmap_text().replace(b"points: 3", b"points: 4")),
        ("points3D.txt", colmap_text().replace(b"255 0 10", b"256 0 10")),
        ("points3D.txt", colmap_text()[:-40]),
    ],
)
def test_a_file_that_is_cut_off_or_wrong_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PointCloudFileError) as caught:
        read_point_cloud(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_folder_of_a_sparse_model_is_one_cloud(tmp_path):
    """Cameras and images beside the points hold none."""
    for name in ("cameras.bin", "images.bin", "frames.bin", "rigs.bin", "images.txt", "points3D.bin", "points3D.txt"):
        (tmp_path / name).write_bytes(colmap_binary())
    assert [Path(file).name for file in list_files(tmp_path)] == ["points3D.bin", "points3D.txt"]

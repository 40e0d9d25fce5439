import os

import numpy as np
import pytest
import trimesh

from hf_any3d.data.files import PointCloudData, PointCloudFileError, read_point_cloud, write_point_cloud

from .builders import SQUARE, TRIANGLES

FULL = PointCloudData(
    SQUARE, SQUARE / 2, np.tile([0, 0, 1], (4, 1)), [3, 2, 1, 0], TRIANGLES, [[1, 0, 0.25], [0, 0.5, 1]]
)


@pytest.mark.parametrize("kind", ["ply", "obj", "npz"])
@pytest.mark.parametrize("data", [PointCloudData(SQUARE), FULL], ids=["points", "everything"])
def test_what_is_written_is_read_back(kind, data, tmp_path):
    path = tmp_path / f"square.{kind}"
    write_point_cloud(path, data)
    back = read_point_cloud(path)
    for name, value in vars(data).items():
        if value is None or (kind == "obj" and name in ("labels", "face_colors")):
            assert getattr(back, name) is None
        elif "colors" in name and kind == "ply":
            np.testing.assert_allclose(getattr(back, name), value, atol=0.5 / 255 + 1e-6)
        else:
            assert (getattr(back, name) == value).all(), name
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("kind", ["ply", "obj", "npz"])
def test_the_offset_of_far_clouds_is_kept(kind, tmp_path):
    far = SQUARE.astype(np.float64) + [5e5, 5e6, 0.125]
    write_point_cloud(tmp_path / f"far.{kind}", PointCloudData(far))
    back = read_point_cloud(tmp_path / f"far.{kind}")
    assert (back.points + back.offset == far).all()


@pytest.mark.parametrize("kind", ["ply", "obj"])
def test_another_program_reads_what_is_written(kind, tmp_path):
    write_point_cloud(tmp_path / f"square.{kind}", FULL)
    mesh = trimesh.load(tmp_path / f"square.{kind}", process=False, maintain_order=True)
    assert (mesh.vertices == SQUARE).all() and (mesh.faces == TRIANGLES).all()


def test_our_reader_reads_the_ply_of_another_program(tmp_path):
    trimesh.Trimesh(SQUARE, TRIANGLES, process=False).export(tmp_path / "square.ply")
    assert (read_point_cloud(tmp_path / "square.ply").faces == TRIANGLES).all()


def test_coordinates_of_obj_keep_all_digits_and_points_are_elements(tmp_path):
    points = np.random.default_rng(0).normal(size=(70_000, 3)).astype(np.float32)
    write_point_cloud(tmp_path / "cloud.obj", PointCloudData(points))
    assert (read_point_cloud(tmp_path / "cloud.obj").points == points).all()
    assert (tmp_path / "cloud.obj").read_text().splitlines()[-1] == "p 70000"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "square.ply"
    write_point_cloud(path, FULL)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="do not fit PLY's 32 bits"):
        write_point_cloud(path, PointCloudData(SQUARE, labels=np.full(4, 2**40)))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["square.ply"]


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(PointCloudFileError, match="file type '.stl'; expected one of .ply, .obj, .npz"):
        write_point_cloud(tmp_path / "square.stl", FULL)

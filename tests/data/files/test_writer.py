import os

import numpy as np
import pytest
import trimesh

from hf_any3d.data.files import PointCloudData, read_point_cloud, write_point_cloud
from tests.errors import raises

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


@pytest.mark.slow
def test_coordinates_of_obj_keep_all_digits_and_points_are_elements(tmp_path):
    points = np.random.default_rng(0).normal(size=(70_000, 3)).astype(np.float32)
    write_point_cloud(tmp_path / "cloud.obj", PointCloudData(points))
    assert (read_point_cloud(tmp_path / "cloud.obj").points == points).all()
    assert (tmp_path / "cloud.obj").read_text().splitlines()[-1] == "p 70000"


EVERY = PointCloudData(
    SQUARE,
    SQUARE / 2,
    np.tile([0, 0.6, 0.8], (4, 1)),
    [3, -2, 1, 70000],
    TRIANGLES,
    [[1, 0, 0.25], [0, 0.5, 1]],
    intensity=[0.5, 1, 2, 4],
    ring=[7, 8, 9, 31],
)


def test_an_obj_names_normals_by_the_numbers_of_their_vertices(tmp_path):
    write_point_cloud(tmp_path / "a.obj", EVERY)
    lines = (tmp_path / "a.obj").read_text().splitlines()
    assert lines[:4] == ["v 0 0 0 0 0 0", "v 2 0 0 1 0 0", "v 2 1 0 1 0.5 0", "v 0 1 0 0 0.5 0"]
    assert lines[4:8] == ["vn 0 0.600000024 0.800000012"] * 4
    assert lines[8:] == ["f 1//1 2//2 3//3", "f 1//1 3//3 4//4"]
    write_point_cloud(tmp_path / "a.obj", PointCloudData(SQUARE, faces=TRIANGLES))
    assert (tmp_path / "a.obj").read_text().splitlines()[4:] == ["f 1 2 3", "f 1 3 4"]
    write_point_cloud(tmp_path / "a.obj", PointCloudData(SQUARE, faces=np.zeros((0, 3), int)))
    assert (tmp_path / "a.obj").read_text().splitlines()[4:] == ["p 1", "p 2", "p 3", "p 4"]


@pytest.mark.parametrize("label", [2**31 - 1, -(2**31), 2**31, -(2**31) - 1])
def test_labels_of_a_ply_have_32_bits(label, tmp_path):
    cloud = PointCloudData(SQUARE, labels=[0, 1, 2, label])
    if -(2**31) <= label < 2**31:
        write_point_cloud(tmp_path / "a.ply", cloud)
        assert read_point_cloud(tmp_path / "a.ply").labels.tolist() == [0, 1, 2, label]
    else:
        with raises(ValueError, naming="do not fit PLY's"):
            write_point_cloud(tmp_path / "a.ply", cloud)

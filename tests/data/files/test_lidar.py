"""Sweeps of KITTI and nuScenes: told apart by type, name, size and numbers, or refused with the choices."""

import numpy as np
import pytest

from hf_any3d import PointCloudProcessor
from hf_any3d.data.files import PointCloudData, PointCloudFileError, read_point_cloud, write_point_cloud
from hf_any3d.data.files.lidar import without_buffers
from hf_any3d.many_files.files import list_files

from .builders import sweep, sweep_rows


@pytest.mark.parametrize("count", [3, 20, 41])
@pytest.mark.parametrize(("columns", "kind"), [(4, "kitti"), (5, "nuscenes")])
def test_coordinates_and_intensities_are_those_written(columns, kind, count, tmp_path):
    path = tmp_path / "000000.bin"
    path.write_bytes(sweep(columns, count))
    rows = sweep_rows(columns, count)
    for given in (None, kind):
        cloud = read_point_cloud(path, file_type=given)
        np.testing.assert_array_equal(cloud.points, rows[:, :3])
        np.testing.assert_array_equal(cloud.intensity, rows[:, 3])
        np.testing.assert_array_equal(cloud.ring, rows[:, 4] if columns == 5 else None)
        assert cloud.up_axis == "z"


def test_a_file_that_could_be_both_names_the_choices_and_an_option_or_the_name_decides(tmp_path):
    rows = np.ones((20, 5), "<f4")  # as rows of four, all numbers are ones too
    (tmp_path / "sweep.bin").write_bytes(rows.tobytes())
    with pytest.raises(
        PointCloudFileError, match="sweep.bin: 400 bytes that look of both kinds; pass file_type="
    ) as no:
        read_point_cloud(tmp_path / "sweep.bin")
    assert 'file_type="kitti" (x y z intensity)' in str(no.value) and '"nuscenes" (x y z intensity ring)' in str(
        no.value
    )
    assert len(read_point_cloud(tmp_path / "sweep.bin", file_type="kitti")) == 25
    assert len(read_point_cloud(tmp_path / "sweep.bin", file_type="nuscenes")) == 20
    (tmp_path / "sweep.bin").rename(tmp_path / "sweep.pcd.bin")
    assert len(read_point_cloud(tmp_path / "sweep.pcd.bin")) == 20


def test_other_tables_of_floats_are_refused():
    colored = np.random.default_rng(0).normal(size=(8, 6)).astype("<f4").tobytes()  # fits rows of four by its size
    with pytest.raises(PointCloudFileError, match="192 bytes that look not of rows of 4 numbers; pass file_type="):
        read_point_cloud(colored, file_type="bin")
    with pytest.raises(PointCloudFileError, match="33 bytes; expected rows of 16 or 20, so the file may be cut off"):
        read_point_cloud(bytes(33), file_type="bin")
    for kind, row in (("kitti", 16), ("nuscenes", 20)):
        with pytest.raises(PointCloudFileError, match=rf"33 bytes; expected rows of {row} \(. float32\)"):
            read_point_cloud(bytes(33), file_type=kind)


@pytest.mark.parametrize("columns", [4, 5])
def test_intensities_and_rings_reach_the_model_and_a_written_file(columns, tmp_path):
    (tmp_path / "a.bin").write_bytes(sweep(columns, 41))
    features = ["xyz", "intensity", "ring"][: columns - 2]
    processor = PointCloudProcessor(num_points=41, features=features, center=False, scale=None)
    made = processor(tmp_path / "a.bin")["points"][0].numpy()
    np.testing.assert_array_equal(made, sweep_rows(columns, 41))
    for ending in ("ply", "npz"):
        write_point_cloud(tmp_path / f"a.{ending}", read_point_cloud(tmp_path / "a.bin"))
        again = read_point_cloud(tmp_path / f"a.{ending}")
        np.testing.assert_array_equal(again.intensity, made[:, 3])
        np.testing.assert_array_equal(again.ring, made[:, 4] if columns == 5 else None)


def test_rings_that_are_missing_or_no_numbers_are_errors(tmp_path):
    (tmp_path / "a.bin").write_bytes(sweep(4, 41))
    with pytest.raises(ValueError, match="no ring; the processor needs them, since its features are"):
        PointCloudProcessor(features=["xyz", "ring"])(tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"ring has shape \(3,\) and type .*; expected \(41,\) numbers"):
        PointCloudData(sweep_rows(5, 41)[:, :3], ring=np.arange(3))
    with pytest.raises(ValueError, match="ring has NaN or infinite values"):
        PointCloudData(sweep_rows(5, 41)[:, :3], ring=np.full(41, np.nan))


def test_buffers_of_gltf_are_no_clouds_of_a_folder(tmp_path):
    assert without_buffers(["a/x.gltf", "a/x.bin", "b/y.bin", "z.bin"]) == ["a/x.gltf", "b/y.bin", "z.bin"]
    (tmp_path / "mesh").mkdir()
    for name in ("mesh/x.gltf", "mesh/x.bin", "y.bin"):
        (tmp_path / name).write_bytes(b"0")
    assert [file.removeprefix(f"{tmp_path}/") for file in list_files(tmp_path)] == ["mesh/x.gltf", "y.bin"]


def test_rows_without_coordinates_are_refused_or_left_out():
    with pytest.raises(PointCloudFileError, match="NaN"):
        read_point_cloud(np.array([[0, 0, np.nan, 1]] * 3, "<f4").tobytes(), file_type="kitti")
    with pytest.warns(UserWarning, match="1 of 3 points"):
        rows = np.ones((3, 4), "<f4")
        rows[1, 0] = np.inf
        cloud: PointCloudData = read_point_cloud(rows.tobytes(), file_type="kitti", on_invalid="drop")
    assert len(cloud) == len(cloud.intensity) == 2
    rows = np.column_stack([np.ones((3, 4)), [4, 5, 6]]).astype("<f4")
    rows[1, 0] = np.inf
    with pytest.warns(UserWarning, match="1 of 3 points"):
        assert read_point_cloud(rows.tobytes(), file_type="nuscenes", on_invalid="drop").ring.tolist() == [4, 6]

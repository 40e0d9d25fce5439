"""Sweeps of KITTI and nuScenes: told apart by type, name, size and numbers, or refused with the choices."""

import json

import numpy as np
import pytest

from hf_any3d import PointCloudProcessor
from hf_any3d.data.files import PointCloudData, PointCloudFileError, read_point_cloud, write_point_cloud
from hf_any3d.data.files.companions import without_companions
from hf_any3d.data.files.input_files import list_files
from tests.cli.conftest import run

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


def _rows(*columns):
    return np.column_stack(columns).astype("<f4").tobytes()


_ROOM = sweep_rows(4, 240)[:, :3].astype(np.float64)
_DRAW = np.random.default_rng(3)
OTHERS = {
    "six columns of a colored room, from its corner": _rows(_ROOM - _ROOM.min(0), _DRAW.integers(0, 256, (240, 3))),
    "six columns of a colored room, around its middle": _rows(_ROOM, _DRAW.random((240, 3))),
    "six columns, the last one a time": _rows(_ROOM, _DRAW.random((240, 2)), np.full(240, 1.5e15)),
    "coordinates and a color packed in a float": _rows(_ROOM, _DRAW.integers(1, 1 << 24, 240, "u4").view("f4")),
    "32 bytes of a point with padding": _rows(_ROOM, np.ones(240), _DRAW.random(240), np.zeros((240, 3))),
    "three columns": _rows(_ROOM),
    "three columns in the unit cube": _rows(_DRAW.random((240, 3))),
    "labels of int64": _DRAW.integers(0, 13, 240).tobytes(),
    "labels of int32": _DRAW.integers(0, 260, 240).astype("i4").tobytes(),
    "labels of uint8": _DRAW.integers(0, 20, 240).astype("u1").tobytes(),
    "coordinates in float64": _ROOM.tobytes(),
    "whole coordinates in float64": np.rint(_ROOM).tobytes(),
    "coordinates in float16": np.column_stack([_ROOM, _DRAW.random(240)]).astype("f2").tobytes(),
    "coordinates of a map": _rows(_ROOM + [4e5, 5e6, 0], _DRAW.random(240)),
    "millimeters": _rows(1000 * _ROOM, _DRAW.random(240)),
    "intensities of 12 bits": _rows(_ROOM, _DRAW.integers(0, 4096, 240)),
    "an image": _DRAW.integers(0, 256, 4800).astype("u1").tobytes(),
    "zeros": bytes(4800),
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_what_may_be_no_sweep_is_refused_with_the_ways_to_say_what_it_is(content, tmp_path):
    (tmp_path / "0.bin").write_bytes(content)
    with pytest.raises(PointCloudFileError) as refusal:
        read_point_cloud(tmp_path / "0.bin")
    said = ("0.bin: ", 'file_type="kitti" (x y z intensity)', 'file_type="nuscenes" (x y z intensity ring)')
    assert all(text in str(refusal.value) for text in (*said, ".kitti.bin or .nuscenes.bin", "an array"))


def test_a_file_type_or_the_name_says_what_a_file_is(tmp_path):
    (tmp_path / "0.bin").write_bytes(np.ones((20, 5), "<f4").tobytes())
    for kind, count in (("kitti", 25), ("nuscenes", 20)):
        assert len(read_point_cloud(tmp_path / "0.bin", file_type=kind)) == count
        code, out, _ = run("data", "check", tmp_path, "--file-type", kind, "--json")
        assert code == 0 and json.loads(out)[0]["points"] == count
        (tmp_path / f"0.{kind}.bin").write_bytes((tmp_path / "0.bin").read_bytes())
        assert len(read_point_cloud(tmp_path / f"0.{kind}.bin")) == count
        (tmp_path / f"0.{kind}.bin").unlink()
    (tmp_path / "0.bin").rename(tmp_path / "0.pcd.bin")
    assert len(read_point_cloud(tmp_path / "0.pcd.bin")) == 20


def _ordered_sweep(beams: int, turns: int, by_beam: bool) -> np.ndarray:
    """Rows of a scanner 1.8 m above the ground between two walls, by beam as in KITTI or by direction."""
    elevation, azimuth = np.meshgrid(np.linspace(-0.43, 0.05, beams), np.linspace(0, 2 * np.pi, turns), indexing="ij")
    reach = np.minimum(1.8 / np.maximum(-np.sin(elevation), 0.02), 8 / np.maximum(np.abs(np.sin(azimuth)), 0.1))
    flat = reach * np.cos(elevation)
    xyz = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), reach * np.sin(elevation)], axis=-1)
    ring = np.broadcast_to(np.arange(beams)[:, None], elevation.shape)
    rows = np.concatenate([xyz, ring[..., None]], axis=-1)
    return (rows if by_beam else rows.swapaxes(0, 1)).reshape(-1, 4)


@pytest.mark.parametrize("by_beam", [True, False])
@pytest.mark.parametrize("beams", [16, 32, 40, 64])
@pytest.mark.parametrize("turns", [450, 480])
def test_sweeps_in_the_order_of_a_scanner_are_read_without_a_word(beams, turns, by_beam, tmp_path):
    rows = _ordered_sweep(beams, turns, by_beam)
    bright = np.random.default_rng(1).random(len(rows))
    for name, columns in (
        ("kitti", [rows[:, :3], np.round(bright, 2)]),
        ("bytes", [rows[:, :3], np.rint(255 * bright)]),
        ("nuscenes", [rows[:, :3], np.rint(255 * bright), rows[:, 3]]),
    ):
        (tmp_path / f"{name}.bin").write_bytes(_rows(*columns))
        cloud = read_point_cloud(tmp_path / f"{name}.bin")
        np.testing.assert_allclose(cloud.points, rows[:, :3], atol=1e-5)
        assert (cloud.ring is not None) == (name == "nuscenes")


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
    for ring in (np.arange(3), np.full(41, np.nan)):
        with pytest.raises(ValueError, match="ring has"):
            PointCloudData(sweep_rows(5, 41)[:, :3], ring=ring)


def test_buffers_of_gltf_are_no_clouds_of_a_folder(tmp_path):
    assert without_companions(["labels/segmentation/x.bin", "a.bin"]) == ["a.bin"]
    assert without_companions(["a/x.gltf", "a/x.bin", "b/y.bin", "z.bin"]) == ["a/x.gltf", "b/y.bin", "z.bin"]
    (tmp_path / "mesh").mkdir()
    for name in ("mesh/x.gltf", "mesh/x.bin", "y.bin"):
        (tmp_path / name).write_bytes(b"0")
    assert [file.removeprefix(f"{tmp_path}/") for file in list_files(tmp_path)] == ["mesh/x.gltf", "y.bin"]


def test_rows_without_coordinates_are_refused_or_left_out():
    with pytest.raises(PointCloudFileError):
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

"""Folders as columns of files, as streams, and without labels."""

import logging
import shutil

import numpy as np
import pytest
from datasets import IterableDatasetDict

from hf_any3d.data import PointCloud, files_to_points, load_point_dataset
from hf_any3d.data.files import PointCloudData, supported_file_types, write_point_cloud
from tests.data.clouds import FILES, full_cloud, points
from tests.data.files.builders import SQUARE, TRIANGLES
from tests.data.files.seeds import SEEDS
from tests.errors import raises


@pytest.fixture
def scans(tmp_path):
    """A folder of ten clouds in two classes."""
    for number in range(10):
        path = tmp_path / "scans" / ("mug" if number % 2 else "cup") / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, points(8 + number, number))
    return tmp_path / "scans"


@pytest.fixture
def load(cache_dir):
    def load(root, **options):
        return load_point_dataset("folder", data_dir=root, cache_dir=cache_dir, **options)

    return load


def every_format(root):
    """A file of each readable format, half of them with endings in capitals."""
    (root / "thing").mkdir(parents=True)
    kept = {"asc": "chair.xyz", "csv": "chair.txt", "glb": "bottle.glb", "pts": "chair.pts"}
    for place, file_type in enumerate(supported_file_types()):
        name = kept.get(file_type, f"screwdriver.{file_type}")
        name = name if (FILES / name).is_file() else f"chair.{file_type}"
        target = root / "thing" / f"{file_type}.{file_type.upper() if place % 2 else file_type}"
        if (FILES / name).is_file():
            shutil.copy(FILES / name, target)
    shutil.copy(FILES / "screwdriver.mtl", root / "thing")
    gltf = PointCloudData(SQUARE, faces=TRIANGLES)
    write_gltf(root / "thing" / "gltf.gltf", gltf)
    laspy = pytest.importorskip("laspy")
    cloud = laspy.create()
    cloud.x, cloud.y, cloud.z = points(20).T
    for file_type in ("las", "laz"):
        target = next(
            (path for path in (root / "thing").glob(f"{file_type}.*")), root / "thing" / f"{file_type}.{file_type}"
        )
        cloud.write(str(target))
    shutil.copy(FILES.parent / "data" / "files" / "scans.e57", root / "thing" / "e57.e57")
    for kind in ("colmap text", "ptx", "splat", "spz 3", "3mf"):
        ((name, content),) = SEEDS[kind]()[0].items()
        file_type = name.rpartition(".")[2]
        (root / "thing" / f"{file_type}.{file_type}").write_bytes(content)
    for file_type, width in (("kitti", 4), ("nuscenes", 5)):
        points(20 * width).reshape(-1)[: 20 * width].astype("<f4").tofile(root / "thing" / f"{file_type}.{file_type}")


def write_gltf(path, cloud):
    import trimesh

    mesh = trimesh.Trimesh(cloud.points, cloud.faces, process=False)
    for name, content in mesh.export(file_type="gltf").items():
        (path if name.endswith(".gltf") else path.parent / name).write_bytes(content)


def test_all_formats_are_read_together_whatever_the_case_of_their_endings(tmp_path, load):
    every_format(tmp_path / "scans")
    rows = load(tmp_path / "scans", num_points=32, split="train")
    # A .bin file beside a .gltf file is a buffer of it.
    others = [file_type for file_type in supported_file_types() if file_type != "bin"]
    assert sorted(name.rpartition(".")[2].lower() for name in rows["file"][:]) == others
    assert rows["points"][:].shape == (25, 32, 3) and any(
        name.rpartition(".")[2].isupper() for name in rows["file"][:]
    )
    files = load(tmp_path / "scans", as_files=True, split="train")
    assert len([row["point_cloud"]["points"] for row in files]) == 25


def test_a_column_of_files_opens_no_file(scans, load):
    (scans / "cup" / "broken.off").write_text("no mesh")
    rows = load(scans, as_files=True)["train"]
    assert list(rows.features) == ["point_cloud", "label", "file"] and rows.features["point_cloud"] == PointCloud()
    assert rows["label"][:].tolist() == [0] * 6 + [1] * 5
    np.testing.assert_array_equal(rows[0]["point_cloud"]["points"], points(8, 0))
    with raises(ValueError, naming="broken.off"):
        rows[5]


def test_converted_files_are_what_the_folder_gives_as_points(scans, load):
    converted = files_to_points(load(scans, as_files=True), num_points=5)["train"]
    direct = load(scans, num_points=5)["train"]
    assert converted.features == direct.features
    np.testing.assert_array_equal(converted["points"][:], direct["points"][:])


@pytest.mark.parametrize("options", [{"num_points": 4}, {"columns": ["normals"]}, {"seed": 1}, {"on_error": "skip"}])
def test_options_of_reading_are_refused_for_files(options, scans, load):
    with raises(ValueError, naming="as_files"):
        load(scans, as_files=True, **options)


def test_options_of_the_cache_are_refused_for_streams(scans, load):
    with raises(ValueError, naming="num_proc"):
        load(scans, streaming=True, num_proc=2)


def test_a_stream_gives_the_rows_of_the_table_and_writes_nothing(scans, load, tmp_path):
    stream = load(scans, num_points=5, streaming=True)
    assert isinstance(stream, IterableDatasetDict)
    rows = list(stream["train"])
    assert not (tmp_path / "cache").exists()
    table = load(scans, num_points=5)["train"]
    assert stream["train"].features == table.features
    for streamed, row in zip(rows, table, strict=True):
        np.testing.assert_array_equal(streamed["points"], row["points"])
        assert (str(streamed["file"]), int(streamed["label"])) == (row["file"], row["label"])
    files = load(scans, as_files=True, streaming=True, split="train")
    assert [len(row["point_cloud"]["points"]) for row in files] == [8, 10, 12, 14, 16, 9, 11, 13, 15, 17]


def test_a_stream_names_what_it_cannot_read_or_leaves_it_out(scans, load, caplog):
    (scans / "cup" / "broken.off").write_text("no mesh")
    with raises(ValueError, naming="broken.off"):
        list(load(scans, streaming=True, split="train"))
    with caplog.at_level(logging.WARNING, logger="hf_any3d"):
        assert len(list(load(scans, streaming=True, on_error="skip", split="train"))) == 10
    assert "left out" in caplog.text and "broken.off" in caplog.text


def test_clouds_without_classes_may_be_at_any_depth(tmp_path, load):
    root = tmp_path / "scans"
    for name in ("a.npy", "room/b.npy", "room/corner/c.npy"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / name, points())
    with raises(ValueError, naming="drop_labels"):
        load(root)
    rows = load(root, drop_labels=True)["train"]
    assert list(rows.features) == ["points", "file"]
    assert sorted(rows["file"][:]) == ["a.npy", "room/b.npy", "room/corner/c.npy"]


def test_folders_of_splits_are_not_classes(tmp_path, load):
    root = tmp_path / "scans"
    for name in ("train/a.npy", "train/b.npy", "val/c.npy"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / name, points())
    with raises(ValueError, naming="fits no layout"):
        load(root)
    splits = load(root, drop_labels=True)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "validation": 1}


def test_labels_of_points_are_read_if_requested(tmp_path, load):
    (tmp_path / "scans" / "room").mkdir(parents=True)
    write_point_cloud(tmp_path / "scans" / "room" / "a.ply", full_cloud(6))
    row = load(tmp_path / "scans", columns=["labels", "normals"])["train"][0]
    assert row["labels"].tolist() == list(range(6)) and row["normals"].shape == (6, 3)

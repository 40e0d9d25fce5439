"""From columns of files to plain columns of points, and back."""

import json
import logging
import os

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, List, Value, load_dataset

from hf_any3d.data import PointCloud, embed_files, files_to_points, load_point_dataset, points_to_files
from hf_any3d.data.files import write_point_cloud
from tests.data.clouds import full_cloud, points, triangle
from tests.errors import raises


@pytest.fixture
def scans(tmp_path):
    """Three files of clouds and meshes, with labels."""
    write_point_cloud(tmp_path / "a.ply", full_cloud(8))
    write_point_cloud(tmp_path / "b.npz", full_cloud(12))
    write_point_cloud(tmp_path / "c.ply", triangle())
    paths = [str(tmp_path / name) for name in ("a.ply", "b.npz", "c.ply")]
    features = Features({"scan": PointCloud(), "label": ClassLabel(names=["cup", "mug"]), "name": Value("string")})
    return Dataset.from_dict({"scan": paths, "label": [0, 1, 1], "name": ["a", "b", "c"]}, features=features)


def test_files_become_plain_columns_that_keep_all_others(scans):
    plain = files_to_points(scans, mesh_points=50)
    assert list(plain.features) == ["points", "label", "name"]
    assert plain.features["points"] == Array2D((None, 3), "float32")
    assert plain.features["label"] == scans.features["label"]
    assert [row["points"].shape for row in plain] == [(8, 3), (12, 3), (50, 3)]
    np.testing.assert_array_equal(plain[0]["points"], full_cloud(8).points)
    assert (plain[2]["points"].sum(1) <= 2.001).all() and plain["name"][:].tolist() == ["a", "b", "c"]


def test_a_number_of_points_and_further_columns_are_drawn_together(scans):
    plain = files_to_points(scans.select([0, 1]), num_points=6, columns=["normals", "colors", "labels"])
    assert plain.features["points"] == Array2D((6, 3), "float32")
    assert plain.features["labels"] == List(Value("int64"), length=6)
    for row, cloud in zip(plain, (full_cloud(8), full_cloud(12)), strict=True):
        np.testing.assert_array_equal(row["points"], cloud.points[row["labels"]])
        np.testing.assert_array_equal(row["colors"], np.rint(cloud.colors * 255)[row["labels"]])
        np.testing.assert_array_equal(row["normals"], cloud.normals[row["labels"]])


def test_the_sample_depends_only_on_the_seed_and_the_cloud(scans):
    first = files_to_points(scans, num_points=4)["points"][:]
    embedded = embed_files(scans.select([2, 1, 0]))
    np.testing.assert_array_equal(files_to_points(embedded, num_points=4)["points"][:], first[::-1])
    assert not np.array_equal(files_to_points(scans, num_points=4, seed=1)["points"][:], first)


def test_a_stream_of_clouds_from_a_function_is_converted():
    stream = Dataset.from_dict({"count": [4, 6]}).to_iterable_dataset()
    made = stream.map(
        lambda row: {"scan": points(row["count"])}, features=Features({"count": Value("int64"), "scan": PointCloud()})
    )
    assert [len(row["points"]) for row in files_to_points(made)] == [4, 6]


def test_an_unreadable_file_is_named_or_its_row_left_out(scans, tmp_path, caplog):
    (tmp_path / "b.npz").write_bytes(b"no archive")
    with raises(ValueError, naming="b.npz"):
        files_to_points(scans)
    for rows in (scans, scans.to_iterable_dataset()):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="hf_any3d"):
            plain = list(files_to_points(rows, on_error="skip"))
        assert [str(row["name"]) for row in plain] == ["a", "c"] and [int(row["label"]) for row in plain] == [0, 1]
        assert "left out" in caplog.text and "b.npz" in caplog.text


def test_other_columns_of_files_are_not_read(scans, tmp_path):
    (tmp_path / "b.npz").write_bytes(b"no archive")
    (tmp_path / "other.off").write_text("never opened")
    other = scans.add_column("other", [str(tmp_path / "other.off")] * 3).cast_column("other", PointCloud())
    for rows in (other, other.to_iterable_dataset()):
        plain = files_to_points(rows, column="scan", on_error="skip")
        assert plain.features["other"] == PointCloud()
        kept = plain.remove_columns("other") if isinstance(plain, Dataset) else plain.decode(False)
        assert len(list(kept)) == 2


def test_a_changed_file_is_not_taken_from_the_cache(scans, tmp_path):
    scans.save_to_disk(tmp_path / "saved")
    path = tmp_path / "scans.parquet"
    scans.to_parquet(path)
    rows = load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"), split="train")
    before = files_to_points(rows)
    assert before.cache_files and files_to_points(rows).cache_files == before.cache_files
    write_point_cloud(tmp_path / "a.ply", full_cloud(5))
    os.utime(tmp_path / "a.ply", ns=(0, 1))
    assert len(files_to_points(rows)[0]["points"]) == 5


def test_a_changed_file_beside_one_that_refers_to_it_is_not_taken_from_the_cache(tmp_path):
    place = {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}
    document = {"asset": {"version": "2.0"}, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}], "scene": 0}
    document |= {"meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "mode": 0}]}], "accessors": [place]}
    document |= {"buffers": [{"uri": "a.bin", "byteLength": 36}], "bufferViews": [{"buffer": 0, "byteLength": 36}]}
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "a.gltf").write_text(json.dumps(document))
    (folder / "b.obj").write_text("mtllib b.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl paint\nf 1 2 3\n")

    def change(number):
        (folder / "a.bin").write_bytes(np.full((3, 3), number, np.float32).tobytes())
        (folder / "b.mtl").write_text(f"newmtl paint\nKd 0 {number} 0\n")

    change(0)
    files = Dataset.from_dict({"scan": [str(folder / "a.gltf")]}, features=Features({"scan": PointCloud()}))
    painted = Dataset.from_dict({"scan": [str(folder / "b.obj")]}, features=Features({"scan": PointCloud()}))
    options = {"data_dir": folder, "cache_dir": str(tmp_path / "cache"), "split": "train", "drop_labels": True}
    for number in (0, 1):
        change(number)
        assert (files_to_points(files)[0]["points"] == number).all()
        assert (files_to_points(painted, columns=["colors"])[0]["colors"] == (0, 255 * number, 0)).all()
        assert (load_point_dataset("folder", **options)[0]["points"] == number).all()


def test_results_for_a_dataset_in_memory_are_cached_on_disk(scans, tmp_path):
    assert not scans.cache_files
    plain = files_to_points(scans, num_points=4)
    results = [plain, points_to_files(plain), embed_files(scans)]
    assert all(rows.cache_files for rows in results)
    assert files_to_points(scans, num_points=4).cache_files == plain.cache_files
    assert files_to_points(scans, num_points=4, seed=1).cache_files != plain.cache_files
    write_point_cloud(tmp_path / "a.ply", full_cloud(5))
    os.utime(tmp_path / "a.ply", ns=(0, 1))
    assert embed_files(scans).cache_files != results[2].cache_files
    assert len(embed_files(scans)[0]["scan"]["points"]) == 5


@pytest.mark.slow
def test_several_processes_give_the_same_rows(scans):
    together = files_to_points(scans, num_points=4, num_proc=2)
    np.testing.assert_array_equal(together["points"][:], files_to_points(scans, num_points=4)["points"][:])


def test_the_column_is_the_only_one_or_named(scans):
    two = scans.add_column("other", ["a.ply"] * 3).cast_column("other", PointCloud())
    with raises(ValueError, naming="PointCloud"):
        files_to_points(two)
    assert "other" in files_to_points(two, column="scan").features
    with raises(ValueError, naming="none among name"):
        files_to_points(scans.select_columns(["name"]))
    with raises(ValueError, naming="'points' already"):
        files_to_points(scans.rename_column("name", "points"))
    with raises(ValueError, naming="on_error"):
        files_to_points(scans, on_error="ignore")


@pytest.mark.parametrize("streaming", [False, True])
def test_points_become_files_and_points_again(streaming):
    features = Features(
        {
            "label": ClassLabel(names=["cup"]),
            "points": Array2D((None, 3), "float32"),
            "colors": Array2D((None, 3), "uint8"),
            "labels": List(ClassLabel(names=["lid", "body"])),
        }
    )
    clouds = {"points": [points(4), points(6)], "colors": [np.arange(12).reshape(4, 3), np.arange(18).reshape(6, 3)]}
    plain = Dataset.from_dict({"label": [0, 0], **clouds, "labels": [[0] * 4, [1] * 6]}, features=features)
    files = points_to_files(plain.to_iterable_dataset() if streaming else plain)
    assert list(files.features) == ["point_cloud", "label", "labels"]
    assert files.features["labels"] == features["labels"]  # class names stay where they can
    first = next(iter(files))
    np.testing.assert_array_equal(first["point_cloud"]["points"], points(4))
    assert first["labels"] == [0] * 4 and first["point_cloud"]["labels"] is None
    for row, expected in zip(files_to_points(files, columns=["colors"]), plain.with_format("numpy"), strict=True):
        assert sorted(row) == sorted(expected)
        for name, values in row.items():
            np.testing.assert_array_equal(values, expected[name])


def test_labels_go_into_the_files_if_requested():
    features = Features({"points": Array2D((4, 3), "float32"), "labels": List(Value("int64"))})
    plain = Dataset.from_dict({"points": [points(4)], "labels": [[3, 1, 2, 0]]}, features=features)
    files = points_to_files(plain, columns=["labels"], format="npz", column="scan")
    assert files.features == Features({"scan": PointCloud(format="npz")})
    assert files[0]["scan"]["labels"].tolist() == [3, 1, 2, 0]


def test_embedding_keeps_the_format_of_rows_and_refuses_streams(scans):
    embedded = embed_files(DatasetDict(train=scans.with_format("numpy")))["train"]
    assert isinstance(embedded[0]["label"], np.int64) and embedded.features == scans.features
    with pytest.raises((AssertionError, ValueError)):
        embed_files(scans.to_iterable_dataset())

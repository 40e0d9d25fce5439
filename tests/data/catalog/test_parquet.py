import logging

import numpy as np
import pandas as pd
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features

from hf_any3d.data import load_point_dataset
from hf_any3d.registry import DATASETS
from tests.errors import raises


def table(labels, sizes=None, names=None):
    """Clouds as nested lists, the way pandas and pyarrow users write them; with `names`, as ClassLabel."""
    generator = np.random.default_rng(0)
    clouds = [generator.uniform(-1, 1, (size, 3)) for size in sizes or [4] * len(labels)]
    if names is None:
        return pd.DataFrame({"points": [cloud.tolist() for cloud in clouds], "label": labels})
    features = Features({"points": Array2D((None, 3), "float32"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"points": clouds, "label": labels}, features=features)


def write(folder, **tables):
    folder.mkdir(exist_ok=True)
    for split, rows in tables.items():
        rows.to_parquet(folder / f"{split}.parquet")
    return folder


def test_file_names_give_the_split_and_nested_lists_become_arrays(tmp_path, cache_dir):
    folder = write(tmp_path / "data", train=table(["mug", "cup", "mug"], [5, 6, 7]), test=table(["mug"]))
    splits = load_point_dataset("parquet", data_dir=folder, cache_dir=cache_dir)
    assert splits["train"].features["points"] == Array2D((None, 3), "float32")
    assert splits["train"].features["label"].names == splits["test"].features["label"].names == ["cup", "mug"]
    assert [row["points"].shape for row in splits["train"]] == [(5, 3), (6, 3), (7, 3)]
    assert splits["train"]["label"][:].tolist() == [1, 0, 1] and splits["test"][0]["label"] == 1
    np.testing.assert_allclose(splits["train"][1]["points"], table(["mug", "cup"], [5, 6])["points"][1], rtol=1e-6)


def test_files_can_be_given_one_by_one(tmp_path, cache_dir):
    folder = write(tmp_path / "data", first=table([0, 2]), second=table([1]))
    files = {"train": [folder / "first.parquet"], "validation": folder / "second.parquet"}
    splits = load_point_dataset("parquet", data_files=files, cache_dir=cache_dir)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "validation": 1}
    assert splits["validation"].features["label"].names == ["0", "1", "2"]


def test_one_split_can_be_requested(tmp_path, cache_dir):
    folder = write(tmp_path / "data", train=table([0, 1]), test=table([1]))
    rows = load_point_dataset("parquet", data_dir=folder, split="test", cache_dir=cache_dir)
    assert isinstance(rows, Dataset) and len(rows) == 1
    with pytest.raises(ValueError):
        load_point_dataset("parquet", data_dir=folder, split="dev", cache_dir=cache_dir)


def test_class_labels_of_another_order_are_not_silently_mixed_up(tmp_path, cache_dir):
    folder = write(tmp_path / "data", train=table([0], names=["cup", "mug"]), test=table([0], names=["mug", "cup"]))
    with raises(ValueError, naming="test.parquet"):
        load_point_dataset("parquet", data_dir=folder, cache_dir=cache_dir)


def test_classes_that_training_lacks_are_named(tmp_path, cache_dir):
    folder = write(tmp_path / "data", train=table(["cup", "mug"]), test=table(["jug"]))
    with raises(ValueError, naming="jug"):
        load_point_dataset("parquet", data_dir=folder, cache_dir=cache_dir)


def test_a_missing_column_of_points_names_the_columns_there_are(tmp_path, cache_dir):
    folder = write(tmp_path / "data", train=table([0]).rename(columns={"points": "xyz"}))
    with pytest.raises(ValueError):
        load_point_dataset("parquet", data_dir=folder, cache_dir=cache_dir)


@pytest.mark.parametrize("points", [[1.0, 2.0], [[[0.0, 1.0]], [[2.0, 3.0]]], ["a", "b"]])
def test_a_column_of_another_type_is_refused(points, tmp_path, cache_dir):
    folder = write(tmp_path / "data", train=pd.DataFrame({"points": points}))
    with pytest.raises(ValueError, match="points has (type|2 channels)"):
        load_point_dataset("parquet", data_dir=folder, cache_dir=cache_dir)


def test_missing_files_and_folders_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with raises(FileNotFoundError, naming="empty"):
        load_point_dataset("parquet", data_dir=tmp_path / "empty")
    with raises(FileNotFoundError, naming="absent.parquet"):
        load_point_dataset("parquet", data_files=tmp_path / "absent.parquet")
    with pytest.raises(ValueError, match="pass exactly one of them"):
        load_point_dataset("parquet")


def test_other_files_of_a_folder_are_ignored_with_a_warning(tmp_path, cache_dir, caplog):
    folder = write(tmp_path / "data", train=table(["mug", "cup"]), test=table(["mug"]))
    for name in ("notes.txt", "test.csv", "train.json", ".hidden"):
        (folder / name).write_text("no Parquet")
    with caplog.at_level(logging.WARNING):
        splits = load_point_dataset("parquet", data_dir=folder, cache_dir=cache_dir)
    assert splits.num_rows == {"train": 2, "test": 1}
    assert "other than Parquet: notes.txt, test.csv, train.json" in caplog.text and ".hidden" not in caplog.text


def test_names_of_folders_or_shards_give_the_split(tmp_path, cache_dir):
    (tmp_path / "folders").mkdir()
    for folder, names in (("train", "ab"), ("dev", "c"), ("test", "d")):
        write(tmp_path / "folders" / folder, **{name: table([0, 1]) for name in names})
    splits = load_point_dataset("parquet", data_dir=tmp_path / "folders", cache_dir=cache_dir)
    assert splits.num_rows == {"train": 4, "validation": 2, "test": 2}
    (tmp_path / "shards").mkdir()
    shards = ("train-00000-of-00001", "test-00000-of-00002", "test-00001-of-00002")
    write(tmp_path / "shards" / "data", **{name: table([0, 1]) for name in shards})
    splits = load_point_dataset("parquet", data_dir=tmp_path / "shards", cache_dir=cache_dir)
    assert splits.num_rows == {"train": 2, "test": 4}


def test_a_file_without_a_split_in_its_name_among_others_is_refused(tmp_path, cache_dir):
    folder = write(tmp_path / "data", train=table([0]), more=table([1]))
    with raises(ValueError, naming="more.parquet"):
        load_point_dataset("parquet", data_dir=folder, cache_dir=cache_dir)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=f"'shape'; expected one of {', '.join(sorted(DATASETS))}, owner/name"):
        load_point_dataset("shape")


def test_a_name_with_a_slash_is_a_repository_or_a_folder_of_one(tmp_path, cache_dir):
    folder = write(tmp_path / "data", train=table(["cup", "mug"]))
    rows = load_point_dataset(str(folder), split="train", cache_dir=cache_dir)
    assert rows.features["label"].names == ["cup", "mug"] and rows[0]["points"].shape == (4, 3)

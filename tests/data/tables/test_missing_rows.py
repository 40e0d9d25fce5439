"""Rows of data sets that lack points or a label are left out with a word, and never end a loop or count as a class."""

import warnings

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value
from torch.utils.data import DataLoader

from hf_any3d import PointCloudProcessor
from hf_any3d.data import PointCloud, load_point_dataset
from hf_any3d.training.rows import evaluation_rows, streamed_training_rows, training_rows
from hf_any3d.training.segmentation_rows import BlockRows, CropRows, class_weights
from tests.errors import raises

CLOUD = np.arange(12.0).reshape(4, 3).tolist()
COLUMNS = {
    "Array2D": Array2D((None, 3), "float32"),
    "Array2D of one size": Array2D((4, 3), "float32"),
    "lists": List(List(Value("float64"))),
    "fixed lists": List(List(Value("float32"), length=3), length=4),
    "files": PointCloud(),
}
MISSING = {"no cloud": None, "a null point": [CLOUD[0], None, *CLOUD[2:]], "a null number": [[0, 1, None], *CLOUD[1:]]}
PROCESSOR = PointCloudProcessor(num_points=4)


def dataset(points: list, kind: str = "Array2D", **columns) -> Dataset:
    features = {"points": COLUMNS[kind]}
    if "label" in columns:
        features["label"] = ClassLabel(names=["box", "ball"])
    if "labels" in columns:
        features["labels"] = List(Value("int64"))
    return Dataset.from_dict({"points": points, **columns}, features=Features(features))


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("kind", COLUMNS)
def test_rows_without_points_are_left_out_of_loaded_data(tmp_path, kind, missing):
    if kind == "files" and MISSING[missing] is not None:
        pytest.skip("a file is whole")
    rows = dataset([CLOUD, CLOUD, MISSING[missing], CLOUD], kind, label=[0, 1, 0, 1])
    rows.to_parquet(tmp_path / "train.parquet")
    with pytest.warns(UserWarning) as said:
        loaded = load_point_dataset("parquet", data_dir=tmp_path, split="train")
    assert [text for each in said if "points" in (text := str(each.message))] == [
        "parquet, split train: 1 of 4 rows has no points (null or empty), left out: row 2 (counted from 0)"
    ]
    assert loaded["label"][:].tolist() == [0, 1, 1]
    clouds = [cloud["points"] if kind == "files" else cloud for cloud in loaded["points"]]
    assert all(np.array_equal(cloud, CLOUD) for cloud in clouds) and len(clouds) == 3


@pytest.mark.parametrize("kind", ["Array2D", "Array2D of one size", "lists"])
def test_a_loop_over_training_rows_does_not_end_at_a_row_without_points(kind):
    rows = training_rows(dataset([CLOUD, None, CLOUD], kind, label=[0, 1, 0]), PROCESSOR)
    with raises(ValueError, naming="row 1 has no points"):
        list(rows)
    with raises(ValueError, naming="row 1 has no points"):
        list(DataLoader(rows, batch_size=3))


@pytest.mark.parametrize("label", [-1, None])
def test_a_row_without_a_label_is_no_row_of_the_last_class(label):
    rows = dataset([CLOUD] * 3, label=[0, 1, label])
    for prepared in (training_rows(rows, PROCESSOR), evaluation_rows(rows, PointCloudProcessor(num_points=4, seed=0))):
        with raises(ValueError, naming="row 2 has no label"):
            list(prepared)
    with raises(ValueError, naming="row 2 of the stream has no label"):
        list(streamed_training_rows(rows.to_iterable_dataset(), PROCESSOR))


def test_rows_are_read_from_both_ends():
    rows = training_rows(dataset([CLOUD, np.add(CLOUD, 1).tolist(), CLOUD], label=[0, 1, 0]), PROCESSOR)
    assert len(list(rows)) == len(rows) == 3
    assert torch.equal(torch.tensor(rows[-2]["points"]), torch.tensor(rows[1]["points"])) and rows[-2]["label"] == 1
    for index in (3, -4):
        with pytest.raises(IndexError):
            rows[index]


def test_whole_numbers_and_texts_are_classes_beside_missing_labels(tmp_path):
    for labels, expected in (([0, 1, -1, None], [0, 1, -1, None]), (["b", "a", None, "b"], [1, 0, None, 1])):
        Dataset.from_dict({"points": [CLOUD] * 4, "label": labels}).to_parquet(tmp_path / "train.parquet")
        loaded = load_point_dataset("parquet", data_dir=tmp_path, split="train")
        assert isinstance(loaded.features["label"], ClassLabel)
        assert loaded.with_format(None)["label"][:] == expected


@pytest.mark.parametrize("none", [-1, None])
def test_points_without_a_label_are_neither_learned_nor_judged(none):
    rows = dataset([CLOUD, CLOUD], labels=[[0, 1, none, 1], [1, 1, 1, 1]])
    crops = CropRows(rows, PROCESSOR)
    assert sorted(crops[0]["labels"].tolist()) == [-100, 0, 1, 1]
    assert sorted(crops[-2]["labels"].tolist()) == [-100, 0, 1, 1]
    blocks = BlockRows(rows, PointCloudProcessor(num_points=4, seed=0))
    assert sorted(blocks[0]["labels"].tolist()) == [-100, 0, 1, 1]
    # Six points of class 1, and one of class 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = class_weights(rows["labels"], 2, 1.0)
    assert weights[0] / weights[1] == pytest.approx(6)

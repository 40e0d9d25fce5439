import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Features, List, Value

from hf_any3d.data.parquet.rows import checked_row

FEATURES = Features(
    {
        "points": Array2D((None, 3), "float32"),
        "label": ClassLabel(names=["mug", "tile"]),
        "labels": List(ClassLabel(names=["background", "object"])),
        "file": Value("string"),
    }
)


def row(**change):
    return {"points": np.zeros((2, 3)), "label": 1, "labels": [0, 1], "file": "a.npy", **change}


def test_values_are_converted_to_the_types_of_their_columns():
    checked = checked_row({**row(), "more": 1}, FEATURES)
    assert list(checked) == ["points", "label", "labels", "file"]
    assert checked["points"].dtype == np.float32 and checked["labels"].dtype == np.int64
    assert checked["label"] == 1 and checked["file"] == "a.npy"


@pytest.mark.parametrize("label", [1, np.int32(1), np.array([1], np.uint8), "tile"])
def test_a_class_is_a_number_or_a_name(label):
    assert checked_row(row(label=label), FEATURES)["label"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"points": np.zeros((0, 3)), "labels": []},
        {"points": np.zeros((2, 4))},
        {"points": np.zeros(3)},
        {"points": "text"},
        {"points": [[0, 0, 0], [0, np.inf, 0]]},
        {"points": [[0, 0, 1e39], [0, 0, 0]]},
        {"label": 2},
        {"label": -1},
        {"label": "cup"},
        {"label": 0.5},
        {"label": [0, 1]},
        {"labels": [0, 2]},
        {"labels": [0]},
    ],
)
def test_invalid_values_are_named(change):
    with pytest.raises(ValueError):
        checked_row(row(**change), FEATURES)

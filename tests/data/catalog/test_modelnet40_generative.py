import pickle

import numpy as np
import pytest
from datasets import Array2D

from hf_any3d import load_point_dataset
from hf_any3d.data.catalog import modelnet40_generative
from tests.data.catalog.modelnet_trees import MODELS, label, table

WORDS = ["airplane", "night stand", "xbox"]


def write(root, num_points=8192, labels=None):
    """The pickled cache, with labels as arrays of one number."""
    root.mkdir(parents=True, exist_ok=True)
    clouds = [table(model, num_points).astype(np.float32) for model in MODELS["test"]]
    labels = [np.array([label(model)], np.int32) for model in MODELS["test"]] if labels is None else labels
    (root / modelnet40_generative.FILE).write_bytes(pickle.dumps([clouds, labels]))
    return root


@pytest.fixture
def load(tmp_path, cache_dir):
    def load(**options):
        options = {"data_dir": tmp_path / "data", "verify": False, "cache_dir": cache_dir, **options}
        return load_point_dataset("modelnet40_generative", **options)

    return load


@pytest.mark.slow
@pytest.mark.parametrize("place", ["", "modelnet40_data", "data/modelnet40_data", "modelnet40_normal_resampled"])
def test_rows_have_black_points_the_question_and_the_class_in_words(tmp_path, load, place):
    write(tmp_path / "data" / place)
    splits = load()
    assert list(splits) == ["test"]
    rows = splits["test"]
    assert rows.features["points"] == rows.features["colors"] == Array2D((8192, 3), "float32")
    for number, (row, model) in enumerate(zip(rows, MODELS["test"], strict=True)):
        np.testing.assert_array_equal(row["points"], table(model, 8192)[:, :3].astype(np.float32))
        assert not row["colors"].any() and row["label"] == label(model) and row["object_id"] == str(number)
        assert list(row["conversations"]) == [
            {"from": "human", "value": "<point>\nWhat is this?"},
            {"from": "gpt", "value": WORDS[number]},
        ]


def test_the_second_question_ends_with_a_blank(tmp_path, load):
    write(tmp_path / "data")
    row = load(question=1, streaming=True)["test"]
    assert next(iter(row))["conversations"][0] == {"from": "human", "value": "<point>\nThis is an object of "}
    with pytest.raises(ValueError):
        load(question=2)

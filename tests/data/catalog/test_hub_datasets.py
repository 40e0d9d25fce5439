import numpy as np
import pytest
from datasets import Dataset, load_dataset

from hf_any3d.data import load_point_dataset


@pytest.mark.slow
def test_what_is_pushed_comes_back_by_its_name_and_opens_with_datasets_alone(hub, cache_dir):
    shapes = load_point_dataset("shapes", cache_dir=cache_dir)
    for split, rows in shapes.items():
        shapes[split] = rows.select(range(6)).select_columns(["points", "label"])
    shapes.push_to_hub("me/point-shapes")
    pushed = load_point_dataset("me/point-shapes", cache_dir=cache_dir)
    assert list(pushed) == ["train", "test"] and pushed["train"].features == shapes["train"].features
    np.testing.assert_array_equal(pushed["test"]["points"][:], shapes["test"]["points"][:])
    plain = load_dataset("me/point-shapes", split="test", cache_dir=cache_dir)
    assert plain["label"][:] == shapes["test"]["label"][:].tolist()


@pytest.mark.slow
def test_a_repository_streams(hub, cache_dir):
    rows = load_point_dataset("shapes", split="test", cache_dir=cache_dir).select(range(3))
    rows.select_columns(["points", "label"]).push_to_hub("me/streamed-shapes", split="test")
    streamed = load_point_dataset("me/streamed-shapes", split="test", streaming=True)
    clouds = [row["points"] for row in streamed]
    np.testing.assert_array_equal(np.stack(clouds), rows["points"][:])


def test_a_repository_without_points_names_its_columns(hub, cache_dir):
    Dataset.from_dict({"text": ["chair"], "label": [0]}).push_to_hub("me/texts")
    with pytest.raises(ValueError):
        load_point_dataset("me/texts", cache_dir=cache_dir)

from collections import Counter

import pytest
from datasets import Dataset, DatasetDict

from hf_any3d.data import load_point_dataset, validation_split


@pytest.fixture
def rows():
    """100 rows: 60 of class 0, 30 of class 1, 10 of class 2, in groups of two."""
    labels = [0] * 60 + [1] * 30 + [2] * 10
    return Dataset.from_dict({"row": range(100), "label": labels, "group": [i // 2 for i in range(100)]})


def test_the_part_has_the_fraction_of_every_class_and_nothing_is_lost(rows):
    splits = validation_split(rows, 0.2, seed=0)
    assert Counter(splits["validation"]["label"]) == {0: 12, 1: 6, 2: 2}
    assert sorted([*splits["train"]["row"], *splits["validation"]["row"]]) == list(range(100))


def test_groups_stay_together(rows):
    splits = validation_split(rows, 0.25, seed=0, group_column="group")
    assert not set(splits["train"]["group"]) & set(splits["validation"]["group"])
    counts = Counter(splits["validation"]["label"])
    assert abs(counts[0] - 15) <= 1 and abs(counts[1] - 7.5) <= 1 and counts[2] in (2, 4)


def test_a_group_larger_than_the_part_wanted_is_not_taken():
    rows = Dataset.from_dict({"label": [0] * 20, "group": ["big"] * 12 + list("abcdefgh")})
    for seed in range(10):
        part = validation_split(rows, 0.2, seed, group_column="group")["validation"]
        assert len(part) == 4 and "big" not in part["group"]


def test_the_seed_decides(rows):
    first, same, other = (validation_split(rows, 0.2, seed)["validation"]["row"][:] for seed in (0, 0, 1))
    assert first == same != other


def test_small_classes_have_rows_on_both_sides():
    rows = Dataset.from_dict({"label": [0] * 40 + [1] * 2 + [2]})
    for fraction in (0.05, 0.95):
        splits = validation_split(rows, fraction)
        assert {0, 1} <= set(splits["train"]["label"]) and {0, 1} <= set(splits["validation"]["label"])
        assert 2 in splits["train"]["label"]


def test_without_stratification_no_label_is_needed(rows):
    splits = validation_split(rows.remove_columns("label"), 0.3, stratify=False)
    assert len(splits["validation"]) == 30


def test_other_splits_are_passed_on(rows):
    splits = validation_split(DatasetDict(train=rows, test=rows.select(range(5))), 0.2)
    assert list(splits) == ["train", "validation", "test"] and len(splits["test"]) == 5


def test_the_embedded_shapes_divide_by_whole_groups(cache_dir):
    shapes = load_point_dataset("shapes", cache_dir=cache_dir)
    splits = validation_split(shapes, 0.2, seed=0, group_column="group")
    assert not set(splits["train"]["group"][:]) & set(splits["validation"]["group"][:])
    assert len(splits["validation"]) == pytest.approx(0.2 * 433, abs=9)
    assert set(splits["validation"]["label"][:]) == set(range(18))
    assert splits["validation"][0]["points"].shape == (1024, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fraction": 1.0}, "fraction is 1.0; expected more than 0"),
        ({"group_column": "model"}, "no column 'model'; it has row, label, group"),
        ({"label_column": "class"}, "no column 'class'"),
        ({"dataset": DatasetDict(test=Dataset.from_dict({"label": [0]}))}, "has splits test; expected train"),
        ({"dataset": Dataset.from_dict({"label": [0, 1]})}, "has 2 groups; expected at least two in one class"),
    ],
)
def test_what_cannot_be_divided_is_refused(change, message, rows):
    with pytest.raises(ValueError, match=message):
        validation_split(**{"dataset": rows, "fraction": 0.2, **change})

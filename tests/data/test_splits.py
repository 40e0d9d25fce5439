"""Validation splits and few-shot folds."""

from collections import Counter

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features

from hf_any3d.data import load_point_dataset, validation_split
from hf_any3d.data.splits import draw_fold


@pytest.fixture
def rows():
    """100 rows: 60 of class 0, 30 of class 1, 10 of class 2, in groups of two."""
    labels = [0] * 60 + [1] * 30 + [2] * 10
    return Dataset.from_dict({"row": range(100), "label": labels, "group": [i // 2 for i in range(100)]})


def test_validation_has_the_fraction_of_every_class_and_no_row_is_lost(rows):
    splits = validation_split(rows, 0.2, seed=0)
    assert Counter(splits["validation"]["label"]) == {0: 12, 1: 6, 2: 2}
    assert sorted([*splits["train"]["row"], *splits["validation"]["row"]]) == list(range(100))


def test_a_group_larger_than_the_target_is_not_taken():
    rows = Dataset.from_dict({"label": [0] * 20, "group": ["big"] * 12 + list("abcdefgh")})
    for seed in range(10):
        part = validation_split(rows, 0.2, seed, group_column="group")["validation"]
        assert len(part) == 4 and "big" not in part["group"]


def test_small_classes_have_rows_on_both_sides():
    rows = Dataset.from_dict({"label": [0] * 40 + [1] * 2 + [2]})
    for fraction in (0.05, 0.95):
        splits = validation_split(rows, fraction)
        assert {0, 1} <= set(splits["train"]["label"]) and {0, 1} <= set(splits["validation"]["label"])
        assert 2 in splits["train"]["label"]


@pytest.mark.slow
def test_the_embedded_shapes_divide_by_whole_groups(cache_dir):
    shapes = load_point_dataset("shapes", cache_dir=cache_dir)
    splits = validation_split(shapes, 0.2, seed=0, group_column="group")
    assert not set(splits["train"]["group"][:]) & set(splits["validation"]["group"][:])
    assert len(splits["validation"]) == pytest.approx(0.2 * 433, abs=9)
    assert set(splits["validation"]["label"][:]) == set(range(18))
    assert splits["validation"][0]["points"].shape == (1024, 3)


NAMES = [f"class {i}" for i in range(6)]


def class_rows(counts: list[int], first: int) -> Dataset:
    labels = np.repeat(np.arange(6), counts)
    points = np.zeros((len(labels), 4, 3), np.float32)
    points[:, 0, 0] = first + np.arange(len(labels))  # names the row
    points[:, 0, 1] = labels
    features = Features({"points": Array2D((4, 3), "float32"), "label": ClassLabel(names=NAMES)})
    table = {"points": list(points), "label": labels.tolist()}
    return Dataset.from_dict(table, features=features).with_format("numpy")


@pytest.fixture(scope="module")
def splits() -> DatasetDict:
    return DatasetDict(train=class_rows([5, 6, 7, 8, 9, 2], 0), test=class_rows([4, 4, 4, 4, 2, 4], 1000))


def drawn_fold(splits: DatasetDict, **settings) -> tuple[list[str], list[int], list[int]]:
    fold = draw_fold(splits, **{"way": 3, "shot": 4, "fold": 0, "test_per_class": 3, **settings})
    keys = [[int(row["points"][0, 0]) for row in fold[split]] for split in ("train", "test")]
    return fold["train"].features["label"].names, *keys


def test_a_fold_has_the_requested_rows_and_classes_with_its_own_labels(splits):
    fold = draw_fold(splits, way=3, shot=4, fold=0, test_per_class=3)
    names = fold["train"].features["label"].names
    assert fold["test"].features["label"].names == names and len(set(names)) == 3
    for split, number in (("train", 4), ("test", 3)):
        labels = [int(row["label"]) for row in fold[split]]
        assert np.bincount(labels).tolist() == [number] * 3
        seen = [int(row["points"][0, 0]) for row in fold[split]]
        assert len(set(seen)) == len(seen)
        for row in fold[split]:
            assert isinstance(row["points"], np.ndarray)
            assert NAMES[int(row["points"][0, 1])] == names[int(row["label"])]


def test_folds_are_determined_by_seed_and_number_and_differ(splits):
    assert drawn_fold(splits) == drawn_fold(splits)
    folds = [drawn_fold(splits, fold=fold) for fold in range(4)] + [drawn_fold(splits, seed=1)]
    assert len({str(fold) for fold in folds}) == 5


def test_classes_with_too_few_rows_are_never_drawn(splits):
    for fold in range(8):
        assert not {"class 4", "class 5"} & set(drawn_fold(splits, fold=fold)[0])


@pytest.mark.parametrize(("classes", "each", "taken"), [(10, 2, 4), (3, 2, 1), (2, 2, 1), (10, 5, 10)])
def test_the_fraction_holds_for_classes_of_two(classes, each, taken):
    rows = Dataset.from_dict({"label": np.repeat(np.arange(classes), each).tolist()})
    splits = validation_split(rows, 0.2)
    assert len(splits["validation"]) == taken and set(splits["train"]["label"]) == set(range(classes))

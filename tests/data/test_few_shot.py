"""Folds of few rows of few classes."""

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features

from hf_any3d.data.splits import draw_fold

NAMES = [f"class {i}" for i in range(6)]


def rows(counts: list[int], first: int) -> Dataset:
    labels = np.repeat(np.arange(6), counts)
    points = np.zeros((len(labels), 4, 3), np.float32)
    points[:, 0, 0] = first + np.arange(len(labels))  # names the row
    points[:, 0, 1] = labels
    features = Features({"points": Array2D((4, 3), "float32"), "label": ClassLabel(names=NAMES)})
    table = {"points": list(points), "label": labels.tolist()}
    return Dataset.from_dict(table, features=features).with_format("numpy")


@pytest.fixture(scope="module")
def splits() -> DatasetDict:
    return DatasetDict(train=rows([5, 6, 7, 8, 9, 2], 0), test=rows([4, 4, 4, 4, 2, 4], 1000))


def drawn(splits: DatasetDict, **settings) -> tuple[list[str], list[int], list[int]]:
    fold = draw_fold(splits, **{"way": 3, "shot": 4, "fold": 0, "test_per_class": 3, **settings})
    keys = [[int(row["points"][0, 0]) for row in fold[split]] for split in ("train", "test")]
    return fold["train"].features["label"].names, *keys


def test_a_fold_has_so_many_rows_of_so_many_classes_with_labels_of_its_own(splits):
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


def test_folds_follow_from_seed_and_number_and_differ(splits):
    assert drawn(splits) == drawn(splits)
    folds = [drawn(splits, fold=fold) for fold in range(4)] + [drawn(splits, seed=1)]
    assert len({str(fold) for fold in folds}) == 5


def test_classes_with_too_few_rows_are_never_drawn(splits):
    for fold in range(8):
        assert not {"class 4", "class 5"} & set(drawn(splits, fold=fold)[0])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"way": 5}, "way is 5, but only 4 classes have 4 training and 3 test rows"),
        ({"shot": 0}, "shot is 0; expected at least 1"),
        ({"fold": -1}, "fold is -1; expected at least 0"),
    ],
)
def test_folds_that_cannot_be_are_refused(splits, settings, text):
    with pytest.raises(ValueError, match=text):
        drawn(splits, **settings)


def test_both_splits_and_classes_are_needed(splits):
    with pytest.raises(ValueError, match="no split 'test'; there are train"):
        drawn(DatasetDict(train=splits["train"]))
    with pytest.raises(ValueError, match="expected a ClassLabel"):
        drawn(DatasetDict(train=splits["train"].remove_columns("label"), test=splits["test"]))

"""Splits of a training program: what is loaded, what is taken for validation, joined and cut short."""

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_any3d.model_card.run_report import TEST_CHOOSES
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.protocol import ProtocolArguments, apply_protocol
from hf_any3d.training.splits import divide
from tests.errors import raises


def rows(count: int, start: int = 0, **columns) -> Dataset:
    """Rows of two classes in turn, with a number that tells them apart."""
    names = {"label": ClassLabel(names=["a", "b"]), "number": Value("int64")}
    names |= {name: Value("string") for name in columns}
    given = {"label": [number % 2 for number in range(count)], "number": range(start, start + count), **columns}
    return Dataset.from_dict(given, features=Features(names))


def load(splits, needs_train=True, **arguments):
    """Divide splits, given by their rows or number of rows, as arguments of a program say."""
    given = DatasetDict({name: rows(own) if isinstance(own, int) else own for name, own in splits.items()})
    return divide(given, DataArguments(**arguments), needs_train=needs_train)


pytestmark = pytest.mark.filterwarnings("ignore:only \\d+ validation scans?, so")


def numbers(splits, name):
    return sorted(splits[name]["number"])


def test_data_without_a_training_split_are_only_for_evaluation():
    with raises(ValueError, naming="'train'; there are test, more"):
        load({"test": 2, "more": 2})
    splits, origin = load({"test": 8, "validation": 2}, needs_train=False, train_splits=["train", "absent"])
    assert {name: len(own) for name, own in splits.items()} == {"test": 8, "validation": 2}
    assert origin == "the dataset's own split"
    assert load({"test": 8}, needs_train=False, max_eval_samples=3)[0]["test"].num_rows == 3


def test_a_share_of_each_class_is_taken_for_validation_and_described():
    splits, origin = load({"train": 10, "test": 4}, validation_fraction=0.2, validation_seed=3)
    assert origin == "2 of 10 clouds of the training split, seed 3"
    assert sorted(splits["validation"]["label"]) == [0, 1] and len(splits["train"]) == 8 and len(splits["test"]) == 4
    assert numbers(splits, "train") + numbers(splits, "validation") != list(range(10))
    assert sorted(numbers(splits, "train") + numbers(splits, "validation")) == list(range(10))
    others = [load({"train": 10}, validation_seed=seed)[0] for seed in range(4)]
    assert len({tuple(numbers(one, "validation")) for one in others}) > 1


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (10, "only 2 validation scans, so validation accuracy changes in steps of 50 percentage points"),
        (3, "only 1 validation scan, so validation accuracy can only be 0 % or 100 %"),
    ],
)
def test_few_clouds_of_validation_are_a_rough_estimate(count, text):
    with pytest.warns(UserWarning, match=f"{text}: a rough estimate"):
        load({"train": count}, validation_fraction=0.2 if count > 3 else 0.3)


def test_own_validation_splits_and_a_fraction_of_zero_take_no_training_rows():
    splits, origin = load({"train": 10, "validation": 4})
    assert origin == "the dataset's own split" and len(splits["train"]) == 10 and len(splits["validation"]) == 4
    splits, origin = load({"train": 10}, validation_fraction=0.0)
    assert origin == "none" and list(splits) == ["train"] and len(splits["train"]) == 10


@pytest.mark.parametrize(("column", "given"), [("group", {}), ("place", {"group_column": "place"})])
def test_groups_stay_in_one_split(column, given):
    grouped = rows(12, **{column: [str(number // 4) for number in range(12)]})
    splits, origin = load({"train": grouped}, validation_fraction=0.3, **given)
    assert len(splits["validation"]) == 4 and len(set(splits["validation"][column])) == 1
    assert origin == f"4 of 12 clouds of the training split, seed 0, complete groups of {column!r}"


def test_one_cloud_a_class_leaves_none_for_validation():
    text = "only one scan per class, so none is left for validation; the weights of the last step are kept"
    with pytest.warns(UserWarning, match=text):
        splits, origin = load({"train": 2})
    assert list(splits) == ["train"] and len(splits["train"]) == 2 and origin == "none"
    # Two clouds of one thing are one.
    with pytest.warns(UserWarning, match=text):
        load({"train": rows(4, group=["x", "y", "x", "y"])})
    splits, _ = load({"train": rows(4).remove_columns("label")}, validation_fraction=0.5)
    assert len(splits["validation"]) == 2
    with raises(ValueError, naming="place"):
        load({"train": 2}, group_column="place")


def test_splits_are_trained_on_together_after_validation_rows_were_taken():
    more = rows(3, start=10)
    splits, origin = load({"train": 10, "more": more, "test": 2}, train_splits=["train", "more"])
    assert list(splits) == ["train", "validation", "test"] or {*splits} == {"train", "validation", "test"}
    assert {10, 11, 12} < {*numbers(splits, "train")} and len(splits["train"]) == 11
    assert origin.startswith("2 of 10 clouds")
    splits, origin = load({"train": 10, "validation": more, "test": 2}, train_splits=["train", "validation"])
    assert numbers(splits, "train") == list(range(13)) and {*splits} == {"train", "test"} and origin == "none"
    with raises(KeyError, naming="absent"):
        load({"train": 10, "more": more}, train_splits=["train", "absent"], validation_fraction=0.0)


def test_the_test_split_selects_weights_on_request():
    given = DatasetDict({"train": rows(4), "test": rows(2)})
    splits, origin = apply_protocol(given, "none", ProtocolArguments(select_on_test=True))
    assert splits["validation"] is splits["test"] is given["test"] and origin == TEST_CHOOSES
    for wrong in ({"train": 4}, {"train": 4, "validation": 2, "test": 2}):
        given = DatasetDict({name: rows(count) for name, count in wrong.items()})
        with pytest.raises(ValueError, match=f"--select_on_test needs a test split .*; there are {', '.join(wrong)}"):
            apply_protocol(given, "none", ProtocolArguments(select_on_test=True))

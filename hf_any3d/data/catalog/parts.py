"""Objects with true parts over several categories, assembled in code when they are loaded."""

import os
from collections.abc import Sequence

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, List

from hf_any3d.data.parts import CATEGORIES, assemble, part_names

SPLITS = ("train", "validation", "test")


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    train_objects: int = 240,
    validation_objects: int = 60,
    test_objects: int = 120,
    num_points: int = 1024,
    categories: Sequence[str] | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Make objects; the same arguments give the same objects, and no object occurs twice.

    Rows have `points` (num_points, 3), y up, `labels` (num_points,), a point's part such as "chair back", and
    `label`, the category.

    Args:
        data_dir: must be None; there are no files.
        train_objects: objects of the training split, over all categories in turn.
        validation_objects: objects of the validation split.
        test_objects: objects of the test split.
        num_points: points of an object.
        categories: some of `hf_any3d.data.parts.CATEGORIES`; None takes all.
        seed: draws proportions and points.

    Raises:
        ValueError: a directory, or an unknown category.
    """
    if data_dir is not None:
        raise ValueError(f"data_dir is {os.fspath(data_dir)!r}; expected None, as these objects are made, not read")
    categories = list(CATEGORIES) if categories is None else list(categories)
    if unknown := [name for name in categories if name not in CATEGORIES]:
        raise ValueError(f"categories names {unknown[0]!r}; expected any of {', '.join(CATEGORIES)}")
    parts = part_names(categories)
    features = Features(
        {
            "points": Array2D((num_points, 3), "float32"),
            "labels": List(ClassLabel(names=parts)),
            "label": ClassLabel(names=categories),
        }
    )
    splits = {}
    for number, (split, count) in enumerate(
        zip(SPLITS, (train_objects, validation_objects, test_objects), strict=True)
    ):
        columns: dict[str, list] = {name: [] for name in features}
        for index in range(count):
            category = index % len(categories)
            points, names = assemble(categories[category], num_points, np.random.default_rng([seed, number, index]))
            columns["points"].append(points)
            columns["labels"].append([parts.index(f"{categories[category]} {name}") for name in names])
            columns["label"].append(category)
        if count:
            splits[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(splits)

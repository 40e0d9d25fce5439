"""Rooms composed of the embedded shapes, made when they are loaded: semantic segmentation without a download.

Each split has objects of its own: test rooms hold test shapes only, and the validation rooms hold training shapes
that no training room has.
"""

import os
from collections.abc import Sequence

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, List

from hf_any3d.data.catalog import shapes
from hf_any3d.data.scenes import FLOOR, TYPICAL_SIZES, compose_room, room_objects
from hf_any3d.data.validation import validation_split

SPLITS = ("train", "validation", "test")


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    train_rooms: int = 64,
    validation_rooms: int = 16,
    test_rooms: int = 32,
    num_points: int = 4096,
    num_objects: int = 6,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    **options,
) -> DatasetDict:
    """Make rooms; the same arguments give the same rooms.

    Rows have `points` (num_points, 3) in metres, y up, and `labels` (num_points,), of the classes floor and `classes`.

    Args:
        data_dir: where the embedded shapes lie; None takes those of the source checkout.
        train_rooms: rooms of the training split.
        validation_rooms: rooms of the validation split.
        test_rooms: rooms of the test split.
        num_points: points of a room.
        num_objects: objects to place in a room.
        classes: classes of the shapes that stand in the rooms; None takes those of `TYPICAL_SIZES`.
        seed: draws objects, places and points.
        options: further arguments of `datasets.load_dataset` for the shapes.

    Raises:
        ValueError: a class that has no usual size.
        FileNotFoundError: the shapes are not there.
    """
    classes = list(TYPICAL_SIZES) if classes is None else list(classes)
    if unknown := [name for name in classes if name not in TYPICAL_SIZES]:
        raise ValueError(f"classes names {unknown[0]!r}; expected any of {', '.join(TYPICAL_SIZES)}")
    single = shapes.load(data_dir, **options)
    single = validation_split(single, 0.2, seed, group_column="group")
    counts = dict(zip(SPLITS, (train_rooms, validation_rooms, test_rooms), strict=True))
    features = Features(
        {"points": Array2D((num_points, 3), "float32"), "labels": List(ClassLabel(names=[FLOOR, *classes]))}
    )
    splits = {}
    for number, (split, count) in enumerate(counts.items()):
        if count < 1:
            continue
        rows = single[split].select_columns(["points", "label"]).with_format("numpy")
        objects = room_objects(rows, rows.features["label"].names, classes, TYPICAL_SIZES)
        made = [
            compose_room(
                objects,
                np.random.default_rng([seed, number, room]),
                num_objects=num_objects,
                num_points=num_points,
            )
            for room in range(count)
        ]
        columns = {name: [room[name] for room in made] for name in features}
        splits[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(splits)

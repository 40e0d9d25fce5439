"""A dataset with columns of other names: each door says which columns there are, and how to rename one."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hf_any3d.data import (
    AugmentedDataset,
    CenterAndScale,
    PointCloudCollator,
    add_preview,
    load_point_dataset,
    points_to_files,
    push_point_dataset,
    validation_split,
)
from hf_any3d.processing.point_clouds import PointCloudProcessor
from tests.errors import raises

ROWS = Dataset.from_dict({"pts": np.random.default_rng(0).normal(size=(4, 8, 3)), "y": [0, 1, 0, 1]})
NAMED = ROWS.rename_column("pts", "points")


def load(folder):
    ROWS.to_parquet(folder / "own.parquet")
    return load_point_dataset("parquet", data_files=folder / "own.parquet", cache_dir=str(folder / "cache"))


DOORS = {
    "collator": lambda folder: PointCloudCollator()([ROWS[0]]),
    "augmentation": lambda folder: AugmentedDataset(ROWS, CenterAndScale()),
    "processor": lambda folder: PointCloudProcessor()(ROWS[0]),
    "map": lambda folder: ROWS.map(PointCloudProcessor()),
    "loader": load,
    "files": lambda folder: points_to_files(ROWS),
    "preview": lambda folder: add_preview(ROWS),
    "push": lambda folder: push_point_dataset(DatasetDict(train=ROWS), "me/own"),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_column_of_another_name_is_named_with_how_to_rename_it(door, tmp_path):
    with raises(ValueError, naming='dataset.rename_column("pts", "points")') as error:
        DOORS[door](tmp_path)
    assert " pts, y; " in str(error.value).replace("'pts', 'y'", "pts, y; ")


def test_labels_and_columns_without_a_usual_name_are_named():
    with raises(ValueError, naming="""no column 'label' among points, y; use dataset.rename_column("y", "label")"""):
        validation_split(NAMED, 0.5)
    with raises(ValueError, naming="no column 'group' among points, y"):
        validation_split(NAMED, 0.5, group_column="group", label_column="y")
    with raises(ValueError, naming="""no column 'normals' among points, y; use dataset.rename_column("…","""):
        AugmentedDataset(NAMED, CenterAndScale(), extra_columns=["normals"])

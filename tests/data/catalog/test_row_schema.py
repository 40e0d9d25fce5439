"""Rows of datasets have the columns, types and shapes that the docstring of `load_point_dataset` says."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, List

from hf_any3d.data import load_point_dataset
from tests.data.catalog.pointllm_trees import write_pointllm

PAGE = Path(__file__).parents[3] / "docs" / "datasets.md"
TABLE = [line for line in inspect.getdoc(load_point_dataset).splitlines() if line.startswith("|")]
ROOMS = {"train_rooms": 1, "validation_rooms": 1, "test_rooms": 1}
OBJECTS = {"train_objects": 6, "validation_objects": 6, "test_objects": 6}
# What rows are for -> a dataset that needs no download, with its options.
DATASETS = {
    "classification": ("shapes", {}),
    "segmentation": ("rooms", ROOMS),
    "segmentation, parts": ("parts", OBJECTS),
    "detection": ("rooms_with_boxes", ROOMS),
    "layouts": ("rooms_with_layouts", ROOMS),
    "captions": ("objaverse_captions", {"verify": False}),
}


def schema(purpose):
    """Return column -> type and shape of the rows for a purpose, and the columns that all of them have."""
    columns, wanted = {}, set()
    for line in TABLE[2:]:
        of, names, kind, shape, _ = (cell.strip() for cell in line.strip("|").split("|"))
        uses = {"all", *purpose.split(", ")} & set(of.split(", "))
        if uses or of == "some":
            for name in re.findall(r"`(\w+)`", names):
                columns[name] = kind, shape
                wanted |= {name} if uses else set()
    return columns, wanted


def stored(feature):
    """Return the type of a column's values."""
    if isinstance(feature, Array2D):
        return feature.dtype
    if isinstance(feature, List):
        return stored(feature.feature)
    if isinstance(feature, dict):
        return f"`{'`, `'.join(feature)}`: {' '.join({stored(value) for value in feature.values()})}"
    return "ClassLabel" if isinstance(feature, ClassLabel) else feature.dtype


@pytest.mark.parametrize("purpose", DATASETS)
def test_rows_have_the_columns_that_the_docstring_says(purpose, tmp_path):
    name, options = DATASETS[purpose]
    if purpose == "captions":
        options = {**options, "data_dir": write_pointllm(tmp_path), "cache_dir": tmp_path / "cache"}
    rows = load_point_dataset(name, split="test", **options)
    columns, wanted = schema(purpose)
    assert wanted <= set(rows.column_names)
    row = rows[0]
    sizes = {"points": len(row["points"])}
    for column in columns.keys() & set(rows.column_names):
        kind, shape = columns[column]
        # Colors of captions are as published.
        kind = "float32" if (purpose, column) == ("captions", "colors") else kind
        assert stored(rows.features[column]) == kind, column
        found = (len(row[column]),) if column == "conversations" else np.shape(row[column])
        for size, letter in zip(found, re.findall(r"\w+", shape), strict=True):
            assert size == (int(letter) if letter.isdigit() else sizes.setdefault(letter, size)), column


def test_the_page_has_the_same_table():
    assert "\n".join(TABLE) in PAGE.read_text(encoding="utf-8")

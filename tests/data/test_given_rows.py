"""Whatever reads a dataset reads the rows that the dataset gives, by its own transform and format."""

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, List, Value

from hf_any3d import ActConfig, ActForPointCloudClassification
from hf_any3d.data import (
    AugmentedDataset,
    PointCloudCollator,
    add_preview,
    draw_fold,
    embed_files,
    points_to_files,
    push_point_dataset,
    validation_split,
)
from hf_any3d.data.parquet.publishing import write_point_dataset
from hf_any3d.data.torch_datasets import ArrowRows
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.detection import SceneRows
from hf_any3d.training.frozen_features import frozen_features
from hf_any3d.training.rows import evaluation_rows, training_rows
from hf_any3d.training.segmentation_rows import BlockRows, CropRows
from tests.errors import raises

COUNT = 6
FEATURES = Features(
    {
        "points": Array2D((None, 3), "float32"),
        "normals": Array2D((None, 3), "float32"),
        "labels": List(Value("int64")),
        "boxes": List(List(Value("float32"))),
        "box_labels": List(ClassLabel(names=["a", "b"])),
        "label": ClassLabel(names=["a", "b", "c"]),
    }
)


def stored() -> Dataset:
    generator = np.random.default_rng(0)
    rows = []
    for number in range(COUNT):
        points = generator.random((30 + number, 3)).astype("float32")
        row = {"points": points, "normals": points / np.linalg.norm(points, axis=1, keepdims=True)}
        row |= {"labels": np.arange(len(points)) % 3, "boxes": np.array([[0.5] * 6 + [0]], "float32")}
        rows.append({**{name: value.tolist() for name, value in row.items()}, "box_labels": [0], "label": number % 2})
    return Dataset.from_list(rows, FEATURES)


def changed(batch):
    """Turn the axes of points, and shift their classes and those of the clouds."""
    points = [np.asarray(cloud)[:, [1, 2, 0]] for cloud in batch["points"]]
    labels = [[(label + 1) % 3 for label in labels] for labels in batch["labels"]]
    return {**batch, "points": points, "labels": labels, "label": [(label + 1) % 3 for label in batch["label"]]}


def tensors(batch):
    """The same as tensors."""
    return {name: [torch.tensor(np.asarray(value)) for value in values] for name, values in changed(batch).items()}


def renamed(batch):
    """The same of a column that is renamed by the transform alone."""
    return changed({**{name: values for name, values in batch.items() if name != "cloud"}, "points": batch["cloud"]})


def set_in_place(dataset):
    dataset.set_transform(changed)
    return dataset


def backwards(dataset):
    return dataset.select(range(COUNT - 1, -1, -1))


# Datasets that give the same rows as `stored().map(changed, batched=True)`.
FORMS = {
    "with_transform": lambda: stored().with_transform(changed),
    "set_transform": lambda: set_in_place(stored()),
    "a transform to tensors": lambda: stored().with_transform(tensors),
    "a transform to other columns": lambda: stored().rename_column("points", "cloud").with_transform(renamed),
    "a selected one": lambda: backwards(backwards(stored()).with_transform(changed)),
}
PROCESSOR = PointCloudProcessor(num_points=16, seed=0)
SETTLED = PointCloudProcessor(num_points=16, seed=0, center=False, scale=None, block_size=0.7)


def features(dataset):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "head_widths": (16,)}
    model = ActForPointCloudClassification(ActConfig(num_groups=4, group_size=4, num_labels=3, **sizes))
    computed = frozen_features(model, dataset, PROCESSOR)
    return [computed[number] for number in range(len(computed))]


def split(dataset):
    parts = validation_split(dataset, 0.4, seed=0)
    return [parts[name][number] for name in ("train", "validation") for number in range(len(parts[name]))]


def as_it_is(cloud, generator=None):
    return cloud


def every(rows):
    return [rows[number] for number in range(len(rows))]


READERS = {
    "AugmentedDataset": lambda rows: every(AugmentedDataset(rows, as_it_is, ("normals",))),
    "ArrowRows": lambda rows: every(ArrowRows(rows)),
    "PointCloudCollator": lambda rows: [PointCloudCollator(16)([{"points": row["points"]} for row in rows])],
    "training_rows": lambda rows: every(training_rows(rows, PROCESSOR, ["jitter"])),
    "evaluation_rows": lambda rows: every(evaluation_rows(rows, PROCESSOR)),
    "CropRows": lambda rows: every(CropRows(rows, SETTLED, with_category=True)),
    "BlockRows": lambda rows: every(BlockRows(rows, SETTLED, with_category=True)),
    "SceneRows": lambda rows: every(SceneRows(rows, SETTLED)),
    "frozen_features": features,
    "validation_split": split,
}


def assert_same(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_same(found[name], value)
    else:
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize("reader", READERS)
def test_readers_see_what_the_dataset_gives(reader, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    read = READERS[reader]
    expected = read(stored().map(changed, batched=True, features=FEATURES, load_from_cache_file=False))
    for name, make in FORMS.items():
        found = read(make())
        assert len(found) == len(expected), name
        for row, other in zip(found, expected, strict=True):
            assert_same(row, other)


def test_formats_give_what_is_stored_but_for_hidden_columns_and_types_of_fewer_digits():
    expected = every(AugmentedDataset(stored(), as_it_is))
    for form in ("numpy", "torch", "pandas", "arrow", None):
        found = every(AugmentedDataset(stored().with_format(form), as_it_is))
        for row, other in zip(found, expected, strict=True):
            assert_same(row, other)
    shown = stored().with_format("numpy", columns=["points", "label"])
    assert list(AugmentedDataset(shown, as_it_is)[0]) == ["points", "label"]
    with raises(ValueError, naming="no column 'normals'"):
        AugmentedDataset(shown, as_it_is, ("normals",))
    halves = stored().select_columns("points").with_format("torch", dtype=torch.float16)
    assert_same(AugmentedDataset(halves, as_it_is)[0], halves[0])


STORING = {
    "points_to_files": lambda rows: points_to_files(rows),
    "add_preview": lambda rows: add_preview(DatasetDict(train=rows)),
    "embed_files": embed_files,
    "draw_fold": lambda rows: draw_fold(DatasetDict(train=rows, test=rows), way=2, shot=1, fold=0, test_per_class=1),
    "write_point_dataset": lambda rows: write_point_dataset(DatasetDict(train=rows), "never"),
    "push_point_dataset": lambda rows: push_point_dataset(DatasetDict(train=rows), "never/pushed"),
}


@pytest.mark.parametrize("work", STORING)
def test_what_stores_rows_refuses_a_transform(work):
    with raises(ValueError, naming=work):
        STORING[work](stored().with_transform(changed))


@pytest.mark.parametrize(
    ("dataset", "error", "naming"),
    [
        (DatasetDict(train=stored()), TypeError, "DatasetDict"),
        ({"points": []}, TypeError, "dict"),
        (None, TypeError, "NoneType"),
        ((row for row in ()), TypeError, "generator"),
        (stored().to_pandas(), TypeError, "DataFrame"),
        ([(1, 2)], TypeError, "tuple"),
        ([{"xyz": [[0, 0, 0]]}], ValueError, "rename_column"),
        (stored().with_transform(lambda batch: {"cloud": batch["points"]}), ValueError, "no column 'points'"),
    ],
)
def test_what_cannot_be_augmented_is_refused_when_it_is_given(dataset, error, naming):
    with raises(error, naming=naming):
        AugmentedDataset(dataset, as_it_is)

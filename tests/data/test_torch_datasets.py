"""Rows read from Arrow buffers equal those of `datasets`, and are augmented at each read."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value, concatenate_datasets

from hf_any3d.data.torch_datasets import ArrowRows, AugmentedDataset, read_table
from hf_any3d.data.transforms import Jitter
from tests.errors import raises


def make(sizes, shape=(None, 3), start=0) -> Dataset:
    generator = np.random.default_rng(start)
    clouds = [generator.standard_normal((size, 3)).astype(np.float32) for size in sizes]
    features = Features(
        {
            "points": Array2D(shape, "float32"),
            "colors": Array2D(shape, "uint8"),
            "wide": Array2D((None, 5), "float64"),
            "labels": List(Value("int32")),
            "label": ClassLabel(num_classes=9),
            "name": Value("string"),
            "weight": Value("float32"),
        }
    )
    rows = {
        "points": clouds,
        "colors": [generator.integers(0, 256, (size, 3)).astype(np.uint8) for size in sizes],
        "wide": [generator.standard_normal((2, 5)) for _ in sizes],
        "labels": [list(range(size)) for size in sizes],
        "label": [i % 9 for i in range(len(sizes))],
        "name": [f"cloud {start + i}" for i in range(len(sizes))],
        "weight": [0.5 * i for i in range(len(sizes))],
    }
    return Dataset.from_dict(rows, features=features)


def from_file(folder) -> Dataset:
    make([3, 1, 4, 1, 5]).save_to_disk(folder, num_shards=2)
    return Dataset.load_from_disk(folder)


DATASETS = {
    "of many sizes": lambda folder: make([3, 1, 4, 1, 5]),
    "of one size": lambda folder: make([4, 4, 4], (4, 3)),
    "of a free size that is one": lambda folder: make([4, 4, 4]),
    "memory-mapped": from_file,
    "shuffled": lambda folder: make([3, 1, 4, 1, 5]).shuffle(seed=1),
    "selected": lambda folder: make([3, 1, 4, 1, 5]).select([4, 0, 2]),
    "a part": lambda folder: make([3, 1, 4, 1, 5]).select(range(2, 5)),
    "concatenated": lambda folder: concatenate_datasets([make([3, 1]), make([2, 6], start=7)]),
    "filtered": lambda folder: make([3, 1, 4, 1, 5]).filter(lambda row: len(row["labels"]) > 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DATASETS)
def test_rows_equal_those_of_the_numpy_format(kind, tmp_path):
    dataset = DATASETS[kind](str(tmp_path / "saved"))
    rows, expected = ArrowRows(dataset), dataset.with_format("numpy")
    doubles = dataset.with_format("numpy", dtype=None)
    numbers = [*range(len(dataset)), 0, -1]
    together = rows.__getitems__(numbers)
    assert len(rows) == len(dataset)
    for number, row in zip(numbers, together, strict=True):
        for found in (row, rows[number]):
            assert list(found) == dataset.column_names
            for name, value in {**expected[number], "wide": doubles[number]["wide"]}.items():
                np.testing.assert_array_equal(found[name], value)
                if isinstance(value, np.ndarray):
                    assert found[name].dtype == value.dtype


def test_clouds_are_read_only_views():
    dataset = make([3, 2])
    points = ArrowRows(dataset)[1]["points"]
    with raises(ValueError, naming="read-only"):
        points[0] = 0
    assert np.shares_memory(points, ArrowRows(dataset)[1]["points"])


def test_missing_values_are_read_by_datasets():
    features = Features({"points": Array2D((None, 3), "float32"), "label": Value("int64")})
    dataset = Dataset.from_dict({"points": [np.ones((2, 3), np.float32), None], "label": [None, 2]}, features=features)
    rows = ArrowRows(dataset)
    assert rows[0]["points"].shape == (2, 3) and np.isnan(rows[0]["label"])
    with raises(ValueError, naming="row 1 has no points"):
        rows[1]
    assert read_table(dataset.with_format("arrow")[:], features) is None


@pytest.mark.parametrize("inner", [[None, [1.0, 2.0, 3.0]], [[1.0, None, 3.0]]], ids=["a point", "a coordinate"])
def test_clouds_with_missing_points_or_coordinates_are_read_by_datasets(inner):
    features = Features({"points": Array2D((None, 3), "float32")})
    storage = pa.array([[[1.0, 2.0, 3.0]], inner], pa.list_(pa.list_(pa.float32())))
    points = pa.ExtensionArray.from_storage(features["points"](), storage)
    assert read_table(pa.table({"points": points}), features) is None


def test_a_row_out_of_range_is_an_index_error():
    for number in (2, -3):
        with pytest.raises(IndexError, match=f"row {number} of 2"):
            ArrowRows(make([3, 2]))[number]


def test_a_pickle_of_memory_mapped_rows_contains_no_clouds(tmp_path):
    dataset = make([20_000, 20_000]).select_columns(["points"])
    dataset.save_to_disk(str(tmp_path))
    rows = ArrowRows(Dataset.load_from_disk(str(tmp_path)))
    pickled = pickle.dumps(rows)
    assert len(pickled) < 20_000
    np.testing.assert_array_equal(pickle.loads(pickled)[1]["points"], rows[1]["points"])


@pytest.fixture
def dataset():
    generator = np.random.default_rng(0)
    features = Features(
        {
            "points": Array2D((None, 3), "float32"),
            "normals": Array2D((None, 3), "float32"),
            "label": ClassLabel(names=["a", "b"]),
        }
    )
    clouds = [generator.uniform(-1, 1, (size, 3)).astype(np.float32) for size in (20, 30)]
    return Dataset.from_dict({"points": clouds, "normals": clouds, "label": [0, 1]}, features=features)


def test_augmentation_of_an_epoch_depends_on_seed_and_row_alone(dataset):
    augmented = AugmentedDataset(dataset, Jitter(), seed=3)
    augmented.set_epoch(2)
    before = torch.get_rng_state()
    first = augmented.__getitems__([1, 0])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(9)
    for index, row in zip((1, 0), first, strict=True):
        np.testing.assert_array_equal(augmented[index]["points"], row["points"])
        np.testing.assert_array_equal(augmented[index - 2]["points"], row["points"])
    again = AugmentedDataset(dataset, Jitter(), seed=4)
    again.set_epoch(2)
    augmented.set_epoch(3)
    assert not any(np.array_equal(other[1]["points"], first[0]["points"]) for other in (augmented, again))

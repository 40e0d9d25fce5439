import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features

from hf_any3d.data.collator import PointCloudCollator
from hf_any3d.data.torch_datasets import AugmentedDataset
from hf_any3d.data.transforms import Compose, Jitter, RandomRotation


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


def test_training_rows_change_at_every_read_and_repeat_under_torch_seed(dataset):
    augmented = AugmentedDataset(dataset, Jitter())
    torch.manual_seed(0)
    first, second = augmented[0]["points"], augmented[0]["points"]
    torch.manual_seed(0)
    np.testing.assert_array_equal(augmented[0]["points"], first)
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(first, dataset.with_format("numpy")[0]["points"], atol=0.06)


def test_extra_columns_are_transformed_together_with_the_points(dataset):
    rotation = Compose([RandomRotation(normals_columns=(3, 4, 5))])
    row = AugmentedDataset(dataset, rotation, extra_columns=("normals",))[1]
    assert row["points"].shape == row["normals"].shape == (30, 3) and row["label"] == 1
    np.testing.assert_allclose(row["points"], row["normals"], rtol=1e-6)


def test_a_loader_with_the_collator_gives_model_input(dataset):
    loader = torch.utils.data.DataLoader(
        AugmentedDataset(dataset, Jitter()), batch_size=2, collate_fn=PointCloudCollator(16)
    )
    (batch,) = loader
    assert batch["points"].shape == (2, 16, 3) and batch["labels"].tolist() == [0, 1]


def test_rows_read_together_equal_rows_read_one_by_one(dataset):
    augmented = AugmentedDataset(dataset, Jitter(), extra_columns=("normals",))
    torch.manual_seed(3)
    together = augmented.__getitems__([1, 0])
    torch.manual_seed(3)
    one_by_one = [augmented[1], augmented[0]]
    for row, other in zip(together, one_by_one, strict=True):
        assert row.keys() == other.keys()
        assert all(np.array_equal(row[name], other[name]) for name in row)


def test_a_missing_column_is_named(dataset):
    with pytest.raises(ValueError, match="no column 'colors'; it has points, normals, label"):
        AugmentedDataset(dataset, Jitter(), extra_columns=("colors",))

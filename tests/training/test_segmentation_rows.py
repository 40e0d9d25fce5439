"""Rows for segmentation: crops, blocks and the class-weighted loss."""

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, List
from torch import nn
from torch.utils.data import DataLoader
from transformers import default_data_collator
from transformers.modeling_outputs import TokenClassifierOutput

from hf_any3d import PointCloudProcessor
from hf_any3d.training.rows import training_transform
from hf_any3d.training.segmentation_rows import (
    BlockRows,
    CropRows,
    WeightedPointLoss,
    class_weights,
    parts_of_categories,
)

LABELS = [np.array([0, 0, 0, 1, -100]), np.array([0, 0, 0, 1])]  # six of class 0, two of class 1, none of class 2


@pytest.mark.parametrize(("power", "ratio"), [(0.0, 1.0), (0.5, 3**0.5), (1.0, 3.0)])
def test_weights_are_powers_of_inverse_frequencies(power, ratio):
    weights = class_weights(LABELS, 3, power)
    assert weights[1] / weights[0] == pytest.approx(ratio)
    assert weights[2] == 0
    assert 0.75 * weights[0] + 0.25 * weights[1] == pytest.approx(1.0), "a point weighs 1 on average"


def batch() -> tuple[TokenClassifierOutput, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([[0, 1, -100, 0], [1, -100, 0, 0]])
    return TokenClassifierOutput(logits=torch.randn(2, 4, 3, generator=generator)), labels


def test_equal_weights_give_the_plain_mean_over_points():
    outputs, labels = batch()
    expected = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(WeightedPointLoss(torch.ones(3))(outputs, labels), expected)


def test_batches_of_a_step_sum_to_the_mean_over_all_points():
    outputs, labels = batch()
    loss = WeightedPointLoss(class_weights(LABELS, 3, 0.5))
    pieces = [
        loss(TokenClassifierOutput(logits=outputs.logits[i : i + 1]), labels[i : i + 1], num_items_in_batch=6)
        for i in range(2)
    ]
    torch.testing.assert_close(sum(pieces), loss(outputs, labels))


SIZES = (300, 40, 128)


@pytest.fixture(scope="module")
def dataset():
    """Clouds whose labels are the sign of the first coordinate."""
    generator = np.random.default_rng(0)
    points = [generator.uniform(-2, 2, (size, 3)).astype(np.float32) for size in SIZES]
    features = Features(
        {
            "points": Array2D((None, 3), "float32"),
            "labels": List(ClassLabel(names=["left", "right"])),
            "label": ClassLabel(names=["a", "b"]),
        }
    )
    columns = {"points": points, "labels": [(cloud[:, 0] > 0).astype(int) for cloud in points], "label": [0, 1, 0]}
    return Dataset.from_dict(columns, features=features)


def processor(**settings):
    return PointCloudProcessor(**{"num_points": 64, "center": False, "scale": None, **settings})


def right_of_zero(row):
    return (row["points"][:, 0] > 0).astype(int)


@pytest.mark.parametrize("block_size", [None, 1.5])
def test_labels_stay_with_their_points(dataset, block_size):
    rows = BlockRows(dataset, processor(block_size=block_size))
    # Scaling and jitter in place; shuffling and dropout move points from row to row.
    transform = training_transform(rows.processor, ["scale", "shuffle", "dropout"])
    for drawn in (rows, CropRows(dataset, processor(block_size=block_size), transform, seed=0)):
        assert len(drawn) > 2
        for row in drawn:
            assert row.keys() == {"points", "labels"}
            assert row["points"].shape == (64, 3) and row["points"].dtype == np.float32
            assert row["labels"].shape == (64,) and row["labels"].dtype == np.int64
            assert np.array_equal(row["labels"], right_of_zero(row))


@pytest.mark.parametrize("block_size", [None, 1.5])
def test_blocks_cover_every_cloud(dataset, block_size):
    rows = BlockRows(dataset, processor(block_size=block_size))
    for cloud, size in enumerate(SIZES):
        seen = np.concatenate([index for index, own in zip(rows.index, rows.clouds, strict=True) if own == cloud])
        assert np.array_equal(np.unique(seen), np.arange(size))
    again = BlockRows(dataset, processor(block_size=block_size))
    assert all(np.array_equal(rows[n]["points"], again[n]["points"]) for n in range(len(rows)))


def test_number_of_crops_covers_the_clouds_once(dataset):
    rows = CropRows(dataset, processor())
    assert rows.clouds.tolist() == [0] * 5 + [1] + [2] * 2
    with pytest.raises(IndexError):
        rows[8]


def test_crops_depend_only_on_seed_epoch_and_row(dataset):
    rows, again, other = (CropRows(dataset, processor(block_size=1.5), seed=seed) for seed in (0, 0, 1))
    first = rows[3]["points"]
    assert np.array_equal(first, again[3]["points"]) and not np.array_equal(first, other[3]["points"])
    again.epoch = 1
    assert not np.array_equal(first, again[3]["points"])


def test_category_is_returned_on_request(dataset):
    for rows in (BlockRows(dataset, processor(), True), CropRows(dataset, processor(), with_category=True)):
        batch = next(iter(DataLoader(rows, batch_size=len(rows), collate_fn=default_data_collator)))
        assert batch["category"].tolist() == [int(dataset[int(cloud)]["label"]) for cloud in rows.clouds]
        assert batch["points"].shape == (len(rows), 64, 3) and batch["labels"].shape == (len(rows), 64)


def test_each_vote_divides_clouds_differently(dataset):
    once, thrice = (BlockRows(dataset, processor(block_size=1.5), votes=votes) for votes in (1, 3))
    assert len(thrice) == 3 * len(once) and thrice.clouds.count(0) == 3 * once.clouds.count(0)
    first = [index for index, cloud in zip(thrice.index, thrice.clouds, strict=True) if cloud == 0]
    own = len(first) // 3
    assert np.array_equal(np.stack(first[:own]), np.stack(once.index[:own]))
    assert not np.array_equal(np.stack(first[own : 2 * own]), np.stack(first[:own]))


def test_categories_are_found_by_the_names_of_parts():
    categories = ["table", "table lamp"]
    assert parts_of_categories(["table top", "table lamp shade", "table legs"], categories) == [[0, 2], [1]]
    assert parts_of_categories(["table top", "shade"], categories) is None
    assert parts_of_categories(["table top", "table legs"], categories) is None
    assert parts_of_categories(["tabletop"], ["table"]) is None


@pytest.mark.parametrize("rows", [CropRows, BlockRows])
def test_pieces_of_rooms_know_their_places_in_the_room(rows, dataset):
    processor = PointCloudProcessor(num_points=16, center="room", scale=None, block_size=1.0, up_axis="z")
    room = np.asarray(dataset[0]["points"])
    low, high = room.min(axis=0), room.max(axis=0)
    points = rows(dataset.select([0]), processor)[3]["points"]
    assert points.shape == (16, 6)
    places = low + points[:, 3:] * (high - low)
    assert np.abs(places[:, None] - room).max(axis=2).min(axis=1).max() < 1e-5
    np.testing.assert_allclose(points[:, 2], places[:, 2] - low[2], atol=1e-5)

"""Data sets whose points are float64 at coordinates of a map are read with all digits, and moved before any cast."""

from typing import Any

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value

from hf_any3d import PointCloudProcessor, load_point_dataset
from hf_any3d.data import AugmentedDataset, PointCloudCollator, files_to_points, points_to_files
from hf_any3d.data.torch_datasets import ArrowRows
from hf_any3d.data.transforms import Compose
from hf_any3d.training.detection import SceneRows
from hf_any3d.training.few_scans.labeled_scans import look_at
from hf_any3d.training.rows import StreamedRows, evaluation_rows
from hf_any3d.training.segmentation_rows import BlockRows

# A corner of a UTM zone.
PLACE = np.array([500_000.0, 5_400_000.0, 0.0])
KINDS = {
    "lists": List(List(Value("float64"))),
    "lists of fixed lengths": List(List(Value("float64"), length=3), length=40),
    "arrays of a free size": Array2D((None, 3), "float64"),
    "arrays of one size": Array2D((40, 3), "float64"),
}


def clouds(count=4):
    generator = np.random.default_rng(0)
    # Millimeters, as of a survey
    return [np.round(generator.uniform(0, [0.5, 0.6, 1.0], (40, 3)), 3) for _ in range(count)]


def chairs(place, kind=KINDS["lists"], **columns) -> Dataset:
    points = [cloud + place for cloud in clouds()]
    features = {"points": kind, "label": ClassLabel(names=["chair", "stool"])}
    features |= {name: feature for name, (feature, _) in columns.items()}
    values = {"points": points, "label": [0, 1, 0, 1]} | {name: value for name, (_, value) in columns.items()}
    return Dataset.from_dict(values, features=Features(features))


def stacked(rows):
    return np.stack([np.asarray(row["points"]) for row in rows])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_for_models_are_those_of_the_origin(kind):
    processor = PointCloudProcessor(num_points=32)
    far, near = (chairs(place, KINDS[kind]) for place in (PLACE, 0))
    np.testing.assert_allclose(
        stacked(evaluation_rows(far, processor)), stacked(evaluation_rows(near, processor)), atol=1e-4
    )
    # Integers beside them are read as in the numpy format.
    assert ArrowRows(far)[0]["label"].dtype == np.int64
    moved, expected = (stacked(StreamedRows(rows.to_iterable_dataset(), processor)) for rows in (far, near))
    np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_a_file_is_read_with_all_digits(tmp_path, cache_dir):
    chairs(PLACE).to_parquet(tmp_path / "train.parquet")
    chairs(0).to_parquet(tmp_path / "test.parquet")
    splits = load_point_dataset("parquet", data_dir=tmp_path, cache_dir=cache_dir)
    np.testing.assert_array_equal(splits["train"][0]["points"], clouds()[0] + PLACE)
    # Splits have one type, so that they can be joined.
    assert splits["train"].features == splits["test"].features
    processor = PointCloudProcessor(num_points=32)
    moved, expected = (processor(splits[split]["points"][:])["points"] for split in ("train", "test"))
    np.testing.assert_allclose(moved, expected, atol=1e-4)
    # Shapes are told apart; as planes, all would be near-duplicates.
    far, near = (look_at(splits[split], split) for split in ("train", "test"))
    assert far.groups.tolist() == near.groups.tolist() and len(set(far.digests)) == 4


def test_collated_and_augmented_clouds_keep_their_shape():
    far, near = (chairs(place) for place in (PLACE, 0))
    collate = PointCloudCollator()
    for rows in (far.with_format(None), AugmentedDataset(far, Compose([]))):
        # Collators do not center, so clouds are compared by their first points.
        moved = collate([rows[number] for number in range(4)])["points"].numpy()
        expected = collate([near[number] for number in range(4)])["points"].numpy()
        np.testing.assert_allclose(moved - moved[:, :1], expected - expected[:, :1], atol=1e-4)


def test_boxes_move_with_their_scene():
    kinds = {"boxes": List(List(Value("float64"), length=7)), "box_labels": List(ClassLabel(names=["chair"]))}
    processor = PointCloudProcessor(num_points=32, center=False, scale=None)
    read = []
    for place in (PLACE, np.zeros(3)):
        boxes = [[[*(np.array([0.25, 0.3, 0.5]) + place), 0.5, 0.6, 1.0, 0.0]]] * 4
        rows = chairs(place, boxes=(kinds["boxes"], boxes), box_labels=(kinds["box_labels"], [[0]] * 4))
        read.append(SceneRows(rows, processor)[0])
    # As far from the points as before
    far, near = (row["points"] - row["labels"]["boxes"][:, :3] for row in read)
    np.testing.assert_allclose(far, near, atol=1e-4)


def test_blocks_of_a_tile_are_those_at_the_origin():
    labels = (List(Value("int8")), [[0, 1] * 20] * 4)
    processor = PointCloudProcessor(num_points=32, center="room", scale=None, block_size=0.5, up_axis="z")
    far, near = (BlockRows(chairs(place, labels=labels), processor) for place in (PLACE, 0))
    assert len(far) == len(near)
    for number in range(len(far)):
        one, other = far[number], near[number]
        np.testing.assert_allclose(one["points"], other["points"], atol=1e-4)
        np.testing.assert_array_equal(one["labels"], other["labels"])


def test_a_column_of_files_keeps_the_shape():
    files = points_to_files(chairs(PLACE).select_columns(["points", "label"]))
    moved = stacked(files_to_points(files))
    expected = np.stack(clouds())
    np.testing.assert_allclose(moved - moved[:, :1], expected - expected[:, :1], atol=1e-4)


def test_lists_of_numbers_keep_their_digits_in_pipelines(packaged):
    far, near = (packaged((clouds()[0] + place).tolist()) for place in (PLACE, 0))
    assert [answer["label"] for answer in far] == [answer["label"] for answer in near]
    moved, expected = ([answer["score"] for answer in each] for each in (far, near))
    np.testing.assert_allclose(moved, expected, atol=1e-4)


@pytest.fixture(scope="module")
def packaged():
    from transformers import pipeline

    make: Any = pipeline  # transformers lists only its own tasks
    return make("point-cloud-classification")

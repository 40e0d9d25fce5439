"""What the trainers of both tasks are built from: rows, metrics, loss and labels, as arguments and data ask for."""

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, List, Value

from hf_any3d import PointCloudProcessor
from hf_any3d.data import PointCloudCollator
from hf_any3d.evaluation.classification import compute_classification_metrics
from hf_any3d.training import tasks
from hf_any3d.training.arguments import AdapterArguments, DataArguments, PointTrainingArguments
from hf_any3d.training.models import PointModelArguments
from hf_any3d.training.protocol import ProtocolArguments, voting_rows
from hf_any3d.training.rows import evaluation_rows, training_rows
from tests.errors import raises
from tests.tiny_encoders import tiny_model

QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}
PARTS = ["cup handle", "cup bowl", "lamp base", "lamp shade"]


def labeled(
    count: int = 4, labels: ClassLabel | Value | None = None, category: object = None, points: int = 40
) -> Dataset:
    """Clouds whose points have labels; the second half of them has those of the second category."""
    generator = np.random.default_rng(0)
    features = {"points": Array2D((points, 3), "float32"), "labels": List(labels or ClassLabel(names=PARTS))}
    columns = {"points": list(generator.random((count, points, 3)).astype(np.float32))}
    columns["labels"] = [generator.integers(0, 2, points) + 2 * (number >= count // 2) for number in range(count)]
    if category is not None:
        columns["label"], features["label"] = [int(number >= count // 2) for number in range(count)], category
    return Dataset.from_dict(columns, features=Features(features))


CUPS = ClassLabel(names=["cup", "lamp"])


@pytest.fixture(scope="module")
def shapes() -> DatasetDict:
    points = np.random.default_rng(0).standard_normal((4, 50, 3)).astype(np.float32)
    features = Features({"points": Array2D((50, 3), "float32"), "label": ClassLabel(names=["a", "b"])})
    rows = Dataset.from_dict({"points": list(points), "label": [0, 1, 0, 1]}, features=features)
    return DatasetDict({"train": rows, "validation": rows.select([2, 3])})


@pytest.mark.parametrize("whole", [False, True])
def test_rows_of_a_classifier_follow_the_seed_of_the_run_and_its_augmentation(shapes, whole, tmp_path):
    arguments = PointTrainingArguments(str(tmp_path), seed=7, **QUIET)
    data = DataArguments(augment=["scale", "subsample:num_points=32"])
    protocol = ProtocolArguments(augment_whole=whole)
    processor = PointCloudProcessor(num_points=32)
    task = tasks.Classification(PointModelArguments(), data, protocol, AdapterArguments(), arguments)
    trainer = task.build_trainer(tiny_model(), shapes, processor)
    expected = training_rows(shapes["train"], processor, data.augment, seed=7, whole=whole)
    np.testing.assert_array_equal(trainer.train_dataset[3]["points"], expected[3]["points"])
    judged = evaluation_rows(shapes["validation"], processor)
    np.testing.assert_array_equal(trainer.eval_dataset[1]["points"], judged[1]["points"])
    assert isinstance(trainer.data_collator, PointCloudCollator) and trainer.processing_class is processor
    assert trainer.compute_metrics is compute_classification_metrics


@pytest.mark.parametrize(("own", "used"), [(None, ["scale"]), (["jitter"], ["jitter"])])
def test_votes_are_augmented_as_training_unless_said_otherwise(shapes, own, used):
    processor = PointCloudProcessor(num_points=50)
    protocol = ProtocolArguments(voting=2, vote_augment=own)
    rows = voting_rows(shapes["train"], processor, DataArguments(augment=["scale"]), protocol, 5)
    expected = training_rows(shapes["train"], processor, used, seed=5)
    np.testing.assert_array_equal(rows[1]["points"], expected[1]["points"])


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_parts_without_names_are_those_that_objects_of_the_category_have(dtype):
    task = tasks.find_point_labels(labeled(labels=Value(dtype), category=CUPS))
    assert task.names == ["0", "1", "2", "3"] and task.category_parts == [[0, 1], [2, 3]]
    assert task.categories == ["cup", "lamp"] and task.has_parts


def test_a_category_without_objects_has_no_parts():
    rows = labeled(labels=Value("int64"), category=ClassLabel(names=["cup", "lamp", "sofa"]))
    with raises(ValueError, naming="'sofa'; its parts are unknown"):
        tasks.find_point_labels(rows)


@pytest.mark.parametrize("category", [None, Value("int64")])
def test_without_categories_the_task_is_scenes(category):
    task = tasks.find_point_labels(labeled(category=category))
    assert task == tasks.PointLabels(PARTS) and not task.has_parts


def test_labels_of_points_that_are_no_whole_numbers_are_refused():
    rows = labeled(labels=Value("float32"))
    with raises(ValueError, naming="ClassLabel"):
        tasks.find_point_labels(rows)

"""What the trainers of both tasks are built from: rows, metrics, loss and labels, as arguments and data ask for."""

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, List, Value
from transformers import default_data_collator

from hf_any3d import PointCloudProcessor
from hf_any3d.data import PointCloudCollator
from hf_any3d.evaluation.classification import compute_classification_metrics
from hf_any3d.evaluation.segmentation import ComputePartMetrics, LabelPoints, compute_semantic_metrics
from hf_any3d.training import tasks
from hf_any3d.training.arguments import AdapterArguments, DataArguments, PointTrainingArguments
from hf_any3d.training.models import PointModelArguments
from hf_any3d.training.protocol import ProtocolArguments, voting_rows
from hf_any3d.training.rows import evaluation_rows, training_rows
from hf_any3d.training.segmentation_rows import BlockRows, CropRows, WeightedPointLoss, class_weights
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


def test_classes_of_clouds_are_those_of_a_class_label(shapes):
    assert tasks.class_names(shapes["train"]) == ["a", "b"]
    with raises(ValueError, naming="ClassLabel"):
        tasks.class_names(shapes["train"].remove_columns("label"))


@pytest.fixture(scope="module")
def parts() -> tuple[DatasetDict, tasks.PointLabels]:
    rows = labeled(category=CUPS)
    splits = DatasetDict({"train": rows, "validation": rows.select([0, 3])})
    return splits, tasks.find_point_labels(rows)


def segmentation(folder, weighting=0.0, metric="mean_iou", **data) -> tasks.Segmentation:
    arguments = tasks.SegmentationTrainingArguments(
        str(folder), seed=7, class_weighting=weighting, metric_for_best_model=metric, **QUIET
    )
    data = tasks.SegmentationDataArguments(**{"num_points": 16, "augment": ["scale"], **data})
    return tasks.Segmentation(PointModelArguments(model_type="patchalign3d"), data, AdapterArguments(), arguments)


def segmentation_trainer(splits, labels, folder, weighting=0.0, metric="mean_iou", **data):
    task = segmentation(folder, weighting, metric, **data)
    task.labels = labels
    processor = PointCloudProcessor(num_points=16)
    return task.build_trainer(tiny_model(), splits, processor), processor


def test_a_trainer_of_parts_knows_the_category_of_each_object(parts, tmp_path):
    splits, task = parts
    trainer, processor = segmentation_trainer(splits, task, tmp_path, min_block_points=3)
    rows = trainer.train_dataset
    assert isinstance(rows, CropRows) and (rows.seed, rows.min_points) == (7, 3) and rows.transform is not None
    assert rows[len(rows) - 1]["category"] == 1
    judged = trainer.eval_dataset
    assert isinstance(judged, BlockRows) and [judged[0]["category"], judged[len(judged) - 1]["category"]] == [0, 1]
    assert trainer.args.label_names == ["labels", "category"]
    assert trainer.args.metric_for_best_model == "instance_miou"
    assert isinstance(trainer.compute_metrics, ComputePartMetrics)
    assert trainer.compute_metrics.category_parts == [[0, 1], [2, 3]]
    assert isinstance(trainer.preprocess_logits_for_metrics, LabelPoints)
    assert trainer.preprocess_logits_for_metrics.category_parts == [[0, 1], [2, 3]]
    assert trainer.data_collator is default_data_collator and trainer.processing_class is processor
    assert trainer.compute_loss_func is None
    trainer, _ = segmentation_trainer(splits, task, tmp_path, metric="category_miou")
    assert trainer.args.metric_for_best_model == "category_miou"


def test_a_trainer_of_scenes_has_no_categories(parts, tmp_path):
    rows = labeled()
    task = tasks.find_point_labels(rows)
    trainer, _ = segmentation_trainer(DatasetDict({"train": rows}), task, tmp_path)
    assert "category" not in trainer.train_dataset[0] and trainer.eval_dataset is None
    assert trainer.args.label_names == ["labels"] and trainer.args.metric_for_best_model == "mean_iou"
    assert trainer.compute_metrics is compute_semantic_metrics
    assert trainer.preprocess_logits_for_metrics.category_parts is None


def test_classes_are_weighted_by_a_power_of_their_frequency(parts, tmp_path):
    splits, task = parts
    trainer, _ = segmentation_trainer(splits, task, tmp_path, weighting=0.5)
    assert isinstance(trainer.compute_loss_func, WeightedPointLoss)
    torch.testing.assert_close(trainer.compute_loss_func.weights, class_weights(splits["train"]["labels"], 4, 0.5))


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_parts_without_names_are_those_that_objects_of_the_category_have(dtype):
    task = tasks.find_point_labels(labeled(labels=Value(dtype), category=CUPS))
    assert task.names == ["0", "1", "2", "3"] and task.category_parts == [[0, 1], [2, 3]]
    assert task.categories == ["cup", "lamp"] and task.has_parts


def test_points_that_do_not_count_are_no_part():
    rows = labeled(labels=Value("int64"), category=CUPS).map(lambda row: {"labels": [-100, *row["labels"][1:]]})
    assert tasks.find_point_labels(rows).category_parts == [[0, 1], [2, 3]]


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

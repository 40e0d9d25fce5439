"""Train classifiers and segmentation models, with arguments of a command line or a file.

Called by `hf-any3d train` and by the programs for both tasks in `examples`.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Value
from torch import nn
from transformers import default_data_collator

from hf_any3d.data import PointCloudCollator
from hf_any3d.data.inputs import count_channels
from hf_any3d.evaluation.classification import compute_classification_metrics, evaluate_by_voting, evaluate_splits
from hf_any3d.evaluation.segmentation import (
    ComputePartMetrics,
    LabelPoints,
    compute_semantic_metrics,
    evaluate_segmentation,
)
from hf_any3d.model_card.run_report import RunReport, Stopwatch, count_parameters
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training import program
from hf_any3d.training.arguments import AdapterArguments, DataArguments, PointTrainingArguments, parse_arguments
from hf_any3d.training.models import CLASSES, PARTS, SCENES, PointModelArguments, build_model
from hf_any3d.training.protocol import (
    ProtocolArguments,
    apply_protocol,
    build_processor,
    protocol_facts,
    voting_rows,
)
from hf_any3d.training.rows import evaluation_rows, training_rows, training_transform
from hf_any3d.training.segmentation_rows import (
    BlockRows,
    CropRows,
    WeightedPointLoss,
    class_weights,
    parts_of_categories,
)
from hf_any3d.training.trainer import PointTrainer

logger = logging.getLogger(__name__)


CLASSIFICATION_ARGUMENTS = (
    PointModelArguments,
    DataArguments,
    ProtocolArguments,
    AdapterArguments,
    PointTrainingArguments,
)


def class_names(rows: Dataset) -> list[str]:
    """Return the names of the classes to learn.

    Raises:
        ValueError: The rows have no classes.
    """
    label = rows.features.get("label")
    if not isinstance(label, ClassLabel):
        raise ValueError(f"the training split has label {label}; expected a ClassLabel, text or whole numbers from 0")
    return label.names


def build_classification_trainer(
    model: nn.Module,
    arguments: PointTrainingArguments,
    data: DataArguments,
    protocol: ProtocolArguments,
    splits: DatasetDict,
    processor: PointCloudProcessor,
) -> PointTrainer:
    """Build the trainer of this task."""
    return program.build_trainer(
        model,
        arguments,
        training_rows(splits["train"], processor, data.augment, seed=arguments.seed, whole=protocol.augment_whole),
        evaluation_rows(splits["validation"], processor) if "validation" in splits else None,
        processor,
        data_collator=PointCloudCollator(),
        compute_metrics=compute_classification_metrics,
    )


def train_classifier(argv: list[str] | None = None) -> RunReport:
    """Train and evaluate a classifier; write model, card and metrics.json, and push them if requested.

    Args:
        argv: Words of a command line, see `parse_arguments`; by default those of this process.
    """
    stopwatch = Stopwatch()
    model_arguments, data, protocol, adapter, arguments = parse_arguments(
        CLASSIFICATION_ARGUMENTS, sys.argv[1:] if argv is None else argv
    )
    checkpoint = program.start_run(arguments, logger)
    # The first process fills the cache, from which the others read.
    with arguments.main_process_first(desc="loading the data"):
        splits, origin = apply_protocol(*program.load_splits(data), protocol)
    classes = class_names(splits["train"])
    processor = build_processor(data, protocol.processor_config)
    model = build_model(CLASSES, model_arguments, adapter, classes, in_channels=count_channels(data.features))
    # Before training, as loading the best adapter freezes some of them.
    parameters = count_parameters(model)
    trainer = build_classification_trainer(model, arguments, data, protocol, splits, processor)
    with stopwatch.part("training"):
        trainer.train(resume_from_checkpoint=checkpoint)
    with stopwatch.part("evaluation"):
        # With --select_on_test, the validation split is the test split.
        own = ("test",) if protocol.select_on_test else ("validation", "test")
        judged = {split: evaluation_rows(splits[split], processor) for split in own if split in splits}
        scores = evaluate_splits(trainer, judged, classes)
        if protocol.voting and "test" in splits:
            rows = voting_rows(splits["test"], processor, data, protocol, arguments.seed)
            votes = evaluate_by_voting(trainer, {"test": rows}, classes, protocol.voting)
            scores = ({**scores[0], **votes[0]}, {**scores[1], **votes[1]})
    report, name = program.save_and_push(
        trainer,
        stopwatch,
        scores,
        data={**program.data_facts(data, splits, origin), **protocol_facts(protocol)},
        parameters=parameters,
        num_points=data.num_points,
        checkpoint=checkpoint,
        start=model_arguments.start(),
    )
    logger.info("Model, card and metrics.json: %s. Try: hf-any3d predict FILE --model %s", name, name)
    return report


@dataclass
class SegmentationDataArguments(DataArguments):
    """Training data."""

    dataset_name: str = field(
        default="rooms",
        metadata={"help": "Name in the catalog (rooms, parts, parquet, …) or of a hub repository (owner/name)."},
    )
    block_size: float | None = field(
        default=None,
        metadata={
            "help": "Edge of the columns that scenes are cut into, in their units; by default clouds are not cut."
        },
    )
    block_overlap: float = field(default=0.5, metadata={"help": "Share of a column that overlaps with the next one."})
    min_block_points: int = field(
        default=1, metadata={"help": "Training columns with fewer points are drawn again if there are others."}
    )
    scene_votes: int = field(
        default=1,
        metadata={"help": "How often scenes are divided into blocks for evaluation; predictions are averaged."},
    )


@dataclass
class SegmentationTrainingArguments(PointTrainingArguments):
    """Training arguments with defaults for segmentation."""

    metric_for_best_model: str | None = field(
        default="mean_iou", metadata={"help": "For parts, mean_iou means instance_miou."}
    )
    num_train_epochs: float = field(default=20)
    class_weighting: float = field(
        default=0.0,
        metadata={"help": "Power of the inverse frequency that weights classes in the loss; 0 weights all the same."},
    )


SEGMENTATION_ARGUMENTS = (
    PointModelArguments,
    SegmentationDataArguments,
    AdapterArguments,
    SegmentationTrainingArguments,
)


@dataclass
class Task:
    """The task that the data define.

    Args:
        names: Names of the classes or parts.
        categories: Names of the categories of objects; None for scenes.
        category_parts: Part numbers of each category; None for scenes.
    """

    names: list[str]
    categories: list[str] | None = None
    category_parts: list[list[int]] | None = None

    @property
    def has_parts(self) -> bool:
        """True if the task is parts of objects, not objects of scenes."""
        return self.category_parts is not None


def find_task(rows: Dataset) -> Task:
    """Find the task of the training rows; classes without names get their numbers as names.

    The parts of a category follow from their names, such as "chair back", or else from the rows.

    Raises:
        ValueError: The rows have no classes of points, or no row has one of the categories.
    """
    names = point_classes(rows)
    category = rows.features.get("label")
    if not isinstance(category, ClassLabel):
        return Task(names)
    named = parts_of_categories(names, category.names)
    if named is not None:
        return Task(names, category.names, named)
    parts: list[set[int]] = [set() for _ in category.names]
    row: Any  # datasets declares its rows as lists
    for row in rows.select_columns(["label", "labels"]):
        # Parts that no object of a category has in training are not among those that the model may predict.
        parts[int(row["label"])].update(int(part) for part in set(row["labels"]) if part >= 0)
    empty = [name for name, own in zip(category.names, parts, strict=True) if not own]
    if empty:
        raise ValueError(f"the training split has no object of category {empty[0]!r}; its parts are unknown")
    return Task(names, category.names, [sorted(own) for own in parts])


def point_classes(rows: Dataset) -> list[str]:
    """Return the names of the classes of points.

    Raises:
        ValueError: The rows have no classes of points.
    """
    feature = getattr(rows.features.get("labels"), "feature", None)
    if isinstance(feature, ClassLabel):
        return feature.names
    if not isinstance(feature, Value) or "int" not in feature.dtype:
        raise ValueError(
            f"the training split has labels {rows.features.get('labels')}; expected a list of ClassLabel or of whole "
            "numbers"
        )
    labels: Any = rows.select_columns(["labels"])  # datasets declares its rows as lists
    most = max(int(max(row["labels"])) for row in labels)
    return [str(number) for number in range(most + 1)]


def model_settings(task: Task, in_channels: int) -> dict[str, Any]:
    """Return the settings of the model's config that follow from the task."""
    settings: dict[str, Any] = {"in_channels": in_channels}
    if task.has_parts:
        settings |= {"category_names": task.categories, "category_parts": task.category_parts}
    return settings


def build_segmentation_processor(data: SegmentationDataArguments, task: Task) -> PointCloudProcessor:
    """Build the processor that is saved with the model."""
    return PointCloudProcessor(
        num_points=data.num_points,
        features=data.features,
        up_axis=data.up_axis,
        # Objects of a scene keep their sizes and heights.
        center=True if task.has_parts else "ground",
        scale="unit_sphere" if task.has_parts else None,
        block_size=data.block_size,
        block_overlap=data.block_overlap,
    )


def build_segmentation_trainer(
    model: nn.Module,
    arguments: SegmentationTrainingArguments,
    data: SegmentationDataArguments,
    splits: DatasetDict,
    processor: PointCloudProcessor,
    task: Task,
) -> PointTrainer:
    """Build the trainer of this task."""
    if task.has_parts:
        # The metrics get the category only if it is among the labels.
        arguments.label_names = ["labels", "category"]
        if arguments.metric_for_best_model == "mean_iou":
            arguments.metric_for_best_model = "instance_miou"
    settings: dict[str, Any] = {}
    if arguments.class_weighting:
        weights = class_weights(splits["train"]["labels"], len(task.names), arguments.class_weighting)
        settings["compute_loss_func"] = WeightedPointLoss(weights)
    transform = training_transform(processor, data.augment)
    return program.build_trainer(
        model,
        arguments,
        CropRows(
            splits["train"],
            processor,
            transform,
            arguments.seed,
            with_category=task.has_parts,
            min_points=data.min_block_points,
        ),
        BlockRows(splits["validation"], processor, task.has_parts) if "validation" in splits else None,
        processor,
        data_collator=default_data_collator,
        compute_metrics=(
            compute_semantic_metrics if task.category_parts is None else ComputePartMetrics(task.category_parts)
        ),
        preprocess_logits_for_metrics=LabelPoints(task.category_parts),
        **settings,
    )


def evaluate_segmenter(
    trainer: PointTrainer, splits: DatasetDict, processor: PointCloudProcessor, task: Task, votes: int = 1
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Compute metrics and class IoUs of the validation and test splits; see `evaluate_segmentation`."""
    judged: dict[str, Any] = {
        str(split): BlockRows(rows, processor, task.has_parts, votes)
        for split, rows in splits.items()
        if split in ("validation", "test") and "labels" in rows.column_names
    }
    return evaluate_segmentation(trainer, judged, task.names, task.category_parts)


def train_segmenter(argv: list[str] | None = None) -> RunReport:
    """Train and evaluate a segmentation model; write model, card and metrics.json, and push them if requested.

    Args:
        argv: Words of a command line, see `parse_arguments`; by default those of this process.
    """
    stopwatch = Stopwatch()
    model_arguments, data, adapter, arguments = parse_arguments(
        SEGMENTATION_ARGUMENTS, sys.argv[1:] if argv is None else argv
    )
    checkpoint = program.start_run(arguments, logger)
    with arguments.main_process_first(desc="loading the data"):
        splits, origin = program.load_splits(data, points_are_labeled=True)
    task = find_task(splits["train"])
    processor = build_segmentation_processor(data, task)
    kind = PARTS if task.has_parts else SCENES
    settings = model_settings(task, in_channels=count_channels(data.features))
    model = build_model(kind, model_arguments, adapter, task.names, **settings)
    parameters = count_parameters(model)
    trainer = build_segmentation_trainer(model, arguments, data, splits, processor, task)
    with stopwatch.part("training"):
        trainer.train(resume_from_checkpoint=checkpoint)
    with stopwatch.part("evaluation"):
        scores = evaluate_segmenter(trainer, splits, processor, task, data.scene_votes)
    blocks = {"block_size": data.block_size, "block_overlap": data.block_overlap}
    blocks |= {"scene_votes": data.scene_votes} if data.scene_votes > 1 else {}
    report, name = program.save_and_push(
        trainer,
        stopwatch,
        scores,
        data=program.data_facts(data, splits, origin) | blocks,
        parameters=parameters,
        num_points=data.num_points,
        checkpoint=checkpoint,
        start=model_arguments.start(),
    )
    call = 'FILE, category="NAME"' if task.has_parts else "FILE"
    text = 'Model, card and metrics.json: %s. Try: pipeline("point-cloud-segmentation", model="%s")(%s)'
    logger.info(text, name, name, call)
    return report

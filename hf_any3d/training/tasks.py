"""Train classifiers and segmentation models, with arguments of a command line or a file.

Called by `hf-any3d train` and by the programs for both tasks in `examples`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Value
from torch import nn
from transformers import default_data_collator

from hf_any3d.data import PointCloudCollator
from hf_any3d.data.inputs import count_channels
from hf_any3d.evaluation.classification import Judgment, compute_classification_metrics, evaluate_splits
from hf_any3d.evaluation.segmentation import (
    ComputePartMetrics,
    LabelPoints,
    compute_semantic_metrics,
    counted_labels,
    evaluate_segmentation,
)
from hf_any3d.evaluation.voting import evaluate_by_voting
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training import program
from hf_any3d.training.arguments import AdapterArguments, DataArguments, PointTrainingArguments, argument
from hf_any3d.training.models import CLASSES, PARTS, SCENES, PointModelArguments, build_model
from hf_any3d.training.protocol import ProtocolArguments, apply_protocol, build_processor, voting_rows
from hf_any3d.training.rows import class_names, evaluation_rows, training_rows, training_transform
from hf_any3d.training.scan_sizes import record_sizes
from hf_any3d.training.segmentation_rows import (
    BlockRows,
    CropRows,
    WeightedPointLoss,
    class_weights,
    parts_of_categories,
)
from hf_any3d.training.trainer import PointTrainer


@dataclass
class Classification(program.TrainingTask):
    """Training of a classifier of clouds."""

    model: PointModelArguments
    data: DataArguments
    protocol: ProtocolArguments
    adapter: AdapterArguments
    training: PointTrainingArguments
    usage = "hf-any3d predict FILE --model {}"

    def divide(self, rows: DatasetDict) -> tuple[DatasetDict, str]:
        """Return the splits of the protocol, and where the validation split comes from."""
        return apply_protocol(*super().divide(rows), self.protocol)

    def build(self, splits: DatasetDict) -> tuple[nn.Module, PointCloudProcessor]:
        """Build model and processor."""
        classes = class_names(splits["train"])
        channels = count_channels(self.data.features)
        assert isinstance(self.protocol.processor_config, dict)
        processor = build_processor(self.data, self.protocol.processor_config)
        model: Any = build_model(CLASSES, self.model, self.adapter, classes, in_channels=channels)
        if self.data.dataset_name == "folder":  # files may say their unit
            record_sizes(model.config, self.data, splits["train"])
        return model, processor

    def build_trainer(self, model: nn.Module, splits: DatasetDict, processor: PointCloudProcessor) -> PointTrainer:
        """Build the trainer."""
        data = self.data
        seed = self.training.seed
        whole = self.protocol.augment_whole
        return program.build_trainer(
            model,
            self.training,
            training_rows(splits["train"], processor, data.augment, seed=seed, whole=whole),
            evaluation_rows(splits["validation"], processor) if "validation" in splits else None,
            processor,
            data_collator=PointCloudCollator(),
            compute_metrics=compute_classification_metrics,
        )

    def evaluate(self, trainer: PointTrainer, splits: DatasetDict, processor: PointCloudProcessor) -> Judgment:
        """Return accuracies of the validation and the test split, and of votes on the test split."""
        classes = class_names(splits["train"])
        voting = self.protocol.voting
        # With --select_on_test, the validation split is the test split.
        names = ("test",) if self.protocol.select_on_test else ("validation", "test")
        judged = {split: evaluation_rows(splits[split], processor) for split in names if split in splits}
        metrics, by_class = evaluate_splits(trainer, judged, classes)
        if voting and "test" in splits:
            # Votes are over other samples of each cloud, so rows are prepared anew.
            rows = voting_rows(splits["test"], processor, self.data, self.protocol, self.training.seed)
            votes = evaluate_by_voting(trainer, {"test": rows}, classes, voting)
            metrics = {**metrics, **votes[0]}
            by_class = {**by_class, **votes[1]}
        return metrics, by_class

    def data_facts(self) -> dict[str, Any]:
        """Return the settings of the protocol that are not the default."""
        protocol = self.protocol
        facts = {
            "processor": protocol.processor_config,
            "augmentation_of_whole_clouds": protocol.augment_whole,
            "few_shot": protocol.few_shot,
            "votes": protocol.voting,
            "augmentation_of_votes": protocol.vote_augment if protocol.voting else None,
        }
        # Settings that are off are left out.
        return {name: fact for name, fact in facts.items() if fact}


def train_classifier(argv: list[str] | None = None) -> RunReport:
    """Train a classifier by words of a command line, by default those of this process; see `train`."""
    return program.train(Classification.parse(argv))


@dataclass
class SegmentationDataArguments(DataArguments):
    """Training data."""

    dataset_name: str = argument(
        "rooms", help="Dataset in the catalog (rooms, parts, parquet, …) or on the Hub (owner/name)."
    )
    block_size: float | None = argument(
        None, help="Edge length of the columns to split scenes into, in their units; by default scenes are not split."
    )
    block_overlap: float = argument(0.5, help="Overlap of neighboring columns, as a share of their edge length.")
    min_block_points: int = argument(
        1, help="Minimum points of a training column; smaller ones are replaced by another draw, if possible."
    )
    scene_votes: int = argument(
        1, help="Number of times to split scenes into blocks for evaluation; predictions are averaged."
    )


@dataclass
class SegmentationTrainingArguments(PointTrainingArguments):
    """Training arguments with defaults for segmentation."""

    metric_for_best_model: str | None = argument(
        "mean_iou", help="Metric for selecting the best checkpoint; for parts, mean_iou means instance_miou."
    )
    num_train_epochs: float = field(default=20)
    class_weighting: float = argument(
        0.0,
        help="Exponent of the inverse class frequency used as class weight in the loss; 0 weights all classes "
        "equally.",
    )


@dataclass
class PointLabels:
    """Meaning of the labels of points: names of classes or parts; for parts, the categories and their part numbers."""

    names: list[str]
    categories: list[str] | None = None
    category_parts: list[list[int]] | None = None

    @property
    def has_parts(self) -> bool:
        """True if they are parts of objects, not objects of scenes."""
        return self.category_parts is not None


def find_point_labels(rows: Dataset) -> PointLabels:
    """Find what the labels of the training rows are; classes without names get their numbers as names.

    The parts of a category follow from their names, such as "chair back", or else from the rows.
    """
    feature = getattr(rows.features.get("labels"), "feature", None)
    if isinstance(feature, ClassLabel):
        names = feature.names
    elif isinstance(feature, Value) and "int" in feature.dtype:
        labels: Any = rows.select_columns(["labels"])  # datasets declares its rows as lists
        # Labels from 0 up to the largest one that occurs.
        names = [str(number) for number in range(max(int(counted_labels(row["labels"]).max()) for row in labels) + 1)]
    else:
        raise ValueError(
            f"the training split has labels {rows.features.get('labels')}; expected a list of ClassLabel or of whole "
            "numbers"
        )
    category = rows.features.get("label")
    # Clouds without a category are scenes.
    if not isinstance(category, ClassLabel):
        return PointLabels(names)
    # Names such as "chair back" tell the parts of a category without a look at the rows.
    named = parts_of_categories(names, category.names)
    if named is not None:
        return PointLabels(names, category.names, named)
    parts: list[set[int]] = [set() for _ in category.names]
    row: Any  # datasets declares its rows as lists
    for row in rows.select_columns(["label", "labels"]):
        # Parts that no object of a category has in training are not among those that the model may predict.
        parts[int(row["label"])].update(part for part in counted_labels(row["labels"]).tolist() if part >= 0)
    # A category without parts could predict nothing.
    empty = [name for name, numbers in zip(category.names, parts, strict=True) if not numbers]
    if empty:
        raise ValueError(f"the training split has no object of category {empty[0]!r}; its parts are unknown")
    return PointLabels(names, category.names, [sorted(numbers) for numbers in parts])


@dataclass
class Segmentation(program.TrainingTask):
    """Training of a segmentation model: parts of objects, or objects of scenes."""

    model: PointModelArguments
    data: SegmentationDataArguments
    adapter: AdapterArguments
    training: SegmentationTrainingArguments
    labels: PointLabels = field(init=False)
    points_are_labeled = True
    usage = "hf-any3d segment FILE --model {}"

    def build(self, splits: DatasetDict) -> tuple[nn.Module, PointCloudProcessor]:
        """Build model and processor."""
        data = self.data
        self.labels = labels = find_point_labels(splits["train"])
        settings: dict[str, Any] = {"in_channels": count_channels(data.features)}
        # Categories limit the parts that a cloud may have.
        if labels.has_parts:
            settings |= {"category_names": labels.categories, "category_parts": labels.category_parts}
        task = PARTS if labels.has_parts else SCENES
        return build_model(task, self.model, self.adapter, labels.names, **settings), self.build_processor()

    def build_processor(self) -> PointCloudProcessor:
        """Build the processor for the labels of points."""
        data = self.data
        labels = self.labels
        return PointCloudProcessor(
            num_points=data.num_points,
            features=data.features,
            up_axis=data.up_axis,
            # Objects of a scene keep their sizes and heights.
            center=True if labels.has_parts else "ground",
            scale="unit_sphere" if labels.has_parts else None,
            block_size=data.block_size,
            block_overlap=data.block_overlap,
            estimate_normals=data.estimate_normals,
        )

    def build_trainer(self, model: nn.Module, splits: DatasetDict, processor: PointCloudProcessor) -> PointTrainer:
        """Build the trainer."""
        arguments = self.training
        labels = self.labels
        if labels.has_parts:
            # The metrics get the category only if it is among the labels.
            arguments.label_names = ["labels", "category"]
            if arguments.metric_for_best_model == "mean_iou":
                arguments.metric_for_best_model = "instance_miou"
        settings: dict[str, Any] = {}
        # The weights take a pass over the labels of all training rows.
        if arguments.class_weighting:
            weights = class_weights(splits["train"]["labels"], len(labels.names), arguments.class_weighting)
            settings["compute_loss_func"] = WeightedPointLoss(weights)
        # Training crops are drawn; evaluation divides each scene into blocks that cover it.
        crops = CropRows(
            splits["train"],
            processor,
            training_transform(processor, self.data.augment),
            arguments.seed,
            with_category=labels.has_parts,
            min_points=self.data.min_block_points,
        )
        parts = labels.category_parts
        return program.build_trainer(
            model,
            arguments,
            crops,
            BlockRows(splits["validation"], processor, labels.has_parts) if "validation" in splits else None,
            processor,
            data_collator=default_data_collator,
            compute_metrics=compute_semantic_metrics if parts is None else ComputePartMetrics(parts),
            preprocess_logits_for_metrics=LabelPoints(parts),
            **settings,
        )

    def evaluate(self, trainer: PointTrainer, splits: DatasetDict, processor: PointCloudProcessor) -> Judgment:
        """Return metrics and class IoUs of the validation and test splits; see `evaluate_segmentation`."""
        labels = self.labels
        judged: dict[str, Any] = {}
        for split, rows in splits.items():
            # A test split without labels cannot be judged.
            if split in ("validation", "test") and "labels" in rows.column_names:
                judged[str(split)] = BlockRows(rows, processor, labels.has_parts, self.data.scene_votes)
        return evaluate_segmentation(trainer, judged, labels.names, labels.category_parts)

    def data_facts(self) -> dict[str, Any]:
        """Return how scenes are cut into blocks."""
        # Listed only where scenes are divided more than once.
        votes = {"scene_votes": self.data.scene_votes} if self.data.scene_votes > 1 else {}
        return {"block_size": self.data.block_size, "block_overlap": self.data.block_overlap, **votes}


def train_segmenter(argv: list[str] | None = None) -> RunReport:
    """Train a segmentation model by words of a command line, by default those of this process; see `train`."""
    return program.train(Segmentation.parse(argv))

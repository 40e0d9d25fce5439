"""Evaluate saved models on labeled clouds, as `hf-any3d evaluate` does.

All evaluations take the model's directory or hub name, the rows and the name of their split, settings, and options of
the hub such as `revision`. Classes that are not the model's are errors.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, List
from transformers import PreTrainedModel, default_data_collator

from hf_any3d.data import PointCloudCollator
from hf_any3d.data.catalog import up_axis_of
from hf_any3d.data.tables.missing_rows import are_labeled
from hf_any3d.evaluation.classification import Judgment, compute_classification_metrics, evaluate_splits
from hf_any3d.evaluation.confusion import confusion_matrix
from hf_any3d.evaluation.reconstruction import (
    CompareWithClouds,
    ComputeReconstructionMetrics,
    evaluate_reconstruction,
    ignored_outputs,
)
from hf_any3d.evaluation.scan_scores import ScanScores
from hf_any3d.evaluation.segmentation import evaluate_segmentation
from hf_any3d.evaluation.unknown import logits_with_unknown
from hf_any3d.evaluation.voting import evaluate_by_voting
from hf_any3d.evaluation.zero_shot import compare_with_names, scores_of_matrix
from hf_any3d.extensions import EXTENSIONS
from hf_any3d.integration.auto import (
    AutoModelForPointCloudClassification,
    AutoModelForPointCloudObjectDetection,
    AutoModelForPointCloudReconstruction,
    AutoModelForPointCloudSegmentation,
    AutoModelForZeroShotPointCloudClassification,
)
from hf_any3d.modeling.detr3d import Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.layers.modes import batch_dependent_flags
from hf_any3d.modeling.layers.unknown_score import unknown_settings
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.tasks.poses import UPRIGHT, answer_as_pipeline
from hf_any3d.training.arguments import DataArguments, PointTrainingArguments
from hf_any3d.training.detection import DetectionTrainer, SceneRows, box_classes, collate_scenes
from hf_any3d.training.pretraining import UnlabeledRows
from hf_any3d.training.protocol import ProtocolArguments, voting_rows
from hf_any3d.training.rows import class_names, evaluation_rows
from hf_any3d.training.segmentation_rows import BlockRows
from hf_any3d.training.text_rows import readable
from hf_any3d.training.trainer import PointTrainer
from hf_any3d.utils.atomic_files import temporary_folder
from hf_any3d.utils.messages import model_errors


@dataclass
class EvaluationDetails:
    """Results of an evaluation besides metrics and scores of classes, by split."""

    scans: dict[str, ScanScores] = field(default_factory=dict)
    confusions: dict[str, tuple[np.ndarray, list[str]]] = field(default_factory=dict)
    """Counts of points or clouds (classes, classes), a row for each true class, and the names of the classes."""
    labels_of_points: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """True and predicted labels (points,) of the worst clouds, by their rows."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation: votes by `protocol`, and by the transforms of `data` if it has none."""

    data: DataArguments
    protocol: ProtocolArguments
    batch_size: int | None = None
    """Clouds per batch; None for 32, or 1 if predictions depend on the other clouds of a batch."""
    seed: int = 0
    use_cpu: bool = False
    up_axis: str | None = None
    """Direction that is up in the clouds; None for that of the dataset, or as a classifier's pipeline finds it."""
    details: EvaluationDetails = field(default_factory=EvaluationDetails)
    """Filled by the evaluation."""


def evaluate_classifier(
    model_name: str, rows: Dataset, split: str, settings: EvaluationSettings, **hub: Any
) -> Judgment:
    """Evaluate a saved classifier on clouds with `label`, prepared by its processor.

    Returns:
        For `split` and, with votes, `{split}_voting`: accuracy, mean class accuracy and loss; and the accuracy of each
        class.
    """
    with classifier_trainer(model_name, rows, split, settings, hub) as (trainer, processor, classes):
        scores = evaluate_splits(trainer, {split: evaluation_rows(rows, processor)}, classes)
        # Figures of votes stand beside the plain ones.
        if settings.protocol.voting:
            voters = voting_rows(rows, processor, settings.data, settings.protocol, settings.seed)
            votes = evaluate_by_voting(trainer, {split: voters}, classes, settings.protocol.voting)
            scores = ({**scores[0], **votes[0]}, {**scores[1], **votes[1]})
    return scores


def evaluate_segmenter(
    model_name: str, rows: Dataset, split: str, settings: EvaluationSettings, **hub: Any
) -> Judgment:
    """Evaluate a saved segmentation model on clouds with `labels`, and for parts their category as `label`.

    Returns:
        For `split`: `mean_iou`, or for parts `instance_miou` and `category_miou`; accuracy of points, and loss; and
        the intersection over union of each class.
    """
    model, processor = _open(AutoModelForPointCloudSegmentation, model_name, hub)
    if any(model.config.model_type in extension.file_models for extension in EXTENSIONS.values()):
        # Blocks of a scan have not the surroundings that the model was trained with, and rows no returns.
        raise ValueError(f"{model_name} reads whole files; use hf-any3d evaluate MODEL with labeled files")
    classes = _classes(model)
    labels = rows.features.get("labels")
    named = getattr(labels, "feature", None)
    # Numbers without names are those of a model that was trained on such rows.
    if labels is None or isinstance(named, ClassLabel):
        _check_names(split, "the classes of points", named, classes)
    parts = getattr(model.config, "category_parts", None)
    # Parts are judged within the categories of the model, so they have to be the same.
    if parts is not None:
        _check_names(split, "the categories", rows.features.get("label"), list(model.config.category_names))
    with _trainer(
        model,
        settings,
        # The metrics get the category only if it is among the labels.
        label_names=["labels"] if parts is None else ["labels", "category"],
        data_collator=default_data_collator,
    ) as trainer:
        blocks = BlockRows(rows, processor, with_category=parts is not None)
        return evaluate_segmentation(trainer, {split: blocks}, classes, parts)


def evaluate_boxes(model_name: str, rows: Dataset, split: str, settings: EvaluationSettings, **hub: Any) -> Judgment:
    """Evaluate a saved detector on scans with `boxes` and `box_labels`, whose names are some of the model's.

    Returns:
        For `split`: mean average precision and recall at overlaps of 0.25 and 0.5, and loss; and the average precision
        of each class at 0.25.
    """
    model, processor = _open(AutoModelForPointCloudObjectDetection, model_name, hub)
    if not isinstance(model, Detr3DForPointCloudObjectDetection):
        raise ValueError(f"{model_name}: writes layouts, whose boxes have no scores; expected a detector")
    classes = _classes(model)
    names = box_classes(rows)
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise ValueError(f"split {split} has boxes of {unknown[0]!r}; expected the model's classes, {classes}")
    if names != classes:  # own scans may lack some
        # Numbers of the classes of the rows become those of the model.
        numbers = [classes.index(name) for name in names]
        features = rows.features.copy()
        features["box_labels"] = List(ClassLabel(names=classes))
        rows = rows.with_format(None).map(
            lambda labels: {"box_labels": [numbers[label] for label in labels]},
            input_columns="box_labels",
            features=features,
        )
    collated = {"trainer_class": DetectionTrainer, "processing_class": processor, "data_collator": collate_scenes}
    with _trainer(model, settings, **collated) as trainer:
        metrics = trainer.evaluate(SceneRows(rows, processor), metric_key_prefix=split)
        by_class = dict(trainer.class_scores["25"])
    names = ("map_25", "recall_25", "map_50", "recall_50", "loss")
    return {split: {name: metrics[f"{split}_{name}"] for name in names}}, {split: by_class}


def evaluate_zero_shot(
    model_name: str, rows: Dataset, split: str, settings: EvaluationSettings, **hub: Any
) -> Judgment:
    """Evaluate a saved model that compares clouds with texts, on the class names of clouds with `label`.

    Returns:
        For `split`: accuracy and mean class accuracy; and the accuracy of each class.
    """
    model, processor = _open(AutoModelForZeroShotPointCloudClassification, model_name, hub)
    names = class_names(rows, f"split {split}")
    with _trainer(model, settings) as trainer:
        cosines, labels = compare_with_names(
            trainer.model,  # on the device of the trainer
            evaluation_rows(rows, processor),
            [readable(name) for name in names],
            batch_size=trainer.args.per_device_eval_batch_size,
        )
    answers = cosines.argmax(axis=1)
    matrix = confusion_matrix(answers, labels, len(names))
    settings.details.confusions[split] = (matrix, names)
    settings.details.scans[split] = ScanScores.of_classes(answers, labels, cosines.max(axis=1), names)
    accuracies, by_class = scores_of_matrix(matrix, names)
    return {split: accuracies}, {split: by_class}


def evaluate_autoencoder(
    model_name: str, rows: Dataset, split: str, settings: EvaluationSettings, **hub: Any
) -> Judgment:
    """Evaluate what a saved autoencoder reconstructs; with `label`, figures are averaged within classes first.

    Returns:
        For `split`: Chamfer distances and F-score in the units of the processor, number and perplexity of the codes in
        use, and loss; and the Chamfer distance (L1) of each class.
    """
    model, processor = _open(AutoModelForPointCloudReconstruction, model_name, hub)
    # Classes only group the figures, so they may be missing.
    label = rows.features.get("label")
    names = label.names if isinstance(label, ClassLabel) and are_labeled(rows).all() else []
    numbers: Any = list(rows["label"]) if names else None
    outputs: Any = model.output_class
    ignored = ignored_outputs(output.name for output in fields(outputs))
    with _trainer(
        model,
        settings,
        # Reconstructions are compared with the clouds themselves.
        label_names=["points"],
        compute_metrics=ComputeReconstructionMetrics(),
        preprocess_logits_for_metrics=CompareWithClouds(),
    ) as trainer:
        clouds = UnlabeledRows(rows, processor)
        return evaluate_reconstruction(trainer, {split: clouds}, {split: numbers}, names, ignored)


EVALUATIONS: dict[str, Callable[..., Judgment]] = {
    "predict": evaluate_classifier,
    "segment": evaluate_segmenter,
    "detect": evaluate_boxes,
    "zero-shot": evaluate_zero_shot,
    "reconstruct": evaluate_autoencoder,
}
"""Evaluations by the command that runs a model."""


@contextmanager
def classifier_trainer(
    model_name: str, rows: Dataset, split: str, settings: EvaluationSettings, hub: dict[str, Any]
) -> Iterator[tuple[PointTrainer, PointCloudProcessor, list[str]]]:
    """Open a saved classifier to evaluate it.

    Yields:
        A trainer that writes nothing that stays, the processor, and the names of the classes.
    """
    model, processor = _open(AutoModelForPointCloudClassification, model_name, hub)
    classes = _classes(model)
    _check_names(split, "the classes", rows.features.get("label"), classes)
    up_axis = settings.up_axis
    # Other models take data sets as those of their training.
    if up_axis is None and getattr(model.config, "expected_pose", None) == UPRIGHT:
        up_axis = up_axis_of(settings.data.dataset_name)
    answer_as_pipeline(model, processor, up_axis)
    further: dict[str, Any] = {"compute_metrics": compute_classification_metrics}
    if unknown_settings(model.config).share is not None:
        # What `predict` calls none of these is no right answer here either.
        further = {
            "compute_metrics": partial(compute_classification_metrics, config=model.config),
            "preprocess_logits_for_metrics": logits_with_unknown,
        }
        # All but `unknown`, which the metrics need here.
        model.config.keys_to_ignore_at_inference = ["one_sided", "hidden_states", "attentions"]
    with _trainer(model, settings, **further) as trainer:
        yield trainer, processor, classes


def _open(auto_class: Any, model_name: str, hub: dict[str, Any]) -> tuple[PreTrainedModel, PointCloudProcessor]:
    # Errors of model and processor name the model.
    with model_errors(model_name):
        return auto_class.from_pretrained(model_name, **hub), PointCloudProcessor.from_pretrained(model_name, **hub)


def _classes(model: PreTrainedModel) -> list[str]:
    names: Any = model.config.id2label  # with the labels' numbers as keys, once it is loaded
    return [names[number] for number in sorted(names)]


def _check_names(split: str, what: str, feature: Any, expected: Sequence[str]) -> None:
    names = feature.names if isinstance(feature, ClassLabel) else None
    # In the same order, too, since labels are numbers.
    if names != expected:
        raise ValueError(f"split {split} has {what} {names}; expected the model's, {expected}")


@contextmanager
def _trainer(
    model: PreTrainedModel,
    settings: EvaluationSettings,
    label_names: Sequence[str] = ("labels",),
    trainer_class: Any = PointTrainer,
    **further: Any,
) -> Iterator[Any]:
    """Yield a trainer that evaluates a model and writes nothing that stays."""
    # Some released models compute clouds of a batch together, so that scores depend on its size.
    batch_size = 1 if batch_dependent_flags(model) else 32
    # Trainer needs a folder, even if it only evaluates.
    with temporary_folder() as folder:
        arguments = PointTrainingArguments(
            str(folder),
            per_device_eval_batch_size=settings.batch_size or batch_size,
            seed=settings.seed,
            use_cpu=settings.use_cpu,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            report_to="none",
            label_names=list(label_names),
        )
        # Further arguments win over this collator.
        trainer = trainer_class(model, arguments, **{"data_collator": PointCloudCollator(), **further})
        # Callers get the metrics, and say them in a form of their own.
        trainer.log_metrics = lambda split, metrics: None
        yield trainer
        settings.details.scans.update(getattr(trainer, "scan_scores", {}))
        settings.details.confusions.update(getattr(trainer, "confusions", {}))
        settings.details.labels_of_points.update(getattr(trainer, "labels_of_points", {}))

"""Evaluate saved classifiers, as `hf-any3d evaluate` does."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset

from hf_any3d.auto import AutoModelForPointCloudClassification
from hf_any3d.data import PointCloudCollator
from hf_any3d.evaluation.classification import Judgement, compute_classification_metrics, judge_by_voting, judge_splits
from hf_any3d.evaluation.robustness import NAME, judge_robustness
from hf_any3d.messages import model_errors
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments, PointTrainingArguments
from hf_any3d.training.protocol import ProtocolArguments, voting_rows
from hf_any3d.training.rows import evaluation_rows
from hf_any3d.training.trainer import PointTrainer


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation.

    Args:
        data: Transforms of voting clouds, if `protocol` has none.
        protocol: Number of votes.
        batch_size: Clouds per batch; None for 32, or 1 if predictions depend on the other clouds of a batch.
        seed: Seed of the votes.
        use_cpu: Do not use a GPU.
    """

    data: DataArguments
    protocol: ProtocolArguments
    batch_size: int | None = None
    seed: int = 0
    use_cpu: bool = False


def evaluate_classifier(
    model_name: str, rows: Dataset, split: str, settings: EvaluationSettings, **hub: Any
) -> Judgement:
    """Evaluate a saved classifier on labelled clouds, prepared by its processor.

    Args:
        model_name: Directory or hub name.
        rows: The clouds, with `label`.
        split: Name of the split in the result.
        settings: Votes, batch size and seed.
        **hub: `revision`, `token` and the like.

    Returns:
        For `split` and, with votes, `{split}_voting`: accuracy, mean class accuracy and loss; and the accuracy of each
        class.

    Raises:
        ValueError: If the classes are not the model's.
    """
    with _evaluator(model_name, rows, split, settings, hub) as (trainer, processor, classes):
        scores = judge_splits(trainer, {split: evaluation_rows(rows, processor)}, classes)
        if settings.protocol.voting:
            voters = voting_rows(rows, processor, settings.data, settings.protocol, settings.seed)
            votes = judge_by_voting(trainer, {split: voters}, classes, settings.protocol.voting)
            scores = ({**scores[0], **votes[0]}, {**scores[1], **votes[1]})
    return scores


def evaluate_robustness(
    model_name: str,
    rows: Dataset,
    split: str,
    settings: EvaluationSettings,
    clean: Mapping[str, float],
    folder: str | os.PathLike,
    **hub: Any,
) -> dict[str, Any]:
    """Evaluate a saved classifier on corrupted, sparse, rotated and colorless clouds; see `judge_robustness`.

    Args:
        model_name: Directory or hub name.
        rows: The clouds, with `label`.
        split: Name of the split in the report.
        settings: Batch size and seed.
        clean: Metrics of `evaluate_classifier` on the same rows.
        folder: Directory for robustness.json, which an interrupted evaluation resumes from.
        **hub: `revision`, `token` and the like.

    Returns:
        The report.

    Raises:
        ValueError: If the classes are not the model's.
    """
    with _evaluator(model_name, rows, split, settings, hub) as (trainer, processor, _):
        about = {
            "model": model_name,
            "dataset": settings.data.train_file or settings.data.dataset_name,
            "options": settings.data.dataset_options,
            "split": split,
        }
        path = Path(folder) / f"{NAME}.json"
        return judge_robustness(trainer, rows, processor, clean, about=about, seed=settings.seed, path=path)


@contextmanager
def _evaluator(
    model_name: str, rows: Dataset, split: str, settings: EvaluationSettings, hub: dict[str, Any]
) -> Iterator[tuple[PointTrainer, PointCloudProcessor, list[str]]]:
    """Yield a trainer with the model, its processor, and its classes, which must be those of the rows."""
    with model_errors(model_name):
        model = AutoModelForPointCloudClassification.from_pretrained(model_name, **hub)
        processor = PointCloudProcessor.from_pretrained(model_name, **hub)
    classes = [model.config.id2label[number] for number in sorted(model.config.id2label)]
    label = rows.features.get("label")
    names = label.names if isinstance(label, ClassLabel) else None
    if names != classes:
        raise ValueError(f"split {split} has the classes {names}; expected the model's, {classes}")
    batch_size = 1 if model.config.batch_dependent_flags else 32
    with tempfile.TemporaryDirectory() as folder:
        arguments = PointTrainingArguments(
            folder,
            per_device_eval_batch_size=settings.batch_size or batch_size,
            seed=settings.seed,
            use_cpu=settings.use_cpu,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            report_to="none",
        )
        trainer = PointTrainer(
            model, arguments, data_collator=PointCloudCollator(), compute_metrics=compute_classification_metrics
        )
        yield trainer, processor, classes

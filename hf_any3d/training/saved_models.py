"""Judging a classifier that was trained before."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset

from hf_any3d.auto import AutoModelForPointCloudClassification
from hf_any3d.data import PointCloudCollator
from hf_any3d.evaluation.classification import Judgement, compute_classification_metrics, judge_splits
from hf_any3d.evaluation.voting import judge_by_voting
from hf_any3d.messages import opened
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments, PointTrainingArguments
from hf_any3d.training.protocol import ProtocolArguments, voting_rows
from hf_any3d.training.rows import evaluation_rows
from hf_any3d.training.trainer import PointTrainer


@dataclass(frozen=True)
class HowToJudge:
    """What an evaluation needs beside model and rows.

    Args:
        data: Says which transforms voting clouds go through, if `protocol` does not.
        protocol: Says how many votes there are.
        batch_size: Clouds that go through the model together; None for 32, or 1 where a batch sways the answer.
        seed: Governs the votes.
        use_cpu: Leave a GPU alone.
    """

    data: DataArguments
    protocol: ProtocolArguments
    batch_size: int | None = None
    seed: int = 0
    use_cpu: bool = False


def evaluate_classifier(model_name: str, rows: Dataset, split: str, how: HowToJudge, **hub: Any) -> Judgement:
    """Judge a saved classifier on labelled clouds, brought to form by its own processor.

    Args:
        model_name: Directory or hub name.
        rows: The clouds, with `label`.
        split: What to call them.
        how: Votes, batch size and seed.
        **hub: `revision`, `token` and the like.

    Returns:
        For each of `split` and, with votes, `{split}_voting`: accuracy, mean class accuracy and loss; and the accuracy
        of each class.

    Raises:
        ValueError: Classes other than the model's.
    """
    with opened(model_name):
        model = AutoModelForPointCloudClassification.from_pretrained(model_name, **hub)
        processor = PointCloudProcessor.from_pretrained(model_name, **hub)
    classes = [model.config.id2label[number] for number in sorted(model.config.id2label)]
    label = rows.features.get("label")
    names = label.names if isinstance(label, ClassLabel) else None
    if names != classes:
        raise ValueError(f"split {split} has the classes {names}; expected the model's, {classes}")
    alone = 1 if model.config.batch_dependent_flags else 32
    with tempfile.TemporaryDirectory() as folder:
        arguments = PointTrainingArguments(
            folder,
            per_device_eval_batch_size=how.batch_size or alone,
            seed=how.seed,
            use_cpu=how.use_cpu,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            report_to="none",
        )
        trainer = PointTrainer(
            model, arguments, data_collator=PointCloudCollator(), compute_metrics=compute_classification_metrics
        )
        scores = judge_splits(trainer, {split: evaluation_rows(rows, processor)}, classes)
        if how.protocol.voting:
            voters = voting_rows(rows, processor, how.data, how.protocol, how.seed)
            votes = judge_by_voting(trainer, {split: voters}, classes, how.protocol.voting)
            scores = tuple({**plain, **voted} for plain, voted in zip(scores, votes, strict=True))
    return scores

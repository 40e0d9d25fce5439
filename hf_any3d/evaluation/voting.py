"""Evaluate a classifier by voting: the mean logits of augmented copies of each cloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import EvalPrediction, Trainer

from hf_any3d.evaluation.classification import Judgement, accuracy_by_class, compute_classification_metrics

SUFFIX = "_voting"


class AugmentedRows(Protocol):
    """Rows that differ from epoch to epoch."""

    epoch: Any  # a number, or a descriptor that shares it with loader workers

    def __getitem__(self, index: int) -> Any:
        """One row as the model takes it, in this epoch."""


def vote_logits(trainer: Trainer, rows: AugmentedRows, votes: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Average logits over augmented copies of each cloud.

    Args:
        trainer: Holds the model.
        rows: Rows that differ from epoch to epoch, as training rows do; vote `i` takes them in epoch `i`, so that
            votes depend on the rows' seed alone.
        votes: Number of copies, at least 1.

    Returns:
        Logits (rows, classes) float64, and labels (rows,) or None.

    Raises:
        ValueError: `votes` is less than 1.
    """
    if votes < 1:
        raise ValueError(f"votes is {votes}; expected at least 1")
    total: Any = 0
    labels, before = None, rows.epoch
    quiet = trainer.args.disable_tqdm or not trainer.is_world_process_zero()
    for rows.epoch in tqdm(range(votes), desc="votes", unit="vote", disable=quiet):
        output: Any = trainer.predict(rows, metric_key_prefix="vote")  # pyright: ignore[reportArgumentType] a protocol
        total, labels = total + output.predictions.astype(np.float64), output.label_ids
    rows.epoch = before
    return total / votes, labels


def judge_by_voting(
    trainer: Trainer, splits: Mapping[str, AugmentedRows], classes: Sequence[str], votes: int
) -> Judgement:
    """Evaluate the trainer's model on splits by voting and print the metrics.

    Results are named `{split}_voting`, so that they are not mixed with those without voting.

    Args:
        trainer: Holds the model.
        splits: Rows of each split, see `vote_logits`; a split without labels is skipped.
        classes: Names of the classes.
        votes: Number of copies of each cloud.

    Returns:
        As `judge_splits`; the loss is that of the mean logits.

    Source: Any2Point's programs contain it but do not use it; Point-BERT, Point-MAE and ACT report it in addition to
    plain figures (10 votes).
    """
    metrics, by_class = {}, {}
    for split, rows in splits.items():
        logits, labels = vote_logits(trainer, rows, votes)
        if labels is None:
            continue
        name = f"{split}{SUFFIX}"
        found = compute_classification_metrics(EvalPrediction(logits, labels))
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
        metrics[name] = {**found, "loss": float(loss)}
        by_class[name] = accuracy_by_class(logits, labels, classes)
        trainer.log_metrics(name, {f"{name}_{key}": value for key, value in metrics[name].items()})
    return metrics, by_class

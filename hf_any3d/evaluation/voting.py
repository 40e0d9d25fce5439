"""Vote: average the answers of a classifier over augmented copies of each cloud."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import EvalPrediction, Trainer

from hf_any3d.data.options import at_least
from hf_any3d.evaluation.classification import Judgment, by_name, compute_classification_metrics, confusion_of
from hf_any3d.evaluation.confusion import class_accuracies
from hf_any3d.evaluation.eval_batches import whole
from hf_any3d.utils.progress import progress_bar


class AugmentedRows(Protocol):
    """Rows that differ from epoch to epoch."""

    epoch: Any  # a number, or a descriptor that shares it with loader workers


def vote_logits(trainer: Trainer, rows: AugmentedRows, votes: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Average logits over augmented copies of each cloud.

    Vote `i` takes the rows of epoch `i`, so that votes depend on the rows' seed alone.

    Returns:
        Logits (rows, classes) float64, and labels (rows,) or None.
    """
    at_least(1, votes=votes)
    total: Any = 0
    labels = None
    before = rows.epoch
    quiet = trainer.args.disable_tqdm or not trainer.is_world_process_zero()
    # Each vote sets the epoch of the rows, which are augmented differently in every epoch.
    for rows.epoch in progress_bar(range(votes), hidden=quiet, desc="votes", unit="vote"):
        output: Any = trainer.predict(rows, metric_key_prefix="vote")  # pyright: ignore[reportArgumentType] a protocol
        # In double precision, where the rounding of a sum of few numbers does not matter.
        predictions, labels = whole(output)
        total = total + predictions.astype(np.float64)
    rows.epoch = before
    return total / votes, labels


def evaluate_by_voting(
    trainer: Trainer, splits: Mapping[str, AugmentedRows], classes: Sequence[str], votes: int
) -> Judgment:
    """Evaluate the trainer's model on splits by voting and print the metrics.

    Results are named `{split}_voting`, so that they are not mixed with those without voting.

    Returns:
        As `evaluate_splits`; the loss is that of the mean logits.

    Source: Any2Point's programs contain it but do not use it; Point-BERT, Point-MAE and ACT report it in addition to
    plain figures (10 votes).
    """
    metrics = {}
    by_class = {}
    for split, rows in splits.items():
        logits, labels = vote_logits(trainer, rows, votes)
        if labels is None:
            continue
        name = f"{split}_voting"
        prediction = EvalPrediction(logits, labels)
        scores = compute_classification_metrics(prediction, getattr(trainer.model, "config", None))
        # Of the mean logits, as the accuracy is.
        mean = torch.from_numpy(logits[:, : len(classes)])
        metrics[name] = {**scores, "loss": float(torch.nn.functional.cross_entropy(mean, torch.from_numpy(labels)))}
        matrix, names = confusion_of(logits, labels, classes, trainer)
        by_class[name] = by_name(names, class_accuracies(matrix))
        trainer.log_metrics(name, {f"{name}_{key}": value for key, value in metrics[name].items()})
    return metrics, by_class

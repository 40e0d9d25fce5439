"""The final look at a trained segmentation model: whole clouds, put together from their blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import Trainer

from hf_any3d.data.blocks import merge_blocks
from hf_any3d.training import segmentation_scores as scores
from hf_any3d.training.point_rows import BlockRows
from hf_any3d.training.scores import overall_accuracy
from hf_any3d.training.segmentation_metrics import LabelPoints

# Logits of about so many blocks are held at a time.
_HELD = 64


def judge_segmentation(
    trainer: Trainer,
    splits: Mapping[str, BlockRows],
    names: Sequence[str],
    category_parts: Sequence[Sequence[int]] | None = None,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Judge the trainer's model on splits, and print what comes out.

    Args:
        trainer: A trainer of a segmentation model.
        splits: Rows of each split to judge on.
        names: Names of the classes or parts.
        category_parts: For parts, the part numbers of each category; None for semantic classes.

    Returns:
        For each split, `mean_iou` or `instance_miou` and `category_miou`, `accuracy` of points, and `loss`; and for
        each split, the intersection over union of each class or part that occurs in it.
    """
    metrics, by_class = {}, {}
    for split, rows in splits.items():
        losses, predictions, references, categories = [], [], [], []
        for cloud, logits, loss in _clouds(trainer, rows):
            row = rows.dataset[cloud]
            category = torch.tensor([int(row["label"])]) if category_parts is not None else None
            labels = LabelPoints(category_parts)(torch.from_numpy(logits)[None], (None, category))[0].numpy()
            predictions.append(labels)
            references.append(np.asarray(row["labels"]))
            categories.append(None if category is None else int(category))
            losses.append(loss)
        matrix = scores.point_confusion(np.concatenate(predictions), np.concatenate(references), len(names))
        found = {"accuracy": overall_accuracy(matrix), "loss": float(np.mean(losses))}
        if category_parts is None:
            found = {"mean_iou": scores.mean_iou(matrix), **found}
        else:
            ious = scores.part_ious(predictions, references, categories, category_parts)
            found = {
                "instance_miou": scores.instance_miou(ious),
                "category_miou": scores.category_miou(ious),
                **found,
            }
        trainer.log_metrics(split, {f"{split}_{key}": value for key, value in found.items()})
        metrics[split] = found
        shares = dict(zip(names, scores.class_ious(matrix), strict=True))
        by_class[split] = {name: float(share) for name, share in shares.items() if not np.isnan(share)}
    return metrics, by_class


def _clouds(trainer: Trainer, rows: BlockRows) -> Iterator[tuple[int, np.ndarray, float]]:
    """Every cloud's number, its merged logits `(points, labels)`, and the loss of the blocks that it came with."""
    compute, to_labels = trainer.compute_metrics, trainer.preprocess_logits_for_metrics
    trainer.compute_metrics, trainer.preprocess_logits_for_metrics = None, None
    try:
        for members in _groups(rows.clouds):
            output = trainer.predict(Subset(rows, members))
            clouds = np.array([rows.clouds[number] for number in members])
            index = np.stack([rows.index[number] for number in members])
            for cloud in np.unique(clouds):
                own = clouds == cloud
                count = len(rows.dataset[int(cloud)]["labels"])
                merged = merge_blocks(index[own], output.predictions[own], count)
                yield int(cloud), merged, output.metrics["test_loss"]
    finally:
        trainer.compute_metrics, trainer.preprocess_logits_for_metrics = compute, to_labels


def _groups(clouds: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of the rows, in groups of whole clouds."""
    group: list[int] = []
    for number, cloud in enumerate(clouds):
        if len(group) >= _HELD and cloud != clouds[number - 1]:
            yield group
            group = []
        group.append(number)
    yield group

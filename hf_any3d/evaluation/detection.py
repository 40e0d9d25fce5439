"""Average precision of boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_any3d.modeling.layers.boxes import BOX_SIZE, box_iou

THRESHOLDS = (0.25, 0.5)
"""Overlaps that are reported, as usual for rooms."""


@dataclass
class ClassScore:
    """Score of a class at one threshold.

    Args:
        average_precision: Area under the envelope of the curve.
        recall: Share of the objects that were found, at the lowest score.
        precisions: Precision after each answer, by descending score.
        recalls: Recall after each answer.
        num_objects: Objects of the class.
    """

    average_precision: float
    recall: float
    precisions: np.ndarray
    recalls: np.ndarray
    num_objects: int


def score_detections(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[float, dict[int, ClassScore]]:
    """Compare the answers for some clouds with their objects, class by class.

    An answer is right if the object of its class that it overlaps most is covered by more than the threshold, in
    intersection over union of turned boxes, and no answer with a higher score took that object before.

    Args:
        predictions: For each cloud `boxes (answers, 7)`, `labels (answers,)` and `scores (answers,)`.
        references: For each cloud `boxes (objects, 7)` and `labels (objects,)`, or `class_labels`.
        thresholds: Overlaps, from 0 to below 1.

    Returns:
        Threshold -> class that occurs in predictions or references -> its score.
    """
    check_thresholds(thresholds)
    check_lengths(predictions=predictions, references=references)
    scores = []
    labels = []
    best = []
    taken = []
    targets = []
    first = 0  # number of a cloud's first object among all
    for cloud, (answers, objects) in enumerate(zip(predictions, references, strict=True)):
        boxes, answered = _boxes(answers, "labels", f"predictions[{cloud}]")
        name = "labels" if "labels" in objects else "class_labels"
        truth, classes = _boxes(objects, name, f"references[{cloud}]")
        score = np.asarray(answers["scores"], dtype=np.float64).reshape(-1)
        if score.shape != answered.shape or not np.isfinite(score).all():
            raise ValueError(f"predictions[{cloud}]: scores {score.shape}; expected {answered.shape}, finite numbers")
        if len(boxes) and len(truth):
            # (answers, objects)
            overlap = box_iou(torch.from_numpy(boxes)[:, None], torch.from_numpy(truth)[None]).numpy()
            # An object of another class is never the one that an answer overlaps most.
            overlap = np.where(answered[:, None] == classes, overlap, -1.0)
            most = overlap.argmax(axis=1)  # the first of equals
            best.append(overlap[np.arange(len(answered)), most])
            taken.append(first + most)
        else:
            best.append(np.full(len(answered), -1.0))
            taken.append(np.zeros(len(answered), dtype=np.int64))
        scores.append(score)
        labels.append(answered)
        targets.append(classes)
        first += len(truth)
    # With an empty array at the end, which gives no answers at all a shape and a type
    score = np.concatenate([*scores, []])
    label = np.concatenate([*labels, np.zeros(0, np.int64)])
    overlap = np.concatenate([*best, []])
    number = np.concatenate([*taken, np.zeros(0, np.int64)])
    target = np.concatenate([*targets, np.zeros(0, np.int64)])
    result: dict[float, dict[int, ClassScore]] = {}
    for threshold in thresholds:
        result[threshold] = {}
        # Classes that only answers have count in the published form.
        for class_number in np.union1d(label, target).astype(int).tolist():
            rows = np.flatnonzero(label == class_number)
            # The highest score first; equal ones in the order of the answers
            rows = rows[np.argsort(-score[rows], kind="stable")]
            right = overlap[rows] > threshold
            # Of several answers for one object, the first is right.
            candidates = np.flatnonzero(right)
            _, firsts = np.unique(number[rows][candidates], return_index=True)
            is_right = np.zeros(len(rows), dtype=bool)
            is_right[candidates[firsts]] = True
            num_objects = int((target == class_number).sum())
            # Right answers from the highest score down to each one
            hits = np.cumsum(is_right)
            precision = hits / np.arange(1, len(hits) + 1)
            recall = hits / num_objects if num_objects else np.zeros(len(hits))
            # The envelope: the highest precision at this recall or a higher one; summed where recall rises.
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            area = float((np.diff(recall, prepend=0.0) * envelope).sum())
            last = float(recall[-1]) if len(recall) else 0.0
            result[threshold][class_number] = ClassScore(area, last, precision, recall, num_objects)
    return result


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Check that overlaps are shares: nothing overlaps by more than 1, such as by 25 for percent."""
    for threshold in thresholds:
        if not 0 <= threshold < 1:
            raise ValueError(f"thresholds has {threshold!r}; expected shares from 0 to below 1, such as 0.25")


def check_lengths(**values: Sequence[Any]) -> None:
    """Check that arguments have an entry for each of the same clouds."""
    (first, entries), *others = values.items()
    for name, other in others:
        if len(other) != len(entries):
            raise ValueError(f"{name} has {len(other)} entries; expected {len(entries)}, as many as {first}")


def _boxes(cloud: Mapping[str, Any], name: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.asarray(cloud["boxes"], dtype=np.float64)
    # An empty list has no second axis.
    boxes = boxes if boxes.size else np.zeros((0, BOX_SIZE))
    numbers = np.asarray(cloud[name]).reshape(-1)
    labels = numbers.astype(np.int64)
    is_whole = (labels == numbers).all()
    if boxes.shape != (len(labels), BOX_SIZE) or not np.isfinite(boxes).all() or not is_whole:
        raise ValueError(
            f"{where}: boxes {boxes.shape} with {name} {numbers}; expected finite boxes ({len(labels)}, {BOX_SIZE}) "
            "and a whole number for each"
        )
    if (boxes[:, 3:6] < 0).any():  # of which the overlaps mean nothing
        raise ValueError(f"{where}: boxes have negative lengths; expected at least 0")
    return boxes, labels


def detection_metrics(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    thresholds: Sequence[float] = THRESHOLDS,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compute mean average precision and recall, in two forms.

    `map_25` is the mean over the classes that have objects. `published_map_25` also counts classes that only occur
    among the answers, with 0, as the evaluation of VoteNet and 3DETR does.

    Returns:
        For each threshold `map_…`, `recall_…`, `published_map_…`, `published_recall_…`, and `class_ap_…` by name or
        number of the class.

    Raises:
        ValueError: A threshold is no share, such as 25 for percent; predictions and references are of different
            numbers of clouds; a box is not finite or has a negative length; or a class has none of the `names`.
    """
    metrics: dict[str, Any] = {}
    for threshold, scores in score_detections(predictions, references, thresholds).items():
        ending = f"{100 * threshold:g}"
        if names is not None and (beyond := [number for number in scores if not 0 <= number < len(names)]):
            raise ValueError(f"labels: found class {beyond[0]}; expected 0 to {len(names) - 1}, those of the names")
        with_objects = [score for score in scores.values() if score.num_objects]
        # In the sound form, and in the published one
        for prefix, counted in (("", with_objects), ("published_", list(scores.values()))):
            metrics[f"{prefix}map_{ending}"] = _mean([score.average_precision for score in counted])
            metrics[f"{prefix}recall_{ending}"] = _mean([score.recall for score in counted])
        metrics[f"class_ap_{ending}"] = {
            number if names is None else names[number]: score.average_precision
            for number, score in scores.items()
            if score.num_objects
        }
    return metrics


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")

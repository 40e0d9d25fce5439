"""Predictions and labels of all rows as arrays, however an evaluation hands them over.

With `eval_do_concat_batches=False` it hands over lists of batches, and other programs hand over lists of rows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

PADDING = -100
"""Fills rows up where they have different lengths, as Trainer does; labels with it do not count."""


def whole(evaluated: Any) -> tuple[Any, Any]:
    """Return predictions and labels of an `EvalPrediction` or `PredictionOutput`, those of several batches joined.

    Either is an array (rows, …), or a tuple of arrays where the model has several outputs or labels; labels may be
    None. Rows of different lengths are filled up with -100.
    """
    predictions, labels = evaluated.predictions, evaluated.label_ids
    if not isinstance(predictions, list) or not predictions:
        return _of_rows(predictions), _of_rows(labels)
    # A row of predictions has one axis, the logits of classes or the classes of points; a batch has more.
    first = predictions[0]
    if not isinstance(first, (tuple, Mapping)) and _axes(first) < 2:
        return _of_rows(predictions), _of_rows(labels)
    return _of_batches(predictions), None if labels is None else _of_batches(labels)


def _of_rows(values: Any) -> Any:
    """Return an array of rows that may be a list of them; of a tuple of outputs, each."""
    if values is None or isinstance(values, Mapping):
        return values
    if isinstance(values, tuple):
        return tuple(_of_rows(part) for part in values)
    return _stack(list(values)) if _is_list(values) else _array(values)


def _of_batches(batches: Any) -> Any:
    """Return an array of the rows of all batches; of tuples of outputs, each."""
    first = batches[0]
    if first is None or isinstance(first, Mapping):
        return None if first is None else batches
    if isinstance(first, tuple):
        return tuple(_of_batches(list(parts)) for parts in zip(*batches, strict=True))
    return _stack([row for batch in batches for row in (batch if _is_list(batch) else _array(batch))])


def _is_list(values: Any) -> bool:
    return isinstance(values, (list, tuple)) or (isinstance(values, np.ndarray) and values.dtype == object)


def _axes(values: Any) -> int:
    if _is_list(values):
        return 1 + (_axes(values[0]) if len(values) else 0)
    return np.ndim(_array(values))


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:  # which numpy lacks
            values = values.float()
    return np.asarray(values)


def _stack(rows: list[Any]) -> np.ndarray:
    """Return rows as one array; where they differ in length, filled up at the end."""
    arrays = [_stack(list(row)) if _is_list(row) else _array(row) for row in rows]
    shapes = {array.shape for array in arrays}
    if len(shapes) < 2 or len({len(shape) for shape in shapes}) > 1:
        return np.array(arrays)
    longest = np.max(list(shapes), axis=0)
    filled = np.full((len(arrays), *longest), PADDING, dtype=np.result_type(*arrays, np.int8))
    for place, array in zip(filled, arrays, strict=True):
        place[tuple(map(slice, array.shape))] = array
    return filled

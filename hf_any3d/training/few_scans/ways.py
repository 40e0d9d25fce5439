"""The ways to learn to classify own scans, and the one place that chooses among them."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from hf_any3d.data.axes import turn_up_axis
from hf_any3d.modeling.point_encoders.packaged_encoder import PACKAGED_UP_AXIS
from hf_any3d.pipelines import default_model
from hf_any3d.training import program
from hf_any3d.training.few_scans.plan import FEATURES, TRAINED, WRAP_WEIGHT
from hf_any3d.training.few_scans.preparation import prepare
from hf_any3d.training.few_scans.request import implied_up_axis
from hf_any3d.training.few_scans.training import FewScans, Learned, learn_few_scans
from hf_any3d.training.program import figures, train
from hf_any3d.training.rows import class_names
from hf_any3d.training.tasks import Classification


@dataclass(frozen=True)
class BothWays:
    """Request of one model that answers with the mean of a head on frozen features and of a trained classifier."""

    scans: FewScans
    classification: Classification  # its output folder is not used: the model is saved where that of the scans is


def choose_way(scans: FewScans, way: str | None = None, trains: bool = False) -> tuple[str, DatasetDict | None]:
    """Choose how scans are learned.

    Args:
        scans: The request to learn them by frozen features.
        way: One of `WAYS`; None for what is asked, or else what the number of scans says.
        trains: Whether something is asked that only a training can do.

    Returns:
        "features", "trained" or "both"; and the scans, if they had to be loaded to count them.
    """
    # Scans are only added to models of frozen features.
    if scans.arguments.from_model is not None:
        return FEATURES, None
    if way is not None:
        return way, None
    if trains:
        return TRAINED, None
    # Only the number of scans can decide, so they are loaded.
    rows = scans.load()
    return scans.plan(_counts(rows)).way, rows


def learn_scans(request: FewScans | Classification | BothWays, rows: DatasetDict | None = None) -> Learned:
    """Learn to classify scans, and save model, card and metrics.json; `rows` are the scans if they are loaded."""
    if isinstance(request, FewScans):
        return learn_few_scans(request, rows)
    if isinstance(request, BothWays):
        return _learn_both(request, rows)
    report = train(request, rows)
    return Learned(report, figures(report))


def _learn_both(request: BothWays, rows: DatasetDict | None) -> Learned:
    """Train a classifier, and average its answers with those of a head on frozen features; one model has both."""
    scans = request.scans
    rows = scans.load() if rows is None else rows
    # What is wrong with the scans or their folder is found before the minutes of a training.
    program.claim_output(Path(scans.arguments.output_dir))
    prepare(scans, rows)
    with tempfile.TemporaryDirectory() as folder, _without_lines_on(folder):
        trained = str(Path(folder) / "wrap")
        _train_into(trained, request.classification, scans, rows)
        arguments = replace(scans.arguments, wrap=trained, wrap_weight=WRAP_WEIGHT)
        return learn_few_scans(replace(scans, arguments=arguments), rows)


def _train_into(folder: str, classification: Classification, scans: FewScans, rows: DatasetDict) -> None:
    """Train a classifier, and save it in a folder."""
    # The request may be used again.
    training = copy(classification.training)
    data = copy(classification.data)
    training.output_dir = folder
    up_axis = scans.data.up_axis or implied_up_axis(scans.data, rows["train"]) or PACKAGED_UP_AXIS
    starts_from_packaged = classification.model.model_name_or_path == default_model()
    if starts_from_packaged and up_axis != PACKAGED_UP_AXIS:
        # It goes on learning from what it knows. The model of both turns clouds for it as for the encoder.
        data.up_axis = PACKAGED_UP_AXIS
        rows = _turned(rows, up_axis)
    train(replace(classification, training=training, data=data), rows)


@contextmanager
def _without_lines_on(folder: str) -> Iterator[None]:
    """Keep training from telling what to do with a folder that will be gone."""

    def is_of_others(record: logging.LogRecord) -> bool:
        return folder not in record.getMessage()

    program.logger.addFilter(is_of_others)
    try:
        yield
    finally:
        program.logger.removeFilter(is_of_others)


def _turned(rows: DatasetDict, up_axis: str) -> DatasetDict:
    """Turn scans so that the axis of the packaged encoder points up."""

    def turn(row: dict[str, Any]) -> dict[str, Any]:
        points = np.array(row["points"])  # a copy, since rows may be views
        points[:, :3] = turn_up_axis(points[:, :3], up_axis, PACKAGED_UP_AXIS)
        return {"points": points}

    return rows.map(turn)


def _counts(rows: DatasetDict) -> Counter[str]:
    """Count the scans of each class."""
    names = class_names(rows["train"])
    return Counter(names[label] for label in rows["train"].with_format(None)["label"][:])

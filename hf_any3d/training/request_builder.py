"""Build the request of a training from data, settings, command-line words or a recipe."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from hf_any3d.extensions import EXTENSIONS, missing_package
from hf_any3d.hub.published_table import is_published
from hf_any3d.registry import LABELED_POINTS, MODEL_TYPES
from hf_any3d.training import detection, layouts, tasks
from hf_any3d.training.few_scans.plan import BOTH, FEATURES, TRAINED, choose_way
from hf_any3d.training.few_scans.request import (
    OF_SCANS,
    OPTIONS,
    BothWays,
    FewScans,
    FewScansArguments,
    classification_beside_head,
    small_data_classification,
)
from hf_any3d.training.program import TrainingTask
from hf_any3d.training.recipes import read_recipe
from hf_any3d.training.requests import ExtensionRequest, read_words, refuse_twice
from hf_any3d.training.sources import OPTIONS_OF_COMMAND, Source, Task, Way
from hf_any3d.training.tasks import Classification

TASK_CLASSES: dict[Task, type[TrainingTask]] = {
    Task.CLASSIFICATION: tasks.Classification,
    Task.SEGMENTATION: tasks.Segmentation,
    Task.DETECTION: detection.Detection,
    Task.LAYOUTS: layouts.Layouts,
}
# What `--way both` decides itself.
_OF_BOTH_WAYS = {"wrap", "wrap_weight", "model_type", "model_name_or_path", "peft"}
ConfigOf = Callable[[str], Mapping[str, Any]]


def build_request(
    source: Source, given: dict[str, Any], words: Sequence[str], way: Way | None, config_of: ConfigOf
) -> tuple[ExtensionRequest | FewScans | BothWays | TrainingTask, DatasetDict | None]:
    """Build the request to learn from data; also return its rows, if they were loaded to choose the way.

    Arguments that are left out keep the value of the recipe, or the default of their class.

    Args:
        source: The data.
        given: Settings by the names of the arguments of trainings.
        words: Further words of a command line, which name arguments of the training.
        way: The way of learning that is asked for, if any.
        config_of: Function from the name of a model to its configuration.
    """
    task = source.task
    given = dict(given)
    learning = learning_of_extensions()
    for module in learning:
        request = module.request_for(source, given, words, way, config_of)
        if request is not None:
            return request, None
    package = missing_package(LABELED_POINTS) if source.files and way is not Way.TRAINED else None
    if package is not None:
        raise ValueError(
            f"{source.files[0]}: labeled points; to train on their features, install {package}; to train a network, "
            "use --way trained"
        )
    # Frozen features come from a point encoder of any type; a training has an argument for each kind of encoder.
    if given.get("encoder") and way is not Way.FEATURES:
        given |= _encoder_arguments(given.pop("encoder"), config_of)
    kinds = TASK_CLASSES[task].argument_classes()
    if task is Task.CLASSIFICATION:
        # Arguments of the same name are those of trainings, which take more.
        kinds = (FewScansArguments, *kinds)
    of_extensions: list[type] = []
    for module in learning:
        of_extensions += module.ARGUMENTS
    # Options of labeled files are known, too, so that it is said why they have no effect here.
    named = read_words((*of_extensions, *kinds), words, f"hf-any3d train --task {task} --help-all")
    known = set()
    for kind in kinds:
        known.update(setting.name for setting in fields(kind))
    for name in named.keys() - known:
        if task is Task.SEGMENTATION:
            raise ValueError(
                f"--{name} has no effect on a network that is trained; leave it out, or use --way features"
            )
        raise ValueError(f"--{name} is for files with labeled points; the task of these data is {task}")
    refuse_twice(given, named)
    # A recipe may name its folder itself.
    output = {} if source.recipe is not None else {"output_dir": str(source.output)}
    settings = {**source.arguments, **output, **given, **named}
    # A recipe says how it is trained, so that no way is chosen.
    if task is Task.CLASSIFICATION and source.recipe is None:
        return scans_request(settings, way)
    below = {}
    if source.recipe is not None:
        below = read_recipe(source.recipe, TASK_CLASSES[task].argument_classes())
    return TASK_CLASSES[task].from_settings(settings, below), None


def _encoder_arguments(encoder: str, config_of: ConfigOf) -> dict[str, str]:
    """Return the arguments of a training that start from an encoder, by its kind."""
    if not Path(encoder).is_dir() and "/" not in encoder:  # an old name on the hub, without an owner
        return {"encoder_name_or_path": encoder}
    try:
        model_type = str(config_of(encoder).get("model_type"))
    except OSError:
        if is_published(encoder):
            raise
        model_type = ""  # the default encoder may be in an installed package, although the hub cannot be reached
    if model_type in MODEL_TYPES and MODEL_TYPES[model_type].is_point_encoder:
        return {"model_type": model_type, "model_name_or_path": encoder}
    return {"encoder_name_or_path": encoder}


def learning_of_extensions() -> list[Any]:
    """Return the modules of extensions that may learn data in a way of their own.

    Each has `request_for`, with the arguments of `build_request`, which returns an `ExtensionRequest`, or None for
    data that it leaves to others; and `ARGUMENTS`, the dataclasses of its options.
    """
    return [importlib.import_module(one.learning) for one in EXTENSIONS.values() if one.learning is not None]


def scans_request(
    arguments: Mapping[str, Any], way: str | None
) -> tuple[FewScans | Classification | BothWays, DatasetDict | None]:
    """Return the request to classify scans in the way that fits; and the scans, if they were loaded to choose it."""
    # What frozen features do not take asks for a training, unless the way is named.
    of_training = sorted(arguments.keys() - OPTIONS)
    if of_training and (way == FEATURES or "from_model" in arguments):
        name = OPTIONS_OF_COMMAND.get(of_training[0], of_training[0])
        if way == FEATURES:
            raise ValueError(f"--{name} has no effect with --way features; leave it out, or use --way trained")
        raise ValueError(f"--{name} has no effect with --from, which adds to a model of frozen features; leave it out")
    if way == TRAINED or (way is None and of_training):
        return small_data_classification(**arguments), None
    # The head gets its own options; the others are those of a training.
    scans = FewScans.from_settings({name: arguments[name] for name in arguments.keys() & OPTIONS})
    chosen, rows = choose_way(scans, way, trains=bool(of_training))
    if chosen == FEATURES:
        return scans, rows
    if chosen == TRAINED:
        return small_data_classification(**arguments), rows
    assert chosen == BOTH
    decided = sorted(arguments.keys() & _OF_BOTH_WAYS)
    if decided:
        raise ValueError(
            f"--{decided[0]} cannot be combined with --way both, which sets it itself; leave out one of them"
        )
    # The seed and the license are those of both; all else of the scans is for the head.
    beside_head = {name: value for name, value in arguments.items() if name not in OF_SCANS - {"seed", "license"}}
    return BothWays(scans, classification_beside_head(**beside_head)), rows


def output_of(request: ExtensionRequest | FewScans | BothWays | TrainingTask) -> str:
    """Return the directory to which a request writes the model."""
    if isinstance(request, BothWays):
        return request.scans.arguments.output_dir
    if isinstance(request, (ExtensionRequest, FewScans)):
        return request.arguments.output_dir
    return request.training.output_dir

"""Build the request of a training from data, settings, command-line words or a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from hf_any3d.hub.published_table import is_published
from hf_any3d.registry import MODEL_TYPES
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
from hf_any3d.training.requests import read_words
from hf_any3d.training.sources import OPTIONS_OF_COMMAND, Source, Task, Way
from hf_any3d.training.tasks import Classification
from hf_any3d.training.tiles.adding import AddedArguments, AddedPoints
from hf_any3d.training.tiles.training import Tiles, TilesArguments
from hf_any3d.training.tiles.ways import OF_TILES, choose_way as choose_way_of_tiles

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
) -> tuple[Tiles | AddedPoints | FewScans | BothWays | TrainingTask, DatasetDict | None]:
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
    if source.files and "from_model" in given:
        return _added_request(source, given, words, config_of), None
    # A network is trained on the rows of a folder: that is known without a look at the files.
    if source.files and not (way is Way.TRAINED and len(source.files) == 1 and Path(source.files[0]).is_dir()):
        tiles = _tiles_request(source, given, words, way)
        if tiles is not None:
            return tiles, None
    # Frozen features come from a point encoder of any type; a training has an argument for each kind of encoder.
    if given.get("encoder") and way is not Way.FEATURES:
        given |= _encoder_arguments(given.pop("encoder"), config_of)
    kinds = TASK_CLASSES[task].argument_classes()
    if task is Task.CLASSIFICATION:
        # Arguments of the same name are those of trainings, which take more.
        kinds = (FewScansArguments, *kinds)
    # Options of labeled files are known, too, so that it is said why they have no effect here.
    named = read_words((TilesArguments, *kinds), words, f"hf-any3d train --task {task} --help-all")
    known = {setting.name for kind in kinds for setting in fields(kind)}
    for name in named.keys() - known:
        if task is Task.SEGMENTATION:
            raise ValueError(f"--{name} has no effect on a network that is trained; expected --way features")
        raise ValueError(f"--{name} is an option of labels of points; these data are learned for {task}")
    _refuse_twice(given, named)
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


def _refuse_twice(given: Mapping[str, Any], named: Mapping[str, Any]) -> None:
    """Refuse an argument that is given twice, by its option and by its own name."""
    twice = sorted(named.keys() & given.keys())
    if twice:
        short = OPTIONS_OF_COMMAND.get(twice[0], twice[0].replace("_", "-"))
        raise ValueError(f"--{short} and --{twice[0]} are one option; expected one of them")


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


def _tiles_request(source: Source, given: Mapping[str, Any], words: Sequence[str], way: str | None) -> Tiles | None:
    """Return the request to learn point labels from a few files; None if a network is to be trained."""
    of_network = tasks.Segmentation.argument_classes()
    named = read_words([*of_network, TilesArguments], words, "hf-any3d train --task segmentation --help-all")
    given = dict(given)
    # Here `--points` are those of a tile, not of a cloud of a network.
    if "num_points" in given:
        given["points"] = given.pop("num_points")
    _refuse_twice(given, named)
    # No recipe can name a directory here.
    settings = {"output_dir": str(source.output), **given, **named}
    if choose_way_of_tiles(source.files, settings, way) == FEATURES:
        return Tiles.from_settings(settings)
    without_effect = sorted(named.keys() - {setting.name for kind in of_network for setting in fields(kind)})
    of_training = sorted(settings.keys() - OF_TILES)
    if without_effect and of_training:
        cause = of_training[0]
        if cause in given:
            cause = OPTIONS_OF_COMMAND.get(cause, cause)
        raise ValueError(
            f"--{without_effect[0]} has no effect on a network that is trained, which --{cause} asks for; expected "
            "one of them"
        )
    return None


def _added_request(source: Source, given: Mapping[str, Any], words: Sequence[str], config_of: ConfigOf) -> AddedPoints:
    """Return the request to add labeled points to a model of tiles."""
    earlier = given["from_model"]
    model_type = str(config_of(earlier).get("model_type"))
    if model_type != "local_features":
        raise ValueError(
            f"--from {earlier} with labels of points: the model is of type {model_type}; expected one that "
            "hf-any3d train has learned from labeled tiles"
        )
    named = read_words([AddedArguments], words, "hf-any3d train --task segmentation --help-all")
    _refuse_twice(given, named)
    known = {setting.name for setting in fields(AddedArguments)}
    foreign = sorted(given.keys() - known)
    if foreign:
        name = OPTIONS_OF_COMMAND.get(foreign[0], foreign[0].replace("_", "-"))
        raise ValueError(f"--{name} has no effect on points that are added to a model; the model's own settings count")
    return AddedPoints.from_settings({"output_dir": str(source.output), **given, **named})


def scans_request(
    arguments: Mapping[str, Any], way: str | None
) -> tuple[FewScans | Classification | BothWays, DatasetDict | None]:
    """Return the request to classify scans in the way that fits; and the scans, if they were loaded to choose it."""
    # What frozen features do not take asks for a training, unless the way is named.
    of_training = sorted(arguments.keys() - OPTIONS)
    if of_training and (way == FEATURES or "from_model" in arguments):
        name = OPTIONS_OF_COMMAND.get(of_training[0], of_training[0])
        raise ValueError(f"--{name} has no effect on frozen features with a linear head; expected --way trained")
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
        raise ValueError(f"--{decided[0]} with --way both, which trains a wrap of its own; expected one of them")
    # The seed and the license are those of both; all else of the scans is for the head.
    beside_head = {name: value for name, value in arguments.items() if name not in OF_SCANS - {"seed", "license"}}
    return BothWays(scans, classification_beside_head(**beside_head)), rows


def output_of(request: Tiles | AddedPoints | FewScans | BothWays | TrainingTask) -> str:
    """Return the directory to which a request writes the model."""
    if isinstance(request, BothWays):
        return request.scans.arguments.output_dir
    if isinstance(request, (Tiles, AddedPoints, FewScans)):
        return request.arguments.output_dir
    return request.training.output_dir

"""Requests of `hf-any3d train`: what the command line and a recipe say, as one dataclass for each way of learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from hf_any3d.cli.train import SHORT_NAMES, Task
from hf_any3d.training import detection, layouts, tasks
from hf_any3d.training.arguments import read_recipe, read_words
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
from hf_any3d.training.tasks import Classification
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


def parse_words(task: Task, words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments that words name, for a task."""
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
    return named


def tiles_request(
    files: Sequence[str], arguments: Mapping[str, Any], words: Sequence[str], way: str | None
) -> Tiles | None:
    """Return the request to learn point labels from a few files; None if a network is to be trained."""
    of_network = tasks.Segmentation.argument_classes()
    named = read_words([*of_network, TilesArguments], words, "hf-any3d train --task segmentation --help-all")
    arguments = {**arguments, **named}
    if choose_way_of_tiles(files, arguments, way) == FEATURES:
        return Tiles.from_settings(arguments)
    without_effect = sorted(named.keys() - {setting.name for kind in of_network for setting in fields(kind)})
    of_training = sorted(arguments.keys() - OF_TILES)
    if without_effect and of_training:
        short = SHORT_NAMES.get(of_training[0], of_training[0])
        raise ValueError(
            f"--{without_effect[0]} has no effect on a network that is trained, which --{short} asks for; expected "
            "one of them"
        )
    return None


def scans_request(
    arguments: Mapping[str, Any], way: str | None
) -> tuple[FewScans | Classification | BothWays, DatasetDict | None]:
    """Return the request to classify scans in the way that fits; and the scans, if they were loaded to choose it."""
    # What frozen features do not take asks for a training, unless the way is named.
    of_training = sorted(arguments.keys() - OPTIONS)
    if of_training and (way == FEATURES or "from_model" in arguments):
        name = SHORT_NAMES.get(of_training[0], of_training[0])
        raise ValueError(f"--{name} has no effect on frozen features with a linear head; expected --way trained")
    if way == TRAINED or (way is None and of_training):
        return small_data_classification(**arguments), None
    # The head gets its own options; the others are those of a training.
    scans = FewScans.from_settings({name: arguments[name] for name in arguments.keys() & OPTIONS})
    chosen, rows = choose_way(scans, way, trains=bool(of_training))
    if chosen == FEATURES:
        return scans, rows
    if chosen == BOTH:
        return _both_ways(scans, arguments), rows
    return small_data_classification(**arguments), rows


def _both_ways(scans: FewScans, arguments: Mapping[str, Any]) -> BothWays:
    decided = sorted(arguments.keys() & _OF_BOTH_WAYS)
    if decided:
        raise ValueError(f"--{decided[0]} with --way both, which trains a wrap of its own; expected one of them")
    # The seed and the license are those of both; all else of the scans is for the head.
    of_training = {name: value for name, value in arguments.items() if name not in OF_SCANS - {"seed", "license"}}
    return BothWays(scans, classification_beside_head(**of_training))


def task_request(task: Task, arguments: Mapping[str, Any], recipe: Path | None) -> TrainingTask:
    """Return the request of a training by a recipe and arguments, which win."""
    task_class = TASK_CLASSES[task]
    below = {} if recipe is None else read_recipe(recipe, task_class.argument_classes())
    return task_class.from_settings(arguments, below)

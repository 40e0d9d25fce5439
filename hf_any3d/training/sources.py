"""Data to train on, by the name that a user gives them: a folder, files of labeled points, a dataset or a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from hf_any3d.data.dataset_names import find_dataset
from hf_any3d.registry import DATASETS, FORMATS, LABELED_CLOUDS, LABELED_POINTS, LABELED_WITH_BOXES
from hf_any3d.training.recipes import FILE_TYPES, read_settings
from hf_any3d.utils.shipped import RECIPES

OPTIONS_OF_COMMAND = {
    "from_model": "from",
    "output_dir": "output",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch-size",
    "num_points": "points",
}
"""Argument of trainings -> option of `hf-any3d train`, where their names differ."""


class Way(StrEnum):
    """Way of learning of a classifier."""

    FEATURES = "features"
    TRAINED = "trained"
    BOTH = "both"


class Task(StrEnum):
    """Target of labels: clouds, points, boxes or layouts."""

    CLASSIFICATION = "classification"
    SEGMENTATION = "segmentation"
    DETECTION = "detection"
    LAYOUTS = "layouts"


# What the labels of data belong to -> the task that learns from them.
_TASKS = {LABELED_POINTS: Task.SEGMENTATION, LABELED_WITH_BOXES: Task.DETECTION}


@dataclass(frozen=True)
class Source:
    """Training data, as arguments of a training or as a recipe, and the task of their labels."""

    arguments: dict[str, Any]
    recipe: Path | None
    task: Task
    output: Path  # for the model, if neither an option nor the recipe names a directory
    files: list[str] = field(default_factory=list)  # files and folders of labeled points

    def check_way(self, way: str | None, earlier: object | None) -> None:
        """Refuse a way of learning that these data do not have.

        Args:
            way: The way that is asked for, if any.
            earlier: The model that is asked to learn more, if any.
        """
        option = "--from" if earlier is not None else f"--way {way}"
        if self.files:
            if way == Way.BOTH:
                raise ValueError(
                    f"--way {way} cannot be combined with labels of points; use --way features or trained"
                )
            if earlier is None and way == Way.TRAINED and (len(self.files) > 1 or not Path(self.files[0]).is_dir()):
                raise ValueError(f"--way trained with {Path(self.files[0]).name}; pass a folder of labeled files")
            if earlier is not None and way == Way.TRAINED:
                raise ValueError(
                    "--from cannot be combined with --way trained; use --way features, whose "
                    "models store what they learned"
                )
            return
        # These ask for no frozen features, and go with all data.
        if earlier is None and way not in (Way.FEATURES, Way.BOTH):
            return
        contradiction = None
        if self.recipe is not None:
            contradiction = "a recipe"
        elif way == Way.TRAINED or (way == Way.BOTH and earlier is not None):
            contradiction = f"--way {way}"
        elif self.task is Task.SEGMENTATION:
            contradiction = "labels of points"
        elif self.task is not Task.CLASSIFICATION:
            contradiction = "boxes"
        if contradiction is not None:
            raise ValueError(
                f"{option} cannot be combined with {contradiction}; it classifies scans by frozen features"
            )


def find_source(
    data: str | None, dataset: str | None = None, task: Task | None = None, words: list[str] | None = None
) -> Source:
    """Find training data by name, and the task of their labels if none is given; points are not read.

    Args:
        data: A folder, file, dataset or recipe; the folder of `dataset` if that is given.
        dataset: Name of a dataset.
        task: The task that is asked for.
        words: Further words of a command line; files that stand before its first option are taken off.

    Raises:
        FileNotFoundError: There are no such data.
        ValueError: They have no labels for the task.
    """
    output = Path("outputs") / Path(data or dataset or "").stem
    # Files whose points have classes need no name of a dataset, and their own way may learn from them.
    if data is not None and dataset is None and _has_labeled_points(data, task):
        files = [data]
        # As with other commands, several files may stand before the first option.
        while words and not words[0].startswith("-"):
            files.append(words.pop(0))
        # A network that is trained learns from the rows of a folder.
        folder = {"dataset_name": "folder", "data_dir": data, "dataset_options": {"on_error": "skip"}}
        return Source(folder, None, Task.SEGMENTATION, output, files)
    # Labels tell the task where the data are known; those on the hub are taken for labeled clouds.
    arguments, recipe, labels = find_data(data, dataset)
    if task is Task.DETECTION and arguments.get("dataset_name") == "folder":
        # Its error names the files of boxes.
        arguments, recipe, labels = find_data(data, "scans_with_boxes")
    from hf_any3d.data.catalog.folder_layout import LAYOUTS

    is_folder = arguments.get("dataset_name") == "folder" and dataset is None
    expected = {None: (LABELED_CLOUDS, LABELED_POINTS), Task.CLASSIFICATION: (LABELED_CLOUDS,)}
    if is_folder and task in expected and labels not in expected[task]:
        files = Path(str(data)).expanduser().rglob("*")
        is_empty = not any(path.suffix[1:].lower() in FORMATS for path in files)
        problem = "contains no scans" if is_empty else "contains no class folders"
        raise ValueError(
            f"{data}: the folder {problem}; expected {LAYOUTS}. For files with labeled points, use --task segmentation"
        )
    return Source(arguments, recipe, task or _TASKS.get(labels or "", Task.CLASSIFICATION), output)


def _has_labeled_points(data: str, task: Task | None) -> bool:
    """Return whether data are files whose points have labels, or a folder of them."""
    if task not in (None, Task.SEGMENTATION):
        return False
    path = Path(data)
    # A file of points can only have labels of points; the labels of a folder may be those of clouds.
    if path.is_file() and path.suffix[1:].lower() in FORMATS:
        return True
    found = find_dataset(data) if path.is_dir() else None
    if found is None or found.name != "folder":
        return False
    return task is not None or found.labels() == LABELED_POINTS


def find_data(data: str | None, dataset: str | None = None) -> tuple[dict[str, Any], Path | None, str | None]:
    """Return the arguments that select the data, their recipe if any, and what their labels belong to, if known."""
    if dataset is not None:
        entry = find_dataset(dataset, "--dataset")
        folder = {} if data is None else {"data_dir": data}
        return {"dataset_name": entry.name, **folder}, None, entry.labels()
    assert data is not None
    if Path(data).suffix.lower() in FILE_TYPES:
        # The name of a packaged recipe, unless there is a file of this name here.
        packaged = RECIPES / data
        recipe = packaged if packaged.is_file() and not Path(data).is_file() else Path(data)
        # A recipe names its dataset, which tells what the labels belong to.
        return {}, recipe, DATASETS.get(str(read_settings(recipe).get("dataset_name", "")))
    entry = find_dataset(data)
    if entry.file is not None:
        return {"train_file": str(entry.file)}, None, entry.labels()
    arguments: dict[str, Any] = {"dataset_name": entry.name}
    if entry.folder is not None:
        arguments["data_dir"] = str(entry.folder)
    # One damaged file is reported at the end, and does not waste a training.
    if entry.name == "folder":
        arguments["dataset_options"] = {"on_error": "skip"}
    return arguments, None, entry.labels()

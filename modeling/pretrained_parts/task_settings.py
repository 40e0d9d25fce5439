"""The settings of a config that are of a task: what a head was trained for, and what its outputs mean."""

from __future__ import annotations

import copy
import re
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from hf_any3d.modeling.pretrained_parts.loading import listed

Task = dict[str, Any]
"""Settings of a config that say what a head was trained for, with their values."""

# Labels, what the head is made of, its scores, and its loss. Settings of anything below the head are none of them.
_SETTINGS = re.compile(
    r"id2label|label2id|problem_type|label_colors|none_label|category_(parts|names|templates)"
    r"|restrict_to_category_parts|(segmentation_|text_)?head_\w+|num_heading_bins"
    r"|unknown|temperature|one_sided|up_axis|largest_scan|scan_unit|hypothesis_templates"
    r"|\w+_(cost|loss_weight)|no_object_weight|lovasz_weight|focal_gamma|published_overlap"
)
# What outputs mean: adapters that differ in these cannot answer together.
_MEANING = ("id2label", "problem_type", "category_parts", "category_names", "unknown")


def is_of_task(setting: str) -> bool:
    """Return whether a setting of a config belongs to the task of an adapter."""
    return _SETTINGS.fullmatch(setting) is not None


def task_of(config: PreTrainedConfig) -> Task:
    """Return a copy of the task in a config."""
    return {name: copy.deepcopy(value) for name, value in vars(config).items() if is_of_task(name)}


def have_one_meaning(task: Task, other: Task) -> bool:
    """Return whether outputs of models of two tasks mean the same."""
    return all(as_stored(task.get(name)) == as_stored(other.get(name)) for name in _MEANING)


def set_task(config: PreTrainedConfig, task: Task) -> None:
    """Let a config say a task."""
    for name, value in task.items():
        setattr(config, name, copy.deepcopy(value))


def described(task: Task) -> str:
    """Return a task in words: the number of its classes, the first names, and its problem type."""
    names = [str(name) for _, name in sorted((task.get("id2label") or {}).items())]
    problem = f", {task['problem_type']}" if task.get("problem_type") else ""
    return f"{len(names)} classes ({listed(names, 3)}{problem})"


def as_stored(value: Any) -> Any:
    """Return a setting as files have it, where sequences are lists."""
    return [as_stored(entry) for entry in value] if isinstance(value, (list, tuple)) else value


class Absent(nn.Module):
    """Stands in a model for a module that only adapters have, such as an unknown score; it has no weights."""

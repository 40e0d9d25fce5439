"""One stable function for other programs: arrays of points in, labels out, through the pipelines."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from hf_any3d.registry import TASKS, pipeline_task

# Of models with labels of their own, and of those that find parts by name.
_TASKS = tuple(name for name, task in TASKS.items() if task.command == "segment")
# Opened models stay open: programs call for one cloud after the other. Two, for one with labels and one with texts.
_MOST_OPEN = 2
_open: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
_lock = Lock()


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Labels of a cloud's points.

    Args:
        labels: `(points,)` int64, numbers of `names`, in the order of the points that were given.
        scores: `(points,)` float32, the model's probability of each label.
        names: Names of the labels.
        colors: `(names, 3)` float32 in [0, 1], the colors in which pictures show them.
    """

    labels: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...]
    colors: np.ndarray


def segment(
    points: Any,
    colors: Any = None,
    *,
    model: Any,
    normals: Any = None,
    intensity: Any = None,
    ring: Any = None,
    return_number: Any = None,
    number_of_returns: Any = None,
    labels: Sequence[str] | str | None = None,
    category: str | None = None,
    up_axis: str | None = None,
    max_points: int | None = None,
    votes: bool = False,
    estimate_normals: bool = False,
    device: Any = None,
) -> Segmentation:
    """Label every point of a cloud.

    This is the function for other programs: it takes arrays, keeps its last two models open between calls, and its
    arguments and fields stay as they are within a major version. The work is that of the pipelines, so a large cloud
    is processed in blocks, one at a time.

    Args:
        points: `(points, 3)`, in the units and axes of the model's training data; see its card.
        colors: `(points, 3)`, from 0 to 1, or bytes; for models that read them.
        model: Directory, hub or published name of a segmentation model, or one that finds parts by name; or an open
            pipeline of these tasks.
        normals: `(points, 3)`, for models that read them.
        intensity: `(points,)`, for models that read it.
        ring: `(points,)`, the number of the laser, for models that read it.
        return_number: `(points,)`, which of the returns of its pulse each point is, from 1, for models that read it.
        number_of_returns: `(points,)`, how many returns that pulse had, for models that read it.
        labels: Names of parts, for models that find parts by name, and no others.
        category: Category of the object, for models of parts.
        up_axis: "x", "y" or "z", the axis that points up in the cloud, if it is another one than the model's.
        max_points: Label so many random points; the others get the label of the nearest one.
        votes: Segment in several views and fragments and vote, as the figures of Point Transformer V3 were measured;
            tens of times slower.
        estimate_normals: Estimate `normals` that are not given, with a warning.
        device: Device of a model that is opened here; the fastest one by default.

    Returns:
        The labels.

    Raises:
        ValueError: The model is of another task, arrays do not fit, `labels` are missing or not for this model, or
            what the model reads is missing.
        OSError: There is no such model.

    Example:
        ```python
        from hf_any3d import segment

        found = segment(xyz, rgb, model="me/my-rooms")
        found.names[found.labels[0]]
        ```
    """
    # Pipelines of these tasks alone have this method, so that none has to be imported to tell.
    pipe = model if hasattr(model, "label_names") else _opened(model, device)
    if pipe is model and device is not None:
        raise ValueError(f"device={device!r} with an open pipeline; expected None, as it has a device")
    row = {"points": points, "colors": colors, "normals": normals, "intensity": intensity, "ring": ring}
    row |= {"return_number": return_number, "number_of_returns": number_of_returns}
    # What the model reads and is missing here is an error of the pipeline.
    row = {name: values for name, values in row.items() if values is not None}
    given = {"category": category, "up_axis": up_axis, "max_points": max_points, "votes": votes or None}
    given["estimate_normals"] = estimate_normals or None
    arguments = {name: value for name, value in given.items() if value is not None}
    takes_texts = "zero-shot" in pipe.task
    if labels is not None and not takes_texts:
        raise ValueError(f"labels={labels!r:.80}; expected None, as the model has labels of its own")
    if takes_texts:
        # An open pipeline may have them already.
        labels = pipe.candidate_labels if labels is None else labels
        if not labels:
            raise ValueError("labels are missing; expected the names of the parts to find")
        arguments["candidate_labels"] = labels
    names = tuple(pipe.label_names(labels) if takes_texts else pipe.label_names())
    answer = pipe(row, progress=False, **arguments)
    from hf_any3d.visualization.viewer import colors_of

    palette = np.asarray(colors_of(pipe.model.config, len(names)), np.float32)
    return Segmentation(answer["labels"], answer["scores"], names, palette)


def _opened(model: Any, device: Any) -> Any:
    """Return the pipeline of a model, opened before if it is one of the last."""
    from transformers import AutoConfig, pipeline

    from hf_any3d.integration.registration import register
    from hf_any3d.modeling.file_stamps import file_stamp

    register()
    name = os.fspath(model)
    # A directory that was written anew is opened anew.
    files = sorted(os.scandir(name), key=lambda file: file.name) if os.path.isdir(name) else ()
    key = (name, str(device), *((file.name, file_stamp(file)) for file in files if file.is_file()))
    # Two threads that ask for one model open it once.
    with _lock:
        if key not in _open:
            architectures = AutoConfig.from_pretrained(name).architectures
            task = pipeline_task(architectures)
            if task not in _TASKS:
                raise ValueError(f"{name}: a model for {task}; expected one for {' or '.join(_TASKS)}")
            open_task: Any = pipeline  # typed for tasks of transformers alone
            _open[key] = open_task(task, model=name, device=device, trust_remote_code=False)
            if len(_open) > _MOST_OPEN:
                _open.popitem(last=False)
        _open.move_to_end(key)
        return _open[key]

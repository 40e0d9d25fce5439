"""Steps of the pipelines, and checks of their inputs, arguments and outputs; nothing of transformers' pipelines."""

import ctypes
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_any3d.data.checks.single_objects import NoObjectWarning, why_too_large
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.inputs import to_cloud
from hf_any3d.data.options import one_of
from hf_any3d.data.tables.data_frames import without_tables
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.tasks.poses import stated_direction
from hf_any3d.utils.progress import progress_bar

PROGRESS_FROM = 100
"""Number of clouds from which on a progress bar is shown."""


def return_free_memory() -> None:
    """Give the system back what glibc keeps of freed memory; with another C library nothing happens.

    Settings of the allocator, which belong to the program, stay as they are.
    """
    # Windows has no handle of the program itself, and other C libraries no such function.
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class PointCloudSteps:
    """Steps of pipelines of all tasks, before the class that calls them: `Pipeline`, or `DirectPipeline`."""

    model: Any  # of this package, or a PEFT model around one
    feature_extractor: PointCloudProcessor
    device: torch.device
    _batch_size: int | None
    # Whether a cloud is taken for a single object.
    of_objects = False
    # Whether `_forward` sees clouds by `Poses`, with the direction up that was up in the training.
    turns_upright = False

    def forward(self, model_inputs: Any, **forward_params: Any) -> Any:
        """Compute in evaluation mode, also with a model that is being trained; its mode stays as it was."""
        behind: Any = super()
        with evaluation_mode(self.model):
            return behind.forward(model_inputs, **forward_params)

    @property
    def up_axis(self) -> str:
        """The axis that points up in what the model sees."""
        return self.feature_extractor.up_axis

    def __call__(self, inputs: Any, *, progress: bool | None = None, **kwargs: Any) -> Any:
        """Run the pipeline on one cloud, or on a list, array `(clouds, points, channels)` or dataset column of clouds.

        For several a list is returned, and for a generator or torch dataset an iterator. `progress` shows a bar, by
        default for 100 clouds and more; other arguments are those of the task, `batch_size` and `num_workers`.

        Raises:
            PointCloudFileError: A file cannot be read.
            TypeError: An argument that the task does not have; names those that it has.
            ValueError: An argument out of range, or the model answers with NaN.
        """
        self._unnamed = 0
        clouds = as_clouds(inputs)
        behind: Any = super()
        # For a Dataset transformers returns a lazy iterator: one batch of clouds is in memory at a time.
        results = behind.__call__(clouds, **kwargs)
        if not isinstance(clouds, Clouds):
            return results
        # Short calls in notebooks and scripts stay quiet.
        hidden = len(clouds) < PROGRESS_FROM if progress is None else not progress
        # list() would call len(), which counts blocks if a cloud is processed in several.
        return [
            result
            for result in progress_bar(results, hidden=hidden, asked=bool(progress), total=len(clouds), unit="cloud")
        ]

    def preprocess(
        self, cloud: Any, up_axis: str | None = None, estimate_normals: bool | None = None
    ) -> dict[str, Any]:
        """Prepare one cloud as `points (1, num_points, channels)`, with the name of its file; see the processor."""
        stem = [stem_of(cloud)]  # a list, so that batches keep one name per cloud
        if self.of_objects:
            cloud = to_cloud(cloud, self.feature_extractor.features)
            if (reason := why_too_large(cloud, unwrapped(self.model).config)) is not None:
                warnings.warn(reason, NoObjectWarning, stacklevel=2)
        told: dict[str, torch.Tensor] = {}
        if self.turns_upright:
            cloud = to_cloud(cloud, self.feature_extractor.features)
            up_axis, told = stated_direction(up_axis, cloud.up_axis, unwrapped(self.model).config)
        settings = without_none(up_axis=up_axis, estimate_normals=estimate_normals)
        return {**self.feature_extractor(cloud, **settings, return_tensors="pt"), **told, "stem": stem}

    def name_of(self, stem: str | None) -> str:
        """Return the name of a cloud's output files: that of its file, else `cloud-0`, `cloud-1`, … within a call."""
        if stem is not None:
            return stem
        self._unnamed += 1
        return f"cloud-{self._unnamed - 1}"


def unwrapped(model: Any) -> Any:
    """Return the model within a PEFT model or one of `torch.compile`."""
    # A compiled model may be around the adapter or within it.
    model = getattr(model, "_orig_mod", model)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(model, "_orig_mod", model)


class Clouds(Dataset):
    """Many clouds, read one at a time: a list, or a dataset column that may not fit in memory."""

    def __init__(self, rows: Sequence[Any] | np.ndarray | torch.Tensor):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        return self.rows[number]


def as_clouds(inputs: Any) -> Any:
    """Convert a pipeline's input to one cloud or `Clouds`; iterators are returned unchanged.

    An array or tensor `(clouds, points, channels)` and a list are many clouds. A list of rows of numbers, a path, a
    dict (a dataset row) and any object that is not a sequence, such as a mesh, are one. A table is one or many, see
    `without_tables`.
    """
    inputs = without_tables(inputs)
    if isinstance(inputs, (np.ndarray, torch.Tensor)):
        return Clouds(inputs) if inputs.ndim == 3 else inputs
    # One cloud, or a Dataset, which transformers reads itself.
    if isinstance(inputs, (str, bytes, dict, Dataset, PointCloudData)) or hasattr(inputs, "__fspath__"):
        return inputs
    if isinstance(inputs, (list, tuple)):
        first = inputs[0] if inputs else None
        is_row = isinstance(first, (list, tuple)) and len(first) > 0 and isinstance(first[0], (int, float))
        return np.asarray(inputs, dtype=np.float64) if is_row else Clouds(inputs)
    is_sequence = hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")
    return Clouds(inputs) if is_sequence else inputs


def stem_of(cloud: Any) -> str | None:
    """Return the name of a cloud's file without its extension; None for clouds without a file."""
    path = cloud.get("path") if isinstance(cloud, Mapping) else cloud
    return Path(path).stem if isinstance(path, (str, os.PathLike)) else None


def refuse_non_finite(scores: torch.Tensor, name: str | None) -> None:
    """Raise a ValueError that names the input if scores are NaN or infinite, before a softmax would spread a NaN."""
    if not scores.isfinite().all():
        cloud = "a cloud" if name is None else f"the cloud of {name!r}"
        raise ValueError(
            f"the model returns NaN or infinite scores for {cloud}; its weights or statistics are damaged, or the "
            f"coordinates of the cloud exceed the range of the model's precision"
        )


def refuse_unknown(arguments: dict[str, Any], expected: str) -> None:
    """Raise a TypeError that names unknown arguments, if there are any, and the expected ones."""
    if arguments:
        raise TypeError(f"unknown arguments: {', '.join(arguments)}; expected {expected}, batch_size, num_workers")


def without_none(**arguments: Any) -> dict[str, Any]:
    """Return the arguments that are not None."""
    return {name: value for name, value in arguments.items() if value is not None}


def join_clouds(tensors: Sequence[torch.Tensor], value: int = 0) -> torch.Tensor:
    """Concatenate tensors `(clouds, points, …)`, filled up with a value to the largest number of points."""
    longest = max((tensor.shape[1] for tensor in tensors if tensor.ndim > 1), default=0)
    filled = []
    for tensor in tensors:
        # Values of a whole cloud, such as its category, have no points to fill up.
        if tensor.ndim > 1:
            missing = tensor.new_full((len(tensor), longest - tensor.shape[1], *tensor.shape[2:]), value)
            tensor = torch.cat([tensor, missing], dim=1)
        filled.append(tensor)
    return torch.cat(filled)


def check_formats(formats: Sequence[str] | str | None, choices: Sequence[str]) -> Sequence[str] | None:
    """Return output formats as a sequence, or None."""
    formats = [formats] if isinstance(formats, str) else formats
    for name in formats or ():
        one_of("formats", name, choices)
    return formats

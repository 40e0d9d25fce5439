"""What the pipelines share: clouds of every form in, a processor, and saving without code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import Pipeline


class Clouds(Dataset):
    """Many clouds, read one at a time: a list, or a column of a dataset that need not fit in memory."""

    def __init__(self, rows: Sequence[Any]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        return self.rows[number]


def as_clouds(inputs: Any) -> Any:
    """Sort a pipeline's input into one cloud, `Clouds`, or an iterator that is passed on as it is.

    An array or tensor `(clouds, points, channels)` and a list are many clouds; a list of rows of numbers is one; so is
    a path, a dict (a dataset row), and any object that is not a sequence, such as a mesh.
    """
    if isinstance(inputs, (np.ndarray, torch.Tensor)):
        return Clouds(inputs) if inputs.ndim == 3 else inputs
    if isinstance(inputs, (str, bytes, dict)) or hasattr(inputs, "__fspath__") or isinstance(inputs, Dataset):
        return inputs
    if isinstance(inputs, (list, tuple)):
        return np.asarray(inputs, dtype=np.float32) if _holds_numbers(inputs) else Clouds(inputs)
    is_sequence = hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")
    return Clouds(inputs) if is_sequence else inputs


def stem_of(cloud: Any) -> str | None:
    """The name of a cloud's file without its ending; None for clouds that came from no file."""
    path = cloud.get("path") if isinstance(cloud, Mapping) else cloud
    return Path(path).stem if isinstance(path, (str, os.PathLike)) else None


def _holds_numbers(rows: Sequence[Any]) -> bool:
    first = rows[0] if len(rows) else None
    return isinstance(first, (list, tuple)) and len(first) > 0 and isinstance(first[0], (int, float))


# From this many clouds on a progress bar is shown.
LONG = 100


class PointCloudPipeline(Pipeline):
    """Base of the pipelines whose input is point clouds.

    They take a path, an array or tensor `(points, channels)`, a trimesh object, a dataset row, or a list, generator or
    dataset column of them.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_tokenizer = False
    _load_feature_extractor = True
    # Whether answers come from a head, which then must be the one that was saved.
    uses_head = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        saved = model.config.architectures
        if self.uses_head and saved and type(model).__name__ not in saved:
            # Auto classes give such a model a head with random weights and a warning, enough for training only.
            raise ValueError(
                f"{model.name_or_path}: holds a {saved[0]}, which pipeline({self.task!r}) cannot use; expected a "
                f"{type(model).__name__}"
            )

    def __call__(self, inputs: Any, *, progress: bool | None = None, **kwargs: Any) -> Any:
        """Answer for one cloud or many; see the class.

        Args:
            inputs: One cloud; a list, tuple, `(clouds, points, channels)` array or dataset column of clouds, which
                gives a list; or a generator or torch dataset of clouds, which gives an iterator.
            progress: Show a bar; None shows one for 100 clouds and more.
            **kwargs: The task's own arguments, `batch_size`, `num_workers`.
        """
        self._unnamed = 0
        clouds = as_clouds(inputs)
        results = super().__call__(clouds, **kwargs)
        if not isinstance(clouds, Clouds):
            return results
        hidden = len(clouds) < LONG if progress is None else not progress
        # list() would ask for a length, which counts blocks where a cloud goes through in several.
        return [result for result in tqdm(results, total=len(clouds), unit="cloud", disable=hidden)]

    def name_of(self, stem: str | None) -> str:
        """Name of what is written about a cloud: that of its file, else `cloud-0`, `cloud-1`, … within a call."""
        if stem is not None:
            return stem
        self._unnamed += 1
        return f"cloud-{self._unnamed - 1}"

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and processor, but no code: what opens them is brought by `import hf_any3d`.

        Args:
            save_directory: Directory to write into.
            **kwargs: Passed on to the `save_pretrained` of model and processor.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.feature_extractor.save_pretrained(save_directory, **kwargs)


def refuse_non_finite(scores: torch.Tensor, name: str | None) -> None:
    """Raise a ValueError that names the input if an answer is not made of numbers.

    Args:
        scores: What the answer is made from, before a softmax would spread one NaN over all.
        name: Of the cloud's file, where it has one.
    """
    if not scores.isfinite().all():
        cloud = "a cloud" if name is None else f"the cloud of {name!r}"
        raise ValueError(
            f"the model gives NaN or infinite scores for {cloud}; its weights or statistics are damaged, or the "
            f"numbers of the cloud leave the range of the model's precision"
        )


def check_top_k(top_k: Any) -> None:
    """Raise a ValueError unless `top_k` is None, for all, or a whole number from 1."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k={top_k!r}; expected at least 1, or None for all")


def refuse_unknown(arguments: dict[str, Any], known: str) -> None:
    """Raise a TypeError that names the arguments that a pipeline does not have, if there are any, and the known."""
    if arguments:
        raise TypeError(f"unknown arguments: {', '.join(arguments)}; expected {known}, batch_size, num_workers")

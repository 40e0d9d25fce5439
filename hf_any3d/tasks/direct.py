"""Pipelines of saved models of tiles on a CPU without transformers' models and pipelines, in half of their start.

Importing those takes three seconds, for what such a model never asks for. Answers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.local_features.network import LocalFeaturesNetwork
from hf_any3d.processing.local_features import LocalFeaturesProcessor
from hf_any3d.tasks.inventory.about import TASK as INVENTORY
from hf_any3d.tasks.inventory.steps import InventorySteps
from hf_any3d.tasks.segmentation.about import TASK as SEGMENTATION
from hf_any3d.tasks.segmentation.local_features_steps import LocalFeaturesSteps
from hf_any3d.utils.atomic_files import read_json_object


class DirectPipeline:
    """In place of `transformers.Pipeline`, behind the steps of a task."""

    device = torch.device("cpu")
    _batch_size: int | None = None
    _sanitize_parameters: Callable[..., tuple[dict, dict, dict]]
    run_single: Callable[..., dict[str, Any]]
    _forward: Callable[..., dict[str, Any]]

    def __init__(self, task: str, model: LocalFeaturesNetwork, processor: LocalFeaturesProcessor):
        self.task = task
        self.model = model
        self.feature_extractor = processor
        self._usual = self._sanitize_parameters()

    def __call__(self, inputs: Any, *, num_workers: int = 0, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Answer about a cloud, or yield the answers about several."""
        del num_workers, batch_size  # of scans, each has parts of its own
        given = self._sanitize_parameters(**kwargs)
        settings = [{**usual, **own} for usual, own in zip(self._usual, given, strict=True)]
        if isinstance(inputs, (Dataset, Iterator)):
            return (self.run_single(cloud, *settings) for cloud in inputs)
        return self.run_single(inputs, *settings)

    def forward(self, model_inputs: dict[str, Any], **forward_params: Any) -> dict[str, Any]:
        """Compute without gradients."""
        with torch.inference_mode():
            return self._forward(model_inputs, **forward_params)


class DirectSegmentation(LocalFeaturesSteps, DirectPipeline):
    """Labels of points."""


class DirectInventory(InventorySteps, DirectPipeline):
    """Trees and buildings of a scan."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.find_codes()


_CLASSES = {SEGMENTATION.name: DirectSegmentation, INVENTORY.name: DirectInventory}
_HEAD = "LocalFeaturesForPointCloudSegmentation"


def open_direct(task: str, model: str, device: str | None) -> DirectPipeline | None:
    """Open the directory of a model of tiles; None for what takes transformers, such as another model or a GPU.

    Whatever is wrong with the files is None, too: transformers, which then opens them, says it.
    """
    folder = Path(model)
    if task not in _CLASSES or device not in (None, "cpu") or (device is None and torch.accelerator.is_available()):
        return None
    try:
        config = read_json_object(folder / "config.json")
        is_plain = config.get("dtype") in (None, "float32") and not (folder / "adapter_config.json").exists()
        if config.get("architectures") != [_HEAD] or not is_plain or "quantization_config" in config:
            return None
        settings = read_json_object(folder / "preprocessor_config.json")
        if settings.get("feature_extractor_type") != LocalFeaturesProcessor.__name__:
            return None
        with stored_settings(model):
            network = LocalFeaturesNetwork.from_directory(folder)
            processor = LocalFeaturesProcessor.from_dict(settings)
    except Exception:
        return None
    return _CLASSES[task](task, network, processor)

"""Pipelines of saved models on a CPU without transformers' models and pipelines, in half of their start.

Importing those takes three seconds, for what models never ask for whose record names a `network`: models of tiles, and
classifiers such as the one that comes with the package. Answers are the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.registry import MODEL_TYPES
from hf_any3d.utils.atomic_files import read_json_object


class DirectPipeline:
    """Caller of the steps of a task, in place of `transformers.Pipeline`."""

    device = torch.device("cpu")
    _batch_size: int | None = None
    _sanitize_parameters: Callable[..., tuple[dict, dict, dict]]
    preprocess: Callable[..., Any]
    _forward: Callable[..., dict[str, Any]]
    postprocess: Callable[..., Any]

    def __init__(self, task: str, model: Any, processor: PointCloudProcessor):
        self.task = task
        self.model = model
        self.feature_extractor = processor
        self._usual = self._sanitize_parameters()

    def __call__(self, inputs: Any, *, num_workers: int = 0, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Answer about a cloud, or yield the answers about several."""
        del num_workers, batch_size  # one after the other
        given = self._sanitize_parameters(**kwargs)
        settings = [{**usual, **own} for usual, own in zip(self._usual, given, strict=True)]
        if isinstance(inputs, (Dataset, Iterator)):
            return (self.run_single(cloud, *settings) for cloud in inputs)
        return self.run_single(inputs, *settings)

    def run_single(
        self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict
    ) -> dict[str, Any]:
        """Answer about one cloud."""
        prepared = self.preprocess(inputs, **preprocess_params)
        return self.postprocess(self.forward(prepared, **forward_params), **postprocess_params)

    def forward(self, model_inputs: dict[str, Any], **forward_params: Any) -> dict[str, Any]:
        """Compute without gradients."""
        with torch.inference_mode():
            return self._forward(model_inputs, **forward_params)


def open_direct(task: str, model: str, device: str | None) -> Any:
    """Open the directory of such a model; None for what takes transformers, such as another model or a GPU.

    Whatever is wrong with the files is None, too: transformers, which then opens them, says it.
    """
    folder = Path(model)
    if device not in (None, "cpu") or (device is None and torch.accelerator.is_available()):
        return None
    try:
        config = read_json_object(folder / "config.json")
        kind = MODEL_TYPES[config["model_type"]]
        is_plain = config.get("dtype") in (None, "float32") and not (folder / "adapter_config.json").exists()
        if kind.network is None or not is_plain or "quantization_config" in config:
            return None
        steps = _import(f"tasks.{kind.steps[task]}")
        processor = _import(kind.processor)
        settings = read_json_object(folder / "preprocessor_config.json")
        if settings["feature_extractor_type"] != processor.__name__:
            return None
        with stored_settings(model):
            opened = _open_network(_import(f"modeling.{kind.package}.{kind.network}"), config, folder)
            pipeline = type(f"Direct{steps.__name__}", (steps, DirectPipeline), {})
            return pipeline(task, opened, processor.from_dict(settings))
    except Exception:
        return None


def _open_network(network: type, config: dict[str, Any], folder: Path) -> nn.Module:
    """Open a network whose weights are in one file, in single precision."""
    from safetensors.torch import load_file

    opened = network(network.config_class.from_dict(config))
    weights = load_file(folder / "model.safetensors")
    for name, own in opened.state_dict().items():
        # Copied into a weight, whole numbers would be taken for it.
        if weights[name].is_floating_point() != own.is_floating_point():
            raise ValueError(f"{name} has type {weights[name].dtype}; expected {own.dtype}")
    opened.load_state_dict(weights)
    opened.name_or_path = str(folder)
    return opened.eval()


def _import(name: str) -> Any:
    module, _, own = name.rpartition(".")
    return getattr(importlib.import_module(f"hf_any3d.{module}"), own)

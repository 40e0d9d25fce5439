"""Pipelines of saved models on a CPU without transformers' models and pipelines, in half of their start.

Importing those takes three seconds, for what models never ask for whose record names a `network`: models of tiles, and
classifiers such as the one that comes with the package. Answers are the same, as a directory is opened only if all of
it is understood: each file, each setting, and each value that says more than what is usual.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.records import ModelType
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.registry import MODEL_TYPES
from hf_any3d.utils.atomic_files import read_json_object

CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
# Nothing opens a model with these: card, report, recipe, features of learned scans, settings of git.
_BESIDE = ("README.md", "metrics.json", "recipe.json", "_features.safetensors", ".gitattributes")


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
        if not {*os.listdir(folder)} <= {CONFIG, PROCESSOR, WEIGHTS, *_BESIDE}:
            return None
        stored = read_json_object(folder / CONFIG)
        settings = read_json_object(folder / PROCESSOR)
        kind = MODEL_TYPES[stored["model_type"]]
        network = resolve_name(f"{kind.package}.{kind.network}")
        processor = resolve_name(kind.processor)
        if not (_understands_config(kind, network, stored) and _understands_processor(processor, settings)):
            return None
        with stored_settings(model):
            steps = resolve_name(kind.steps[task])
            opened = _open_network(network, stored, folder)
            pipeline = type(f"Direct{steps.__name__}", (steps, DirectPipeline), {})
            return pipeline(task, opened, processor.from_dict(settings))
    except Exception:
        return None


def _understands_config(kind: ModelType, network: Any, stored: dict[str, Any]) -> bool:
    """Return whether the network does all that a stored config asks for."""
    config_class = network.config_class
    usual = config_class().to_dict()
    heads = [head for task in kind.steps for head in kind.heads.get(task, ())]
    names = list((stored.get("id2label") or {}).values())
    choices = {
        "model_type": (config_class.model_type,),
        # The first one is the class that a pipeline opens.
        "architectures": (heads[:1],),
        "dtype": (None, "float32"),
        # Each number from 0 on has a name, and the other way round.
        "id2label": ({str(number): str(name) for number, name in enumerate(names)},),
        "label2id": ({name: number for number, name in enumerate(names)},),
    }
    for name, value in stored.items():
        if name in choices:
            is_understood = value in choices[name]
        elif name in network.reads or name == "transformers_version":
            # Transformers reads objects of such a key as infinite numbers.
            is_understood = "__float__" not in str(value)
        else:
            is_understood = value == usual[name]
        if not is_understood:
            return False
    return True


def _understands_processor(processor: Any, settings: dict[str, Any]) -> bool:
    """Return whether stored settings are arguments of a processor, beside what names its class."""
    arguments = {name for base in processor.__mro__ for name in inspect.signature(base.__init__).parameters}
    named = {
        "feature_extractor_type": processor.__name__,
        "processor_class": processor.__name__,
    }
    return "feature_extractor_type" in settings and all(
        value == named[name] if name in named else name in arguments for name, value in settings.items()
    )


def _open_network(network: Any, config: dict[str, Any], folder: Path) -> nn.Module:
    """Open a network whose weights are in one file, in single precision."""
    from safetensors import safe_open

    opened = network(network.config_class.from_dict(config))
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        if (file.metadata() or {}).get("format") != "pt":
            raise ValueError(f"{file.metadata()}; expected weights of torch")
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, own in opened.state_dict().items():
        given = weights[name]
        # Copied into a weight, whole numbers would be taken for it. Where no precision is stated, that of the weights
        # is the model's.
        is_converted = given.is_floating_point() and own.is_floating_point() and config.get("dtype") is not None
        if given.dtype != own.dtype and not is_converted:
            raise ValueError(f"{name} has type {given.dtype}; expected {own.dtype}")
    opened.load_state_dict(weights)
    opened.name_or_path = str(folder)
    return opened.eval()

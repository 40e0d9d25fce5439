"""An exported file that was checked, and beside it what its user must know: how to prepare points, the labels."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hf_any3d.export.onnx_files import export_onnx, open_onnx
from hf_any3d.export.programs import export_program, open_program
from hf_any3d.export.tracing import classifier_of
from hf_any3d.export.verifying import Runner, compare, replaced_when_complete
from hf_any3d.processing import PointCloudProcessor


@dataclass(frozen=True)
class Format:
    """A kind of exported file.

    Args:
        write: From a classifier and a path to a file.
        open: From that file to a function from points to logits.
        packages: What the file was made with, beside torch.
    """

    write: Callable[[nn.Module, Path], object]
    open: Callable[[Path], Runner]
    packages: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format(export_onnx, open_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "pt2": Format(export_program, open_program),
}


_SETTINGS_VERSION = 1


@dataclass(frozen=True)
class ExportedFile:
    """What `export_file` made.

    Args:
        path: The file.
        settings: The JSON file beside it.
        bytes: Size of the file, weights in a second file included.
        worst_difference: Largest difference between its logits and those of the model.
    """

    path: Path
    settings: Path
    bytes: int
    worst_difference: float


def export_file(
    model: nn.Module, output: str | os.PathLike, format: str = "onnx", *, processor: PointCloudProcessor | None = None
) -> ExportedFile:
    """Export a classifier, compare the file with it, and only then put the file into its place.

    Args:
        model: A classifier with or without adapters, on the CPU.
        output: The file. Settings go into a file of the same name that ends with `.json`.
        format: One of `FORMATS`.
        processor: Prepares the model's points; its settings are written down.

    Raises:
        ImportError: If packages that the format needs are not installed.
        ValueError: If the model cannot be exported, or the file disagrees with it.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r}; expected one of {', '.join(map(repr, FORMATS))}")
    output = Path(output)
    settings = output.parent / f"{output.stem}.json"
    if settings == output:
        raise ValueError(f"output={str(output)!r}: that name is for the settings; expected one like 'model.{format}'")
    device = classifier_of(model).device
    if device.type != "cpu":
        raise ValueError(f"the model is on {device}; expected the CPU, where the file is compared with it")
    with replaced_when_complete(output) as unfinished:
        FORMATS[format].write(model, unfinished)
        worst = compare(model, FORMATS[format].open(unfinished))
        told = _settings(model, format, processor) | {"worst_difference": worst}
        (unfinished.parent / settings.name).write_text(
            json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        size = sum(file.stat().st_size for file in unfinished.parent.iterdir() if file.name != settings.name)
    return ExportedFile(output, settings, size, worst)


def _settings(model: nn.Module, format: str, processor: PointCloudProcessor | None) -> dict[str, Any]:
    config = classifier_of(model).config
    return {
        "version": _SETTINGS_VERSION,
        "format": format,
        "input": {
            "name": "points",
            "shape": ["batch", "points", config.in_channels],
            "dtype": "float32",
            "min_points": config.min_points,
        },
        "output": {"name": "logits", "shape": ["batch", config.num_labels]},
        "labels": [config.id2label[number] for number in range(config.num_labels)],
        "processor": None if processor is None else processor.to_dict(),
        "encoder": config.encoder_name_or_path,
        "made_with": {
            name: importlib.metadata.version(name) for name in ("hf-any3d", "torch", *FORMATS[format].packages)
        },
    }

"""Export a classifier or detector, compare the file with it, and write its processor's settings and labels beside."""

import importlib.metadata
import importlib.util
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_any3d.data.files.source import tell_left_out
from hf_any3d.export.programs import (
    Runner,
    export_program,
    exportable,
    least_points,
    open_program,
    output_names,
    replaced_when_complete,
    trace,
)
from hf_any3d.modeling.layers.boxes import BOX_SIZE
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.modeling.layers.unknown_score import unknown_settings
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.utils.messages import without_remarks

# They remark on optional packages and optimizations.
_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
OPSET = 20  # the first one with an operator for GELU


def export_onnx(model: nn.Module, path: str | os.PathLike, *, opset: int = OPSET) -> Path:
    """Write a classifier or detector as ONNX: input `points` (batch, points, in_channels) float32, output `logits`.

    The axes that may have any size are called "batch" and "points".

    That of a detector is `(batch, queries, labels + 1)`, and it has a second output, `pred_boxes`
    `(batch, queries, 7)`.

    Args:
        model: A classifier or detector with or without adapters, in float32.
        path: The file; weights beyond 2 GB go into a second one, `path` with `.data` appended.
        opset: Version of the operators.

    Returns:
        `path`.
    """
    _require("onnx", "onnxscript")
    dtypes = {str(parameter.dtype) for parameter in exportable(model).parameters() if parameter.is_floating_point()}
    # A model of descriptors alone has its head's weights only.
    if dtypes != {"torch.float32"}:
        raise ValueError(f"dtype: weights in {', '.join(sorted(dtypes))}; expected torch.float32, for runtimes on CPU")
    program = trace(model)
    path = Path(path)
    with replaced_when_complete(path) as unfinished, without_remarks(_LOGGERS), torch.no_grad():
        exported = torch.onnx.export(
            program,
            input_names=["points"],
            output_names=list(output_names(exportable(model))),
            # Those of the program, whose names the exporter would otherwise replace by s6 and the like.
            dynamic_shapes={"points": {0: "batch", 1: "points"}},
            opset_version=opset,
            dynamo=True,
            verbose=False,
            # knn is an operator of this package, and ONNX has none for cdist.
            custom_translation_table={
                torch.ops.hf_any3d.knn.default: _nearest,
                torch.ops.aten._cdist_forward.default: _distances,
            },
        )
        assert exported is not None  # as always with dynamo
        exported.save(unfinished)
    return path


def open_onnx(path: Path) -> Runner:
    """Open an ONNX file as a function from points to its outputs, run by onnxruntime on the CPU."""
    _require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # onnxruntime would take all cores, also where torch is limited to fewer.
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(points: torch.Tensor) -> Any:
        found = [torch.from_numpy(output) for output in session.run(None, {"points": points.numpy()})]
        return tuple(found) if len(found) > 1 else found[0]

    return run


def _nearest(query: Any, points: Any, k: int, method: str) -> tuple[Any, Any]:
    """Compute `knn` with ONNX operators; like `knn`, TopK orders equally distant points by index."""
    from onnxscript import opset18

    op: Any = opset18  # its types refuse plain lists
    nearest, index = op.TopK(_squares(op, query, points), [k], axis=-1, largest=0, sorted=1)
    return index, nearest


def _distances(query: Any, points: Any, p: float, mode: int) -> Any:
    """Compute the Euclidean distances of all pairs, `cdist` of torch with p = 2."""
    from onnxscript import opset18

    assert p == 2, "attention by distance is Euclidean"
    return opset18.Sqrt(_squares(opset18, query, points))


def _squares(op: Any, query: Any, points: Any) -> Any:
    """Return the squared distances of all pairs `(batch, queries, points)`."""
    # Axis by axis, which needs a third of the memory of all differences at once.
    distance = None
    for axis in range(3):
        ours = op.Gather(query, [axis], axis=2)  # (batch, queries, 1)
        theirs = op.Transpose(op.Gather(points, [axis], axis=2), perm=[0, 2, 1])  # (batch, 1, points)
        difference = op.Sub(ours, theirs)
        square = op.Mul(difference, difference)
        distance = square if distance is None else op.Add(distance, square)
    return distance


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX needs {', '.join(missing)}: pip install 'hf-any3d[export]'")


_SETTINGS_VERSION = 1
TOLERANCE = 1e-4
"""Largest accepted difference of an output, relative to its largest number or 1."""


@dataclass(frozen=True)
class Format:
    """A kind of exported file.

    Args:
        write: Writes a model to a path.
        open: Opens that file as a function from points to its outputs.
        packages: Packages besides torch whose versions are recorded.
    """

    write: Callable[[nn.Module, Path], object]
    open: Callable[[Path], Runner]
    packages: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format(export_onnx, open_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "pt2": Format(export_program, open_program),
}


@dataclass(frozen=True)
class ExportedFile:
    """The result of `export_file`.

    Args:
        path: The file.
        settings: The JSON file next to it.
        bytes: Size of the file, including weights in a second file.
        worst_difference: Largest difference between its outputs and those of the model.
    """

    path: Path
    settings: Path
    bytes: int
    worst_difference: float


def export_file(
    model: nn.Module, output: str | os.PathLike, format: str = "onnx", *, processor: PointCloudProcessor | None = None
) -> ExportedFile:
    """Export a classifier or detector to a file that appears only if its outputs equal the model's.

    Args:
        model: A classifier or detector with or without adapters, on the CPU.
        output: The file. Settings are written to a file of the same name that ends with `.json`.
        format: One of `FORMATS`.
        processor: The model's processor, whose settings are stored.

    Raises:
        ValueError: The model cannot be exported, or the file's outputs differ from the model's.
        ImportError: The extra `export` is not installed.
    """
    output = Path(output)
    settings = output.parent / f"{output.stem}.json"
    # The settings would replace a file of this name.
    if settings == output:
        raise ValueError(f"output={str(output)!r}: that name is for the settings; expected one like 'model.{format}'")
    device = exportable(model).device
    if device.type != "cpu":
        raise ValueError(f"the model is on {device}; expected the CPU, where the file is compared with it")
    # Written, compared and described in a temporary folder, so that a file that disagrees never appears.
    with replaced_when_complete(output) as unfinished:
        FORMATS[format].write(model, unfinished)
        worst = compare(model, FORMATS[format].open(unfinished))
        content = _settings(model, format, processor)
        left_out: list[str] = content["left_out"]
        content["worst_difference"] = worst
        (unfinished.parent / settings.name).write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        # Large ONNX models keep their weights in a file of their own.
        size = sum(file.stat().st_size for file in unfinished.parent.iterdir() if file.name != settings.name)
    tell_left_out(output, left_out, f"a file of {format} has the outputs of the model alone")
    return ExportedFile(output, settings, size, worst)


def compare(model: nn.Module, run: Runner) -> float:
    """Compare a model on the CPU with its exported file on random clouds; return the largest difference.

    There are batches of two sizes, both different from those of tracing: exporters may bake in indices found while
    tracing, which only clouds of other sizes reveal.
    """
    base = exportable(model)
    least = least_points(base)
    names = output_names(base)
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    # Other sizes than while tracing, to notice one that the graph took as a constant.
    for batch, count in ((1, least + 37), (3, 2 * least + 501)):
        points = torch.rand(batch, count, base.config.in_channels, generator=generator) * 2 - 1
        with evaluation_mode(model), torch.no_grad():
            output = model(points=points)
        given = run(points)
        for name, values in zip(names, given if len(names) > 1 else (given,), strict=True):
            expected = output[name].float()
            found = values.float()
            same_shape = found.shape == expected.shape
            # Outputs of other shapes cannot be subtracted, and disagree in any case.
            difference = (found - expected).abs().max().item() if same_shape else math.inf
            allowed = TOLERANCE * max(1.0, expected.abs().max().item())
            # Where two logits are nearly equal, labels may differ even within the tolerance.
            has_labels = name != "logits" or torch.equal(found.argmax(dim=-1), expected.argmax(dim=-1))
            # NaN is not at most anything, and so disagrees.
            if not difference <= allowed or not has_labels:
                raise ValueError(
                    f"the exported file disagrees with the model on {batch} clouds of {count} points: {name} differ "
                    f"by {difference:.3g}; expected at most {allowed:.3g} and equal labels"
                )
            worst = max(worst, difference)
    return worst


def _settings(model: nn.Module, format: str, processor: PointCloudProcessor | None) -> dict[str, Any]:
    base = exportable(model)
    config = base.config
    names = output_names(base)
    assert config.num_labels is not None
    # Sizes that the file leaves open have a name in place of a number.
    shapes = {"logits": ["batch", config.num_labels]}
    if "pred_boxes" in names:
        queries = ["batch", config.num_queries]
        # One more label of a detector stands for no object.
        shapes = {"logits": [*queries, config.num_labels + 1], "pred_boxes": [*queries, BOX_SIZE]}
    outputs = [{"name": name, "shape": shapes[name]} for name in names]
    return {
        "version": _SETTINGS_VERSION,
        "format": format,
        "input": {
            "name": "points",
            "shape": ["batch", "points", config.in_channels],
            "dtype": "float32",
            "min_points": least_points(base),
        },
        "output": outputs[0] if len(outputs) == 1 else outputs,
        "labels": [label for _, label in sorted((config.id2label or {}).items())],
        "processor": None if processor is None else processor.to_dict(),
        "encoder": getattr(config, "encoder_name_or_path", None),
        # What the model answers besides; every cloud gets a label from the file.
        "left_out": ["unknown, the score of what is none of the labels"] if unknown_settings(config).rows else [],
        "made_with": {
            name: importlib.metadata.version(name) for name in ("hf-any3d", "torch", *FORMATS[format].packages)
        },
    }

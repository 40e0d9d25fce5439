"""Export classifiers as ONNX files, for runtimes in other languages and on other devices."""

from importlib.util import find_spec
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_any3d.export.programs import Runner, classifier_of, replaced_when_complete, trace_classifier

OPSET = 20  # the first one with an operator for GELU


def export_onnx(model: nn.Module, path: str | os.PathLike, *, opset: int = OPSET) -> Path:
    """Write a classifier as ONNX: input `points` (batch, points, in_channels) float32, output `logits`.

    Args:
        model: A classifier with or without adapters, in float32.
        path: The file; weights beyond 2 GB go into a second one, `path` with `.data` appended.
        opset: Version of the operators.

    Returns:
        `path`.

    Raises:
        ImportError: The exporter's packages are not installed.
        ValueError: The model cannot be exported.
    """
    _require("onnx", "onnxscript")
    dtypes = {str(parameter.dtype) for parameter in classifier_of(model).parameters() if parameter.is_floating_point()}
    if dtypes != {"torch.float32"}:
        raise ValueError(
            f"dtype: the model has weights in {', '.join(sorted(dtypes))}; expected torch.float32 for ONNX, since "
            "runtimes on CPU lack operators for others"
        )
    program = trace_classifier(model)
    path = Path(path)
    with replaced_when_complete(path) as unfinished, _without_log_messages(), torch.no_grad():
        exported = torch.onnx.export(
            program,
            input_names=["points"],
            output_names=["logits"],
            opset_version=opset,
            dynamo=True,
            verbose=False,
            custom_translation_table={torch.ops.hf_any3d.knn.default: _nearest},
        )
        assert exported is not None  # as always with dynamo
        exported.save(unfinished)
    return path


def open_onnx(path: Path) -> Runner:
    """Open an ONNX file as a function from points to logits, run by onnxruntime on the CPU.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    _require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda points: torch.from_numpy(session.run(None, {"points": points.numpy()})[0])


def _nearest(query: Any, points: Any, k: int, method: str) -> tuple[Any, Any]:
    """Compute `knn` with ONNX operators; like `knn`, TopK orders equally distant points by index."""
    from onnxscript import opset18

    op: Any = opset18  # its types refuse plain lists
    distance = None
    for axis in range(3):
        ours = op.Gather(query, [axis], axis=2)  # (batch, queries, 1)
        theirs = op.Transpose(op.Gather(points, [axis], axis=2), perm=[0, 2, 1])  # (batch, 1, points)
        difference = op.Sub(ours, theirs)
        square = op.Mul(difference, difference)
        distance = square if distance is None else op.Add(distance, square)
    nearest, index = op.TopK(distance, [k], axis=-1, largest=0, sorted=1)
    return index, nearest


def _require(*packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX needs {', '.join(missing)}: pip install 'hf-any3d[export]'")


@contextmanager
def _without_log_messages() -> Iterator[None]:
    """Silence the exporter's remarks on optional packages and optimizations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

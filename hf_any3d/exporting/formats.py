"""The formats that classifiers can be exported to; another one is a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hf_any3d.exporting.onnx_files import export_onnx, open_onnx
from hf_any3d.exporting.programs import export_program, open_program
from hf_any3d.exporting.verifying import Runner


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

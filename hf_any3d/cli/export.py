"""`hf-any3d export`: write a classifier as a file that runs without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.common import Revision, one_line_errors, option, quiet_libraries
from hf_any3d.messages import model_errors, print_line


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory or hub name of a point cloud classifier.")],
    output: Annotated[Path, option("The file to write.")],
    format: Annotated[str, typer.Option(help="onnx, or pt2 for a program of torch.export.")] = "onnx",
    revision: Revision = None,
) -> None:
    """Write a classifier as ONNX or as a program of torch.export, adapters included.

    The file accepts any number of clouds with any number of points, and is compared with the model on clouds of other
    sizes before it is kept. A JSON file next to it has the settings of the processor and the labels.
    """
    with one_line_errors():
        quiet_libraries()
        from hf_any3d.registration import register

        register()
        from hf_any3d.auto import AutoModelForPointCloudClassification
        from hf_any3d.export import export_file
        from hf_any3d.processing import PointCloudProcessor

        with model_errors(model):
            loaded = AutoModelForPointCloudClassification.from_pretrained(model, revision=revision)
        try:
            processor = PointCloudProcessor.from_pretrained(model, revision=revision or "main")
        except OSError:  # the model was saved without one
            processor = None
        exported = export_file(loaded, output, format, processor=processor)
    print_line(
        f"{exported.path}: {exported.bytes / 1e6:,.1f} MB; logits differ by at most {exported.worst_difference:.1e}; "
        f"settings in {exported.settings}"
    )

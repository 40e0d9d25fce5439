"""`hf-any3d export`: a classifier as a file that runs without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.common import quieten_libraries, told_in_one_line
from hf_any3d.messages import opened, say


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory or hub name of a point cloud classifier.")],
    output: Annotated[Path, typer.Option(help="The file to write.", show_default=False)],
    format: Annotated[str, typer.Option(help="onnx, or pt2 for a program of torch.export.")] = "onnx",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model on the hub.", show_default=False)
    ] = None,
) -> None:
    """Write a classifier as ONNX or as a program of torch.export, adapters included.

    The file takes any number of clouds with any number of points. It is compared with the model on clouds of other
    sizes before it is put in place. A JSON file beside it tells how to prepare points and what the labels are.
    """
    with told_in_one_line():
        quieten_libraries()
        from hf_any3d.registration import register

        register()
        from hf_any3d.auto import AutoModelForPointCloudClassification
        from hf_any3d.export import export_file
        from hf_any3d.processing import PointCloudProcessor

        with opened(model):
            loaded = AutoModelForPointCloudClassification.from_pretrained(model, revision=revision)
        try:
            processor = PointCloudProcessor.from_pretrained(model, revision=revision)
        except OSError:  # A model that was saved without one.
            processor = None
        made = export_file(loaded, output, format, processor=processor)
    say(
        f"{made.path}: {made.bytes / 1e6:,.1f} MB; logits differ by at most {made.worst_difference:.1e}; "
        f"settings in {made.settings}"
    )

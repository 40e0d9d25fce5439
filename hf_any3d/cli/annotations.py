"""`hf-any3d data annotations`: boxes, and labels of points and faces, between programs for labeling."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.inputs import find_inputs
from hf_any3d.cli.options import LabelField, json_object, option, output_option
from hf_any3d.utils.messages import counted, print_line


class Form(StrEnum):
    """Formats of annotations."""

    JSON = "json"
    LABEL_CLOUD = "label-cloud"
    DATUMARO = "datumaro"
    SUPERVISELY = "supervisely"
    KITTI_RAW = "kitti-raw"
    PLY = "ply"


def convert_annotations(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="One of: boxes.json from `hf-any3d detect --output`; a folder of boxes from Label Cloud, CVAT, "
            "KITTI or this package; a folder segmented in Label Cloud; files with point labels; OBJ meshes "
            "with named parts or with a JSON file of labels next to each.",
        ),
    ],
    to: Annotated[
        Form,
        typer.Option(
            help="Output format: label-cloud (boxes or point labels), datumaro, supervisely or kitti-raw (boxes, "
            "for CVAT), json (boxes in this package's format), or ply (point or face labels, for "
            "CloudCompare and training)."
        ),
    ],
    output: Annotated[Path, output_option("Output folder; must be new or empty.")],
    class_names: Annotated[
        str | None,
        option(
            'JSON object with class names, such as {"2": "ground"}; not needed for standard LAS classes. '
            "For OBJ, part names.",
            "--names",
        ),
    ] = None,
    label_field: LabelField = None,
) -> None:
    """Convert boxes, point labels and face labels between annotation tools; z is up."""
    # Programs for labeling read a folder as a whole, with what was there before.
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty; give a new folder as --output")
    from hf_any3d.data.annotations.conversion import convert_boxes, convert_points, has_point_labels, is_segmented

    if has_point_labels(source, to):
        # Label Cloud keeps clouds in `pointclouds`, beside `labels`.
        folder = source / "pointclouds" if is_segmented(source) else source
        files = find_inputs([folder], label_field=label_field).files
        names = {int(code): str(name) for code, name in json_object("--names", class_names).items()}
        written, what = convert_points(source, to.value, output, files, names, label_field)
    else:
        written, what = convert_boxes(source, to.value, output)
    print_line(f"{output}: {what}, {counted(len(written), 'file')}")

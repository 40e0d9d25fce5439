"""`hf-any3d data annotations`: boxes, and labels of points and faces, between programs for labeling."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.common import LabelField, json_object, option, output_option
from hf_any3d.cli.inputs import find_inputs
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
            help="boxes.json, as `hf-any3d detect --output` writes it; a folder with boxes of Label Cloud, CVAT, "
            "KITTI or of this package; a folder that Label Cloud has segmented; files whose points have labels; or "
            "OBJ meshes with named parts, or with a JSON file of labels beside each.",
        ),
    ],
    to: Annotated[
        Form,
        typer.Option(
            help="label-cloud (boxes, or labels of points), datumaro, supervisely or kitti-raw (boxes, for CVAT), "
            "json (boxes of this package), ply (labels of points or faces, for CloudCompare and training)."
        ),
    ],
    output: Annotated[Path, output_option("Folder to write; a new one, or an empty one.")],
    class_names: Annotated[
        str | None,
        option(
            'JSON object with names of classes, such as {"2": "ground"}; LAS has its own. For OBJ: names of parts.',
            "--names",
        ),
    ] = None,
    label_field: LabelField = None,
) -> None:
    """Convert boxes and labels of points or faces between programs for labeling; z is up."""
    # Programs for labeling read a folder as a whole, with what was there before.
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty; expected a new folder for --output")
    from hf_any3d.data.annotation_conversion import convert_boxes, convert_points, has_point_labels, is_segmented

    if has_point_labels(source, to):
        # Label Cloud keeps clouds in `pointclouds`, beside `labels`.
        folder = source / "pointclouds" if is_segmented(source) else source
        files = find_inputs([folder], label_field=label_field).files
        names = {int(code): str(name) for code, name in json_object("--names", class_names).items()}
        written, what = convert_points(source, to.value, output, files, names, label_field)
    else:
        written, what = convert_boxes(source, to.value, output)
    print_line(f"{output}: {what}, {counted(len(written), 'file')}")

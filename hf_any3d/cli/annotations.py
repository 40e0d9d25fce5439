"""`hf-any3d data annotations`: boxes, and labels of points and faces, between programs for labeling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_any3d.cli.common import LabelField, json_object, option
from hf_any3d.cli.inputs import find_inputs
from hf_any3d.data.found import find_dataset
from hf_any3d.utils.messages import counted, print_line

if TYPE_CHECKING:
    from hf_any3d.data.files import PointCloudData

# Where Label Cloud stores the classes of points.
_SEGMENTED = "labels/segmentation/*.bin"


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
    output: Annotated[Path, option("Folder to write; a new one, or an empty one.")],
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
    is_segmented = source.is_dir() and any(True for _ in source.glob(_SEGMENTED))
    boxes_file = source.is_file() and source.suffix.lower() in (".json", ".parquet")
    # Files of points have labels of points; what else there is are boxes.
    if is_segmented or to is Form.PLY or (source.is_file() and not boxes_file):
        written, what = _convert_points(source, to, output, class_names, is_segmented, label_field)
    elif to is Form.LABEL_CLOUD and source.is_dir() and find_dataset(str(source)).name != "scans_with_boxes":
        # Label Cloud knows boxes and labels of points; without files of boxes, points are meant.
        written, what = _convert_points(source, to, output, class_names, False, label_field)
    else:
        written, what = _convert_boxes(source, to, output, boxes_file)
    print_line(f"{output}: {what}, {counted(len(written), 'file')}")


def _check_names(source: Path, files: Iterable[str]) -> None:
    """Check that files have different names without folders and endings, as what is written is named by them."""
    counts = Counter(Path(file).stem for file in files)
    if twice := [stem for stem, count in counts.items() if count > 1]:
        raise ValueError(f"{source}: two files called {twice[0]}; expected files with different names")


def _convert_boxes(source: Path, to: Form, output: Path, is_file: bool) -> tuple[list[Path], str]:
    from hf_any3d.data.annotation_files import write_boxes
    from hf_any3d.data.box_files import read_boxes_json, read_boxes_table
    from hf_any3d.data.catalog.scans_with_boxes import boxes_of

    if is_file:
        boxes = read_boxes_json(source) if source.suffix.lower() == ".json" else read_boxes_table(source)
    else:
        boxes = boxes_of(source)
    _check_names(source, boxes)
    written = write_boxes(output, boxes, to.value)
    return written, f"{counted(sum(map(len, boxes.values())), 'box')} of {counted(len(boxes), 'cloud')}"


def _convert_points(
    source: Path, to: Form, output: Path, names: str | None, is_segmented: bool, label_field: str | None
) -> tuple[list[Path], str]:
    from hf_any3d.data.annotation_files import (
        label_cloud_names,
        read_label_cloud_points,
        write_label_cloud_points,
        write_labeled_ply,
    )
    from hf_any3d.data.files.label_words import with_words
    from hf_any3d.data.las_classes import ASPRS_CLASSES

    if to not in (Form.PLY, Form.LABEL_CLOUD):
        raise ValueError(f"--to is {to.value!r}; {source} has labels of points, which go to label-cloud or ply")
    # Label Cloud keeps clouds in `pointclouds`, beside `labels`.
    files = find_inputs([str(source / "pointclouds" if is_segmented else source)], label_field=label_field).files
    _check_names(source, [file.name for file in files])
    given = {int(code): str(name) for code, name in json_object("--names", names).items()}
    # Their points have no labels; what they have are names of parts.
    if all(file.name.lower().endswith(".obj") for file in files):
        return _convert_meshes([Path(file.name) for file in files], to, output, given)
    # Without a name, a class is written by its number.
    called: dict[int, str] = {}
    if is_segmented:
        called = label_cloud_names(source)
    elif any(file.name.lower().endswith((".las", ".laz")) for file in files):
        called = dict(ASPRS_CLASSES)
    words = None
    if not is_segmented:
        from hf_any3d.data.word_classes import words_of_files

        words = words_of_files((Path(file.name) for file in files), label_field)
        called |= dict(enumerate(words or ()))
    # Names that are given win over those of the program or of LAS.
    called |= given

    def labeled() -> Iterator[tuple[str, PointCloudData]]:
        # One after the other, as all may not fit into memory.
        for file in files:
            # Labels belong to points by their order, which a point that is dropped would shift.
            cloud = file.read(on_invalid="raise").data
            if is_segmented:
                cloud.labels = read_label_cloud_points(source, file.name, len(cloud))
            yield file.name, with_words(cloud, words, file.name)

    write = write_label_cloud_points if to is Form.LABEL_CLOUD else write_labeled_ply
    written = write(output, labeled(), called)
    return written, f"labels of the points of {counted(len(files), 'cloud')}"


def _convert_meshes(files: list[Path], to: Form, output: Path, names: dict[int, str]) -> tuple[list[Path], str]:
    from hf_any3d.data.annotation_files import write_labeled_ply
    from hf_any3d.data.mesh_labels import read_labeled_meshes

    if to is not Form.PLY:
        raise ValueError(f"--to is {to.value!r}; labels of meshes go to ply")
    meshes, called = read_labeled_meshes(files, names)
    return write_labeled_ply(output, meshes, called), f"labels of {counted(len(files), 'mesh')}"

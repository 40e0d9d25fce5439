"""Read files of boxes: this package's own JSON and tables, Label Cloud, Datumaro (CVAT) and KITTI.

Each reader returns the boxes of files by the names of the files. Centers are in the frame and units of the points;
sizes are length, width and height, and headings radians counterclockwise about the up axis.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.boxes import wrapped
from hf_any3d.data.files import PointCloudFileError, file_errors

OWN_NAMES = ("boxes.json", "boxes.parquet")
"""Files of boxes beside the files of points."""
_FULL_TURN = 2 * math.pi + 1e-3
# Of the angles about the two other axes in files that have them; boxes turn about one axis.
_UPRIGHT = 1e-3
_KITTI_COLUMNS = 15
# float32 holds it, and centers of turned frames beyond it are of no use.
_LARGEST = 1e30
# Words of other programs for a heading, whose signs and units differ.
_TURNS = ("rotation", "rotations", "rotation_y", "yaw", "angle", "rz")
# Regions of KITTI that are not labeled.
_NOT_LABELED = ("DontCare", "Misc")


@dataclass(frozen=True)
class NamedBox:
    """A box with the name of its class."""

    label: str
    numbers: tuple[float, ...]  # center x, y, z; length, width, height; heading


Boxes = dict[str, list[NamedBox]]
"""File of points -> its boxes."""


def named_box(where: str, label: Any, center: Any, size: Any, heading: Any = 0.0) -> NamedBox:
    """Check the parts of a box."""
    places = [isinstance(some, Sequence) and len(some) == 3 and all(map(_is_finite, some)) for some in (center, size)]
    for name, value, is_good, expected in (
        ("label", label, isinstance(label, str) and label, "the name of a class"),
        ("center", center, places[0], "three finite numbers"),
        ("size", size, places[1] and min(size) > 0, "three finite numbers above 0"),
        ("heading", heading, _is_finite(heading) and abs(heading) <= _FULL_TURN, "radians, -2π to 2π"),
    ):
        if not is_good:
            raise PointCloudFileError(f"{where}: {name} is {value!r:.80}; expected {expected}")
    return NamedBox(label, (*map(float, center), *map(float, size), float(heading)))


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < _LARGEST  # false for NaN, and for whole numbers of any length


def read_boxes_json(path: Path) -> Boxes:
    """Read boxes in this package's own form.

    The file holds an object, name of a file -> list of `{"label", "center", "size", "heading"}`; or what
    `hf-any3d detect --output boxes.json` writes, so that answers can be corrected and trained on.
    """
    boxes: Boxes = {}
    with file_errors(path, "file of boxes"):
        content = _read_json(path)
        if isinstance(content, list):
            # A file that had an error has no boxes, which is not the same as none.
            content = [(row["file"], row["boxes"]) for row in content if "error" not in row]
        else:
            content = content.items()
        for file, entries in content:
            add_boxes(path, boxes, {file: []})
            for number, entry in enumerate(entries):
                box = entry.get("box", entry)
                where = f"{path}: {file}: box {number}"
                _refuse_other_turns(where, box)
                place = (box.get("center"), box.get("size"), box.get("heading", 0.0))
                boxes[file].append(named_box(where, entry.get("label"), *place))
    return boxes


def add_boxes(path: Path, boxes: Boxes, more: Boxes) -> None:
    """Add the boxes of further files; a file that has boxes already is refused, as one of them would be lost."""
    if twice := [file for file in more if file in boxes]:
        raise PointCloudFileError(f"{path}: {twice[0]} has boxes in two places; expected all in one")
    boxes |= more


def _refuse_other_turns(where: str, names: Iterable[str]) -> None:
    names = list(names)
    if "heading" not in names and (other := [name for name in names if name in _TURNS]):
        raise PointCloudFileError(f"{where}: {other[0]}; expected heading, radians about the up axis")


def read_boxes_table(path: Path) -> Boxes:
    """Read a Parquet table with a row for each box: `file`, `label`, `center`, `size` and perhaps `heading`."""
    import pyarrow.parquet

    boxes: Boxes = {}
    with file_errors(path, "Parquet table of boxes"):
        table = pyarrow.parquet.read_table(path)
        _refuse_other_turns(str(path), table.column_names)
        for number, row in enumerate(table.to_pylist()):
            where = f"{path}: row {number}"
            box = named_box(where, row["label"], row["center"], row["size"], row.get("heading") or 0.0)
            boxes.setdefault(os.fspath(row["file"]), []).append(box)
    return boxes


def read_label_cloud(path: Path) -> Boxes:
    """Read a file of Label Cloud in one of its centroid formats, whose angles are degrees."""
    boxes = []
    with file_errors(path, "file of Label Cloud in its centroid format"):
        content = _read_json(path)
        for number, entry in enumerate(content["objects"]):
            where = f"{path}: box {number}"
            center, size, turns = ([entry[part].get(axis) for axis in axes] for part, axes in _LABEL_CLOUD.items())
            heading = _upright(where, [turn or 0.0 for turn in turns], math.pi / 180)
            boxes.append(named_box(where, entry.get("name"), center, size, heading))
        return {str(content["filename"]): boxes}


_LABEL_CLOUD = {"centroid": ("x", "y", "z"), "dimensions": ("length", "width", "height"), "rotations": ("x", "y", "z")}


def read_datumaro(path: Path) -> Boxes:
    """Read a file of Datumaro, as CVAT exports cuboids, whose angles are radians."""
    boxes: Boxes = {}
    with file_errors(path, "file of Datumaro"):
        content = _read_json(path)
        names = [label["name"] for label in content["categories"]["label"]["labels"]]
        for item in content["items"]:
            file = str(item["id"])
            add_boxes(path, boxes, {file: []})
            for number, entry in enumerate(item["annotations"]):
                if entry["type"] != "cuboid_3d":
                    continue
                where, label = f"{path}: {file}: box {number}", entry["label_id"]
                if not 0 <= label < len(names):
                    raise PointCloudFileError(f"{where}: label_id is {label!r}; expected 0 to {len(names) - 1}")
                heading = _upright(where, entry.get("rotation", [0, 0, 0]), 1.0)
                boxes[file].append(named_box(where, names[label], entry.get("position"), entry.get("scale"), heading))
    return boxes


def _upright(where: str, turns: Sequence[Any], unit: float) -> float:
    """Return the angle about z in radians."""
    radians = wrapped(np.asarray(turns, dtype=np.float64) * unit)
    if radians.shape != (3,) or not np.abs(radians[:2]).max() <= _UPRIGHT:
        raise PointCloudFileError(f"{where}: rotation is {turns!r:.60}; expected three angles, 0 about x and y")
    return float(radians[2])


def read_kitti(label_file: Path, calibration_file: Path) -> list[NamedBox]:
    """Read the boxes of a scan of KITTI, files of one number in `label_2` and `calib`, in its laser scanner's frame.

    A line has the type, camera box, height, width, length, bottom center and angle, in the frame of the camera.

    Source: Geiger et al., "Are we ready for autonomous driving? The KITTI vision benchmark suite", development kit.
    """
    boxes = []
    with file_errors(calibration_file, "calibration of KITTI"):
        lines = dict(line.split(":", 1) for line in _lines(calibration_file) if ":" in line)
        rectify, to_camera = np.eye(4), np.eye(4)
        rectify[:3, :3] = np.array(lines["R0_rect"].split(), float).reshape(3, 3)
        to_camera[:3] = np.array(lines["Tr_velo_to_cam"].split(), float).reshape(3, 4)
        to_scanner = np.linalg.inv(rectify @ to_camera)  # from the rectified camera
    with file_errors(label_file, "file of labels of KITTI"):
        for number, line in enumerate(_lines(label_file), 1):
            where, words = f"{label_file}: line {number}", line.split()
            if not words or words[0] in _NOT_LABELED:
                continue
            values = [float(word) for word in words[1:]]
            if len(values) not in (_KITTI_COLUMNS - 1, _KITTI_COLUMNS):  # with or without a score
                raise PointCloudFileError(f"{where}: {line[:60]!r}; expected a type and {_KITTI_COLUMNS - 1} numbers")
            height, width, length, *bottom, angle = values[7:14]
            center = to_scanner @ [*bottom, 1.0]
            center[2] += height / 2
            heading = float(wrapped(np.asarray(-angle - math.pi / 2)))
            boxes.append(named_box(where, words[0], center[:3].tolist(), (length, width, height), heading))
    return boxes


def class_names(boxes: Iterable[Sequence[NamedBox]]) -> list[str]:
    """Return the names of all classes, sorted."""
    return sorted({box.label for own in boxes for box in own})


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig").splitlines()  # Windows marks the start of a text


def _read_json(path: Path) -> Any:
    return json.loads("\n".join(_lines(path)), object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, in which later values would replace earlier ones of the same name."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} is there twice")
    return dict(pairs)

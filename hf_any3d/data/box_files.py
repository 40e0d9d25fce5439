"""Read files of boxes: this package's own JSON and tables, Label Cloud, Datumaro (CVAT) and KITTI.

Each reader returns the boxes of files by the names of the files. Centers are in the frame and units of the points;
sizes are length, width and height, and headings radians counterclockwise about the up axis.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.boxes import wrapped
from hf_any3d.data.files import PointCloudFileError

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
    """A box with the name of its class.

    Args:
        label: Name of the class.
        numbers: Center x, y, z; length, width, height; heading.
    """

    label: str
    numbers: tuple[float, ...]


Boxes = dict[str, list[NamedBox]]
"""File of points -> its boxes."""


def named_box(where: str, label: Any, center: Any, size: Any, heading: Any = 0.0) -> NamedBox:
    """Check the parts of a box.

    Args:
        where: The file and the number of the box, for messages.
        label: Name of the class.
        center: Three numbers.
        size: Three numbers above 0.
        heading: Radians.

    Raises:
        PointCloudFileError: A part is missing or has another form; names it, its value and what is allowed.
    """
    if not isinstance(label, str) or not label:
        raise PointCloudFileError(f"{where}: label is {label!r}; expected the name of a class")
    for name, values in (("center", center), ("size", size)):
        good = isinstance(values, Sequence) and len(values) == 3 and all(map(_is_finite, values))
        if not good or (name == "size" and min(values) <= 0):
            expected = "three finite numbers" + (" above 0" if name == "size" else "")
            raise PointCloudFileError(f"{where}: {name} is {values!r:.80}; expected {expected}")
    if not _is_finite(heading) or abs(heading) > _FULL_TURN:
        raise PointCloudFileError(f"{where}: heading is {heading!r:.40}; expected radians, -2π to 2π")
    return NamedBox(label, (*map(float, center), *map(float, size), float(heading)))


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < _LARGEST  # false for NaN, and for whole numbers of any length


def read_boxes_json(path: Path) -> Boxes:
    """Read boxes in this package's own form.

    The file holds an object, name of a file -> list of `{"label", "center", "size", "heading"}`; or what
    `hf-any3d detect --output boxes.json` writes, so that answers can be corrected and trained on.

    Raises:
        PointCloudFileError: Another form, or a file that is named twice; names the file of points and the box.
    """
    content = _read_json(path)
    if isinstance(content, list):
        # A file that had an error has no boxes, which is not the same as none.
        given = [_answer(f"{path}: row {number}", row) for number, row in enumerate(content)]
        content = [row for row in given if row is not None]
    elif isinstance(content, Mapping):
        content = list(content.items())
    else:
        raise PointCloudFileError(f"{path}: holds {type(content).__name__}; expected an object of files with boxes")
    boxes: Boxes = {}
    for file, entries in content:
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise PointCloudFileError(f"{path}: {file}: {entries!r:.60}; expected a list of boxes")
        add_boxes(path, boxes, {file: []})
        for number, entry in enumerate(entries):
            parts = entry.get("box", entry)
            parts = parts if isinstance(parts, Mapping) else {}
            where = f"{path}: {file}: box {number}"
            _refuse_other_turns(where, parts)
            given = (entry.get("label"), parts.get("center"), parts.get("size"), parts.get("heading", 0.0))
            boxes[file].append(named_box(where, *given))
    return boxes


def _answer(where: str, row: Any) -> tuple[str, Any] | None:
    """Return file and boxes of a row written by `hf-any3d detect`, or None if the row holds an error."""
    if not isinstance(row, Mapping) or not isinstance(row.get("file"), str):
        raise PointCloudFileError(f"{where}: {row!r:.60}; expected an object with file and boxes")
    return None if "error" in row else (row["file"], row.get("boxes"))


def add_boxes(path: Path, boxes: Boxes, more: Boxes) -> None:
    """Add the boxes of further files.

    Raises:
        PointCloudFileError: A file has boxes already, of which one would be lost.
    """
    if twice := [file for file in more if file in boxes]:
        raise PointCloudFileError(f"{path}: {twice[0]} has boxes in two places; expected all in one")
    boxes |= more


def _refuse_other_turns(where: str, names: Iterable[str]) -> None:
    names = list(names)
    if "heading" not in names and (other := [name for name in names if name in _TURNS]):
        raise PointCloudFileError(
            f"{where}: {other[0]} without heading; expected heading, radians counterclockwise about the up axis"
        )


def read_boxes_table(path: Path) -> Boxes:
    """Read a Parquet table with a row for each box: `file`, `label`, `center`, `size` and perhaps `heading`.

    Raises:
        PointCloudFileError: Not Parquet, a missing column, or a wrong box; names the row.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        rows = table.to_pylist()
    except (pyarrow.ArrowException, ValueError, OSError) as error:  # texts that are no UTF-8, too
        raise PointCloudFileError(f"{path}: not Parquet ({error})") from None
    if missing := [name for name in ("file", "label", "center", "size") if name not in table.column_names]:
        raise PointCloudFileError(f"{path}: no column {missing[0]!r}; there are {', '.join(table.column_names)}")
    _refuse_other_turns(str(path), table.column_names)
    boxes: Boxes = {}
    for number, row in enumerate(rows):
        if not isinstance(row["file"], str):
            raise PointCloudFileError(f"{path}: row {number}: file is {row['file']!r}; expected the name of a file")
        box = named_box(f"{path}: row {number}", row["label"], row["center"], row["size"], row.get("heading") or 0.0)
        boxes.setdefault(row["file"], []).append(box)
    return boxes


def read_label_cloud(path: Path) -> Boxes:
    """Read a file of Label Cloud in one of its centroid formats, whose angles are degrees.

    Raises:
        PointCloudFileError: Another form, or a box that is turned about another axis than z.
    """
    content = _read_json(path)
    objects = content.get("objects") if isinstance(content, Mapping) else None
    if not isinstance(objects, list) or "filename" not in content:
        raise PointCloudFileError(f"{path}: expected filename and objects, as Label Cloud writes its centroid format")
    boxes = []
    for number, entry in enumerate(objects):
        where = f"{path}: box {number}"
        given = [entry.get(name) if isinstance(entry, Mapping) else None for name in _LABEL_CLOUD]
        parts = [part for part in given if isinstance(part, Mapping)]
        if len(parts) < len(given):
            raise PointCloudFileError(f"{where}: expected name, {', '.join(_LABEL_CLOUD)}")
        center, size, turns = (
            [part.get(name) for name in names] for part, names in zip(parts, _LABEL_CLOUD.values(), strict=True)
        )
        heading = _upright(where, [0.0 if turn is None else turn for turn in turns], math.pi / 180)
        boxes.append(named_box(where, entry.get("name"), center, size, heading))
    return {str(content["filename"]): boxes}


_LABEL_CLOUD = {
    "centroid": ("x", "y", "z"),
    "dimensions": ("length", "width", "height"),
    "rotations": ("x", "y", "z"),
}


def read_datumaro(path: Path) -> Boxes:
    """Read a file of Datumaro, as CVAT exports cuboids, whose angles are radians.

    Raises:
        PointCloudFileError: Another form, or a box that is turned about another axis than z.
    """
    content = _read_json(path)
    try:
        names = [label["name"] for label in content["categories"]["label"]["labels"]]
        items = [(item["id"], item["annotations"]) for item in content["items"]]
    except (KeyError, TypeError):
        raise PointCloudFileError(f"{path}: expected categories and items, as Datumaro writes them") from None
    boxes: Boxes = {}
    for file, entries in items:
        add_boxes(path, boxes, {str(file): []})
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise PointCloudFileError(f"{path}: {file}: annotations are {entries!r:.60}; expected a list of objects")
        for number, entry in enumerate(entries):
            if entry.get("type") != "cuboid_3d":
                continue
            where, label = f"{path}: {file}: box {number}", entry.get("label_id")
            if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(names):
                raise PointCloudFileError(f"{where}: label_id is {label!r}; expected 0 to {len(names) - 1}")
            heading = _upright(where, entry.get("rotation", [0, 0, 0]), 1.0)
            given = (entry.get("position"), entry.get("scale"), heading)
            boxes[str(file)].append(named_box(where, names[label], *given))
    return boxes


def _upright(where: str, turns: Sequence[Any], unit: float) -> float:
    """Return the angle about z in radians."""
    if not isinstance(turns, Sequence) or len(turns) != 3 or not all(map(_is_finite, turns)):
        raise PointCloudFileError(f"{where}: rotation is {turns!r:.60}; expected three angles")
    radians = wrapped(np.asarray(turns, dtype=np.float64) * unit)
    if np.abs(radians[:2]).max() > _UPRIGHT:
        raise PointCloudFileError(f"{where}: turned about x or y by {turns[:2]}; expected turns about z alone")
    return float(radians[2])


def read_kitti(label_file: Path, calibration_file: Path) -> list[NamedBox]:
    """Read the boxes of a scan of KITTI in the frame of its laser scanner.

    Args:
        label_file: A file of `label_2`: type, camera box, height, width, length, bottom center and angle, in the
            frame of the camera.
        calibration_file: The file of the same number in `calib`.

    Raises:
        PointCloudFileError: Another form; names the line.

    Source: Geiger et al., "Are we ready for autonomous driving? The KITTI vision benchmark suite", development kit.
    """
    to_scanner = _camera_to_scanner(calibration_file)
    boxes = []
    for number, line in enumerate(_lines(label_file), 1):
        where, words = f"{label_file}: line {number}", line.split()
        if not words or words[0] in _NOT_LABELED:
            continue
        try:
            values = [float(word) for word in words[1:]]
        except ValueError:
            values = []
        if len(values) not in (_KITTI_COLUMNS - 1, _KITTI_COLUMNS):  # with or without a score
            raise PointCloudFileError(f"{where}: {line[:60]!r}; expected a type and {_KITTI_COLUMNS - 1} numbers")
        height, width, length, *bottom, angle = values[7:14]
        center = to_scanner @ [*bottom, 1.0]
        center[2] += height / 2
        heading = float(wrapped(np.asarray(-angle - math.pi / 2)))
        boxes.append(named_box(where, words[0], center[:3].tolist(), (length, width, height), heading))
    return boxes


def _camera_to_scanner(path: Path) -> np.ndarray:
    """Return the matrix `(4, 4)` from the rectified camera to the scanner."""
    found = dict(line.split(":", 1) for line in _lines(path) if ":" in line)
    matrices = []
    for name, columns in (("R0_rect", 3), ("Tr_velo_to_cam", 4)):
        try:
            values = np.array([float(word) for word in found[name].split()]).reshape(3, columns)
        except (KeyError, ValueError):
            raise PointCloudFileError(f"{path}: no {name} of {3 * columns} numbers") from None
        matrix = np.eye(4)
        matrix[:3, :columns] = values
        matrices.append(matrix)
    try:
        both = matrices[0] @ matrices[1]
        if not np.isfinite(both).all():
            raise np.linalg.LinAlgError
        return np.linalg.inv(both)
    except np.linalg.LinAlgError:
        raise PointCloudFileError(f"{path}: R0_rect and Tr_velo_to_cam are no rotation with a shift") from None


def class_names(boxes: Iterable[Sequence[NamedBox]]) -> list[str]:
    """Return the names of all classes, sorted."""
    return sorted({box.label for own in boxes for box in own})


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()  # Windows marks the start of a text
    except FileNotFoundError:
        raise PointCloudFileError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PointCloudFileError(f"{path}: cannot be read ({error})") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads("\n".join(_lines(path)), object_pairs_hook=_object)
    except PointCloudFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise PointCloudFileError(f"{path}: not JSON ({error})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, in which later values would replace earlier ones of the same name."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return made

"""Read files of boxes: this package's own JSON and tables, Label Cloud, KITTI, and CVAT's three formats.

Of CVAT are Datumaro, Supervisely's ("Sly Point Cloud") and "Kitti Raw".

Each reader returns the boxes of files by the names of the files. Centers are in the frame and units of the points;
sizes are length, width and height, and headings radians counterclockwise about the up axis. What files have beside
boxes is counted in `left_out`, by what it is called: "segment" -> 2.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from hf_any3d.data.annotations.boxes import wrapped
from hf_any3d.data.files import PointCloudFileError, file_errors
from hf_any3d.data.options import one_of
from hf_any3d.utils.messages import counted, cut

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


LeftOut = Counter[str]
"""What has no place here, in the singular -> how many: annotations that are no boxes, and boxes with attributes."""
ATTRIBUTES = "attributes of"
"""What counts the boxes whose attributes are left out, such as tags or answers to questions."""
# Names of programs for what is no box -> what it is called. Points of a class are figures of Supervisely.
_CALLED = {"point_cloud": "segment", "bbox": "rectangle", "points": "set of points"}


def in_words(left_out: Mapping[str, int]) -> str:
    """Return what is left out with how many, such as "2 segments, 1 polygon"; "" if nothing is."""
    parts = []
    for what, count in left_out.items():
        # The first word has the plural: "2 sets of points"
        noun, blank, rest = what.partition(" ")
        of_boxes = what == ATTRIBUTES
        parts.append(f"{what} {counted(count, 'box')}" if of_boxes else f"{counted(count, noun)}{blank}{rest}")
    return ", ".join(parts)


def _note(left_out: LeftOut | None, what: str, count: int = 1) -> None:
    if left_out is not None and count:
        left_out[_CALLED.get(what, what)] += count


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


def read_boxes_json(path: Path, left_out: LeftOut | None = None) -> Boxes:
    """Read boxes in this package's own form.

    The file holds an object, name of a file -> list of `{"label", "center", "size", "heading"}`; or what
    `hf-any3d detect --output boxes.json` writes, so that answers can be corrected and trained on.
    """
    boxes: Boxes = {}
    with file_errors(path, "file of boxes"):
        content = _read_json(path)
        if isinstance(content, list):
            # A file that had an error has no boxes, which is not the same as none.
            rows = content
            content = [(row["file"], row["boxes"]) for row in rows if "error" not in row]
            _note(left_out, "file with an error", len(rows) - len(content))
        else:
            content = content.items()
        for file, entries in content:
            add_boxes(path, boxes, {file: []})
            for number, entry in enumerate(entries):
                # Answers of `detect` have the box below their label and score.
                box = entry.get("box", entry)
                where = f"{path}: {file}: box {number}"
                _refuse_other_turns(where, box)
                _note(left_out, ATTRIBUTES, _attributes(entry.get("attributes")))
                place = (box.get("center"), box.get("size"), box.get("heading", 0.0))
                boxes[file].append(named_box(where, entry.get("label"), *place))
    return boxes


def add_boxes(path: Path, boxes: Boxes, more: Boxes) -> None:
    """Add the boxes of further files; a file that has boxes already is refused, as one of them would be lost."""
    twice = [file for file in more if file in boxes]
    if twice:
        raise PointCloudFileError(f"{path}: {twice[0]} has boxes in two places; expected all in one")
    boxes |= more


def _refuse_other_turns(where: str, names: Iterable[str]) -> None:
    names = list(names)
    # Else the turn of such a column would be ignored without a word.
    other = [name for name in names if name in _TURNS]
    if "heading" not in names and other:
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
            # Some tables leave the heading of boxes along the axes empty.
            box = named_box(where, row["label"], row["center"], row["size"], row.get("heading") or 0.0)
            boxes.setdefault(os.fspath(row["file"]), []).append(box)
    return boxes


def read_label_cloud_folder(folder: Path, left_out: LeftOut | None = None) -> Boxes:
    """Read a folder of labels of Label Cloud in the format that its `_classes.json` names.

    Formats are centroid_rel, whose angles are radians, centroid_abs, whose angles are degrees, vertices, kitti and
    kitti_untransformed. Without a `_classes.json`, which early versions did not write, angles tell their unit.
    """
    classes = folder / LABEL_CLOUD_CLASSES
    name = None
    if classes.is_file():
        with file_errors(classes, "classes of Label Cloud"):
            name = one_of("format", _read_json(classes)["format"], (*_ANGLE_UNITS, "vertices", *_KITTI_FORMATS))
    boxes: Boxes = {}
    if name in _KITTI_FORMATS:
        for file in sorted(folder.glob("*.txt")):
            # The transformed form is in the frame of KITTI's camera, and needs its calibration.
            calibration = folder.parent / "calib" / file.name if name == "kitti" else None
            boxes[file.stem] = read_kitti(file, calibration, left_out)
        return boxes
    files = [file for file in sorted(folder.glob("*.json")) if file.name != LABEL_CLOUD_CLASSES]
    unit = None if name is None else _ANGLE_UNITS.get(name)
    if unit is None and files:
        # Of all files together: most of one have angles that may be of either unit.
        unit = _angle_unit(files[0], [angle for file in files for angle in _label_cloud_angles(file)])
    for file in files:
        add_boxes(file, boxes, read_label_cloud(file, unit, left_out))
    return boxes


def read_label_cloud(path: Path, angle_unit: float | None = None, left_out: LeftOut | None = None) -> Boxes:
    """Read a JSON file of Label Cloud with centroids or vertices.

    Args:
        path: The file.
        angle_unit: Radians of a unit of its angles; None takes radians or degrees, whichever its angles can be.
        left_out: Counts what is no box.
    """
    boxes = []
    if angle_unit is None:
        angle_unit = _angle_unit(path, _label_cloud_angles(path))
    with file_errors(path, "file of Label Cloud with centroids or vertices"):
        content = _read_json(path)
        for number, entry in enumerate(content["objects"]):
            where = f"{path}: box {number}"
            _note(left_out, ATTRIBUTES, _attributes(entry.get("attributes")))
            if "vertices" in entry:
                boxes.append(_box_of_vertices(where, entry.get("name"), entry["vertices"]))
                continue
            center, size, turns = ([entry[part].get(axis) for axis in axes] for part, axes in _LABEL_CLOUD.items())
            heading = _upright(where, [turn or 0.0 for turn in turns], angle_unit)
            boxes.append(named_box(where, entry.get("name"), center, size, heading))
        return {str(content["filename"]): boxes}


LABEL_CLOUD_CLASSES = "_classes.json"
"""File of Label Cloud with its classes and its format, beside the labels."""
_LABEL_CLOUD = {"centroid": ("x", "y", "z"), "dimensions": ("length", "width", "height"), "rotations": ("x", "y", "z")}
_ANGLE_UNITS = {"centroid_rel": 1.0, "centroid_abs": math.pi / 180}
_KITTI_FORMATS = ("kitti", "kitti_untransformed")


def _label_cloud_angles(path: Path) -> list[float]:
    with file_errors(path, "file of Label Cloud with centroids or vertices"):
        turned = [entry for entry in _read_json(path)["objects"] if "vertices" not in entry]
        return [float(entry["rotations"].get(axis) or 0) for entry in turned for axis in "xyz"]


def _angle_unit(path: Path, angles: list[float]) -> float:
    """Return the radians of a unit of angles: radians are from -π to π, degrees from 0 to 360."""
    low = min(angles, default=0.0)
    high = max(angles, default=0.0)
    # Negative angles are no degrees from 0 to 360, and zeros are the same in both units.
    if low < 0 or high == 0:
        return _ANGLE_UNITS["centroid_rel"]
    if high > math.pi:
        return _ANGLE_UNITS["centroid_abs"]
    raise PointCloudFileError(
        f"{path}: angles up to {high:g} may be radians or degrees; expected a {LABEL_CLOUD_CLASSES} beside it, whose "
        "format is centroid_rel or centroid_abs"
    )


def _box_of_vertices(where: str, label: Any, vertices: Any) -> NamedBox:
    """Return the box of eight vertices in the order of Label Cloud: around the bottom, then around the top."""
    corners = np.array(vertices, dtype=np.float64).reshape(8, 3)
    along = corners[3] - corners[0]
    across = corners[1] - corners[0]
    up = corners[4] - corners[0]
    size = [float(np.linalg.norm(edge)) for edge in (along, across, up)]
    # How far the sides rise, and how far the upright edge leans
    tilts = np.abs([along[2], across[2], *up[:2]])
    # Coordinates are rounded to three decimals.
    if not tilts.max() <= max(_UPRIGHT * max(size), 2e-3):
        raise PointCloudFileError(f"{where}: vertices are of a tilted box; expected one that turns about z alone")
    heading = math.atan2(along[1], along[0])
    # The center is the middle of a diagonal through the box.
    return named_box(where, label, ((corners[4] + corners[2]) / 2).tolist(), size, heading)


def _attributes(values: Any) -> bool:
    """Return whether attributes of an annotation say something: one that is neither off nor empty."""
    stored = values.values() if isinstance(values, Mapping) else values or ()
    return any(value not in (None, False, 0, "", "false", "False") for value in stored)


def read_datumaro(path: Path, left_out: LeftOut | None = None) -> Boxes:
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
                    _note(left_out, str(entry["type"]))
                    continue
                _note(left_out, ATTRIBUTES, _attributes(_of_person(entry.get("attributes"))))
                where = f"{path}: {file}: box {number}"
                label = entry["label_id"]
                if not 0 <= label < len(names):
                    raise PointCloudFileError(f"{where}: label_id is {label!r}; expected 0 to {len(names) - 1}")
                heading = _upright(where, entry.get("rotation", [0, 0, 0]), 1.0)
                boxes[file].append(named_box(where, names[label], entry.get("position"), entry.get("scale"), heading))
    return boxes


# Attributes that CVAT writes for every box of a track.
_OF_TRACKS = ("occluded", "track_id", "keyframe", "outside")


def _of_person(attributes: Any) -> Any:
    """Return attributes without those that CVAT writes by itself."""
    if not isinstance(attributes, Mapping):
        return attributes
    return {name: value for name, value in attributes.items() if name not in _OF_TRACKS}


def read_supervisely(path: Path, left_out: LeftOut | None = None) -> Boxes:
    """Read a file `ann/NAME.pcd.json` of Supervisely, as CVAT exports "Sly Point Cloud", whose angles are radians."""
    boxes = []
    with file_errors(path, "annotations of Supervisely"):
        content = _read_json(path)
        labels = {entry["key"]: entry["classTitle"] for entry in content["objects"]}
        tagged = {entry["key"]: entry.get("tags") for entry in content["objects"]}
        _note(left_out, "tag", len(content.get("tags", ())))
        for number, figure in enumerate(content["figures"]):
            if figure["geometryType"] != "cuboid_3d":
                _note(left_out, str(figure["geometryType"]))
                continue
            _note(left_out, ATTRIBUTES, bool(tagged.get(figure["objectKey"]) or figure.get("tags")))
            where = f"{path}: box {number}"
            geometry = figure["geometry"]
            center, size, turns = ([geometry[part][axis] for axis in "xyz"] for part in _SUPERVISELY)
            heading = _upright(where, turns, 1.0)
            boxes.append(named_box(where, labels[figure["objectKey"]], center, size, heading))
    return {path.name.removesuffix(".json"): boxes}


def read_segments(path: Path) -> dict[str, list[tuple[str, list[int]]]]:
    """Read the segments of a file `ann/NAME.pcd.json` of Supervisely: name of the file -> class and points of each."""
    with file_errors(path, "annotations of Supervisely"):
        content = _read_json(path)
        labels = {entry["key"]: str(entry["classTitle"]) for entry in content["objects"]}
        segments = []
        for figure in content["figures"]:
            if figure["geometryType"] == "point_cloud":
                numbers = list(map(int, figure["geometry"]["indices"]))
                segments.append((labels[figure["objectKey"]], numbers))
        return {path.name.removesuffix(".json"): segments}


_SUPERVISELY = ("position", "dimensions", "rotation")


def read_tracklets(path: Path, left_out: LeftOut | None = None) -> Boxes:
    """Read `tracklet_labels.xml` of "Kitti Raw" as CVAT exports it, with `frame_list.txt` beside it.

    In it w, h and l are the sizes along x, y and z, and places are those of centers. KITTI's own files mean other
    things by the same names; they have no list of frames, and are refused. Datumaro 1.13 itself writes h, w and l for
    x, y and z, with a list of frames: nothing in such a file tells it from CVAT's, and its sizes come out as y, x, z.
    """
    with file_errors(path.with_name(FRAME_LIST), f"list of frames of CVAT beside {path.name}"):
        rows = [line.split(maxsplit=1) for line in _lines(path.with_name(FRAME_LIST)) if line.strip()]
        names = {int(number): name.strip() for number, name in rows}
    boxes: Boxes = {name: [] for name in names.values()}
    with file_errors(path, "tracklets of CVAT"):
        text = path.read_text(encoding="utf-8")
        # Tracklets have no entities, and what they stand for has no limit here.
        if "<!ENTITY" in text:
            raise PointCloudFileError(f"{path}: declares entities; expected none")
        for track, tracklet in enumerate(ElementTree.fromstring(text).iterfind("./tracklets/item")):
            first = int(tracklet.findtext("first_frame", ""))
            size = [float(tracklet.findtext(side, "")) for side in ("w", "h", "l")]
            for place, pose in enumerate(tracklet.iterfind("./poses/item")):
                # A track goes on while its object is hidden, and then has no box.
                if int(pose.findtext("truncation", "0")) in _OUT_OF_SIGHT:
                    continue
                where = f"{path}: tracklet {track}"
                center = [float(pose.findtext(axis, "")) for axis in ("tx", "ty", "tz")]
                heading = _upright(where, [float(pose.findtext(axis, "")) for axis in ("rx", "ry", "rz")], 1.0)
                box = named_box(where, tracklet.findtext("objectType"), center, size, heading)
                _note(left_out, ATTRIBUTES, pose.find("./attributes/attribute") is not None)
                # Poses follow each other, one a frame.
                boxes[names[first + place]].append(box)
    return boxes


FRAME_LIST = "frame_list.txt"
"""File of CVAT with the number and the name of each frame."""
_OUT_OF_SIGHT = (2, 3)  # KITTI's codes for out of the image and behind it: a gap in a track


def _upright(where: str, turns: Sequence[Any], unit: float) -> float:
    """Return the angle about z in radians."""
    radians = wrapped(np.asarray(turns, dtype=np.float64) * unit)
    if radians.shape != (3,) or not np.abs(radians[:2]).max() <= _UPRIGHT:
        raise PointCloudFileError(f"{where}: rotation is {turns!r:.60}; expected three angles, 0 about x and y")
    return float(radians[2])


def read_kitti(label_file: Path, calibration_file: Path | None, left_out: LeftOut | None = None) -> list[NamedBox]:
    """Read the boxes of a scan of KITTI, files of one number in `label_2` and `calib`, in its laser scanner's frame.

    A line has the type, camera box, height, width, length, bottom center and angle, in the frame of the camera.
    Without a calibration they are Label Cloud's "kitti_untransformed": the center and the angle of the points' frame.

    Source: Geiger et al., "Are we ready for autonomous driving? The KITTI vision benchmark suite", development kit.
    """
    boxes = []
    to_scanner = None
    if calibration_file is not None:
        # (4, 4) from the rectified camera to the laser scanner
        with file_errors(calibration_file, "calibration of KITTI"):
            lines = dict(line.split(":", 1) for line in _lines(calibration_file) if ":" in line)
            # (3, 3) and (3, 4) in the file, filled up to (4, 4)
            rectify = np.eye(4)
            to_camera = np.eye(4)
            rectify[:3, :3] = np.array(lines["R0_rect"].split(), float).reshape(3, 3)
            to_camera[:3] = np.array(lines["Tr_velo_to_cam"].split(), float).reshape(3, 4)
            # Scanner to camera, then to the rectified frame in which labels are; back by the inverse of both.
            to_scanner = np.linalg.inv(rectify @ to_camera)
    with file_errors(label_file, "file of labels of KITTI"):
        for number, line in enumerate(_lines(label_file), 1):
            where = f"{label_file}: line {number}"
            words = line.split()
            if not words or words[0] in _NOT_LABELED:
                _note(left_out, f"region called {words[0]}" if words else "", bool(words))
                continue
            values = [float(word) for word in words[1:]]
            if len(values) not in (_KITTI_COLUMNS - 1, _KITTI_COLUMNS):  # with or without a score
                raise PointCloudFileError(
                    f"{where}: {cut(line, 60)!r}; expected a type and {_KITTI_COLUMNS - 1} numbers"
                )
            height, width, length, *place, angle = values[7:14]
            if to_scanner is None:
                center = place
                heading = float(wrapped(np.asarray(angle)))
            else:
                center = (to_scanner @ [*place, 1.0])[:3].tolist()
                # KITTI measures places at the bottom, and angles about the camera's axis that points down.
                center[2] += height / 2
                heading = float(wrapped(np.asarray(-angle - math.pi / 2)))
            boxes.append(named_box(where, words[0], center, (length, width, height), heading))
    return boxes


def class_names(boxes: Iterable[Sequence[NamedBox]]) -> list[str]:
    """Return the names of all classes, sorted."""
    return sorted({box.label for boxes_of_file in boxes for box in boxes_of_file})


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig").splitlines()  # Windows marks the start of a text


def _read_json(path: Path) -> Any:
    return json.loads("\n".join(_lines(path)), object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, in which later values would replace earlier ones of the same name."""
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is there twice")
    return dict(pairs)

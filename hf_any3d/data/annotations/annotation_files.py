"""Write annotations as programs for labeling read them, and the point labels of Label Cloud.

Boxes go to Label Cloud and to CVAT's three formats for point clouds; `box_files` reads them back. CVAT annotates
clouds with cuboids alone, and has no format of point labels. Centers, sizes and headings are as in `box_files`, z up.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from hf_any3d.data.annotations.box_files import FRAME_LIST, LABEL_CLOUD_CLASSES, Boxes, NamedBox, class_names
from hf_any3d.data.classes.las_classes import class_name
from hf_any3d.data.files import PointCloudData, PointCloudError, PointCloudFileError, file_errors, write_point_cloud
from hf_any3d.data.options import one_of
from hf_any3d.utils.atomic_files import write_bytes, write_json, write_text

_AXES = ("x", "y", "z")
_POINT_CLOUDS = 6  # Datumaro's number for what is annotated
# Label Cloud stores the class of a point in a byte with a sign.
_MOST_CLASSES = 127
# Colors of classes, from a list that is read around and around (Okabe and Ito).
_COLORS = ("#999999", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
# Of a name that several objects of Supervisely have; the same boxes give the same keys.
_NAMESPACE = uuid.UUID("6b1d7e0e-6c8a-4c53-9d65-5f2d8d2b8f10")


def write_boxes(folder: Path, boxes: Boxes, form: str) -> list[Path]:
    """Write the boxes of files of points into a folder and return the files written.

    Args:
        folder: Where they go; it need not exist.
        boxes: Name of a file of points -> its boxes.
        form: One of `BOX_FORMS`.
    """
    return BOX_FORMS[one_of("form", form, tuple(BOX_FORMS))](folder, boxes)


def _write_own(folder: Path, boxes: Boxes) -> list[Path]:
    content: dict[str, list] = {}
    for file, boxes_of_file in boxes.items():
        content[file] = []
        for box in boxes_of_file:
            sizes = {"center": _center(box), "size": _size(box), "heading": box.numbers[6]}
            content[file].append({"label": box.label, **sizes})
    return [_json(folder / "boxes.json", content)]


def _write_label_cloud(folder: Path, boxes: Boxes) -> list[Path]:
    """Write a file for each cloud, in the format centroid_rel, and the classes."""
    labels = folder / "labels"
    written = []
    for file, boxes_of_file in boxes.items():
        objects = [
            {
                "name": box.label,
                "centroid": dict(zip(_AXES, _center(box), strict=True)),
                "dimensions": dict(zip(("length", "width", "height"), _size(box), strict=True)),
                "rotations": {"x": 0.0, "y": 0.0, "z": _within_half_turns(box.numbers[6])},
            }
            for box in boxes_of_file
        ]
        name = Path(file).name
        # Label Cloud keeps clouds in `pointclouds`, beside `labels`.
        content = {"folder": "pointclouds", "filename": name, "path": f"pointclouds/{name}", "objects": objects}
        written.append(_json(labels / f"{_stem(file)}.json", content))
    classes = _label_cloud_classes(class_names(boxes.values()), "object_detection", "centroid_rel")
    return [*written, _json(labels / LABEL_CLOUD_CLASSES, classes)]


def _write_datumaro(folder: Path, boxes: Boxes) -> list[Path]:
    names = class_names(boxes.values())
    items = []
    for frame, (file, boxes_of_file) in enumerate(boxes.items()):
        annotations = [
            {
                "id": number,
                "type": "cuboid_3d",
                "attributes": {"occluded": False},
                "group": 0,
                "label_id": names.index(box.label),
                "position": _center(box),
                "rotation": [0.0, 0.0, _within_half_turns(box.numbers[6])],
                "scale": _size(box),
            }
            for number, box in enumerate(boxes_of_file)
        ]
        cloud = {"path": Path(file).name}
        items.append({"id": _stem(file), "annotations": annotations, "attr": {"frame": frame}, "point_cloud": cloud})
    # Annotations refer to a label by its place in this list.
    labels = [{"name": name, "parent": "", "attributes": []} for name in names]
    content = {
        "info": {},
        "media_type": _POINT_CLOUDS,
        "categories": {"label": {"labels": labels, "attributes": ["occluded"]}, "points": {"items": []}},
        "items": items,
    }
    return [_json(folder / "annotations" / "default.json", content)]


def _write_supervisely(folder: Path, boxes: Boxes) -> list[Path]:
    names = class_names(boxes.values())
    written = []
    # Everything with a key gets a number, too, which the project keeps in a file of its own.
    keys: dict[str, dict[str, int]] = {"tags": {}, "objects": {}, "figures": {}, "videos": {}}
    for frame, (file, boxes_of_file) in enumerate(boxes.items(), 1):
        key = _key(file)
        keys["videos"][key] = frame
        objects = []
        figures = []
        for number, box in enumerate(boxes_of_file):
            thing = _key(file, number, "object")
            figure = _key(file, number, "figure")
            # An object and its figure have one number, counted from 1 over the whole project.
            keys["objects"][thing] = keys["figures"][figure] = len(keys["objects"]) + 1
            objects.append({"key": thing, "classTitle": box.label, "tags": [], "objects": [], "figures": []})
            parts = (_center(box), [0.0, 0.0, _within_half_turns(box.numbers[6])], _size(box))
            geometry = {
                name: dict(zip(_AXES, part, strict=True))
                for name, part in zip(("position", "rotation", "dimensions"), parts, strict=True)
            }
            figures.append({"key": figure, "objectKey": thing, "geometryType": "cuboid_3d", "geometry": geometry})
        content = {"description": "", "key": key, "tags": [], "objects": objects, "figures": figures}
        written.append(_json(folder / "ds0" / "ann" / f"{_stem(file)}.pcd.json", content))
    classes = [
        {"id": number, "title": name, "color": _color(number), "shape": "cuboid_3d", "geometry_config": {}}
        for number, name in enumerate(names)
    ]
    meta = {"classes": classes, "tags": [], "projectType": "point_clouds"}
    return [*written, _json(folder / "meta.json", meta), _json(folder / "key_id_map.json", keys)]


def _write_kitti_raw(folder: Path, boxes: Boxes) -> list[Path]:
    """Write a tracklet of one pose for each box, as CVAT reads them; see `box_files.read_tracklets`."""
    tracklets = []
    for frame, boxes_of_file in enumerate(boxes.values()):
        for box in boxes_of_file:
            places = dict(zip(("tx", "ty", "tz"), _center(box), strict=True))
            turns = {"rx": 0.0, "ry": 0.0, "rz": _within_half_turns(box.numbers[6])}
            # A state of 2 is a labeled pose; -1 stands for occlusions that nobody has estimated.
            rest = {"state": 2, "occlusion": 0, "occlusion_kf": 0, "truncation": 0, "amt_occlusion": -1}
            rest |= {"amt_border_l": -1, "amt_border_r": -1, "amt_occlusion_kf": -1, "amt_border_kf": -1}
            pose = _elements(places | turns | rest)
            # CVAT reads w, h and l as the sizes along x, y and z, other than KITTI's own programs.
            sides = dict(zip(("w", "h", "l"), _size(box), strict=True))
            head = _elements({"objectType": box.label, **sides, "first_frame": frame})
            poses = f"<poses><count>1</count><item_version>0</item_version><item>{pose}</item></poses>"
            tracklets.append(f"<item>{head}{poses}<finished>1</finished></item>")
    body = f"<count>{len(tracklets)}</count><item_version>1</item_version>" + "\n".join(tracklets)
    # The envelope of boost's XML archives, which KITTI's own programs write
    text = (
        '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n<!DOCTYPE boost_serialization>\n'
        f'<boost_serialization version="9" signature="serialization::archive">\n<tracklets>{body}</tracklets>\n'
        "</boost_serialization>\n"
    )
    # The frame of a tracklet is a number, and this list has its file.
    frames = "".join(f"{frame} {_stem(file)}\n" for frame, file in enumerate(boxes))
    for name, content in (("tracklet_labels.xml", text), (FRAME_LIST, frames)):
        write_text(folder / name, content)
    return [folder / "tracklet_labels.xml", folder / FRAME_LIST]


BOX_FORMS: dict[str, Callable[[Path, Boxes], list[Path]]] = {
    "json": _write_own,
    "label-cloud": _write_label_cloud,
    "datumaro": _write_datumaro,
    "supervisely": _write_supervisely,
    "kitti-raw": _write_kitti_raw,
}
"""Name of a format -> function that writes boxes in it: this package's own, Label Cloud's, and three of CVAT."""


Clouds = Iterable[tuple[str, PointCloudData]]
"""Names of files, with their clouds."""


def write_labeled_ply(folder: Path, clouds: Clouds, names: dict[int, str]) -> list[Path]:
    """Write labeled clouds as `NAME.ply` with the property `label`, a scalar field in CloudCompare; and their classes.

    Faces of meshes have it, too.

    `classes.json` has the name of each label where there are names.
    """
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, cloud in clouds:
        # A mesh may have labels of its faces alone.
        if cloud.face_labels is None:
            _check_labels(name, cloud)
        written.append(folder / f"{_stem(name)}.ply")
        write_point_cloud(written[-1], cloud)
    return [*written, _json(folder / "classes.json", names)] if names else written


def write_label_cloud_points(folder: Path, clouds: Clouds, names: dict[int, str]) -> list[Path]:
    """Write labeled clouds as a folder that Label Cloud opens for segmentation, and return the files written.

    Clouds are `pointclouds/NAME.ply`, the classes of their points `labels/segmentation/NAME.bin`, a byte each, and
    names and colors of classes `labels/_classes.json`.

    Args:
        folder: Where they go.
        clouds: Clouds with labels from 0 to 127.
        names: Label -> name of its class; "class 3" where there is none.
    """
    written = []
    highest = 0
    for name, cloud in clouds:
        labels = _check_labels(name, cloud)
        low = int(labels.min())
        high = int(labels.max())
        # One signed byte for each point.
        if low < 0 or high > _MOST_CLASSES:
            raise PointCloudFileError(f"{name}: labels from {low} to {high}; Label Cloud takes 0 to {_MOST_CLASSES}")
        # Over all clouds, since they share one list of classes
        highest = max(highest, high)
        places = (
            folder / "pointclouds" / f"{_stem(name)}.ply",
            folder / "labels" / "segmentation" / f"{_stem(name)}.bin",
        )
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
        write_point_cloud(places[0], cloud)
        write_bytes(places[1], labels.astype(np.int8).tobytes())
        written += places
    # A class of each number up to the largest, since places in the list are the numbers.
    listed = [class_name(code, names) for code in range(highest + 1)]
    classes = _label_cloud_classes(listed, "semantic_segmentation", "binary")
    return [*written, _json(folder / "labels" / LABEL_CLOUD_CLASSES, classes)]


def _check_labels(name: str, cloud: PointCloudData) -> np.ndarray:
    if cloud.labels is None:
        raise PointCloudFileError(f"{name}: no labels of points; expected a class for each point")
    return cloud.labels


def read_label_cloud_points(folder: Path, name: str, count: int) -> np.ndarray:
    """Read the labels (count,) int64 of a cloud that Label Cloud has segmented; see `label_cloud_names`."""
    path = folder / "labels" / "segmentation" / f"{_stem(name)}.bin"
    with file_errors(path, "labels of Label Cloud"):
        labels = np.frombuffer(path.read_bytes(), np.int8)
        if len(labels) != count:
            raise PointCloudError(f"{len(labels)} labels for a cloud of {count} points; expected one for each")
        return labels.astype(np.int64)


def label_cloud_names(folder: Path) -> dict[int, str]:
    """Read the names of the classes of a folder that Label Cloud has segmented."""
    path = folder / "labels" / LABEL_CLOUD_CLASSES
    with file_errors(path, "classes of Label Cloud"):
        # Some editors put a byte order mark first.
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        return {int(entry["id"]): str(entry["name"]) for entry in content["classes"]}


def _label_cloud_classes(names: Iterable[str], kind: str, form: str) -> dict[str, Any]:
    classes = [{"name": name, "id": number, "color": _color(number)} for number, name in enumerate(names)]
    return {"classes": classes, "default": 0, "type": kind, "format": form}


def _center(box: NamedBox) -> list[float]:
    return list(box.numbers[:3])


def _size(box: NamedBox) -> list[float]:
    return list(box.numbers[3:6])


def _within_half_turns(heading: float) -> float:
    """Return an angle from -π to π, as programs show it."""
    return math.remainder(heading, 2 * math.pi)


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]


def _stem(file: str) -> str:
    return Path(file).stem


def _key(*parts: object) -> str:
    return str(uuid.uuid5(_NAMESPACE, "/".join(map(str, parts))))


def _elements(values: Mapping[str, object]) -> str:
    return "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in values.items())


def _json(path: Path, content: object) -> Path:
    write_json(path, content)
    return path

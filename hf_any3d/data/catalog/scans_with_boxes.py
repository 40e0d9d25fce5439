"""A folder of your own scans with boxes: JSON or a table beside them, or files of Label Cloud, CVAT or KITTI."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array2D, Dataset, DatasetDict, Features, Value

from hf_any3d.data.box_files import (
    LABEL_CLOUD_CLASSES,
    OWN_NAMES,
    Boxes,
    add_boxes,
    class_names,
    read_boxes_json,
    read_boxes_table,
    read_datumaro,
    read_kitti,
    read_label_cloud_folder,
    read_supervisely,
    read_tracklets,
)
from hf_any3d.data.boxes import box_features
from hf_any3d.data.files import PointCloudFileError, read_point_cloud, supported_file_types
from hf_any3d.data.options import one_of
from hf_any3d.data.point_arrays import turn_up_axis

SPLITS = ("train", "validation", "test")
LAYOUTS = ("own", "label_cloud", "datumaro", "supervisely", "kitti", "kitti_raw")
UP_AXIS = "z"
# Where programs put the files of points, beside their annotations.
_POINT_FOLDERS = ("pointclouds", "velodyne", "ds0/pointcloud", "velodyne_points/data")
_EXPECTED = (
    "boxes.json or boxes.parquet beside the files of points; labels/*.json of Label Cloud; annotations/*.json of "
    "Datumaro, */ann/*.json of Supervisely or tracklet_labels.xml of Kitti Raw (CVAT); or label_2, calib and velodyne "
    "of KITTI"
)


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    layout: str | None = None,
    up_axis: str = "z",
    classes: Sequence[str] | None = None,
) -> DatasetDict:
    """Read scans with boxes, one row a scan; folders train, validation and test are splits, else all are for training.

    Rows have `points` (num_points, 3), z up, `boxes` (objects, 7), `box_labels` (objects,) and `file`. Points in map
    coordinates, too large for float32, are moved near the origin, and their boxes with them.

    Args:
        data_dir: the folder. Each split has files of points and one of: `boxes.json` (file -> list of label, center,
            size, heading) or `boxes.parquet` (a row for each box); `labels/*.json` of Label Cloud;
            `annotations/*.json` of Datumaro, `*/ann/*.json` of Supervisely or `tracklet_labels.xml` with
            `frame_list.txt` of Kitti Raw, as CVAT exports; `label_2`, `calib` and `velodyne` of KITTI.
        layout: one of "own", "label_cloud", "datumaro", "supervisely", "kitti_raw" and "kitti"; None takes the first
            that is there.
        up_axis: the axis that points up in the files, about which headings turn; rows have z up.
        classes: names of the classes, in order; None takes those that occur, sorted. Boxes of others are left out.

    A warning counts files of points that nothing names; they are no rows.
    """
    one_of("layout", layout, (None, *LAYOUTS))
    one_of("up_axis", up_axis, "xyz")
    if data_dir is None:
        raise ValueError(f"data_dir is None; expected a folder with {_EXPECTED}")
    root = Path(data_dir)
    folders = {split: root / split for split in SPLITS if (root / split).is_dir()} or {"train": root}
    stored = {split: boxes_of(folder, layout) for split, folder in folders.items()}
    occurring = class_names(boxes for files in stored.values() for boxes in files.values())
    names = occurring if classes is None else list(classes)
    if not names:
        raise ValueError(f"{root}: no box in any file; expected at least one")
    features = Features({"points": Array2D((None, 3), "float32"), **box_features(names), "file": Value("string")})
    rows = {split: [*_rows(folders[split], boxes, names, up_axis)] for split, boxes in stored.items()}
    return DatasetDict({split: Dataset.from_list(some, features=features) for split, some in rows.items()})


def boxes_of(folder: Path, layout: str | None = None) -> Boxes:
    """Read the boxes of a folder in one of `LAYOUTS`; None takes the first that is there."""
    own = [folder / name for name in OWN_NAMES if (folder / name).is_file()]
    if layout in (None, "own") and own:
        return read_boxes_json(own[0]) if own[0].suffix == ".json" else read_boxes_table(own[0])
    if layout in (None, "label_cloud") and _is_label_cloud(folder / "labels"):
        return read_label_cloud_folder(folder / "labels")
    boxes: Boxes = {}
    for name, pattern, read in (
        ("datumaro", "annotations/*.json", read_datumaro),
        ("supervisely", "*/ann/*.json", read_supervisely),
        ("kitti_raw", "tracklet_labels.xml", read_tracklets),
    ):
        if layout in (None, name) and (files := sorted(folder.glob(pattern))):
            for file in files:
                add_boxes(file, boxes, read(file))
            return boxes
    if layout in (None, "kitti") and (files := sorted((folder / "label_2").glob("*.txt"))):
        return {f"velodyne/{file.stem}.bin": read_kitti(file, folder / "calib" / file.name) for file in files}
    raise FileNotFoundError(f"{folder}: no boxes; expected {_EXPECTED}")


def _is_label_cloud(folder: Path) -> bool:
    return any(True for _ in folder.glob("*.json")) or (folder / LABEL_CLOUD_CLASSES).is_file()


def _rows(folder: Path, boxes: Boxes, names: Sequence[str], up_axis: str) -> Iterator[dict[str, Any]]:
    numbers = {name: number for number, name in enumerate(names)}
    paths = {name: _point_file(folder, name) for name in boxes}
    # Scans that no boxes name may have been forgotten. Other files, such as a text about the data, have other endings.
    endings, named = {path.suffix for path in paths.values()}, {path.resolve() for path in paths.values()}
    scans = (path for path in folder.rglob("*") if path.suffix in endings and path.is_file())
    if left := sorted(path.relative_to(folder).as_posix() for path in scans if path.resolve() not in named):
        shown = ", ".join(left[:3]) + ", …" * (len(left) > 3)
        warnings.warn(
            f"{folder}: {len(left)} of {len(left) + len(named)} files of points are left out, since no boxes name "
            f"them: {shown}. A scan without objects has an empty list of boxes",
            stacklevel=2,
        )
    for name, own in boxes.items():
        path = paths[name]
        is_kitti = path.parent.name == "velodyne" and path.suffix == ".bin"
        cloud = read_point_cloud(path, file_type="kitti" if is_kitti else None)
        cloud = cloud.sample_surface(100_000, 0) if cloud.is_mesh else cloud
        # The points are float32; the offset (3,), in float64, is what they lack to coordinates of the file.
        points, offset = cloud.points, np.zeros(3) if cloud.offset is None else cloud.offset
        if own:
            # Boxes of which none reaches the points are in another frame or other units.
            low, high = points.min(axis=0) + offset, points.max(axis=0) + offset
            every = np.array([box.numbers for box in own])
            reach = np.linalg.norm(every[:, 3:6], axis=1, keepdims=True) / 2
            if ((every[:, :3] + reach < low) | (every[:, :3] - reach > high)).any(axis=1).all():
                shown = [" to ".join(f"{value:.6g}" for value in pair) for pair in zip(low, high, strict=True)]
                center = ", ".join(f"{value:.6g}" for value in every[0, :3])
                raise PointCloudFileError(
                    f"{folder / name}: none of {len(own)} boxes reaches the points, which are from {', '.join(shown)};"
                    f" the first has its center at {center}. Expected boxes in the frame and units of the file"
                )
        kept = [box for box in own if box.label in numbers]
        boxed = np.array([box.numbers for box in kept], dtype=np.float64).reshape(-1, 7)
        boxed[:, :3] -= offset
        if up_axis != UP_AXIS:
            points = turn_up_axis(points, up_axis, UP_AXIS)
            boxed[:, :3] = turn_up_axis(boxed[:, :3], up_axis, UP_AXIS)
        labels = [numbers[box.label] for box in kept]
        yield {"points": points.tolist(), "boxes": boxed.tolist(), "box_labels": labels, "file": name}


def _point_file(folder: Path, name: str) -> Path:
    """Return the file of points that boxes name, with or without its ending."""
    path = folder / name
    if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
        return path
    for place in (folder, *(folder / name for name in _POINT_FOLDERS)):
        for ending in supported_file_types():
            if (candidate := place / f"{name}.{ending}").is_file() or (candidate := place / name).is_file():
                if candidate.resolve().is_relative_to(folder.resolve()):
                    return candidate
    raise PointCloudFileError(f"{folder}: no file of points {name!r}, which has boxes")

"""A folder of your own scans with boxes: JSON or a table beside them, or files of Label Cloud, CVAT or KITTI."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array2D, Dataset, DatasetDict, Features, Value

from hf_any3d.data.annotations.box_files import (
    LABEL_CLOUD_CLASSES,
    OWN_NAMES,
    Boxes,
    LeftOut,
    NamedBox,
    add_boxes,
    class_names,
    in_words,
    read_boxes_json,
    read_boxes_table,
    read_datumaro,
    read_kitti,
    read_label_cloud_folder,
    read_supervisely,
    read_tracklets,
)
from hf_any3d.data.annotations.boxes import box_features
from hf_any3d.data.files import PointCloudFileError, read_point_cloud, supported_file_types
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.data.options import one_of

SPLITS = ("train", "validation", "test")
LAYOUTS = ("own", "label_cloud", "datumaro", "supervisely", "kitti", "kitti_raw")
UP_AXIS = "z"
_MESH_POINTS = 100_000
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

    Warnings count files of points that nothing names, which are no rows, and annotations that are no boxes.
    """
    one_of("layout", layout, (None, *LAYOUTS))
    one_of("up_axis", up_axis, "xyz")
    if data_dir is None:
        raise ValueError(f"data_dir is None; expected a folder with {_EXPECTED}")
    root = Path(data_dir)
    folders = {split: root / split for split in SPLITS if (root / split).is_dir()} or {"train": root}
    left_out = LeftOut()
    stored = {split: boxes_of(folder, layout, left_out) for split, folder in folders.items()}
    if left_out:
        warnings.warn(f"{root}: left out, as they are no boxes: {in_words(left_out)}", stacklevel=2)
    # Over all splits together, so that labels mean the same in each
    occurring = class_names(boxes for files in stored.values() for boxes in files.values())
    names = occurring if classes is None else list(classes)
    if not names:
        raise ValueError(f"{root}: no box in any file; expected at least one")
    features = Features({"points": Array2D((None, 3), "float32"), **box_features(names), "file": Value("string")})
    splits = DatasetDict()
    for split, boxes in stored.items():
        rows = list(_rows(folders[split], boxes, names, up_axis))
        splits[split] = Dataset.from_list(rows, features=features)
    return splits


def boxes_of(folder: Path, layout: str | None = None, left_out: LeftOut | None = None) -> Boxes:
    """Read the boxes of a folder in one of `LAYOUTS`; None takes the first that is there.

    What is no box is counted in `left_out`.
    """
    if layout in (None, "own"):
        for name in OWN_NAMES:
            file = folder / name
            if file.is_file():
                return read_boxes_json(file, left_out) if file.suffix == ".json" else read_boxes_table(file)
    if layout in (None, "label_cloud"):
        labels = folder / "labels"
        if any(True for _ in labels.glob("*.json")) or (labels / LABEL_CLOUD_CLASSES).is_file():
            return read_label_cloud_folder(labels, left_out)
    boxes: Boxes = {}
    for name, pattern, read in (
        ("datumaro", "annotations/*.json", read_datumaro),
        ("supervisely", "*/ann/*.json", read_supervisely),
        ("kitti_raw", "tracklet_labels.xml", read_tracklets),
    ):
        if layout in (None, name) and (files := sorted(folder.glob(pattern))):
            for file in files:
                add_boxes(file, boxes, read(file, left_out))
            return boxes
    if layout in (None, "kitti") and (files := sorted((folder / "label_2").glob("*.txt"))):
        # Labels, calibration and points of a scan have the same number as their name.
        calibrations = folder / "calib"
        return {f"velodyne/{file.stem}.bin": read_kitti(file, calibrations / file.name, left_out) for file in files}
    raise FileNotFoundError(f"{folder}: no boxes; expected {_EXPECTED}")


def _rows(folder: Path, boxes: Boxes, names: Sequence[str], up_axis: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each scan that boxes name, z up."""
    numbers = {name: number for number, name in enumerate(names)}
    paths = {name: _point_file(folder, name) for name in boxes}
    _warn_of_unnamed(folder, list(paths.values()))
    for name, scan_boxes in boxes.items():
        path = paths[name]
        # Points of KITTI are rows of four numbers, those of nuScenes of five, both in .bin.
        is_kitti = path.parent.name == "velodyne" and path.suffix == ".bin"
        cloud = read_point_cloud(path, file_type="kitti" if is_kitti else None)
        if cloud.is_mesh:
            cloud = cloud.sample_surface(_MESH_POINTS, 0)
        points = cloud.points
        # The points are float32; the offset (3,), in float64, is what they lack to coordinates of the file.
        offset = np.zeros(3) if cloud.offset is None else cloud.offset
        if scan_boxes:
            _check_within_reach(folder / name, scan_boxes, points.min(axis=0) + offset, points.max(axis=0) + offset)
        kept = [box for box in scan_boxes if box.label in numbers]
        # (boxes, 7), also of a scan without boxes
        rows = np.array([box.numbers for box in kept], dtype=np.float64).reshape(-1, 7)
        rows[:, :3] -= offset
        # Sizes and headings stay, since both are told about the up axis, whichever it is.
        if up_axis != UP_AXIS:
            points = turn_up_axis(points, up_axis, UP_AXIS)
            rows[:, :3] = turn_up_axis(rows[:, :3], up_axis, UP_AXIS)
        labels = [numbers[box.label] for box in kept]
        yield {"points": points.tolist(), "boxes": rows.tolist(), "box_labels": labels, "file": name}


def _warn_of_unnamed(folder: Path, paths: Sequence[Path]) -> None:
    """Warn of scans that no boxes name, as they may have been forgotten."""
    # Other files, such as a text about the data, have other endings.
    endings = {path.suffix for path in paths}
    named = {path.resolve() for path in paths}
    left_out = []
    for path in folder.rglob("*"):
        if path.suffix in endings and path.is_file() and path.resolve() not in named:
            left_out.append(path.relative_to(folder).as_posix())
    if left_out:
        shown = ", ".join(sorted(left_out)[:3])
        if len(left_out) > 3:
            shown += ", …"
        warnings.warn(
            f"{folder}: {len(left_out)} of {len(left_out) + len(named)} point files are skipped, since no boxes "
            f"name them: {shown}; for a scan without objects, add an empty list of boxes",
            stacklevel=3,
        )


def _check_within_reach(path: Path, boxes: Sequence[NamedBox], low: np.ndarray, high: np.ndarray) -> None:
    """Raise an error if no box overlaps the points, which span `low` to `high` (3,): frame or units differ."""
    numbers = np.array([box.numbers for box in boxes])  # (boxes, 7)
    centers = numbers[:, :3]
    # Half the diagonal, since boxes are turned.
    reach = np.linalg.norm(numbers[:, 3:6], axis=1, keepdims=True) / 2  # (boxes, 1)
    is_outside = ((centers + reach < low) | (centers - reach > high)).any(axis=1)
    if is_outside.all():
        extent = ", ".join(f"{first:.6g} to {last:.6g}" for first, last in zip(low, high, strict=True))
        center = ", ".join(f"{value:.6g}" for value in centers[0])
        raise PointCloudFileError(
            f"{path}: none of {len(boxes)} boxes reaches the points, which are from {extent}; the first has its "
            f"center at {center}. Expected boxes in the frame and units of the file"
        )


def _point_file(folder: Path, name: str) -> Path:
    """Return the file of points that boxes name, with or without its ending, in the folder or below."""
    root = folder.resolve()
    path = folder / name
    if path.is_file() and path.resolve().is_relative_to(root):
        return path
    for place in (folder, *(folder / name for name in _POINT_FOLDERS)):
        # The stem may be all that annotations have of the name.
        for ending in supported_file_types():
            for candidate in (place / f"{name}.{ending}", place / name):
                # A link could lead to any file of this machine.
                if candidate.is_file() and candidate.resolve().is_relative_to(root):
                    return candidate
    raise PointCloudFileError(f"{folder}: no file of points {name!r}, which has boxes")

"""Convert boxes, and labels of points and faces, between programs for labeling; z is up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_any3d.data.annotations.annotation_files import (
    label_cloud_names,
    read_label_cloud_points,
    write_boxes,
    write_label_cloud_points,
    write_labeled_ply,
)
from hf_any3d.data.annotations.box_files import LeftOut, in_words, read_boxes_json, read_boxes_table, read_segments
from hf_any3d.data.annotations.mesh_labels import read_labeled_meshes
from hf_any3d.data.catalog.scans_with_boxes import boxes_of
from hf_any3d.data.classes.las_classes import ASPRS_CLASSES
from hf_any3d.data.classes.word_classes import words_of_files
from hf_any3d.data.dataset_names import find_dataset
from hf_any3d.data.files import PointCloudData, PointCloudFileError
from hf_any3d.data.files.input_files import InputFile
from hf_any3d.data.files.label_words import with_words
from hf_any3d.utils.messages import counted

LABEL_CLOUD, PLY = "label-cloud", "ply"
"""Formats of labels of points; those of boxes are `annotation_files.BOX_FORMS`."""


def is_segmented(source: Path) -> bool:
    """Return whether Label Cloud has stored classes of points in a folder."""
    return source.is_dir() and any(True for _ in source.glob("labels/segmentation/*.bin"))


def _segments_of(source: Path) -> dict[str, list[tuple[str, list[int]]]]:
    """Return the segments of a project of Supervisely: name of a file of points -> class and points of each."""
    segments: dict[str, list[tuple[str, list[int]]]] = {}
    for path in sorted(source.glob("*/ann/*.json")) if source.is_dir() else ():
        segments |= read_segments(path)
    return segments


def _labels_of(name: str, count: int, segments: Iterable[tuple[str, list[int]]], classes: Sequence[str]) -> np.ndarray:
    """Return the class of each point (count,) int64, -1 without one; of two segments the later one counts."""
    labels = np.full(count, -1)
    for label, points in segments:
        if points and not 0 <= min(points) <= max(points) < count:
            raise PointCloudFileError(
                f"{name}: a segment of {label!r} names points {min(points)} to {max(points)} of {count:,}"
            )
        labels[points] = classes.index(label)
    return labels


def _is_boxes_file(source: Path) -> bool:
    return source.is_file() and source.suffix.lower() in (".json", ".parquet")


def has_point_labels(source: Path, to: str) -> bool:
    """Return whether a file or folder has labels of points for a format, and not boxes."""
    # Files of points have labels of points; what else there is are boxes.
    if is_segmented(source) or to == PLY or (source.is_file() and not _is_boxes_file(source)):
        return True
    # Label Cloud knows boxes and labels of points; without files of boxes, points are meant.
    return to == LABEL_CLOUD and source.is_dir() and find_dataset(str(source)).name != "scans_with_boxes"


def convert_boxes(source: Path, to: str, output: Path) -> tuple[list[Path], str]:
    """Convert a file of boxes, or a folder with those of any program that `scans_with_boxes` reads.

    Returns:
        The files written, and what they hold and lack, in words.

    Raises:
        ValueError: What is annotated has no box.
    """
    left_out = LeftOut()
    if not _is_boxes_file(source):
        boxes = boxes_of(source, left_out=left_out)
    elif source.suffix.lower() == ".json":
        boxes = read_boxes_json(source, left_out)
    else:
        boxes = read_boxes_table(source)
    _check_names(source, boxes)
    number = sum(map(len, boxes.values()))
    if left_out and not number:
        hint = "; segments are labels of points, which go to ply" if left_out["segment"] else ""
        raise ValueError(f"{source}: no boxes, but {in_words(left_out)}; --to {to} takes boxes{hint}")
    written = write_boxes(output, boxes, to)
    return written, f"{counted(number, 'box')} of {counted(len(boxes), 'cloud')}{_left_out_words(left_out)}"


def _left_out_words(left_out: LeftOut) -> str:
    return f"; left out: {in_words(left_out)}" if left_out else ""


def convert_points(
    source: Path,
    to: str,
    output: Path,
    files: Sequence[InputFile],
    names: Mapping[int, str] | None = None,
    label_field: str | None = None,
) -> tuple[list[Path], str]:
    """Convert labels of points, or of the faces of meshes.

    Args:
        source: File or folder; Label Cloud keeps classes there, beside the clouds.
        to: `LABEL_CLOUD` or `PLY`.
        output: Folder to write.
        files: The clouds of the source.
        names: Names of classes, which win over those of the program and of LAS; for OBJ, names of parts.
        label_field: Column of the labels, see `read_point_cloud`.

    Returns:
        The files written, and what they hold, in words.
    """
    if to not in (PLY, LABEL_CLOUD):
        raise ValueError(f"--to is {to!r}; {source} has labels of points, which go to label-cloud or ply")
    _check_names(source, [file.name for file in files])
    given = dict(names or {})
    paths = [Path(file.name) for file in files]
    endings = [path.suffix.lower() for path in paths]
    # Their points have no labels; what they have are names of parts.
    if all(ending == ".obj" for ending in endings):
        if to != PLY:
            raise ValueError(f"--to is {to!r}; labels of meshes go to ply")
        meshes, called = read_labeled_meshes(paths, given)
        return write_labeled_ply(output, meshes, called), f"labels of {counted(len(paths), 'mesh')}"
    # Without a name, a class is written by its number.
    called: dict[int, str] = {}
    words = None
    from_label_cloud = is_segmented(source)
    segments = _segments_of(source)
    classes = sorted({label for own in segments.values() for label, _ in own})
    left_out = LeftOut()
    if classes:
        called = dict(enumerate(classes))
        left_out["box"] = sum(map(len, boxes_of(source, "supervisely", left_out).values()))
        del left_out["segment"]
    elif from_label_cloud:
        called = label_cloud_names(source)
    else:
        if any(ending in (".las", ".laz") for ending in endings):
            called = dict(ASPRS_CLASSES)
        words = words_of_files(paths, label_field)
        called |= dict(enumerate(words or ()))
    called |= given

    def labeled() -> Iterator[tuple[str, PointCloudData]]:
        # One after the other, as all may not fit into memory.
        for file in files:
            # Labels belong to points by their order, which a point that is dropped would shift.
            cloud = file.read(on_invalid="raise").data
            if from_label_cloud:
                cloud.labels = read_label_cloud_points(source, file.name, len(cloud))
            if classes:
                own = segments.get(Path(file.name).name, ())
                cloud.labels = _labels_of(file.name, len(cloud), own, classes)
            yield file.name, with_words(cloud, words, file.name)

    write = write_label_cloud_points if to == LABEL_CLOUD else write_labeled_ply
    what = f"labels of the points of {counted(len(files), 'cloud')}{_left_out_words(+left_out)}"
    return write(output, labeled(), called), what


def _check_names(source: Path, files: Iterable[str]) -> None:
    """Check that files have different names without folders and endings, as what is written is named by them."""
    counts = Counter(Path(file).stem for file in files)
    if twice := [stem for stem, count in counts.items() if count > 1]:
        raise ValueError(f"{source}: two files called {twice[0]}; expected files with different names")

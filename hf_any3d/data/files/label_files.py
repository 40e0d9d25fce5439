"""Labels of points in a file of their own, beside the cloud: .label, .labels, .seg, .npy, or a column of text."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from hf_any3d.data.files.attributes import is_label_name, usable_labels
from hf_any3d.data.files.label_words import numbered
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, PointCloudFileError, Source, file_errors, open_source
from hf_any3d.data.files.text_numbers import shorten, unix_lines

# Endings that only files of labels have, beside a cloud of the same name: SemanticKITTI, Semantic3D, ShapeNet.
_CONVENTIONS = (".label", ".labels", ".seg")
_MARKS = (".", "_", "-")  # with which an ending begins, and no path of a file in a folder
_OF_CLASS = 0xFFFF  # bits of the class in SemanticKITTI; the upper ones number objects
_COMMENTS = (b"#", b"//")


def file_beside(path: Path) -> Path | None:
    """Return the file that has the labels of a cloud by convention, or None: `a.labels` beside `a.txt`, and so on.

    The sweeps of SemanticKITTI, `velodyne/000000.bin`, have theirs in `labels/000000.label`.
    """
    places = [path.with_suffix(ending) for ending in _CONVENTIONS]
    if path.parent.name == "velodyne":
        places.append(path.parent.parent / "labels" / f"{path.stem}.label")
    return next((place for place in places if place.is_file()), None)


def chosen_file(path: Path | None, label_file: str | os.PathLike) -> Path:
    """Return the file of labels that was asked for: a path, or an ending after a cloud's name, as `_labels.npy`."""
    text = os.fspath(label_file)
    is_ending = text.startswith(_MARKS) and os.sep not in text and not Path(text).is_file()
    if not is_ending:
        return Path(text)
    if path is None:
        raise ValueError(f"label_file is {text!r}, an ending; expected a path for a cloud that is no file")
    return path.with_name(path.stem + text)


def with_label_file(
    cloud: PointCloudData, place: Path, source: Source, kept: np.ndarray | None, *, replaces: bool
) -> PointCloudData:
    """Return a cloud with the labels of a file beside it, and say so.

    Args:
        cloud: The cloud, or mesh; labels may be of its faces.
        place: The file of labels.
        source: The file of the cloud.
        kept: (points of the file,) which points the cloud has; None for all.
        replaces: Whether the file was asked for, so that labels of the cloud's own file do not count.

    Raises:
        PointCloudFileError: There is not one label for each point.
    """
    if not replaces and (cloud.labels is not None or cloud.face_labels is not None):
        source.warn(f"has labels itself; those of {place.name} beside it are left out")
        return cloud
    labels, names = _read(place)
    counts = {len(cloud)} if kept is None else {len(cloud), len(kept)}
    if len(labels) in counts:
        source.warn(f"labels are those of {place.name} beside it")
        if kept is not None and len(labels) == len(kept):
            labels = labels[kept]
        return replace(cloud, labels=labels, face_labels=None, label_names=names, label_codes=None)
    # Shapes that are segmented by their faces.
    if cloud.faces is not None and len(labels) == len(cloud.faces):
        source.warn(f"labels of faces are those of {place.name} beside it")
        return replace(cloud, labels=None, face_labels=labels, label_names=names, label_codes=None)
    raise PointCloudFileError(f"{place}: {len(labels):,} labels for the {len(cloud):,} points of {source.name}")


def _read(place: Path) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return labels (values,) of a file, and the names of classes that are words."""
    kind = place.suffix[1:].lower()
    opened = open_source(place, kind or "txt", (kind or "txt",))
    with file_errors(place, "file of labels"):
        if kind == "npy":
            return _of_array(opened)
        # As numbers of 32 bits, digits would be classes and objects beyond any count.
        if kind == "label" and opened.data.strip(b"0123456789 \t\r\n-."):
            if len(opened.data) % 4:
                raise PointCloudError(f"{len(opened.data)} bytes; expected 4 for each label")
            return (np.frombuffer(opened.data, "<u4") & _OF_CLASS).astype(np.int64), None
        return _of_text(opened)


def _of_array(source: Source) -> tuple[np.ndarray, tuple[str, ...] | None]:
    from hf_any3d.data.files.npy import parse_array

    values = parse_array(source.data)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "fiubUS":
        raise PointCloudError(f"an array of shape {values.shape} and type {values.dtype}; expected a label each")
    if values.dtype.kind in "US":
        return numbered(values.tolist())
    return _whole(values, source), None


def _of_text(source: Source) -> tuple[np.ndarray, tuple[str, ...] | None]:
    # Without comments and quotes; an empty line is a missing label, but not after the last.
    lines = unix_lines(source.data).rstrip(b"\n").split(b"\n")
    lines = [line.strip().strip(b'"') for line in lines if not line.startswith(_COMMENTS)]
    if lines and is_label_name(lines[0].decode("utf-8", "replace")):
        del lines[0]
    try:
        values = np.array([float(line or b"nan") for line in lines])
    except ValueError:
        # Rows of several numbers are no words.
        several = next((line for line in lines if b"," in line or b";" in line or b"\t" in line), None)
        if several is not None:
            raise PointCloudError(
                f"a line has several values ({shorten(several)}); expected one for each point"
            ) from None
        return numbered(lines)
    return _whole(values, source), None


def _whole(values: np.ndarray, source: Source) -> np.ndarray:
    labels = usable_labels(values, source)
    if labels is None:
        raise PointCloudError("values other than whole numbers; expected a class for each point")
    return labels

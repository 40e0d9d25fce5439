"""Labels of points in a file of their own, beside the cloud: numbers of one size, an array, or a column of text."""

import csv
import io
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from hf_any3d.data.files.attributes import usable_labels
from hf_any3d.data.files.column_names import fields_of, is_label_name
from hf_any3d.data.files.label_words import numbered
from hf_any3d.data.files.npy import LABELS, Archive, parse_array
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, PointCloudFileError, Source, file_errors, open_source
from hf_any3d.data.files.text_numbers import listed, shorten, unix_lines

# Endings that only files of labels have, beside a cloud of the same name: SemanticKITTI, Semantic3D, ShapeNet.
_CONVENTIONS = (".label", ".labels", ".seg")


def file_beside(path: Path) -> Path | None:
    """Return the file that has the labels of a cloud by convention, or None: `a.labels` beside `a.txt`, and so on.

    The sweeps of SemanticKITTI, `velodyne/000000.bin`, have theirs in `labels/000000.label`.
    """
    places = [path.with_suffix(ending) for ending in _CONVENTIONS]
    if path.parent.name == "velodyne":
        places.append(path.parent.parent / "labels" / f"{path.stem}.label")
    return next((place for place in places if place.is_file()), None)


_MARKS = (".", "_", "-")  # with which an ending begins, and no path of a file in a folder


def chosen_file(path: Path | None, label_file: str | os.PathLike) -> Path:
    """Return the file of labels that was asked for: a path, or an ending after a cloud's name, as `_labels.npy`."""
    text = os.fspath(label_file)
    is_ending = text.startswith(_MARKS) and os.sep not in text and not Path(text).is_file()
    if not is_ending:
        return Path(text)
    if path is None:
        raise ValueError(f"label_file is {text!r}, an ending; expected a path for a cloud that is no file")
    return path.with_name(path.stem + text)


# Bytes of a number -> its types. Floats are told from whole numbers by their size.
_TYPES = {1: ("<u1",), 2: ("<u2",), 4: ("<i4", "<f4"), 8: ("<i8", "<f8")}
_LARGEST = 1 << 24
_FORMS = "expected a number of 1, 2, 4 or 8 bytes for each, .npy, .npz of one array, or text with a label in each line"


def with_label_file(
    cloud: PointCloudData, place: Path, source: Source, kept: np.ndarray | None, *, replaces: bool
) -> PointCloudData:
    """Return a cloud with the labels of a file beside it, and log where they come from.

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
        source.warn(f"has its own labels; the labels in {place.name} are ignored")
        return cloud
    # Labels are of the points that the cloud has, of those in its file, or of the faces of a shape that is segmented.
    counts = {len(cloud): "points"}
    if kept is not None:
        counts.setdefault(len(kept), "points")
    if cloud.faces is not None:
        counts.setdefault(len(cloud.faces), "faces")
    labels, names = _read(place, counts)
    what = counts.get(len(labels))
    if what is None:
        raise PointCloudFileError(
            f"{place}: {len(labels):,} labels for the {len(cloud):,} points of {source.name}; {_FORMS}"
        )
    if what == "faces":
        source.warn(f"face labels are read from {place.name}")
        return replace(cloud, labels=None, face_labels=labels, label_names=names, label_codes=None)
    source.warn(f"labels are read from {place.name}")
    if kept is not None and len(labels) == len(kept):
        labels = labels[kept]
    return replace(cloud, labels=labels, face_labels=None, label_names=names, label_codes=None)


_OF_TEXT = ("txt", "csv", "labels", "seg", "tsv", "asc", "xyz", "pts")
_NO_TEXT = re.compile(rb"[\0-\x08\x0b\x0e-\x1f\x7f]")


def _read(place: Path, counts: Mapping[int, str]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return labels (values,) of a file, and the names of classes that are words.

    Args:
        place: The file.
        counts: How many labels there may be -> of what, for numbers without a header.
    """
    kind = place.suffix[1:].lower()
    opened = open_source(place, kind or "txt", (kind or "txt",))
    with file_errors(place, "file of labels"):
        if opened.data.startswith(b"\x93NUMPY"):
            return _of_array(parse_array(opened.data), opened)
        if opened.data.startswith(b"PK\x03\x04"):
            return _of_array(_only_array(opened), opened)
        if opened.data.strip() and not _NO_TEXT.search(opened.data):
            # All bytes may be letters by chance; lines tell text.
            if kind in _OF_TEXT or b"\n" in opened.data or len(opened.data) not in counts:
                return _of_text(opened)
        return _of_bytes(opened, counts), None


def _only_array(source: Source) -> np.ndarray:
    """Return the array of labels of an archive: by its name, or the only one."""
    with zipfile.ZipFile(io.BytesIO(source.data)) as opened:
        archive = Archive(opened, source)
        names = list(archive.members)
        wanted = names if len(names) == 1 else [name for name in LABELS if name in names]
        values = archive.first(*wanted[:1])
    if values is None:
        raise PointCloudError(f"arrays {listed(names)}; expected one array, or one called labels")
    return values


_OF_CLASS = 0xFFFF  # bits of the class in SemanticKITTI; the upper ones number objects


def _of_bytes(source: Source, counts: Mapping[int, str]) -> np.ndarray:
    """Return labels (values,) of numbers without a header, whose size is that of the file over how many there are."""
    size = len(source.data)
    fits = [(count, width) for count in counts for width in _TYPES if count * width == size]
    told = " or ".join(f"{count:,} {what}" for count, what in counts.items())
    if not fits:
        raise PointCloudError(f"{size:,} bytes for {told}; {_FORMS}")
    if len(fits) > 1:
        doubt = " or ".join(f"{width} for each of {count:,} {counts[count]}" for count, width in fits)
        raise PointCloudError(f"{size:,} bytes may be {doubt}; save the labels as .npy")
    [(_, width)] = fits
    whole, *floats = (np.frombuffer(source.data, kind) for kind in _TYPES[width])
    if source.file_type == "label" and width == 4:
        # As numbers of 32 bits, digits would be classes and objects beyond any count.
        return whole.astype(np.int64) & _OF_CLASS
    # Bits of a float are a huge number, and those of a class a tiny float.
    if floats and len(whole) and np.abs(whole.astype(np.float64)).max() >= _LARGEST:
        return _whole(floats[0], source)
    return whole.astype(np.int64)


def _of_array(values: np.ndarray, source: Source) -> tuple[np.ndarray, tuple[str, ...] | None]:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "fiubUS":
        raise PointCloudError(
            f"an array of shape {values.shape} and type {values.dtype}; expected a label for each point"
        )
    if values.dtype.kind in "US":
        return numbered(values.tolist())
    return _whole(values, source), None


_COMMENTS = (b"#", b"//")


def _of_text(source: Source) -> tuple[np.ndarray, tuple[str, ...] | None]:
    # Without comments and quotes; an empty line is a missing label, but not after the last.
    lines = unix_lines(source.data).rstrip(b"\n").split(b"\n")
    lines = [line.strip() for line in lines if not line.startswith(_COMMENTS)]
    lines = _label_column(lines)
    if lines and is_label_name(lines[0].decode("utf-8", "replace")):
        del lines[0]
    try:
        values = np.array([float(line or b"nan") for line in lines])
    except ValueError:
        # Rows of several numbers are no words.
        several = next((line for line in lines if b"," in line or b";" in line or b"\t" in line), None)
        if several is not None:
            raise PointCloudError(
                f"a line has several values ({shorten(several)}), and no line names their columns; expected one "
                "for each point"
            ) from None
        return numbered(lines)
    return _whole(values, source), None


def _label_column(lines: list[bytes]) -> list[bytes]:
    """Return the lines of text without quotes; of a table whose first line names a column of labels, that column."""
    first = lines[0].decode("latin1") if lines else ""
    delimiter = next((mark for mark in ";,\t" if mark in first), ",")
    names = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
    labels = fields_of(names).get("labels") if len(names) > 1 else None
    if labels is None:
        return [line.strip(b'"') for line in lines]
    if names.count(labels[0]) > 1:
        raise PointCloudError(f"two columns are called {shorten(labels[0])}; rename one")
    place = names.index(labels[0])
    rows = csv.reader((line.decode("latin1") for line in lines[1:]), delimiter=delimiter, skipinitialspace=True)
    return [row[place].strip().encode("latin1") if place < len(row) else b"" for row in rows]


def _whole(values: np.ndarray, source: Source) -> np.ndarray:
    labels = usable_labels(values, source)
    if labels is None:
        raise PointCloudError("values other than whole numbers; expected a class for each point")
    return labels

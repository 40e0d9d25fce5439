"""NumPy files: .npy, an array saved by numpy.save, and .npz, several arrays saved by numpy.savez."""

import io
import math
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterable
from typing import Any, BinaryIO

import numpy as np

from hf_any3d.data.files.attributes import USABLE, by_name, by_number, left_out_points, with_stand_ins
from hf_any3d.data.files.column_names import IN_DEGREES, fields_of, names_in_degrees, names_of, wanted_fields
from hf_any3d.data.files.label_words import numbered
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import NoPointsError, PointCloudError, Source
from hf_any3d.data.files.text_numbers import listed

# Version of the format -> reader of an array's header. Version 3 differs from 2 in the encoding of names alone.
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}
_PYTHON_2, _LONGEST_HEADER = re.compile(rb"\d+L[,) ]"), 1 << 14
POINTS = ("points", "xyz", "pos", "positions", "coords", "coord", "point_cloud", "pc", "vertices", "arr_0")
"""Names of the array with the points, those that come first before others."""
# Names of classes come before `label`, which may be the number of an object.
LABELS = (
    "labels",
    "part",
    "seg",
    "semantic",
    "semantics",
    "semantic_label",
    "semantic_labels",
    "sem_label",
    "sem_labels",
    "semantic_class",
    "classification",
    "class",
    "classes",
    "class_id",
    "class_label",
    "category",
    "label",
    "label_id",
    "parts",
    "part_id",
    "part_label",
    "seg_label",
    "segment",
    "segment20",
)
"""Names of the array with the labels of points, in the same way."""
LABEL_NAMES = "label_names"
"""Name of the array with the names of the classes 0, 1, …"""
_FIELDS = {"normals": ("normals", "normal"), "colors": ("colors", "rgb", "color", "rgba")}
_FIELDS |= {"face_colors": ("face_colors",)}
_FIELDS |= {field: names_of(field) for field in ("intensity", "ring", "return_number", "number_of_returns")}
OTHERS = (
    *POINTS,
    *sum(_FIELDS.values(), ()),
    "faces",
    "face_labels",
    "offset",
    "up_axis",
    "meters_per_unit",
    LABEL_NAMES,
)
"""Names of arrays that are no labels of points."""
# Arrays that labeled copies have beside labels.
_OF_COPIES = ("score", "unknown", "object")
NOT_READ = "a fourth column of colors or points, such as alpha, if it is constant"
# Names of the columns of fields that hold several numbers of a point.
_COLUMNS = (
    (POINTS, "xyz"), (_FIELDS["normals"], ("nx", "ny", "nz")), (_FIELDS["colors"], ("red", "green", "blue"))
)  # fmt: skip


def read(source: Source) -> PointCloudData:
    """Read an array (points, 3 or more), a structured array with fields x, y, z and others, or an archive of arrays.

    Names of arrays in archives: points (or xyz, pos, positions, coords, coord, point_cloud, pc, vertices, arr_0; the
    only array under any name), normals or normal, colors (or rgb, color, rgba), intensity (or strength, reflectance,
    remission), ring (or channel, laser_id), return_number, number_of_returns, labels (or semantic, segment,
    classification, part, seg, class, label and the like, if it has one value per point), faces, face_colors,
    face_labels, offset, up_axis, meters_per_unit. Others are left out with a warning. Without an array of points,
    arrays x, y, z and others of as many values are columns, see `attributes.by_name`. Without arrays of colors or
    normals the points may have more columns, as in .npy. Fields of structured arrays may hold three numbers under
    these names.
    """
    if source.file_type == "npz":
        return _read_npz(source)
    return cloud_from_array(parse_array(source.data), source)


def cloud_from_array(array: np.ndarray, source: Source) -> PointCloudData:
    """Interpret the columns of an array; see `attributes.by_number` and `attributes.by_name`."""
    return PointCloudData(**_fields_of_array(array, source))


@np.errstate(all="ignore")  # what does not fit is left out with a warning of our own
def _fields_of_array(array: np.ndarray, source: Source) -> dict[str, Any]:
    """Return the arguments of PointCloudData that the columns of an array are."""
    if array.ndim and not len(array):
        raise NoPointsError()
    if array.dtype.names:
        source.limits.check(points=len(array))
        fields = {name.lower(): array[name] for name in array.dtype.names if array[name].dtype.kind in "fiub"}
        label = wanted_fields(array.dtype.names or (), source).get("labels", [""])[0]
        source.note_columns(map(str.lower, array.dtype.names))
        words = {}
        if label and array[label].dtype.kind in "US" and array[label].ndim <= 1:
            words = {label.lower(): numbered(array[label].tolist())}
        fields |= {name: numbers for name, (numbers, _) in words.items()}
        source.leave_out((name for name in array.dtype.names if name.lower() not in fields), "no numbers")
        columns = {name: values for name, values in fields.items() if values.ndim == 1}
        # A field may hold several numbers of a point, such as all three coordinates.
        several = {name: values for name, values in fields.items() if values.ndim > 1}
        for names, axes in _COLUMNS:
            name = next((name for name in names if name in several and several[name].shape[1:] in ((3,), (4,))), None)
            if name is not None:
                columns |= zip(axes, _without_fourth(several.pop(name), name, source).T, strict=True)
        if several:
            source.warn(f"fields {listed(several)} have several values per point and are ignored")
        cloud = by_name(columns, source)
        cloud["label_names"] = next((names for _, names in words.values()), None)
        return cloud
    if array.dtype.kind not in "fiub" or array.ndim != 2:
        raise PointCloudError(f"an array of shape {array.shape} and type {array.dtype}; expected (points, 3 or more)")
    source.limits.check(points=len(array))
    return by_number(array, source)


def parse_array(data: bytes | memoryview) -> np.ndarray:
    """Parse an .npy file without unpickling and without allocating more than its size."""
    # Headers are at most 10,000 bytes long, as numpy refuses longer ones.
    file = io.BytesIO(data[: 2 * _LONGEST_HEADER])
    # numpy warns of numbers as Python 2 wrote them. Only then, as `catch_warnings` lets all warnings of the process be
    # shown again.
    if not _PYTHON_2.search(data, 0, _LONGEST_HEADER):
        shape, by_columns, dtype = read_array_header(file)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, by_columns, dtype = read_array_header(file)
    if dtype.hasobject:
        raise _PythonObjectsError(
            "holds Python objects, such as a dictionary, which are never unpickled; save its arrays of numbers with "
            'numpy.savez("FILE.npz", points=…, colors=…)'
        )
    # A view of the bytes that were read: nothing is copied.
    return np.frombuffer(data, dtype, math.prod(shape), file.tell()).reshape(shape, order="F" if by_columns else "C")


def read_array_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an array: shape, whether columns come one after the other, and type."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        numbers = ".".join(map(str, version))
        raise PointCloudError(f"has version {numbers} of the format; 1.0 to 3.0 are supported")
    shape, by_columns, dtype = _HEADERS[version](file)
    # numpy would take a negative size for as many as there are.
    if min(shape, default=0) < 0:
        raise PointCloudError(f"declares the shape {shape}; expected no negative number")
    if version == (3, 0) and dtype.names:
        dtype.names = tuple(name.encode("latin1").decode() for name in dtype.names)
    return shape, by_columns, dtype


class _PythonObjectsError(PointCloudError):
    """An array of Python objects, which could only be unpickled."""


class Archive:
    """Arrays of an .npz, read by name within the limits of their sum."""

    def __init__(self, archive: zipfile.ZipFile, source: Source):
        self.archive = archive
        self.source = source
        self.members = members_of(archive)
        source.note_columns(name_of_member(info.filename) for info in archive.infolist())
        self.opened: dict[str, zipfile.ZipInfo] = {}
        self.unwanted: set[str] = set()

    def first(self, *names: str, are_points: bool = False) -> np.ndarray | None:
        """Read the first of some arrays that is there, None without any, as `read` does."""
        name = first_called(names, self.members)
        if name is None:
            return None
        self.source.check_once([name])
        return self.read(name, are_points=are_points)

    def read(self, name: str, *, are_points: bool = False) -> np.ndarray | None:
        """Read an array; one of Python objects is left out, which gives None."""
        self.opened[name] = self.members[name]
        # The sum, since many arrays below the limit may exceed it together.
        self.source.check(decoded=sum(info.file_size for info in self.opened.values()))
        # Only for these does the declared size bound what is decompressed, and numpy writes no others.
        method = self.members[name].compress_type
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise PointCloudError(f"array {name!r} is compressed by method {method}; expected 0 or 8")
        try:
            return parse_array(self._content(self.members[name]))
        except PointCloudError as error:
            if isinstance(error, _PythonObjectsError) and not are_points:
                self.unwanted.add(name.lower())
                self.source.leave_out([name], "Python objects, which are never unpickled")
                return None
            raise PointCloudError(f"array {name!r} {error}") from error.__cause__

    def _content(self, member: zipfile.ZipInfo) -> bytes | memoryview:
        """Return the bytes of an array; one that is most of the file, and not compressed, is not copied."""
        # What is smaller would keep the whole file in memory.
        is_most = 2 * member.file_size >= len(self.source.data)
        if not is_most or member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            return self.archive.read(member)
        # Opening checks the member's own header, as reading does.
        with self.archive.open(member):
            name_length, extra_length = struct.unpack_from("<HH", self.source.data, member.header_offset + 26)
        start = member.header_offset + 30 + name_length + extra_length
        content = memoryview(self.source.data)[start : start + member.file_size]
        if zlib.crc32(content) != member.CRC:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {member.filename!r}")
        return content

    def put_back(self, name: str) -> None:
        """Mark an array that was read as not requested."""
        called = first_called([name], self.opened)
        if called is not None:
            del self.opened[called]

    @property
    def rest(self) -> list[str]:
        """Names of arrays that were not requested."""
        return [name for name in self.members if name not in self.opened and name.lower() not in self.unwanted]


def members_of(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members of an archive by the names of their arrays."""
    return {name_of_member(info.filename): info for info in archive.infolist()}


def name_of_member(filename: str) -> str:
    """Return the name of the array that a member of an archive is."""
    return re.sub(r"\.npy$", "", filename, flags=re.IGNORECASE)


def first_called(wanted: Iterable[str], names: Collection[str]) -> str | None:
    """Return the first wanted name that is there, if need be in other capitals; None without any."""
    similar: dict[str, str] = {}
    for name in names:
        similar.setdefault(name.lower(), name)
    for name in wanted:
        if name in names:
            return name
        if name.lower() in similar:
            return similar[name.lower()]
    return None


def _read_npz(source: Source) -> PointCloudData:
    with zipfile.ZipFile(io.BytesIO(source.data)) as opened:
        archive = Archive(opened, source)
        name = name_of_points(archive.members)
        points = None if name is None else archive.first(name, are_points=True)
        if points is None and "points" in fields_of(archive.members):
            return _read_columns(archive)
        degrees = names_in_degrees(archive.members)
        if points is None and degrees:
            raise PointCloudError(f"arrays {' and '.join(degrees)} {IN_DEGREES}")
        if points is None:
            raise PointCloudError(f"no array 'points'; found {listed(archive.members)}")
        source.check(points=len(points) if points.ndim else 0, decoded=12 * len(points) if points.ndim else 0)
        fields = _fields_of_array(points, source)
        # Points are left out with all that belongs to them, when the whole archive has been read.
        left_out = left_out_points(fields["points"])
        chosen = source.chosen_label(archive.rest)
        for field, names in _FIELDS.items():
            if not source.wants(field):
                archive.unwanted.update(names)
                continue
            # An array of labels is nothing else, whatever its name.
            values = archive.first(*(name for name in names if name != chosen))
            if values is None:
                continue
            values = _without_fourth(values, field, source)
            if field != "face_colors":
                values = with_stand_ins(values, left_out)
            values = USABLE[field.removeprefix("face_")](values, source)
            if values is not None:
                fields[field] = values
        fields["offset"] = archive.first("offset")
        if source.wants("labels"):
            fields |= _labels(archive, fields["points"].shape[:1], left_out)
        else:
            archive.unwanted.update((*LABELS, LABEL_NAMES))
        fields["faces"] = archive.first("faces")
        face_labels = archive.first("face_labels")
        if face_labels is not None:
            fields["face_labels"] = USABLE["labels"](face_labels, source)
        fields |= _frame(archive)
        source.leave_out(archive.rest)
        return PointCloudData(**fields)


def _read_columns(archive: Archive) -> PointCloudData:
    """Read arrays that are a column of points each, such as x, y, z and intensity."""
    x = archive.first(fields_of(archive.members)["points"][0])
    count = 0 if x is None else x.size
    archive.source.check(points=count)
    columns = {}
    for name in archive.members:
        values = archive.read(name)
        if values is not None and values.dtype.kind in "fiub" and values.shape in ((count,), (count, 1)):
            columns[name] = values.reshape(count)
        else:
            archive.opened.pop(name, None)
    cloud = by_name(columns, archive.source)
    frame = _frame(archive)
    archive.source.leave_out(archive.rest)
    return PointCloudData(**(cloud | frame))


def name_of_points(names: Iterable[str]) -> str | None:
    """Return the array of an archive that has the points: by its name, or the only one that has no known name."""
    names = list(names)
    named = first_called(POINTS, names)
    if named is not None:
        return named
    # A single array is the points, whatever its name, also with the labels of its copy beside it.
    others = [name for name in names if name.lower() not in (*LABELS, *OTHERS, *_OF_COPIES)]
    candidates = names if len(names) == 1 else others
    return candidates[0] if len(candidates) == 1 else None


def _labels(archive: Archive, count: tuple[int, ...], left_out: np.ndarray) -> dict[str, Any]:
    """Return the labels of points, and the names of classes: of an array of words, or of `label_names`."""
    source = archive.source
    names = LABELS
    if source.label_field is not None:
        chosen = source.chosen_label(archive.rest)
        names = () if chosen is None else (chosen,)
    for name in names:
        values = archive.first(name)
        # A single `label` is the class of the whole cloud.
        if values is None or values.shape not in (count, (*count, 1)):
            archive.put_back(name)
            continue
        values = values.reshape(count)
        if values.dtype.kind in "US":
            labels, words = numbered(values.tolist())
            return {"labels": labels, "label_names": words}
        labels = USABLE["labels"](with_stand_ins(values, left_out), source)
        words = archive.first(LABEL_NAMES)
        if labels is not None and words is not None and words.dtype.kind == "U" and words.ndim == 1:
            if labels.max(initial=-1) < len(words):
                return {"labels": labels, "label_names": tuple(words.tolist())}
        archive.put_back(LABEL_NAMES)
        return {"labels": labels}
    return {}


def _frame(archive: Archive) -> dict[str, Any]:
    """Return up axis and unit, which `write_point_cloud` stores as arrays of one value."""
    frame: dict[str, Any] = {}
    for name in ("up_axis", "meters_per_unit"):
        values = archive.first(name)
        if values is None:
            continue
        value = values.reshape(-1)[0].item() if values.size == 1 else None
        if name == "up_axis":
            is_valid = value in ("x", "y", "z")
        else:
            is_valid = isinstance(value, (int, float)) and 0 < value < math.inf
        if is_valid:
            frame[name] = value
        else:
            archive.put_back(name)  # something else under this name, which is told of
    return frame


def _without_fourth(values: np.ndarray, name: str, source: Source) -> np.ndarray:
    """Return the first three columns of four, with a warning if the fourth is not constant; others are unchanged."""
    if values.ndim != 2 or values.shape[1] != 4:
        return values
    if (values[:, 3] != values[0, 3]).any():
        source.warn(f"the fourth column of {name}, such as alpha, is ignored")
    return values[:, :3]

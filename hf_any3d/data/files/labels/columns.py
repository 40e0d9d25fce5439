"""The columns that a labeled copy of a file gets: the class of each point, and what else is known of it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_any3d.data.files.column_names import fields_of, measured_words, plain_name
from hf_any3d.data.files.no_data import no_data_height, without_height
from hf_any3d.data.files.source import ArgumentError, PointCloudError, Source

NO_LABEL = -1
"""Label of a point without an answer: it keeps the class that it has in the file."""
_AT_ONCE = 1 << 20
# What else says how a point was measured, beside what a cloud has a field for; in letters and digits alone.
_MEASURED = (
    "time timestamp gpstime t scanangle scananglerank scandirectionflag edgeofflightline userdata pointsourceid "
    "synthetic keypoint withheld overlap classificationflags classflags rawclassification scannerchannel scanchannel "
    "nir infrared nearinfrared a alpha rgb rgba opacity curvature range azimuth amplitude deviation xt yt zt "
    "wavepacketindex wavepacketoffset wavepacketsize returnpointwavelocation"
).split()
_OF_SPLATS = re.compile(r"(f_dc|f_rest|scale|rot)_\d+")
# Names of columns that take classes though their numbers have decimals, as CloudCompare writes all its columns.
_LIKE_CLASSES = re.compile(r"class|label|seg|instance|categor|object|pred|score|prob|unknown|part|tree|(^|_)id$")


@dataclass
class Column:
    """A column of numbers, one for each point of the file.

    Attributes:
        name: Name that the file gets for it; None for the class where the format has a place.
        kind: Numpy type of a new column.
        least: Least number that is written.
        most: Largest number that is written.
        fill: What points without an answer get in a new column.
        values: (points,) the numbers, None while only their range is known.
        codes: Number -> code that is written in its place.
        rows: (points of the file,) places in `values`, `NO_LABEL` without an answer; None if they are in order.
        is_class: Whether these are labels, whose negative numbers stand for points without an answer.
        is_new: Whether a column of this name in the file is an error, as its numbers are somebody else's.
        text: What it is, in the 31 letters that LAS has for a description.
    """

    name: str | None
    kind: str
    least: float
    most: float
    fill: float
    values: np.ndarray | None = None
    codes: np.ndarray | None = None
    rows: np.ndarray | None = None
    is_class: bool = False
    is_new: bool = False
    text: str = ""

    @property
    def has_gaps(self) -> bool:
        """True if some points have no answer."""
        has_negative = self.is_class and self.values is not None and len(self.values) and self.values.min() < 0
        return self.rows is not None or bool(has_negative)

    def of_file(self, count: int, kept: np.ndarray | None) -> "Column":
        """Return the column for a file of so many points, of which the reader has kept those with `kept`, or all."""
        assert self.values is not None
        # Labels of all points, also of those that the reader would leave out
        if len(self.values) == count:
            return self
        total = count if kept is None else int(kept.sum())
        if len(self.values) != total:
            read = "" if total == count else f", of which {total} are read"
            raise PointCloudError(f"{len(self.values)} labels for a file with {count} points{read}; expected one each")
        assert kept is not None
        # Place of each kept point among those that were kept
        rows = np.where(kept, np.cumsum(kept) - 1, NO_LABEL)
        return replace(self, rows=rows)

    def block(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of some points of the file, and whether each has an answer."""
        assert self.values is not None
        if self.rows is None:
            values = np.asarray(self.values[start:stop])
            answered = np.ones(len(values), bool)
        else:
            rows = self.rows[start:stop]
            answered = rows != NO_LABEL
            # Points without a label take the first number, which `answered` masks.
            values = np.asarray(self.values[np.maximum(rows, 0)])
        if self.is_class:
            answered &= values >= 0
            if self.codes is not None:
                # Negative labels have no code; they are masked, too.
                values = self.codes[np.maximum(values, 0)]
        return values, answered

    def filled(self, start: int, stop: int, kind: Any) -> np.ndarray:
        """Return the numbers of some points in a type, with the fill where there is no answer."""
        values, answered = self.block(start, stop)
        numbers = values.astype(kind)
        if not answered.all():
            # Types without a sign have no -1 and no NaN.
            numbers[~answered] = 0 if np.dtype(kind).kind == "u" else self.fill
        return numbers

    def fits(self, kind: Any) -> bool:
        """Return whether a type of numbers holds all of the column."""
        dtype = np.dtype(kind)
        if dtype.kind == "f":
            # Whole numbers beyond the digits of the type would be rounded.
            return self.kind == "<f4" or max(abs(self.least), abs(self.most)) < 2 ** np.finfo(dtype).nmant
        limits = np.iinfo(dtype)
        # Probabilities would all become 0 in a type of whole numbers.
        return self.kind != "<f4" and limits.min <= self.least and self.most <= limits.max

    def check_fits(self, kind: Any, what: str, *, is_plain: bool = True) -> None:
        """Check that something that is in the file, such as a dimension, takes the column in its type."""
        if self.is_new:
            raise PointCloudError(taken(what, self.name))
        if not is_plain or not self.fits(kind):
            raise PointCloudError(
                f"{what} {self.name!r} of type {np.dtype(kind).name} cannot hold {self.least:g} to {self.most:g} "
                "for each point; choose another one (field=NAME, --field NAME)"
            )


def check_once(wanted: str, names: Iterable[str]) -> None:
    """Check that no two columns of a file have the name of one that is written; see `Source.check_once`."""
    if list(names).count(wanted) > 1:
        raise PointCloudError(f"two columns are called {wanted!r}; rename one")


def taken(what: str, name: str | None) -> str:
    """Return the words for a new column whose name the file has already, as that of an earlier answer."""
    return f"has a {what} {name!r} already, which is never overwritten; pass the file without it"


def class_column(
    labels: Any,
    field: str | None,
    codes: Mapping[int, int] | Sequence[int] | None,
) -> Column:
    """Return the column of the classes; `labels` is None in a check before there are any, with the codes alone."""
    table = None
    if codes is not None:
        pairs: Iterable[tuple[int, int]] = codes.items() if isinstance(codes, Mapping) else enumerate(codes)
        given = {int(number): int(code) for number, code in pairs}
        if not given or min(given) < 0 or min(given.values()) < 0:
            raise ValueError(f"codes is {given}; expected codes from 0 by labels from 0")
        table = np.full(max(given) + 1, NO_LABEL, np.int32)
        for number, code in given.items():
            table[number] = code
    values = None
    if labels is not None:
        values = _whole("labels", labels)
        least, most = _range(values)
        if table is not None:
            # A label without a code would be written as -1.
            present: set[int] = set()
            # In blocks, as there may be a hundred million.
            for start in range(0, len(values), _AT_ONCE):
                present.update(np.unique(values[start : start + _AT_ONCE]).tolist())
            named = sorted(number for number in present if number >= 0)
            missing = [number for number in named if number >= len(table) or table[number] < 0]
            if missing:
                raise ValueError(f"codes has none for label {missing[0]}")
        # Without codes, labels are written as they are, in 32 bits.
        elif values.dtype.kind in "iu" and most >= 2**31:
            raise ValueError(f"labels go to {most}; expected at most {2**31 - 1}")
    else:
        least = 0
        most = 0
    # With codes, these are what is written, also before there are labels.
    if table is not None:
        valid = table[table >= 0]
        least = int(valid.min())
        most = int(valid.max())
    return Column(field, "<i4", max(least, 0), max(most, 0), NO_LABEL, values, table, is_class=True)


def further_columns(scores: Any, unknown: Any, objects: Any, columns_by_name: Mapping[str, Any]) -> list[Column]:
    """Return the columns `score`, `unknown`, `object` and new ones by name; True stands for one without values yet."""
    columns = []
    for name, values in (("score", scores), ("unknown", unknown)):
        if values is not None:
            numbers = None if values is True else np.asarray(values, np.float32).reshape(-1)
            # NaN where there is no answer, since 0 is a score
            text = "probability of the class" if name == "score" else "how unlike the training it is"
            columns.append(Column(name, "<f4", 0.0, 1.0, np.nan, numbers, text=text))
    if objects is not None:
        numbers = None if objects is True else _whole("objects", objects)
        least, most = (0, 0) if numbers is None else _range(numbers)
        if not 0 <= least <= most < 2**31:
            raise ValueError(f"objects go from {least} to {most}; expected 0, for none, to {2**31 - 1}")
        columns.append(Column("object", "<u4", least, most, 0, numbers, text="number of the object"))
    for name, values in columns_by_name.items():
        if values is True or np.asarray(values).dtype.kind == "f":
            numbers = None if values is True else np.asarray(values, np.float32).reshape(-1)
            columns.append(Column(name, "<f4", 0.0, 1.0, np.nan, numbers, is_new=True, text=name))
        else:
            numbers = _whole(name, values)
            least, most = _range(numbers)
            if not -(2**31) <= least <= most < 2**31:
                raise ValueError(f"{name} goes from {least} to {most}; expected numbers of 32 bits")
            columns.append(Column(name, "<i4", least, most, 0, numbers, is_new=True, text=name))
    return columns


def _whole(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise ValueError(f"{name} has shape {array.shape} and type {array.dtype}; expected (points,) whole numbers")
    return array


def _range(values: np.ndarray) -> tuple[int, int]:
    return int(values.min()), int(values.max())


def read_rows(
    columns: Sequence[np.ndarray], count: int, is_point: np.ndarray | None = None, *, is_mesh: bool = False
) -> np.ndarray:
    """Return which points `read_point_cloud` keeps, (points,) bool: those whose coordinates float32 holds.

    Args:
        columns: x, y and z of all points, (points,) each.
        count: Number of labels. If more points than these are left, heights that stand for no data are none, either.
        is_point: (points,) whether each is a point by all else; None if all are.
        is_mesh: Whether points are vertices, whose heights all stay.
    """
    kept = np.ones(len(columns[0]), bool) if is_point is None else is_point.copy()
    # Coordinates beyond float32 become infinite, which is what is asked here.
    with np.errstate(over="ignore", invalid="ignore"):
        for column in columns:
            kept &= np.isfinite(np.asarray(column).astype(np.float32))
    if kept.sum() <= count or is_mesh:
        return kept
    heights = np.asarray(columns[2])
    value = no_data_height(heights[kept], exact=True)
    return kept if value is None else kept & ~without_height(heights, value)


def is_same(fields: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Return whether two readings of a table have the same fields, in the precision of a cloud."""
    one = {name: values for name, values in fields.items() if values is not None}
    other = {name: values for name, values in others.items() if values is not None}
    with np.errstate(over="ignore"):
        return one.keys() == other.keys() and all(
            np.array_equal(one[name].astype(np.float32), other[name].astype(np.float32), equal_nan=True)
            for name in one
        )


def number_texts(column: Column, start: int, stop: int, *, is_new: bool = False) -> list[bytes]:
    """Return the numbers of some points as text; empty for points that keep what they have, unless it is new."""
    values, answered = column.block(start, stop)
    # Nine digits tell any two numbers of float32 apart.
    form = "%d" if values.dtype.kind in "iub" else "%.9g"
    unanswered = b""
    if is_new:
        unanswered = b"nan" if np.isnan(column.fill) else b"%d" % int(column.fill)
    return [
        (form % value).encode() if has_answer else unanswered
        for value, has_answer in zip(values.tolist(), answered.tolist(), strict=True)
    ]


def check_word(name: str) -> str:
    """Check that a name can stand among others that blanks or other marks separate."""
    if not name.isascii() or re.search(r"[\s,;\"#]", name) or not name:
        raise ArgumentError(f"field is {name!r}; use ASCII letters without separators")
    return name


def check_field(name: str, columns: Iterable[str], *, has_decimals: bool = False) -> None:
    """Check that a column may hold classes: it must not be a coordinate or a measured value.

    Args:
        name: The name that was asked for.
        columns: Names of what the file has for each point.
        has_decimals: Whether the file has a column of this name whose numbers have decimals, as measurements have.
    """
    used = fields_of(columns)
    # The file's own labels are what a class may be written over.
    used.pop("labels", None)
    plain = plain_name(name)
    is_used = any(plain == plain_name(column) for names in used.values() for column in names)
    is_known = plain in measured_words() or re.sub(r"\W|_", "", plain) in _MEASURED
    is_measured = has_decimals and not _LIKE_CLASSES.search(plain)
    if is_used or is_known or is_measured or _OF_SPLATS.fullmatch(plain):
        raise ArgumentError(f"field is {name!r}, a standard attribute; choose another name for the class")


class QuietSource(Source):
    """Source that gives no warnings, for a file that was read before."""

    def warn(self, text: str) -> None:
        """Say nothing."""

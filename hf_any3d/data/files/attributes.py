"""Find points, colors, normals and labels among the columns of a table, by their names or their number."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_any3d.data.files.column_names import (
    IN_DEGREES,
    NAMES_OF_AXES,
    fields_of,
    is_label_name,
    names_in_degrees,
    plain_name,
    units_of_axes,
    wanted_fields,
)
from hf_any3d.data.files.point_cloud import is_finite, leaves_out_invalid_points, row_blocks
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.splats import SPLAT_COLORS, splat_colors
from hf_any3d.data.files.text_numbers import listed

_LONG_COUNT = 20  # points after which whole numbers that count are not taken for coordinates


# A number of the point, which says nothing about it.
_COUNTERS = ("", "unnamed_0")
_ALPHA = ("a", "alpha")


def unused_names(columns: Mapping[str, np.ndarray], fields: Mapping[str, list[str]]) -> list[str]:
    """Return the names of informative columns that no field of a cloud is made of.

    Numbers of rows without a name are none of them, nor an alpha that is the same everywhere.
    """
    used = {name for names in fields.values() for name in names}
    unused = []
    for name in columns:
        if name in used or plain_name(name) in _COUNTERS:
            continue
        if plain_name(name) in _ALPHA:
            values = columns[name]
            if not len(values) or (values == values[0]).all():
                continue
        unused.append(name)
    return unused


def by_name(columns: Mapping[str, np.ndarray], source: Source, listed_elsewhere: str = "") -> dict[str, Any]:
    """Find points, colors, normals, labels and measured values among named columns; warn about the others.

    Args:
        columns: Name -> (points,) numbers.
        source: The file, for warnings.
        listed_elsewhere: Pattern of names that belong to every file of a format and are not told of.
    """
    columns = _with_unpacked_colors(columns)
    fields = wanted_fields(columns, source)
    further = source.further_columns_of_points(columns)
    if "points" not in fields:
        degrees = names_in_degrees(columns)
        if degrees:
            raise PointCloudError(f"columns {' and '.join(degrees)} {IN_DEGREES}")
        missing = [axis for axis in "xyz" if axis not in map(plain_name, columns)]
        raise PointCloudError(f"no column {', '.join(missing)}; found {listed(columns)}; expected {NAMES_OF_AXES}")
    places = [name for name in fields["points"] if name in further.values()]
    if places:
        raise PointCloudError(f"column {places[0]!r} holds coordinates; leave it out of columns")
    unused = [name for name in unused_names(columns, fields) if name not in further.values()]
    unused = [name for name in unused if not re.fullmatch(listed_elsewhere, name)]
    # Of other labels, tell which ones count and how to choose.
    others = [name for name in unused if is_label_name(name)]
    source.leave_out(name for name in unused if name not in others)
    if "labels" in fields:
        source.leave_out(others, f"labels are read from {fields['labels'][0]}; choose another column with label_field")
    else:
        source.leave_out(others)
    axes = fields.pop("points")
    points = stacked([columns[name] for name in axes])  # (points, 3)
    left_out = left_out_points(points)
    cloud: dict[str, Any] = {"points": points, **units_of_axes(axes, source)}
    for field, names in fields.items():
        if not source.wants(field):
            continue
        values = stacked([columns[name] for name in names]) if len(names) > 1 else columns[names[0]]
        values = with_stand_ins(values, left_out)
        if tuple(names) == SPLAT_COLORS:
            values = splat_colors(values)
        elif field in ("colors", "intensity") and len(values) and not values.any():
            source.leave_out(names, "zero everywhere")
            continue
        if field in ("intensity", "ring") and _counts(values, plain_name(names[0])):
            source.leave_out(names, "it counts the points")
            continue
        cloud[field] = USABLE[field](values, source)
    if further:
        cloud["further"] = {wanted: further_column(columns[name]) for wanted, name in further.items()}
    return cloud


_TINY = 1e-30  # whole numbers up to 0xFFFFFF have less as the bits of a float32


def _with_unpacked_colors(columns: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Return columns with the channels of colors of one number, 0xRRGGBB, as the Point Cloud Library packs them."""
    name = next((name for name in columns if plain_name(name) in ("rgb", "rgba")), None)
    if name is None or columns[name].ndim != 1 or "colors" in fields_of(columns):
        return columns
    values = with_stand_ins(columns[name], missing_rows(columns[name]))
    if not (values == np.floor(values)).all():
        # The bits of the float are the color, which as a number is next to nothing.
        if np.abs(values).max() > _TINY:
            return columns
        values = values.astype(np.float32).view(np.uint32)
    if not (len(values) and 255 < np.abs(values.astype(np.float64)).max() < 2**32):
        return columns
    packed = values.astype(np.int64)
    channels = {"red": 16, "green": 8, "blue": 0}
    unpacked = {channel: (packed >> shift & 255).astype(np.uint8) for channel, shift in channels.items()}
    return {**{other: column for other, column in columns.items() if other != name}, **unpacked}


_SHORT = ("i", "line", "channel", "beam", "laser")  # names of fields and of counts alike


def _counts(values: np.ndarray, name: str) -> bool:
    """Return whether a column (points,) under a name of a field counts the points, one by one."""
    if values.ndim != 1 or values.dtype.kind not in "fiu" or len(values) < 3:
        return False
    # Short names stand for other things as well; under a long one, a few points may have such values.
    if len(values) < _LONG_COUNT and name not in _SHORT:
        return False
    if values[0] != np.floor(values[0]) or (len(values) < _LONG_COUNT and values[0] not in (0, 1)):
        return False
    return bool((np.diff(values.astype(np.float64)) == 1).all())


def stacked(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Join columns (points,) to an array (points, columns), as `np.stack` does.

    Columns may be views of the rows of a file. Block by block, each row is fetched from memory once and not once for
    each column.
    """
    shapes = {column.shape for column in columns}
    if len(shapes) > 1 or columns[0].ndim != 1:
        return np.stack(columns, axis=1)  # with numpy's error, if it is one
    table = np.empty((len(columns[0]), len(columns)), np.result_type(*columns))
    for rows in row_blocks(len(table)):
        for place, column in enumerate(columns):
            table[rows, place] = column[rows]
    return table


def further_column(values: np.ndarray) -> np.ndarray:
    """Return a column (points,) as float64, with NaN for what is no number."""
    values = values.astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def left_out_points(points: np.ndarray) -> np.ndarray:
    """Return which points (points, 3) a cloud will leave out for their coordinates, (points,); see `on_invalid`."""
    if points.dtype.kind != "f" or not leaves_out_invalid_points() or is_finite(points):
        return np.zeros(len(points), bool)
    return missing_rows(points.astype(np.float32, copy=False))


def missing_rows(values: np.ndarray) -> np.ndarray:
    """Return which rows have NaN or infinite values, (rows,)."""
    # Many times faster than row by row
    if values.dtype.kind != "f" or is_finite(values, values.dtype):
        return np.zeros(values.shape[:1], bool)
    return np.asarray(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))


def with_stand_ins(values: np.ndarray, are_missing: np.ndarray) -> np.ndarray:
    """Return values whose missing rows (rows,) have those of the first other row, so that they decide nothing."""
    # Values of another number of points are an error later.
    if values.shape[:1] != are_missing.shape or not are_missing.any() or are_missing.all():
        return values
    values = values.copy()
    values[are_missing] = values[are_missing.argmin()]
    return values


# Meters from a scanner that no laser reaches.
_FARTHEST = 1e4


def join_scans(scans: list[dict[str, Any]], source: Source, others: Iterable[str] = ()) -> dict[str, Any]:
    """Join the points of scans in one frame, with colors, intensities and other values where all scans have them.

    Points of scans without labels have -1. Intensities are on one scale: if scans state different `intensity_limits`,
    the least and the largest number of their sensors, each scan is scaled to 0 to 1 by its own. Colors and intensities
    that are 0 everywhere are left out, as in LAS they are those of sensors that measure none.
    """
    scans = _with_one_scale(scans, source)
    joined: dict[str, np.ndarray] = {}
    for name in ("points", "colors", "intensity", *others):
        having = [scan[name] for scan in scans if name in scan]
        if name == "labels" and having:
            having = [scan.get(name, np.full(len(scan["points"]), -1)) for scan in scans]
        if name in ("colors", "intensity") and not any(np.nan_to_num(values).any() for values in having):
            continue
        if len(having) == len(scans):
            joined[name] = np.concatenate(having)
        elif having:
            source.warn(f"{len(scans) - len(having)} of {len(scans)} scans have no {name}, so {name} are ignored")
    # Clouds that are no scans of one place have an empty pose, far from their map coordinates.
    scanners = [(scan["scanner"], scan["points"][0]) for scan in scans if "scanner" in scan]
    near = [scanner for scanner, point in scanners if np.abs(point - scanner).max() < _FARTHEST]
    places = np.array(near)  # (scans, 3)
    if len(places) == len(scans):
        is_one = (places == places[0]).all()
        joined["scanner"] = places[0]
        if not is_one:
            # In single precision, whose half meter on a map does not matter for the side of a surface.
            counts = [len(scan["points"]) for scan in scans]
            joined["scanner"] = places.astype(np.float32).repeat(counts, axis=0)
    return joined


# Largest intensities of scans that differ by a larger factor are hardly of one scale.
_OTHER_SCALE = 4.0


def _with_one_scale(scans: list[dict[str, Any]], source: Source) -> list[dict[str, Any]]:
    """Return scans without `intensity_limits`, by which intensities are scaled to 0 to 1 if they differ."""
    limits: list[Any] = [scan.get("intensity_limits") for scan in scans if "intensity" in scan]
    scans = [{name: values for name, values in scan.items() if name != "intensity_limits"} for scan in scans]
    measured = [scan for scan in scans if "intensity" in scan]
    if None not in limits:
        if len({*limits}) > 1:
            source.warn("scans declare different intensity limits; each scan is scaled to 0 to 1 by its own limits")
            for scan, (low, high) in zip(measured, limits, strict=True):
                scan["intensity"] = (scan["intensity"] - np.float32(low)) / np.float32(high - low)
        return scans
    # Without limits nothing tells the scale, but those of 8 and of 11 bits, or of 1, show.
    tops = [top for scan in measured if (top := float(np.nanmax(scan["intensity"], initial=0))) > 0]
    if tops and max(tops) > _OTHER_SCALE * min(tops):
        source.warn(
            f"intensities reach {min(tops):g} in one scan and {max(tops):g} in another, and no limits are "
            "declared; intensities are not rescaled"
        )
    return scans


def by_number(table: np.ndarray, source: Source, *, is_counted: bool = False) -> dict[str, Any]:
    """Return arguments of PointCloudData for a table (points, columns) without names.

    Whole numbers from 0 to 255 in the last three of 6 or 7 columns of a PTS are colors by its format: where a line
    with the number of points comes first (`is_counted`), or nothing says that they are something else.

    | columns | meaning |
    |---|---|
    | 3 | x y z |
    | 4 | x y z labels; in PTS x y z intensity |
    | 6 | x y z and normals (if nearly all rows of 4 to 6 have length 1) or colors |
    | 7 | x y z normals labels; x y z intensity colors; x y z colors alpha; or x y z colors labels |
    | 9 | x y z colors normals, or x y z normals colors |

    Columns are colors if all values are in [0, 1] and some are fractions, or all are whole numbers in [0, 255] and no
    column has a maximum from 1 to 31, as returns and classes have; alpha if all are 255, or 1 beside colors in [0, 1];
    labels if they are whole numbers from 0, few of them different. Columns that match no rule, or several, are left
    out with a warning; another says what is read as labels. A first column that counts the points, or has the times
    at which they were measured, is left out with a warning, too. Values that are NaN or infinite decide nothing of
    this.
    """
    if table.shape[1] > 5 and _may_count_grid(table):
        raise PointCloudError(
            "columns 1 and 2 may be x and y, or the row and column of each point in a grid; name the columns in a "
            "header line, such as row col x y z"
        )
    if source.label_field is not None:
        return _with_chosen_column(table, source)
    return _by_width(table, source, is_counted)


_WIDTHS = (3, 4, 6, 7, 9)  # of tables without names


def _by_width(table: np.ndarray, source: Source, is_counted: bool) -> dict[str, Any]:
    """Return the fields of a table (points, columns) by the number of its columns; see `by_number`."""
    if table.shape[1] - 1 in _WIDTHS and _counts_points(table):
        source.leave_out(["column 1"], "it counts the points")
        table = table[:, 1:]
    elif table.shape[1] > 3 and _rises(table):
        if _is_of_other_scale(table):
            source.leave_out(["column 1"], "it rises as times do, far from the other numbers")
            table = table[:, 1:]
        elif not _may_follow_points(table):
            source.warn("column 1 increases like a timestamp but has no name, and is read as x")
    width = table.shape[1]
    if width not in _WIDTHS:
        raise PointCloudError(f"{width} columns without names; expected 3, 4, 6, 7 or 9, or a header line with names")
    cloud: dict[str, Any] = {"points": table[:, :3]}
    left_out = left_out_points(table[:, :3])
    if left_out.any():
        table = with_stand_ins(table, left_out)
    is_pts = source.file_type == "pts"
    if width == 3:
        return cloud
    # Leica's columns, whatever their values: x y z r g b, or x y z intensity r g b.
    if is_pts and width in (6, 7) and _has_colors_of_pts(table, is_counted):
        cloud["colors"] = _colors_if_any(as_bytes(table[:, -3:]), source)
        if width == 7:
            cloud["intensity"] = usable_numbers(table[:, 3], "intensities", source)
        return cloud
    if width == 4 and is_pts:
        return {**cloud, "intensity": usable_numbers(table[:, 3], "intensities", source)}
    if width == 4:
        return {**cloud, "labels": _likely_labels(table, source)}
    if width == 7 and not has_unit_length(table[:, 3:6]):
        return {**cloud, **_with_seventh_column(table, is_pts, source)}
    cloud |= _three_columns(table[:, 3:6], "columns 4 to 6", ("normals", "colors"), source)
    if width == 7:
        cloud["labels"] = usable_labels(table[:, 6], source, first=0)
    if width == 9:
        missing = tuple(name for name in ("colors", "normals") if name not in cloud)
        cloud |= _three_columns(table[:, 6:], "columns 7 to 9", missing, source)
    return cloud


def _with_chosen_column(table: np.ndarray, source: Source) -> dict[str, Any]:
    """Read labels from the column whose number was chosen, and the others without labels."""
    width = table.shape[1]
    # Coordinates come first, and are no labels.
    chosen = source.chosen_label(map(str, range(4, width + 1)))
    place = width if chosen is None else int(chosen) - 1
    others = np.delete(table, place, axis=1) if chosen is not None else table
    if others.shape[1] in _WIDTHS and not (others.shape[1] == 4 and source.file_type != "pts"):
        cloud: dict[str, Any] = _by_width(np.ascontiguousarray(others), source, is_counted=False)
        cloud.pop("labels", None)
    else:
        cloud = {"points": others[:, :3]}
        if others.shape[1] > 3:
            source.leave_out(["further columns"], "nothing names them")
    if chosen is not None:
        labels = with_stand_ins(table[:, place], left_out_points(table[:, :3]))
        cloud["labels"] = usable_labels(labels, source)
    return cloud


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Return colors of a format that has them from 0 to 255 in their type, so that 1 is nearly black; others as is."""
    present = values[~missing_rows(values)]
    if not ((present >= 0) & (present <= 255) & (present == np.floor(present))).all():
        return values
    return values if len(present) < len(values) else values.astype(np.uint8)


# Numbers of returns and of most classes are below; a channel of real colors has brighter values.
_MOST_COUNTED = 31


def _has_colors_of_pts(table: np.ndarray, is_counted: bool) -> bool:
    """Return whether the last three columns (points, 6 or 7) of a PTS are colors from 0 to 255."""
    last = table[:, -3:]
    if as_bytes(last).dtype.kind != "u" or has_unit_length(table[:, 3:6]):
        return False
    # Without the line with the count, other programs may have written other columns.
    is_dark = last.max() <= _MOST_COUNTED
    return is_counted or not (is_dark or (table.shape[1] == 7 and _looks_like_colors(table[:, 3:6])))


def _three_columns(rows: np.ndarray, columns: str, kinds: tuple[str, ...], source: Source) -> dict[str, Any]:
    """Read three columns as the first of some kinds, "normals" or "colors", that their values may be."""
    for kind in kinds:
        # Few colors happen to have length 1.
        if kind == "normals" and has_unit_length(rows):
            return {"normals": usable_normals(rows, source)}
        if kind == "colors" and _looks_like_colors(rows):
            return {"colors": usable_colors(rows, source)}
    source.warn(f"{columns} look neither like normals nor like colors and are ignored; name them in a header line")
    return {}


def _with_seventh_column(table: np.ndarray, is_pts: bool, source: Source) -> dict[str, Any]:
    """Interpret columns 4 to 7: an intensity and colors, or colors and an alpha value or label."""
    first = table[:, 3:6]
    last = table[:, 4:7]
    seventh = with_stand_ins(table[:, 6], missing_rows(table[:, 6]))
    colors_first = _looks_like_colors(first)
    colors_last = _looks_like_colors(last)
    if colors_last and (is_pts or not colors_first):
        if not is_pts and _is_like_classes(first[:, 0] - first[:, 0].min()):
            source.warn("column 4 has no name and is read as intensity")
        intensity = usable_numbers(first[:, 0], "intensities", source)
        return {"intensity": intensity, "colors": usable_colors(last, source)}
    if is_pts and not colors_first:
        source.warn("columns 5 to 7 have no names, do not look like colors, and are ignored")
        return {"intensity": usable_numbers(first[:, 0], "intensities", source)}
    if not colors_first:
        source.warn("columns 4 to 6 look neither like normals nor like colors and are ignored")
        return {"labels": _likely_labels(table, source)}
    opaque = 255 if np.nanmax(first) > 1 else 1
    if (seventh == opaque).all():
        if opaque == 1:
            source.warn("column 7 is 1 everywhere and is ignored as alpha")
        return {"colors": usable_colors(first, source)}
    if colors_last and not _is_like_classes(seventh):
        source.warn("columns 4 to 7 may be intensity and colors, or colors and another value, and are ignored")
        return {}
    return {"colors": usable_colors(first, source), "labels": _likely_labels(table, source)}


def _counts_points(table: np.ndarray) -> bool:
    """Return whether the first column numbers the points, as surveyors and photogrammetry write them."""
    first = table[:, 0]
    if len(first) < 3 or table.dtype.kind not in "fiu" or not (first == np.floor(first)).all():
        return False
    # No scan has points whose x are whole numbers that rise while others have decimals, nor that count without end.
    steps = np.diff(first)
    others = table[:, 1:4]
    have_decimals = (others != np.floor(others)).any(axis=0).sum() >= 2
    return bool((steps > 0).all() if have_decimals else (steps == 1).all() and len(first) >= _LONG_COUNT)


def _rises(table: np.ndarray) -> bool:
    """Return whether the numbers of the first column never fall from row to row, over many rows."""
    first = table[:, 0]
    if len(first) < _LONG_COUNT // 2 or table.dtype.kind not in "fiu":
        return False
    return bool((np.diff(first) >= 0).all() and first[-1] > first[0])


# No coordinate in meters is as large, and seconds since 1970 or 1980 are; so many times larger than others are times.
_BEYOND_EARTH, _OTHER_SIZE = 1e8, 1000.0


def _is_of_other_scale(table: np.ndarray) -> bool:
    """Return whether the first column is no coordinate by its size: beyond the Earth, or far from y and z."""
    low = float(table[0, 0])
    size = np.abs(table[:, 1:4])
    return low >= _BEYOND_EARTH or bool(np.isfinite(size).all() and low > _OTHER_SIZE * max(float(size.max()), 1.0))


def _may_count_grid(table: np.ndarray) -> bool:
    """Return whether the first two columns number the points of a scan grid, and the next three may be coordinates."""
    grid = table[:, :2]
    if len(table) < _LONG_COUNT // 2 or table.dtype.kind != "f" or not ((grid >= 0) & (grid == np.floor(grid))).all():
        return False
    # Row by row or column by column, perhaps with gaps where nothing was measured
    is_next = []
    for outer, inner in ((0, 1), (1, 0)):
        steps = np.diff(grid, axis=0)
        is_next.append(((steps[:, outer] > 0) | ((steps[:, outer] == 0) & (steps[:, inner] > 0))).all())
    have_decimals = (table[:, 3:5] != np.floor(table[:, 3:5])).any(axis=0).all()
    return bool(any(is_next) and have_decimals and not _may_follow_points(table))


def _may_follow_points(table: np.ndarray) -> bool:
    """Return whether the columns from the fourth on are what follows x, y and z."""
    others = table[:, 3:6]
    if table.shape[1] == 4:
        return _is_like_classes(table[:, 3])
    return others.shape[1] == 3 and (has_unit_length(others) or _looks_like_colors(others))


def _likely_labels(table: np.ndarray, source: Source) -> np.ndarray | None:
    """Return the last column as labels with a warning, or None with another if it may be something else."""
    column = f"column {table.shape[1]}"
    values = table[:, -1]
    if not _is_like_classes(values):
        source.warn(f"{column} has no name, may be labels, intensities or other values, and is ignored")
        return None
    source.warn(f"{column} has no name and is read as labels")
    return usable_labels(values, source, first=0)


# A column of whole numbers with more different ones than this, in some of its rows, may be intensities.
_MOST_CLASSES, _ROWS_LOOKED_AT = 64, 65536


def _is_like_classes(values: np.ndarray) -> bool:
    """Return whether values are whole numbers from 0, with few different ones."""
    values = with_stand_ins(values, missing_rows(values))
    sample = values[:: max(1, len(values) // _ROWS_LOOKED_AT)]
    return bool((sample >= 0).all() and (sample == np.floor(sample)).all() and len(np.unique(sample)) <= _MOST_CLASSES)


# Floats are colors from 0 to 1 if none is brighter, or if so many are not above 1: renderers write highlights above 1,
# while of colors from 0 to 255 nearly all are above 1. Up to 1.001 is rounding.
_BRIGHTEST, _SHARE_WITHIN, _ROUNDED = 2.0, 0.95, 1.001


def unit_colors(values: np.ndarray) -> np.ndarray:
    """Scale colors to float32 in [0, 1]; see `color_scale`. What is above 1 after that is clamped."""
    # The maximum of nothing is an error in numpy.
    if not values.size:
        return values.astype(np.float32)
    scale = color_scale(values)
    colors = np.empty(values.shape, np.float32)
    if values.dtype.kind != "f":
        least = np.float32(values.min())
        most = np.float32(values.max())
    else:
        least = np.float32(np.inf)
        most = np.float32(-np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        for rows in row_blocks(len(values)):
            block = values[rows].astype(np.float32)
            if values.dtype.kind == "f":
                # With NaN both are NaN.
                least = np.minimum(least, block.min())
                most = np.maximum(most, block.max())
            np.divide(block, np.float32(scale), out=colors[rows])
            # Whole numbers are not brighter than their scale, or an error follows.
            if values.dtype.kind == "f":
                np.clip(colors[rows], 0, 1, out=colors[rows])
    top = float(most)
    is_in_range = np.isfinite(top) if scale == 1 else top <= scale * _ROUNDED
    if not (least >= 0 and is_in_range):  # or NaN
        raise PointCloudError(f"colors range from {least:g} to {top:g}; expected 0 to 1 or 0 to 255")
    return colors


def color_scale(values: np.ndarray) -> float:
    """Return the number that stands for full brightness: 255 (uint16: 65535) in whole numbers, 1 or 255 in floats.

    Floats that are whole numbers above 4095, as in text, range to 65535 too. Floats range to 1 if none is far above
    it, or few are above it at all.
    """
    top = float(values.max())
    # Many writers store 8 bit colors in 16 bits, so the type alone does not tell.
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and top > 255:
        return 65535.0
    if values.dtype.kind != "f":
        return 255.0
    if top <= _ROUNDED:
        return 1.0
    if (values == np.floor(values)).all():
        # Up to 4095, they may as well have 10 or 12 bits.
        return 65535.0 if 4095 < top <= 65535 else 255.0
    if top <= _BRIGHTEST or (values <= _ROUNDED).mean() >= _SHARE_WITHIN:
        return 1.0
    return 255.0


def usable_colors(values: np.ndarray, source: Source) -> np.ndarray | None:
    """Return `unit_colors`, or None with a warning if there are none.

    Points whose color is NaN or infinite are black, as points without a color are in LAS. Warns of them, and of colors
    above 1, which are clamped.
    """
    missing = _told_as_missing(values, "colors", "black", source)
    if missing is None:
        return None
    values = with_stand_ins(values, missing)
    try:
        colors = unit_colors(values)
    except PointCloudError as error:
        source.warn(f"{error}; they are ignored")
        return None
    if values.dtype.kind == "f" and values.size and color_scale(values) == 1 and (above := values > _ROUNDED).any():
        source.warn(f"{above.sum():,} of {values.size:,} color values are above 1 and are clipped to 1")
    if missing.any():
        colors[missing] = 0
    return colors


def _colors_if_any(values: np.ndarray, source: Source) -> np.ndarray | None:
    """Return `usable_colors` of a whole file, or None with a warning if all are 0, as where a sensor measures none."""
    colors = usable_colors(values, source)
    if colors is None or not len(colors) or colors.any():
        return colors
    source.leave_out(["colors"], "zero everywhere")
    return None


def usable_normals(values: np.ndarray, source: Source) -> np.ndarray | None:
    """Return normals as float32 if any has a length, else None with a warning; see `usable_numbers`."""
    normals = usable_numbers(values, "normals", source)
    if normals is not None and len(normals) and not normals.any():
        source.warn("normals are all zero and are ignored")
        return None
    return normals


def usable_numbers(values: np.ndarray, names: str, source: Source, why: str = "NaN or infinite") -> np.ndarray | None:
    """Return numbers as float32, with a warning that calls them `names` where points have none, and 0 there.

    None if no point has a finite number, with a warning, too; `why` is what numbers that are not finite stand for.
    """
    numbers = values.astype(np.float32)
    # Whole numbers are all finite.
    if values.dtype.kind in "iub":
        return numbers
    missing = _told_as_missing(numbers, names, "0", source, why)
    if missing is None:
        return None
    if missing.any():
        numbers[missing] = 0
    return numbers


def usable_labels(values: np.ndarray, source: Source, first: int | None = None) -> np.ndarray | None:
    """Return labels as int64 if they are whole numbers of its range not below `first`, else None with a warning.

    Points whose label is NaN or infinite have -1, with a warning.
    """
    missing = _told_as_missing(values, "labels", "-1", source)
    if missing is None:
        return None
    values = with_stand_ins(values, missing)
    # From 2**53 on, neighboring whole numbers are the same float64.
    are_whole = values.dtype.kind in "iub" or bool(((np.abs(values) < 2**53) & (values == np.floor(values))).all())
    if values.dtype.kind == "u" and values.max(initial=0) > np.iinfo(np.int64).max:
        are_whole = False  # they would become negative ones
    if are_whole and (first is None or not len(values) or values.min() >= first):
        labels = values.astype(np.int64)
        if missing.any():
            labels[missing] = -1
        return labels
    lowest = "" if first is None else f" from {first}"
    source.warn(f"the label column has values that are not integers{lowest} and is ignored")
    return None


def _told_as_missing(
    values: np.ndarray, names: str, instead: str, source: Source, why: str = "NaN or infinite"
) -> np.ndarray | None:
    """Find rows with NaN or infinite values, (rows,), and warn of them; return None if all rows have some."""
    missing = missing_rows(values)
    if not missing.any():
        return missing
    if missing.all():
        source.warn(f"{names} are {why} everywhere and are ignored")
        return None
    source.warn(
        f"{names}: {missing.sum():,} of {len(missing):,} are {why}, the first at {missing.argmax()} "
        f"(counted from 0); they are {instead}"
    )
    return missing


def has_unit_length(rows: np.ndarray) -> bool:
    """Return whether nearly all rows (rows, 3) have length 1, as normals do."""
    rows = with_stand_ins(rows, missing_rows(rows))
    length = np.linalg.norm(rows.astype(np.float64), axis=1)
    return bool((np.abs(length - 1) < 0.02).mean() > 0.99)


def _looks_like_colors(rows: np.ndarray) -> bool:
    rows = with_stand_ins(rows, missing_rows(rows))
    if not (rows.min() >= 0 and rows.max() <= 255):  # or NaN
        return False
    are_whole = bool((rows == np.floor(rows)).all())
    if rows.max() <= 1:
        # Zeros and ones may as well be flags, or returns of pulses that all came back once.
        return not are_whole
    # A channel may be 0 everywhere, but if it is dark everywhere, it rather counts returns or classes.
    brightest = rows.max(axis=0)
    return are_whole and not ((brightest > 0) & (brightest <= _MOST_COUNTED)).any()


USABLE: dict[str, Callable[[np.ndarray, Source], np.ndarray | None]] = {
    "points": lambda values, _: values,
    "normals": usable_normals,
    "colors": _colors_if_any,
    "intensity": lambda values, source: usable_numbers(values, "intensities", source),
    "ring": lambda values, source: usable_numbers(values, "rings", source),
    "return_number": lambda values, source: usable_numbers(values, "return numbers", source),
    "number_of_returns": lambda values, source: usable_numbers(values, "numbers of returns", source),
    "labels": usable_labels,
}
"""Field of a cloud -> function that returns its values from those of a file, or None with a warning."""

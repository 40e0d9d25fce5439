"""Find points, colors, normals and labels among the columns of a table, by their names or their number."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.splats import SPLAT_COLORS, splat_colors
from hf_any3d.data.files.text_numbers import listed

# Names of the columns of each field as `plain_name` returns them; the first that are all there count.
_NORMALS = ("nx ny nz", "normal_x normal_y normal_z", "normalx normaly normalz", "normals_0 normals_1 normals_2")
_COLORS = ("red green blue", "r g b", "rf gf bf", "diffuse_red diffuse_green diffuse_blue", " ".join(SPLAT_COLORS))
_INTENSITIES = "intensity reflectance remission reflectivity strength intensities refl i".split()
# "channel" is what Autoware calls the laser, "line" what Livox does.
_RINGS = "ring ring_id laser_id laserid laser channel beam beam_id line".split()
# Classes come before `label`: where a file has both, the label may be the number of an object.
_CLASSES = (
    "class classification class_id semantic semantic_label semantic_class semantic_id sem_label sem_class".split()
)
_LABELS = [*_CLASSES, *"category category_id label labels label_id segment seg".split()]
_RETURNS, _COUNTS_OF_RETURNS = (
    ("return_number", "returnnumber"),
    ("number_of_returns", "numberofreturns", "num_returns"),
)
_FIELDS = {"normals": _NORMALS, "colors": _COLORS, "intensity": _INTENSITIES, "ring": _RINGS, "labels": _LABELS}
_FIELDS |= {"return_number": _RETURNS, "number_of_returns": _COUNTS_OF_RETURNS}
# Columns of arrays, as ParaView and VeloView write them.
_ARRAYS_OF_POINTS = ("points_0 points_1 points_2", "points_m_xyz_0 points_m_xyz_1 points_m_xyz_2")
# Names of a coordinate, in which {0} stands for x, y or z: `X_UTME` is that of a map, `POINT_X` that of ArcGIS.
_AXIS = re.compile(r"((point|pos|position|coord|coords|location)_?)?([xyz])(_?(coord|coordinate|pos|utm[en]))?")
# Names of surveyors. They put northing first as often as last, so that only names tell which is which.
_SURVEYED = {
    "x": ("easting", "eastings", "east", "utm_e", "utm_easting"),
    "y": ("northing", "northings", "north", "utm_n", "utm_northing"),
    "z": ("elevation", "elev", "height", "altitude", "alt", "level"),
}
_SHORT_SURVEYED = ("e n z", "e n h", "e n elev", "e n elevation", "e n height")
NAMES_OF_AXES = "x, y, z or easting, northing, elevation"
"""Names of coordinates, for errors."""

# A number of the point, which says nothing about it.
_COUNTERS = ("", "unnamed_0")
_ALPHA = ("a", "alpha")
_UNIT = re.compile(r"[\[(][^\])]*[\])]|[\s_/]+(?:mm|cm|km|m|ft)\s*$")
# A column of whole numbers with more different ones than this, in some of its rows, may be intensities.
_MOST_CLASSES, _ROWS_LOOKED_AT = 64, 65536
_WIDTHS = (3, 4, 6, 7, 9)  # of tables without names
_LONG_COUNT = 20  # points after which whole numbers that count are not taken for coordinates
# Floats are colors from 0 to 1 if none is brighter, or if so many are not above 1: renderers write highlights above 1,
# while of colors from 0 to 255 nearly all are above 1. Up to 1.001 is rounding.
_BRIGHTEST, _SHARE_WITHIN, _ROUNDED = 2.0, 0.95, 1.001


def plain_name(name: str) -> str:
    """Return the name of a column in small letters, without a unit, blanks and CloudCompare's `scalar_`."""
    return re.sub(r"[\s:.-]+", "_", _UNIT.sub("", name.lower())).strip("_").removeprefix("scalar_")


def fields_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the fields of a cloud that columns of these names have, each with the names of its columns."""
    plain: dict[str, str] = {}
    # Of `intensity` and `scalar_intensity` the plain one counts.
    for name in sorted(names, key=lambda name: plain_name(name) != name):
        plain.setdefault(plain_name(name), name)
    fields = {}
    if axes := _axes_of(plain):
        fields["points"] = [plain[name] for name in axes]
    for field, variants in _FIELDS.items():
        if wanted := next((names for names in map(str.split, variants) if plain.keys() >= {*names}), None):
            fields[field] = [plain[name] for name in wanted]
    return fields


def _axes_of(plain: Iterable[str]) -> list[str] | None:
    """Return the names of the columns of x, y and z among plain names, or None."""
    names = {*plain}
    if names >= {*"xyz"}:
        return list("xyz")
    for variant in map(str.split, (*_ARRAYS_OF_POINTS, *_SHORT_SURVEYED)):
        if names >= {*variant}:
            return variant
    axes: dict[str, str] = {}
    for name in plain:
        if match := _AXIS.fullmatch(name):
            axes.setdefault(match[3], name)
    for axis, words in _SURVEYED.items():
        if word := next((word for word in words if word in names), None):
            axes.setdefault(axis, word)
    return [axes[axis] for axis in "xyz"] if len(axes) == 3 else None


def measured_words() -> set[str]:
    """Return the plain names of columns that say where a point is or how it was measured; those of labels are none."""
    words = {word for field, names in _FIELDS.items() if field != "labels" for name in names for word in name.split()}
    return {*"xyz", *words}


def unused_names(columns: Mapping[str, np.ndarray], fields: Mapping[str, list[str]]) -> list[str]:
    """Return the columns that no field of a cloud is made of and that say something, as the file calls them.

    Numbers of rows without a name are none of them, nor an alpha that is the same everywhere.
    """
    used = {name for names in fields.values() for name in names}
    unused = [name for name in columns if name not in used and plain_name(name) not in _COUNTERS]
    return [name for name in unused if plain_name(name) not in _ALPHA or _varies(columns[name])]


def _varies(values: np.ndarray) -> bool:
    return bool(len(values) and (values != values[0]).any())


def by_name(columns: Mapping[str, np.ndarray], source: Source, listed_elsewhere: str = "") -> dict[str, Any]:
    """Find points, colors, normals, labels and what was measured among named columns; tell of the others by name.

    Args:
        columns: Name -> (points,) numbers.
        source: The file, for warnings.
        listed_elsewhere: Pattern of names that belong to every file of a format and are not told of.
    """
    fields = fields_of(columns)
    if "points" not in fields:
        missing = [axis for axis in "xyz" if axis not in map(plain_name, columns)]
        raise PointCloudError(f"no column {', '.join(missing)}; found {listed(columns)}; expected {NAMES_OF_AXES}")
    source.leave_out(name for name in unused_names(columns, fields) if not re.fullmatch(listed_elsewhere, name))
    cloud: dict[str, Any] = {}
    for field, names in fields.items():
        values = np.stack([columns[name] for name in names], axis=1) if len(names) > 1 else columns[names[0]]
        if tuple(names) == SPLAT_COLORS:
            values = splat_colors(values)
        cloud[field] = USABLE[field](values, source)
    return cloud


def join_scans(scans: list[dict[str, Any]], source: Source, others: Iterable[str] = ()) -> dict[str, Any]:
    """Join the points of scans in one frame, with colors, intensities and other values where all scans have them."""
    joined: dict[str, np.ndarray] = {}
    for name in ("points", "colors", "intensity", *others):
        having = [scan[name] for scan in scans if name in scan]
        if len(having) == len(scans):
            joined[name] = np.concatenate(having)
        elif having:
            source.warn(f"{len(scans) - len(having)} of {len(scans)} scans have no {name}; they are left out")
    return joined


def by_number(table: np.ndarray, source: Source) -> dict[str, Any]:
    """Return arguments of PointCloudData for a table (points, columns) without names.

    | columns | meaning |
    |---|---|
    | 3 | x y z |
    | 4 | x y z labels; in PTS x y z intensity |
    | 6 | x y z and normals (if nearly all rows of 4 to 6 have length 1) or colors |
    | 7 | x y z normals labels; x y z intensity colors; x y z colors alpha; or x y z colors labels |
    | 9 | x y z colors normals, or x y z normals colors |

    Columns are colors if all values are in [0, 1], or all are whole numbers in [0, 255]; alpha if all are 255, or 1
    beside colors in [0, 1]; labels if they are whole numbers from 0, few of them different. Columns that match no
    rule, or several, are left out with a warning; another says what is read as labels. A first column that counts the
    points is left out with a warning, too.
    """
    if table.shape[1] - 1 in _WIDTHS and _counts_points(table):
        source.leave_out(["column 1"], "it counts the points")
        table = table[:, 1:]
    width = table.shape[1]
    if width not in _WIDTHS:
        raise PointCloudError(f"{width} columns; expected 3, 4, 6, 7 or 9 (a header line may name the columns)")
    cloud: dict[str, Any] = {"points": table[:, :3]}
    is_pts = source.file_type == "pts"
    if width == 3:
        return cloud
    if width == 4 and is_pts:
        return {**cloud, "intensity": usable_numbers(table[:, 3], "intensities", source)}
    if width == 4:
        return {**cloud, "labels": _likely_labels(table, source)}
    if width == 7 and not _has_unit_length(table[:, 3:6]):
        return {**cloud, **_with_seventh_column(table, is_pts, source)}
    cloud |= _three_columns(table[:, 3:6], "columns 4 to 6", ("normals", "colors"), source)
    if width == 7:
        cloud["labels"] = usable_labels(table[:, 6], source, first=0)
    if width == 9:
        missing = tuple(name for name in ("colors", "normals") if name not in cloud)
        cloud |= _three_columns(table[:, 6:], "columns 7 to 9", missing, source)
    return cloud


def _three_columns(rows: np.ndarray, columns: str, kinds: tuple[str, ...], source: Source) -> dict[str, Any]:
    """Read three columns as the first of some kinds, "normals" or "colors", that their values may be."""
    for kind in kinds:
        # Few colors happen to have length 1.
        if kind == "normals" and _has_unit_length(rows):
            return {"normals": rows}
        if kind == "colors" and _looks_like_colors(rows):
            return {"colors": usable_colors(rows, source)}
    source.warn(f"{columns} look neither like normals nor like colors and are left out")
    return {}


def _with_seventh_column(table: np.ndarray, is_pts: bool, source: Source) -> dict[str, Any]:
    """Interpret columns 4 to 7: an intensity and colors, or colors and an alpha value or label."""
    first = table[:, 3:6]
    last = table[:, 4:7]
    seventh = table[:, 6]
    colors_first = _looks_like_colors(first)
    colors_last = _looks_like_colors(last)
    if colors_last and (is_pts or not colors_first):
        if not is_pts and _is_like_classes(first[:, 0] - first[:, 0].min()):
            source.warn("column 4 is read as intensities, since nothing names it")
        intensity = usable_numbers(first[:, 0], "intensities", source)
        return {"intensity": intensity, "colors": usable_colors(last, source)}
    if not colors_first:
        source.warn("columns 4 to 6 look neither like normals nor like colors and are left out")
        return {"labels": _likely_labels(table, source)}
    opaque = 255 if first.max() > 1 else 1
    if (seventh == opaque).all():
        if opaque == 1:
            source.warn("column 7 is 1 everywhere, is read as alpha and left out")
        return {"colors": usable_colors(first, source)}
    if colors_last and not _is_like_classes(seventh):
        source.warn("columns 4 to 7 may be an intensity and colors, or colors and another value, and are left out")
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


def _likely_labels(table: np.ndarray, source: Source) -> np.ndarray | None:
    """Return the last column as labels with a warning, or None with another if it may be something else."""
    column = f"column {table.shape[1]}"
    values = table[:, -1]
    if not _is_like_classes(values):
        source.warn(f"{column} may be labels, intensities or other values and is left out, since nothing names it")
        return None
    source.warn(f"{column} is read as labels, since nothing names it")
    return usable_labels(values, source, first=0)


def _is_like_classes(values: np.ndarray) -> bool:
    """Return whether values are whole numbers from 0, with few different ones."""
    sample = values[:: max(1, len(values) // _ROWS_LOOKED_AT)]
    return bool((sample >= 0).all() and (sample == np.floor(sample)).all() and len(np.unique(sample)) <= _MOST_CLASSES)


def unit_colors(values: np.ndarray) -> np.ndarray:
    """Scale colors to float32 in [0, 1]; see `color_scale`. What is above 1 after that is clamped."""
    with np.errstate(invalid="ignore", over="ignore"):
        colors = values.astype(np.float32)
    # The maximum of nothing is an error in numpy.
    if not colors.size:
        return colors
    scale = color_scale(values)
    top = float(colors.max())
    is_in_range = np.isfinite(top) if scale == 1 else top <= scale * _ROUNDED
    if not (colors.min() >= 0 and is_in_range):  # or NaN
        raise PointCloudError(f"colors range from {colors.min():g} to {top:g}; expected 0 to 1 or 0 to 255")
    return (colors / np.float32(scale)).clip(0, 1)


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
    """Return `unit_colors`, or None with a warning if there are none; warn if colors above 1 are clamped."""
    try:
        colors = unit_colors(values)
    except PointCloudError as error:
        source.warn(f"{error}; they are left out")
        return None
    if values.dtype.kind == "f" and values.size and color_scale(values) == 1 and (above := values > _ROUNDED).any():
        source.warn(f"{above.sum():,} of {values.size:,} numbers of colors are above 1, and read as 1")
    return colors


def usable_normals(values: np.ndarray, source: Source) -> np.ndarray | None:
    """Return normals as float32 if they are finite and have a length, else None with a warning."""
    normals = usable_numbers(values, "normals", source)
    if normals is not None and len(normals) and not normals.any():
        source.warn("normals are all zero and are left out")
        return None
    return normals


def usable_numbers(values: np.ndarray, names: str, source: Source) -> np.ndarray | None:
    """Return numbers as float32 if they are finite, else None with a warning that calls them `names`."""
    numbers = values.astype(np.float32)
    if not np.isfinite(numbers).all():
        source.warn(f"{names} have NaN or infinite values and are left out")
        return None
    return numbers


def usable_labels(values: np.ndarray, source: Source, first: int | None = None) -> np.ndarray | None:
    """Return labels as int64 if they are whole numbers of its range not below `first`, else None with a warning."""
    # From 2**53 on, neighboring whole numbers are the same float64.
    are_whole = values.dtype.kind in "iub" or bool(((np.abs(values) < 2**53) & (values == np.floor(values))).all())
    if values.dtype.kind == "u" and values.max(initial=0) > np.iinfo(np.int64).max:
        are_whole = False  # they would become negative ones
    if are_whole and (first is None or not len(values) or values.min() >= first):
        return values.astype(np.int64)
    lowest = "" if first is None else f" from {first}"
    source.warn(f"the label column has values other than whole numbers{lowest} and is left out")
    return None


def _has_unit_length(rows: np.ndarray) -> bool:
    length = np.linalg.norm(rows.astype(np.float64), axis=1)
    return bool((np.abs(length - 1) < 0.02).mean() > 0.99 and np.isfinite(rows).all())


def _looks_like_colors(rows: np.ndarray) -> bool:
    are_bytes = rows.min() >= 0 and rows.max() <= 255
    return bool(are_bytes and (rows.max() <= 1 or (rows == np.floor(rows)).all()))


USABLE: dict[str, Callable[[np.ndarray, Source], np.ndarray | None]] = {
    "points": lambda values, _: values,
    "normals": usable_normals,
    "colors": usable_colors,
    "intensity": lambda values, source: usable_numbers(values, "intensities", source),
    "ring": lambda values, source: usable_numbers(values, "rings", source),
    "return_number": lambda values, source: usable_numbers(values, "return numbers", source),
    "number_of_returns": lambda values, source: usable_numbers(values, "numbers of returns", source),
    "labels": usable_labels,
}
"""Field of a cloud -> function that returns its values from those of a file, or None with a warning."""

"""Find points, colors, normals and labels among the columns of a table, by their names or their number."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import listed

_NORMALS = (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z"))
_COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
_SPLATS = ("f_dc_0", "f_dc_1", "f_dc_2")
_IS_SPLATS = {*_SPLATS, "opacity", "scale_0", "scale_1", "scale_2"}
LEAST_OPACITY = 0.1
"""Gaussian splats that cover less of what is behind them are no points of a surface, and are left out."""
_CONSTANT_HARMONIC = np.float32(0.28209479)  # the spherical harmonic of degree 0, 1 / (2 sqrt(pi))
_INTENSITIES = ("intensity", "scalar_intensity", "reflectance", "remission")
_RINGS = ("ring", "scalar_ring")
_LABELS = ("label", "class", "classification", "labels", "scalar_label", "scalar_classification")


def by_name(columns: Mapping[str, np.ndarray], source: Source) -> dict[str, Any]:
    """Find points, colors, normals and labels among named columns.

    Args:
        columns: names in small letters, each with (points,) values.
        source: for warnings.

    Returns:
        Arguments of PointCloudData.

    Raises:
        PointCloudError: x, y or z is missing.
    """
    missing = [axis for axis in "xyz" if axis not in columns]
    if missing:
        raise PointCloudError(f"no column {', '.join(missing)}; found {listed(columns)}")
    found: dict[str, Any] = {"points": np.stack([columns[axis] for axis in "xyz"], axis=1)}
    for key, variants, usable in (("normals", _NORMALS, usable_normals), ("colors", _COLORS, usable_colors)):
        if names := next((names for names in variants if all(name in columns for name in names)), None):
            found[key] = usable(np.stack([columns[name] for name in names], axis=1), source)
    if "colors" not in found and all(name in columns for name in _SPLATS):
        # Of Gaussian splats, the color seen from all sides: the constant term of their spherical harmonics.
        found["colors"] = _splat_colors(np.stack([columns[name] for name in _SPLATS], axis=1), source)
    if name := next((name for name in _INTENSITIES if name in columns), None):
        found["intensity"] = usable_numbers(columns[name], "intensities", source)
    if name := next((name for name in _RINGS if name in columns), None):
        found["ring"] = usable_numbers(columns[name], "rings", source)
    if name := next((name for name in _LABELS if name in columns), None):
        found["labels"] = usable_labels(columns[name], source)
    return found


def opaque_splats(columns: Mapping[str, np.ndarray], source: Source) -> Mapping[str, np.ndarray]:
    """Leave splats below `LEAST_OPACITY` out of the columns of a file of Gaussian splats, with a warning.

    Raises:
        PointCloudError: none is left.
    """
    if not columns.keys() >= _IS_SPLATS:
        return columns
    # Files have logits of opacities. NaN compares as False, and is left out.
    kept = columns["opacity"] >= np.log(LEAST_OPACITY / (1 - LEAST_OPACITY))
    if not kept.any():
        raise PointCloudError(f"none of {len(kept)} Gaussian splats has an opacity of at least {LEAST_OPACITY}")
    if not kept.all():
        text = f"{(~kept).sum():,} of {len(kept):,} Gaussian splats have an opacity below {LEAST_OPACITY}"
        source.warn(f"{text} and are left out")
    return {name: values[kept] for name, values in columns.items()}


def by_number(table: np.ndarray, source: Source) -> dict[str, Any]:
    """Interpret columns without names.

    | columns | meaning |
    |---|---|
    | 3 | x y z |
    | 4 | x y z label, if the fourth has whole numbers from 0 |
    | 6 | x y z and normals (if nearly all rows of 4 to 6 have length 1) or colors |
    | 7 | x y z normals label; x y z colors label; or x y z intensity colors |
    | 9 | x y z colors normals, or x y z normals colors |

    Columns are colors if all values are in [0, 1], or all are whole numbers in [0, 255]. If seven columns allow both,
    .pts files have the intensity and other files the label. Columns that match no rule are left out with a warning.

    Args:
        table: (points, columns) numbers.
        source: for the file type and for warnings.

    Returns:
        Arguments of PointCloudData.

    Raises:
        PointCloudError: another number of columns.
    """
    width = table.shape[1]
    found: dict[str, Any] = {"points": table[:, :3]}
    # Nothing names these columns, so the values decide: normals have length 1, colors are whole numbers or at most 1.
    # Normals come first, since few colors happen to have length 1.
    if width in (6, 7, 9):
        first, last = table[:, 3:6], table[:, -3:]
        if _has_unit_length(first):
            found["normals"] = first
        # Seven columns are x y z, intensity and a color in PTS, elsewhere x y z, a color or normal, and a label.
        elif width == 7 and _looks_like_colors(last) and (source.file_type == "pts" or not _looks_like_colors(first)):
            found["colors"] = usable_colors(last, source)
            return found
        elif _looks_like_colors(first):
            found["colors"] = usable_colors(first, source)
        else:
            source.warn("columns 4 to 6 look neither like normals nor like colors and are left out")
        if width == 9:
            if "colors" not in found and _looks_like_colors(last):
                found["colors"] = usable_colors(last, source)
            elif "normals" not in found and _has_unit_length(last):
                found["normals"] = last
            else:
                source.warn("columns 7 to 9 look neither like normals nor like colors and are left out")
    elif width not in (3, 4):
        raise PointCloudError(f"{width} columns; expected 3, 4, 6, 7 or 9 (a header line may name the columns)")
    # What is left is a class number, never negative; an intensity is rarely a whole number.
    if width in (4, 7):
        found["labels"] = usable_labels(table[:, -1], source, first=0)
    return found


def unit_colors(values: np.ndarray) -> np.ndarray:
    """Scale colors to float32 in [0, 1], from 255 (uint16: 65535) for whole numbers and from 1 or 255 for floats.

    Raises:
        PointCloudError: a value that is NaN, infinite, below 0 or above 255.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        colors = values.astype(np.float32)
    # The maximum of nothing is an error in numpy.
    if not colors.size:
        return colors
    if not np.isfinite(colors).all():
        raise PointCloudError("colors have NaN or infinite values; expected 0 to 1 or 0 to 255")
    top = float(colors.max())
    # Many writers store 8 bit colors in 16 bits, so the type alone does not tell.
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and top > 255:
        scale = 65535.0
    elif values.dtype.kind == "f" and top <= 1.001:  # tolerates rounding
        scale = 1.0
    else:
        scale = 255.0
    if colors.min() < 0 or top > scale * 1.001:
        raise PointCloudError(f"colors range from {colors.min():g} to {top:g}; expected 0 to 1 or 0 to 255")
    return (colors / np.float32(scale)).clip(0, 1)


def usable_colors(values: np.ndarray, source: Source) -> np.ndarray | None:
    """Return `unit_colors`, or None with a warning."""
    try:
        return unit_colors(values)
    except PointCloudError as error:
        source.warn(f"{error}; they are left out")
        return None


def _splat_colors(terms: np.ndarray, source: Source) -> np.ndarray | None:
    with np.errstate(invalid="ignore", over="ignore"):
        # Splats store (color - 0.5) / harmonic, and may be brighter than white.
        colors = (_CONSTANT_HARMONIC * terms.astype(np.float32) + np.float32(0.5)).clip(0, 1)
    if np.isfinite(colors).all():
        return colors
    source.warn("f_dc_0 to f_dc_2 have NaN values and are left out")
    return None


def usable_normals(values: np.ndarray, source: Source) -> np.ndarray | None:
    """Return normals as float32 if they are finite and have a length, else None with a warning."""
    with np.errstate(invalid="ignore", over="ignore"):
        normals = values.astype(np.float32)
    if not np.isfinite(normals).all():
        source.warn("normals have NaN or infinite values and are left out")
        return None
    if len(normals) and not normals.any():
        source.warn("normals are all zero and are left out")
        return None
    return normals


def usable_numbers(values: np.ndarray, names: str, source: Source) -> np.ndarray | None:
    """Return intensities or rings as float32 if they are finite, else None with a warning that calls them `names`."""
    with np.errstate(invalid="ignore", over="ignore"):
        numbers = values.astype(np.float32)
    if not np.isfinite(numbers).all():
        source.warn(f"{names} have NaN or infinite values and are left out")
        return None
    return numbers


def usable_labels(values: np.ndarray, source: Source, first: int | None = None) -> np.ndarray | None:
    """Return labels as int64 if they are whole numbers of its range not below `first`, else None with a warning."""
    with np.errstate(invalid="ignore"):
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
    with np.errstate(invalid="ignore", over="ignore"):
        length = np.sqrt((rows.astype(np.float64) ** 2).sum(1))
        return bool((np.abs(length - 1) < 0.02).mean() > 0.99 and np.isfinite(rows).all())


def _looks_like_colors(rows: np.ndarray) -> bool:
    with np.errstate(invalid="ignore"):
        if not (rows.min() >= 0 and rows.max() <= 255):
            return False
        return bool(rows.max() <= 1 or (rows == np.floor(rows)).all())

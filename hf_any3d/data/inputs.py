"""Convert everything that a caller may pass as point clouds to `PointCloudData`."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from hf_any3d.data.files import PointCloudData, PointCloudError, read_point_cloud
from hf_any3d.data.files.attributes import unit_colors
from hf_any3d.data.files.point_cloud import MEASURED
from hf_any3d.data.options import renaming
from hf_any3d.data.tables.data_frames import without_tables

# Feature of a processor -> field of `PointCloudData`.
ATTRIBUTES = {"rgb": "colors", "normals": "normals", "intensity": "intensity", "ring": "ring"}
ATTRIBUTES |= {"return_number": "return_number", "number_of_returns": "number_of_returns"}
# Channels of a feature.
_WIDTHS: dict[str, int] = dict.fromkeys(MEASURED, 1)
# Fields of `PointCloudData` that a row may have beside its points.
_FIELDS = (*ATTRIBUTES.values(), "faces", "offset", "face_colors")
# Keys of a row that is a file.
_FILES = ("path", "bytes")
_ROW_KEYS = ("points", *_FIELDS, *_FILES, "file_type")
# What may stand for the points of a cloud and is a cloud by itself.
_OBJECTS = (str, os.PathLike, Mapping, PointCloudData)


def count_channels(features: Sequence[str]) -> int:
    """Return the number of channels of features: three each, but one of a measured number such as the intensity."""
    return sum(_WIDTHS.get(name, 3) for name in features)


def first_channel(features: Sequence[str], name: str) -> int:
    """Return the number of the first channel of a feature."""
    return count_channels(features[: list(features).index(name)])


def split_clouds(clouds: Any) -> list[Any]:
    """Split one or many clouds into a list.

    Many clouds are a list, tuple or column of a dataset, an array or tensor (batch, points, channels), or a dict with
    the `points`, `path` or `bytes` of many clouds (a slice of a dataset), or a table with such a column. A list of
    rows of numbers is one cloud, and a table with x, y and z, too.
    """
    clouds = without_tables(clouds)
    if isinstance(clouds, Mapping):
        if not _are_many(clouds):
            return [clouds]
        columns = {key: clouds[key] for key in _ROW_KEYS if clouds.get(key) is not None}
        # A type of files may be said once for all.
        common = {key: value for key, value in columns.items() if isinstance(value, str)}
        sizes = {key: len(values) for key, values in columns.items() if key not in common}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"clouds: the columns have different numbers of clouds, {sizes}")
        rows = []
        for number in range(next(iter(sizes.values()))):
            rows.append({key: columns[key] if key in common else columns[key][number] for key in columns})
        return rows
    if isinstance(clouds, np.ndarray) and clouds.dtype == object and clouds.ndim == 1:
        clouds = list(clouds)  # clouds of different sizes make an array of arrays
    if _is_tensor(clouds) or isinstance(clouds, np.ndarray):
        is_one = clouds.ndim == 2
    elif _is_sequence(clouds):
        # A list of rows of numbers is one cloud; a list of arrays or paths is several.
        is_one = _depth(clouds) == 2 and (_is_sequence(clouds[0]) or getattr(clouds[0], "ndim", 0) == 1)
    else:
        is_one = True
    entries = [clouds] if is_one else list(clouds)
    if not entries:
        raise ValueError("clouds: nothing was passed; expected at least one cloud")
    return entries


def _are_many(row: Mapping) -> bool:
    """Return whether a dict has the columns of many clouds, and is not one cloud."""
    points = row.get("points")
    if points is None:
        return any(_is_sequence(row.get(key)) for key in _FILES)
    if isinstance(points, np.ndarray) and points.dtype == object:  # clouds of different sizes, of a numpy dataset
        points = list(points)
    # Points of one cloud are nested twice (points, channels), those of a batch three times; or each is an object.
    if _depth(points) > 2:
        return True
    return _is_sequence(points) and len(points) > 0 and isinstance(points[0], _OBJECTS)


def to_cloud(entry: Any, features: Sequence[str] = ("xyz",), columns: Sequence[str] = ()) -> PointCloudData:
    """Convert one cloud to `PointCloudData`.

    Args:
        entry: a path; a PointCloudData; an array, tensor or nested list (points, channels) with the channels of
            `features` (further ones are ignored); a dict with `points` and perhaps the other fields of
            PointCloudData, except labels, or with `path` or `bytes`; a data frame of pandas or polars or a table of
            pyarrow with the columns of a CSV file (`x`, `y`, `z`, `red`, `nx`, `intensity`, …); a trimesh Trimesh,
            PointCloud or Scene.
        features: the channels of an array: "xyz", "rgb", "normals", "intensity", "ring", "return_number",
            "number_of_returns".
        columns: names of further columns that are read of files and taken of a dict; see `read_point_cloud`.
    """
    entry = without_tables(entry)
    if isinstance(entry, list) and entry and isinstance(entry[0], Mapping):
        if len(entry) > 1:
            raise PointCloudError(f"{len(entry)} clouds; expected one")
        entry = entry[0]
    if isinstance(entry, PointCloudData):
        # Its fields may have been changed; building a new one checks them.
        return PointCloudData(**vars(entry))
    if isinstance(entry, (str, os.PathLike)):
        return read_point_cloud(entry, columns=columns)
    # By name, so that trimesh is imported only where it is used.
    if type(entry).__module__.partition(".")[0] == "trimesh":
        return _from_trimesh(entry)
    if not isinstance(entry, Mapping):
        return PointCloudData(**_from_array(as_array(entry, "points"), features))
    if "points" not in entry:
        # The content counts before the path, which then names it.
        if entry.get("bytes") is not None:
            file_type = entry.get("file_type") or os.path.splitext(entry.get("path") or "")[1]
            return read_point_cloud(entry["bytes"], file_type=file_type, columns=columns)
        if entry.get("path") is not None:
            return read_point_cloud(entry["path"], file_type=entry.get("file_type"), columns=columns)
        found = ", ".join(map(repr, entry)) or "nothing"
        # Only rows of a dataset are renamed, of which a usual name is a sign.
        hint = renaming("points", entry)
        hint = "" if "…" in hint else f"{hint} on a dataset"
        raise PointCloudError(f"a dict with {found}; expected 'points' or 'path'{hint}")
    if isinstance(entry["points"], _OBJECTS):
        return to_cloud(entry["points"], features, columns)
    # Columns that the row has under their own names are not among the channels of `points`.
    channels = [name for name in features if entry.get(ATTRIBUTES.get(name, "")) is None]
    cloud = _from_array(as_array(entry["points"], "points"), channels)
    for name in _FIELDS:
        if entry.get(name) is not None:
            values = as_array(entry[name], name)
            cloud[name] = unit_colors(values) if name.endswith("colors") else values
    further = {name: as_array(entry[name], name) for name in columns if entry.get(name) is not None}
    if further:
        cloud["further"] = further
    return PointCloudData(**cloud)


def _from_array(array: np.ndarray, features: Sequence[str]) -> dict[str, Any]:
    """Return the fields of `PointCloudData` that an array (points, channels) has."""
    if not array.ndim:
        raise PointCloudError(f"a cloud is {array}, a single number; expected (points, 3)")
    cloud = {"points": array[..., :3]}
    start = 3
    for name in features:
        # A cloud without these channels is valid: the processor fills in its default, or raises a clear error.
        end = start + _WIDTHS.get(name, 3)
        if name != "xyz" and array.shape[-1:] >= (end,):
            values = array[..., start:end]
            cloud[ATTRIBUTES[name]] = unit_colors(values) if name == "rgb" else values
            start = end
    return cloud


def _from_trimesh(thing: Any) -> PointCloudData:
    import trimesh
    from trimesh.visual import ColorVisuals

    if isinstance(thing, trimesh.Scene):
        parts = [part for part in thing.dump() if isinstance(part, (trimesh.Trimesh, trimesh.PointCloud))]
        return _joined([_from_trimesh(part) for part in parts])
    if isinstance(thing, trimesh.PointCloud):
        colors = np.asarray(thing.colors)
        of_points = None
        if colors.ndim == 2 and len(colors) == len(thing.vertices):
            of_points = unit_colors(colors[:, :3])
        return PointCloudData(np.asarray(thing.vertices), of_points)
    visual = cast(ColorVisuals, thing.visual)  # one with a texture is of another kind
    kind = getattr(visual, "kind", None)
    colors = None
    face_colors = None
    if kind == "vertex":
        colors = unit_colors(np.asarray(visual.vertex_colors)[:, :3])
    elif kind == "face":
        face_colors = unit_colors(np.asarray(visual.face_colors)[:, :3])
    return PointCloudData(
        np.asarray(thing.vertices), colors=colors, faces=np.asarray(thing.faces), face_colors=face_colors
    )


def _joined(parts: list[PointCloudData]) -> PointCloudData:
    # As in one file: a scene with any mesh is a mesh, and points without faces are not sampled.
    starts = np.cumsum([0] + [len(part) for part in parts])
    # The last start is the number of all points, and of no part.
    faces = [part.faces + start for part, start in zip(parts, starts, strict=False) if part.is_mesh]
    # Offsets differ between the parts, so coordinates are joined as they are in space.
    moved = [part.points + (0 if part.offset is None else part.offset) for part in parts]
    joined: dict[str, Any] = {"points": np.concatenate(moved)}
    colors = [part.colors for part in parts if part.colors is not None]
    # Only if all parts have them, since every point needs a color.
    if len(colors) == len(parts):
        joined["colors"] = np.concatenate(colors)
    if faces:
        joined["faces"] = np.concatenate(faces)
        face_colors = [part.face_colors for part in parts if part.is_mesh and part.face_colors is not None]
        if len(face_colors) == len(faces):
            joined["face_colors"] = np.concatenate(face_colors)
    return PointCloudData(**joined)


def _is_tensor(value: Any) -> bool:
    # A tensor exists only if torch was imported before.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(values: Any, name: str) -> np.ndarray:
    """Convert an array, tensor or nested list, called `name` in errors, to an array of numbers."""
    if _is_tensor(values):
        values = values.detach().cpu()
        # numpy has no bfloat16.
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()
        return values.numpy()
    array = np.asarray(values)
    # numpy would take what lies under a mask for numbers like the others.
    if array.dtype.kind not in "fiub" or np.ma.is_masked(values):
        raise PointCloudError(f"{name} has type {array.dtype}, or is masked; expected numbers")
    return array


def _is_sequence(values: Any) -> bool:
    # Columns of datasets are sequences too.
    return isinstance(values, Sequence) and not isinstance(values, (str, bytes, bytearray, memoryview))


def _depth(values: Any) -> int:
    depth = 0
    while _is_sequence(values):
        depth += 1
        if not len(values):
            return depth
        values = values[0]
    # The innermost may be an array, which has axes of its own.
    return depth + getattr(values, "ndim", 0)

"""Point cloud tiles of 3D Tiles 1.0 (.pnts), with colors, normals and batch table; not with Draco compression."""

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_any3d.data.files.attributes import by_name
from hf_any3d.data.files.column_names import wanted_fields
from hf_any3d.data.files.label_words import numbered
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.poses import finite, vector
from hf_any3d.data.files.source import NoPointsError, PointCloudError, Source
from hf_any3d.data.files.text_numbers import shorten

# Mark, version, length of the tile, and of JSON and binary body of the feature table and of the batch table.
_HEADER = struct.Struct("<4s6I")
_VERSION = 1
_DRACO = "3DTILES_draco_point_compression"
_TYPES = {
    "BYTE": "i1",
    "UNSIGNED_BYTE": "u1",
    "SHORT": "<i2",
    "UNSIGNED_SHORT": "<u2",
    "INT": "<i4",
    "UNSIGNED_INT": "<u4",
    "FLOAT": "<f4",
    "DOUBLE": "<f8",
}
_MOST_QUANTIZED = 65535.0
# No local coordinates are as large, but those from the center of the earth are.
_EARTH_CENTERED = 1e6
NOT_READ = "the transform of the tile, which is in `tileset.json`; extensions and hierarchy of the batch table"


@dataclass(frozen=True)
class _Table:
    """A feature table or batch table: its JSON, and the binary body that it refers to."""

    values: dict[str, Any]
    body: bytes

    def array(self, name: str, count: int, width: int, default: str) -> np.ndarray | None:
        """Return the numbers of a property in the body, (count, width), None without it.

        Args:
            name: The property.
            count: Number of rows.
            width: Numbers in a row.
            default: Type of the numbers where the property states none.
        """
        place = self.values.get(name)
        if not isinstance(place, dict) or "byteOffset" not in place:
            return None
        dtype = np.dtype(_TYPES[place.get("componentType", default)])
        start = place["byteOffset"]
        needed = count * width * dtype.itemsize
        if not isinstance(start, int) or not 0 <= start <= len(self.body) - needed:
            raise PointCloudError(
                f"{shorten(name)} needs {needed:,} bytes from byte {start} of {len(self.body):,}; the tile may be cut "
                "off"
            )
        return np.frombuffer(self.body, dtype, count * width, start).reshape(count, width)

    def vector(self, name: str, width: int = 3, kind: str = "FLOAT") -> np.ndarray | None:
        """Return a property of the whole tile, (width,) float64, which is in the JSON or the body; None without it."""
        stored = self.array(name, 1, width, kind)
        if stored is not None:
            return finite(stored[0].astype(np.float64), name)
        value = self.values.get(name)
        return None if value is None else vector(value, width, name)


def read(source: Source) -> PointCloudData:
    """Read a tile in meters, with z up unless its coordinates are from the center of the earth.

    Quantized coordinates and normals are decoded, and the center of the tile is its offset. Properties of the batch
    table, one for each point or for each batch of points, are columns such as intensity and classification, and so is
    `BATCH_ID`.

    Source: OGC, "3D Tiles 1.0", tile format Point Cloud.
    """
    features, batches = _tables(source)
    # Such a tile is there for its place in a tree.
    if not features.values:
        raise NoPointsError()
    count = features.values.get("POINTS_LENGTH")
    if not isinstance(count, int) or count < 0:
        raise PointCloudError(f"POINTS_LENGTH is {shorten(str(count))}; expected a whole number from 0")
    # Coordinates of double precision, colors and normals
    source.check(points=count, decoded=48 * count)
    if not count:
        raise NoPointsError()
    points, step = _points(features, count)
    columns, label_names = _properties(features, batches, count, source)
    # The feature table counts where the batch table has properties of the same names.
    columns |= {axis: points[:, place] for place, axis in enumerate("xyz")}
    columns |= _colors(features, count, source)
    normals = _normals(features, count)
    if normals is not None:
        columns |= {f"n{axis}": normals[:, place] for place, axis in enumerate("xyz")}
    center = features.vector("RTC_CENTER")
    farthest = np.abs(points).max() + (0 if center is None else np.abs(center).max())
    return PointCloudData(
        **by_name(columns, source),
        offset=center,
        step=step,
        up_axis="z" if farthest < _EARTH_CENTERED else None,
        meters_per_unit=1.0,
        label_names=label_names,
    )


def _tables(source: Source) -> tuple[_Table, _Table]:
    """Return the feature table and the batch table."""
    data = source.data
    mark, version, length, *sizes = _HEADER.unpack_from(data)
    if mark != b"pnts":
        raise PointCloudError(f"not a point cloud tile: its first bytes are {shorten(mark)}; expected 'pnts'")
    if version != _VERSION:
        raise PointCloudError(f"has version {version} of point cloud tiles; version {_VERSION} is supported")
    if length > len(data) or _HEADER.size + sum(sizes) > length:
        raise PointCloudError(
            f"declares {length:,} bytes, of which its tables take {sum(sizes):,}, and has {len(data):,}; it may be "
            "cut off"
        )
    source.warn_of_rest(data[length:])
    parts = []
    start = _HEADER.size
    for size in sizes:
        parts.append(data[start : start + size])
        start += size
    tables = []
    for text, body in (parts[:2], parts[2:]):
        values = json.loads(text) if text.strip(b"\0 ") else {}
        if not isinstance(values, dict):
            raise PointCloudError(f"a table of the tile is {shorten(text)}; expected a JSON object")
        if _DRACO in values.get("extensions", ()):
            raise PointCloudError(
                f"its points are compressed by Draco ({_DRACO}), which is not supported; convert it, such as with "
                "`npx 3d-tiles-tools convertPntsToGlb -i TILE.pnts -o TILE.glb`"
            )
        tables.append(_Table(values, body))
    return tables[0], tables[1]


def _points(features: _Table, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return coordinates (points, 3) without the center of the tile, and the distance of neighboring numbers, (3,)."""
    points = features.array("POSITION", count, 3, "FLOAT")
    if points is not None:
        return points, None
    quantized = features.array("POSITION_QUANTIZED", count, 3, "UNSIGNED_SHORT")
    low = features.vector("QUANTIZED_VOLUME_OFFSET")
    size = features.vector("QUANTIZED_VOLUME_SCALE")
    if quantized is None or low is None or size is None:
        raise PointCloudError(
            f"{count} points without POSITION, or POSITION_QUANTIZED with QUANTIZED_VOLUME_OFFSET and _SCALE"
        )
    return quantized * size / _MOST_QUANTIZED + low, np.abs(size) / _MOST_QUANTIZED


def _colors(features: _Table, count: int, source: Source) -> dict[str, np.ndarray]:
    """Return red, green and blue (points,) of the property of colors that counts before the others."""
    rgba = features.array("RGBA", count, 4, "UNSIGNED_BYTE")
    rgb = features.array("RGB", count, 3, "UNSIGNED_BYTE")
    packed = features.array("RGB565", count, 1, "UNSIGNED_SHORT")
    constant = features.vector("CONSTANT_RGBA", 4, "UNSIGNED_BYTE")
    if rgba is not None:
        if (rgba[:, 3] != rgba[0, 3]).any():
            source.leave_out(["alpha"])
        rgb = rgba[:, :3]
    elif rgb is None and packed is not None:
        # Five bits of red, six of green and five of blue
        channels = [packed >> 11 & 31, packed >> 5 & 63, packed & 31]
        rgb = np.concatenate(channels, axis=1) / np.array([31, 63, 31])
    elif rgb is None and constant is not None:
        rgb = np.broadcast_to(constant[:3].clip(0, 255).astype(np.uint8), (count, 3))
    if rgb is None:
        return {}
    return {name: rgb[:, place] for place, name in enumerate(("red", "green", "blue"))}


def _normals(features: _Table, count: int) -> np.ndarray | None:
    """Return normals (points, 3), None without them."""
    normals = features.array("NORMAL", count, 3, "FLOAT")
    encoded = features.array("NORMAL_OCT16P", count, 2, "UNSIGNED_BYTE")
    if normals is not None or encoded is None:
        return normals
    # A point of the plane is one of an octahedron, whose lower half is folded outwards (Cigolle et al., "A Survey of
    # Efficient Representations for Independent Unit Vectors", 2014).
    plane = encoded / 255 * 2 - 1  # (points, 2)
    height = 1 - np.abs(plane).sum(axis=1, keepdims=True)  # (points, 1)
    folded = (1 - np.abs(plane[:, ::-1])) * np.where(plane < 0, -1, 1)
    normals = np.concatenate([np.where(height < 0, folded, plane), height], axis=1)
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _properties(
    features: _Table, batches: _Table, count: int, source: Source
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Return columns (points,) of the batch table and of batches, and the names of classes where they are words."""
    columns: dict[str, np.ndarray] = {}
    ids = features.array("BATCH_ID", count, 1, "UNSIGNED_SHORT")
    rows = count
    if ids is not None:
        columns["BATCH_ID"] = ids[:, 0]
        rows = features.values.get("BATCH_LENGTH")
        if not isinstance(rows, int) or not ids.max() < rows:
            raise PointCloudError(
                f"BATCH_LENGTH is {rows}, and a point has BATCH_ID {ids.max()}; expected a lower one"
            )
    names = [name for name in batches.values if name not in ("extensions", "extras", "HIERARCHY")]
    label = wanted_fields(names, source).get("labels", [""])[0]
    label_names = None
    for name in names:
        listed = batches.values[name]
        if isinstance(listed, dict) and listed.get("type", "SCALAR") == "SCALAR":
            array = batches.array(name, rows, 1, "FLOAT")
            values = None if array is None else array[:, 0]
        elif isinstance(listed, list) and len(listed) == rows:
            values = _listed_values(listed)
            if name == label and values is not None and values.dtype.kind == "U":
                values, label_names = numbered(values.tolist())
        else:
            values = None
        if values is None or values.dtype.kind == "U":
            source.leave_out([name], "no numbers, or several for each point")
        else:
            columns[name] = values if ids is None else values[ids[:, 0]]
    return columns, label_names


def _listed_values(listed: list[Any]) -> np.ndarray | None:
    """Return a list of numbers or words as an array (values,); None if it has something else."""
    if all(isinstance(value, str) for value in listed):
        return np.array(listed, str)
    if all(value is None or isinstance(value, (int, float)) for value in listed):
        # As whole numbers if all are, so that classes are told from measurements
        has_decimals = any(value is None or isinstance(value, float) for value in listed)
        return np.array(listed, np.float64 if has_decimals else np.int64)
    return None

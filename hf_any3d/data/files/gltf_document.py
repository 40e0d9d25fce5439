"""A glTF document: its objects by number, and the tables of its buffers."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from hf_any3d.data.files.column_names import wanted_fields
from hf_any3d.data.files.point_cloud import MEASURED
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import listed, shorten

GLB_HEAD = 20
"""Bytes of a .glb before the JSON; its length is in the last eight."""

FIELDS_OF_POINTS = ("labels", *MEASURED)
"""Fields of a cloud that attributes of applications may hold."""

_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4", 5130: "<f8", 5131: "<f2"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


@dataclass
class Document:
    """A glTF document with its binary chunk."""

    json: dict[str, Any]
    chunk: memoryview | None  # of a .glb
    source: Source  # for buffers in other files
    _buffers: dict[int, memoryview] = field(default_factory=dict, repr=False)
    _measures: dict[tuple[str, ...], dict[str, str]] = field(default_factory=dict, repr=False)

    def item(self, key: str, number: Any) -> dict[str, Any]:
        """Look up one object of a list such as "nodes"."""
        items = self.json.get(key, [])
        if natural(number, key) >= len(items):
            raise PointCloudError(f"no {key}[{number}], which another part of the file names; there are {len(items)}")
        return items[number]

    def positions(self, primitive: dict[str, Any]) -> np.ndarray:
        """Read the points (points, 3) of a primitive; those that an extension compresses are refused by its name."""
        number = primitive["attributes"]["POSITION"]
        accessor = self.item("accessors", number)
        if "bufferView" not in accessor and "sparse" not in accessor:
            compressed = [name for name in primitive.get("extensions", {}) if "compression" in name]
            by = f"are compressed by {listed(compressed)}; decompress it first" if compressed else "have no bufferView"
            raise PointCloudError(f"points (accessors[{shorten(str(number))}]) {by}")
        return self.accessor(number, 3)

    def measures(self, attributes: dict[str, int]) -> dict[str, str]:
        """Return the attribute for each field of a cloud with one number a point, such as labels."""
        # Found once for all primitives with these attributes: there may be very many.
        key = tuple(attributes)
        if key not in self._measures:
            names = {name.lstrip("_").lower(): name for name in key if name.startswith("_")}
            self.source.note_columns(name.lstrip("_").lower() for name in key if name.startswith("_"))
            # By the name that the file has for it, or without the underscore
            chosen = self.source.chosen_label([*names.values(), *names])
            fields = {field: names[columns[0]] for field, columns in wanted_fields(names, self.source).items()}
            if chosen is not None:
                fields["labels"] = names.get(chosen, chosen)
            self._measures[key] = {field: name for field, name in fields.items() if field in FIELDS_OF_POINTS}
        return self._measures[key]

    def count(self, number: int) -> int:
        """Return the number of rows that an accessor declares."""
        return natural(self.item("accessors", number).get("count"), "count")

    def steps(self, number: int) -> int | None:
        """Return the whole number that stands for 1 in an accessor of normalized bytes or 16 bits; None for others."""
        accessor = self.item("accessors", number)
        kind = np.dtype(_COMPONENTS[accessor["componentType"]])
        is_in_steps = accessor.get("normalized", False) and kind.kind == "u" and kind.itemsize <= 2
        return int(np.iinfo(kind).max) if is_in_steps else None

    def accessor(self, number: int, *widths: int, in_steps: bool = False) -> np.ndarray:
        """Read a table (count, one of `widths`); normalized integers become float32 in [-1, 1] if not `in_steps`."""
        accessor = self.item("accessors", number)
        dtype = _COMPONENTS[accessor["componentType"]]
        width = _WIDTHS[accessor["type"]]
        if width not in widths:
            raise PointCloudError(f"accessors[{number}] has type {accessor['type']}; expected {widths} numbers")
        count = self.count(number)
        if "bufferView" in accessor:
            values = self._view(accessor, dtype, count, width)
        else:
            # Zeros (section 3.6.2.3), whose number no byte of the file stands for.
            self.source.check(decoded=count * width * np.dtype(dtype).itemsize)
            values = np.zeros((count, width), dtype)
        # A sparse accessor lists the rows in which it differs from those.
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            changed = natural(sparse["count"], "count")
            place = sparse["indices"]
            rows = self._view(place, _COMPONENTS[place["componentType"]], changed, 1).reshape(-1).astype(np.int64)
            # Views of the file's bytes are read-only.
            values = values.copy()
            values[rows] = self._view(sparse["values"], dtype, changed, width)
        if accessor.get("normalized", False) and values.dtype.kind in "iu" and not in_steps:
            # Signed integers have one more negative value, which would become slightly less than -1.
            values = np.maximum(values.astype(np.float32) / np.iinfo(values.dtype).max, -1)
        return values

    def _view(self, place: dict, kind: str, count: int, width: int) -> np.ndarray:
        """Return a table (count, width) of a buffer; `place` names the buffer view and the offset."""
        dtype = np.dtype(kind)
        view = self.item("bufferViews", place["bufferView"])
        start = natural(view.get("byteOffset", 0), "byteOffset")
        length = natural(view["byteLength"], "byteLength")
        number = view["buffer"]
        buffer = self.item("buffers", number)
        if number not in self._buffers:
            self._buffers[number] = memoryview(self._open(buffer.get("uri"), number))
        data = self._buffers[number][start : start + length]
        row = dtype.itemsize * width
        stride = natural(view.get("byteStride", row), "byteStride")
        if stride < row:
            raise PointCloudError(f"a view has a stride of {stride} bytes for rows of {row}")
        if not count:
            return np.zeros((0, width), dtype)
        # A view with strides: the rows of several attributes may alternate in a buffer.
        at = natural(place.get("byteOffset", 0), "byteOffset")
        # Here, as numpy takes an empty buffer for none, and returns whatever its new memory holds.
        needed = at + (count - 1) * stride + row
        if needed > len(data):
            raise PointCloudError(
                f"buffers[{number}] has {len(data)} of the {needed} bytes of a view from byte {start} on; the file "
                "may be cut off"
            )
        return np.ndarray((count, width), dtype, data, at, (stride, dtype.itemsize))

    def _open(self, uri: Any, number: int) -> Any:
        """Return the bytes of a buffer: of the binary chunk, in the URI itself, or of another file."""
        if uri is not None and not isinstance(uri, str):
            raise PointCloudError(f"buffers[{number}] has the uri {shorten(str(uri))}; expected text")
        if uri is None:
            compressions = [name for name in self.json.get("extensionsUsed", []) if "compress" in str(name)]
            # A buffer without bytes is then the place for what is decompressed.
            if compressions and (number or self.chunk is None):
                raise PointCloudError(f"points are compressed by {listed(compressions)}; decompress it first")
            # The only one of a .glb, which the first buffer is
            if number or self.chunk is None:
                raise PointCloudError(
                    f"buffers[{number}] has neither a uri nor the binary part of a .glb, so the points are missing; "
                    "export it again as .glb"
                )
            return self.chunk
        if uri.startswith("data:"):
            head, _, text = uri.partition(",")
            data = unquote_to_bytes(text)
            return base64.b64decode(data, validate=True) if head.endswith(";base64") else data
        data = self.source.neighbor(unquote(uri))
        if data is None:
            raise PointCloudError(f"buffers[{number}]: no file {shorten(uri)} in this folder or below")
        return data


def chunks_of(data: bytes) -> tuple[bytes, memoryview | None]:
    """Return the JSON and the binary chunk of a .glb; a chunk has 4 bytes of length, 4 of type, and its data."""
    stop = GLB_HEAD + int.from_bytes(data[12:16], "little")
    text = data[GLB_HEAD:stop]
    # Further chunks belong to extensions.
    if data[stop + 4 : stop + 8] != b"BIN\0":
        return text, None
    length = int.from_bytes(data[stop : stop + 4], "little")
    return text, memoryview(data)[stop + 8 : stop + 8 + length]


def natural(value: Any, name: str) -> int:
    """Check that a value of JSON is a whole number from 0."""
    # The exact type: in JSON true and false are no numbers, but in Python they are.
    if type(value) is not int or value < 0:
        raise PointCloudError(f"{name} is {shorten(str(value))}; expected a whole number")
    return value

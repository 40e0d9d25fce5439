"""The containers of glTF: the JSON text, its buffers, and typed views of them."""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np

from hf_any3d.data.files.errors import PointCloudError
from hf_any3d.data.files.source import Source
from hf_any3d.data.files.tables import shorten

_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_COMPRESSED = {"KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression"}


@dataclass
class Document:
    """A glTF text with its binary chunk.

    Attributes:
        json: the text, an object.
        chunk: the binary chunk of a .glb, or None.
        source: where external buffers may lie.
    """

    json: dict[str, Any]
    chunk: memoryview | None
    source: Source

    def __post_init__(self):
        self._buffers: dict[int, memoryview] = {}

    def item(self, key: str, number: Any) -> dict[str, Any]:
        """Look up one object of a list such as "nodes".

        Raises:
            PointCloudError: if there is none of that number.
        """
        items = self.json.get(key, [])
        if not isinstance(items, list) or type(number) is not int or not 0 <= number < len(items):
            raise PointCloudError(f"refers to {key}[{shorten(str(number))}], which does not exist")
        if not isinstance(items[number], dict):
            raise PointCloudError(f"{key}[{number}] is a {type(items[number]).__name__}; expected an object")
        return items[number]

    def count(self, number: int) -> int:
        """Give the rows that an accessor declares, without reading them.

        Raises:
            PointCloudError: if there is no such accessor, or it declares no whole number.
        """
        return _size(self.item("accessors", number), "count")

    def accessor(self, number: int, width: int | tuple[int, ...]) -> np.ndarray:
        """Read a table (count, width); normalised integers come as float32 in [-1, 1].

        Raises:
            PointCloudError: if it reaches beyond its buffer or has another width.
        """
        accessor = self.item("accessors", number)
        kind = _COMPONENTS.get(accessor["componentType"])
        found = _WIDTHS.get(accessor["type"], 0)
        allowed = (width,) if isinstance(width, int) else width
        if kind is None or found not in allowed:
            raise PointCloudError(
                f"accessors[{number}] has type {shorten(str(accessor['type']))} of component type "
                f"{shorten(str(accessor['componentType']))}; expected {allowed} numbers"
            )
        count = self.count(number)
        values = self._view(accessor, f"accessors[{number}]", kind, count, found)
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            few = _size(sparse, "count")
            place = sparse["indices"]
            index = self._view(place, "sparse indices", _COMPONENTS[place["componentType"]], few, 1)
            index = index.reshape(-1).astype(np.int64)
            if few and (index.min() < 0 or index.max() >= count):
                raise PointCloudError(f"accessors[{number}] replaces row {index.max()} of {count}")
            values = values.copy()
            values[index] = self._view(sparse["values"], "sparse values", kind, few, found)
        if accessor.get("normalized", False) and values.dtype.kind in "iu":
            values = np.maximum(values.astype(np.float32) / np.iinfo(values.dtype).max, -1)
        return values

    def _view(self, place: dict, name: str, kind: str, count: int, width: int) -> np.ndarray:
        if "bufferView" not in place:
            raise PointCloudError(f"{name} has no bufferView; accessors without data are not supported")
        view = self.item("bufferViews", place["bufferView"])
        data = self._buffer(view["buffer"])
        start, length = _size(view, "byteOffset", 0), _size(view, "byteLength")
        offset, dtype = _size(place, "byteOffset", 0), np.dtype(kind)
        row = dtype.itemsize * width
        stride = _size(view, "byteStride", row)
        needed = offset + stride * (count - 1) + row if count else 0
        if stride < row or needed > length or start + length > len(data):
            raise PointCloudError(
                f"{name} needs {needed} bytes of a view of {length} at {start} in a buffer of {len(data)}; the file "
                "may be cut off"
            )
        if not count:
            return np.zeros((0, width), dtype)
        return np.ndarray((count, width), dtype, data, start + offset, (stride, dtype.itemsize))

    def _buffer(self, number: Any) -> memoryview:
        buffer = self.item("buffers", number)
        if number not in self._buffers:
            self._buffers[number] = self._open(buffer.get("uri"), number)
        data = self._buffers[number]
        if _size(buffer, "byteLength") > len(data):
            raise PointCloudError(
                f"buffers[{number}] holds {len(data)} of {buffer['byteLength']} bytes; it is cut off"
            )
        return data

    def _open(self, uri: Any, number: int) -> memoryview:
        if uri is None:
            if self.chunk is None or number != 0:
                raise PointCloudError(f"buffers[{number}] has no data")
            return self.chunk
        if uri.startswith("data:"):
            head, _, text = uri.partition(",")
            try:
                return memoryview(base64.b64decode(text, validate=True))
            except (binascii.Error, ValueError):
                raise PointCloudError(f"buffers[{number}] has a damaged data URI, {shorten(head)}") from None
        data = self.source.neighbor(unquote(uri))
        if data is None:
            raise PointCloudError(
                f"buffers[{number}] refers to {shorten(uri)}; expected a file that exists in the same folder or below"
            )
        return memoryview(data)


def open_document(source: Source) -> Document:
    """Take apart a .glb or read a .gltf; the content decides, not the ending.

    Raises:
        PointCloudError: if it is neither, is cut off, of another version or needs a decompressor.
    """
    chunk, text = None, source.data
    if source.data.startswith(b"glTF"):
        text, chunk = _chunks(source.data)
    elif source.file_type == "glb":
        raise PointCloudError(f"starts with {source.data[:8]!r}; a GLB file starts with 'glTF'")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PointCloudError(f"no sound JSON ({str(error)[:80]})") from None
    if not isinstance(content, dict) or not isinstance(content.get("asset"), dict):
        raise PointCloudError("the JSON has no 'asset'; expected a glTF 2.0 document")
    if not str(content["asset"].get("version", "")).startswith("2"):
        raise PointCloudError(f"glTF version {shorten(str(content['asset'].get('version')))}; expected 2.0")
    required = content.get("extensionsRequired", [])
    compressed = sorted(_COMPRESSED & {str(name) for name in required}) if isinstance(required, list) else []
    if compressed:
        raise PointCloudError(
            f"is compressed with {', '.join(compressed)}, which is not supported; decompress it first"
        )
    return Document(content, chunk, source)


def _chunks(data: bytes) -> tuple[bytes, memoryview | None]:
    if len(data) < 20:
        raise PointCloudError(f"{len(data)} bytes; a GLB file has at least 20, so the file may be cut off")
    version, length = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8))
    if version != 2:
        raise PointCloudError(f"GLB version {version}; expected 2")
    if length > len(data):
        raise PointCloudError(f"{len(data)} bytes; {length} are declared, so the file is cut off")
    found: list[tuple[bytes, memoryview]] = []
    view, at = memoryview(data), 12
    while at + 8 <= length and len(found) < 2:
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 8 + size > length:
            raise PointCloudError(f"chunk {len(found)} declares {size} bytes; {length - at - 8} are left")
        found.append((data[at + 4 : at + 8], view[at + 8 : at + 8 + size]))
        at += 8 + size
    if not found or found[0][0] != b"JSON":
        raise PointCloudError("the first chunk of the GLB file is no JSON")
    binary = found[1][1] if len(found) > 1 and found[1][0] == b"BIN\0" else None
    return bytes(found[0][1]), binary


def _size(values: dict, key: str, default: int | None = None) -> int:
    value = values.get(key, default)
    if type(value) is not int or value < 0:
        raise PointCloudError(f"{key} is {shorten(str(value))}; expected a whole number")
    return value

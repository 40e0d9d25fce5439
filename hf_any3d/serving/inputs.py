"""Clouds of a request: uploaded files, data URLs and lists of points; nothing is fetched from elsewhere."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hf_any3d.data.files import PointCloudData, ReadLimits, read_point_cloud, supported_file_types
from hf_any3d.serving.limits import Refused, ServeLimits
from hf_any3d.utils.messages import cut, one_line

UPLOAD = "upload:"
"""Scheme of URLs that name a file of the same request."""


_Rows = Annotated[list[tuple[float, float, float]], Field(min_length=1)]


class CloudInput(BaseModel):
    """A cloud of a JSON request: a URL, or points with colors and normals."""

    model_config = ConfigDict(extra="forbid")

    url: str | None = None
    file_type: str | None = None
    points: _Rows | None = None
    colors: _Rows | None = None
    normals: _Rows | None = None


_HOW_TO_RAISE = re.compile(r" \(pass limits=.*?\)$")
_HOW_TO_TELL = re.compile(r'pass file_type="(\w+)"')


class Upload:
    """The bytes of a file, or arrays by the fields of `PointCloudData`, before they are read.

    The type is by default that of the name's ending or of the bytes' signature.
    """

    def __init__(self, name: str, content: bytes | Mapping[str, Any], file_type: str | None = None):
        self.name = name
        self.content = content
        self.file_type = file_type

    def read(self, limits: ServeLimits, columns: Sequence[str] = ()) -> PointCloudData:
        """Read the cloud; what its header declares is checked before memory is allocated.

        `columns` are names of further columns of files; see `read_point_cloud`.
        """
        try:
            if not isinstance(self.content, bytes):
                if (count := len(self.content["points"])) > limits.points:
                    raise ValueError(f"{self.name}: {count} points; at most {limits.points} are read")
                return PointCloudData(**self.content)
            source = io.BytesIO(self.content)
            source.name = self.name
            # 100 bytes hold coordinates in double precision, colors, normals, labels, and the corners of two faces.
            size = limits.body_bytes + 100 * limits.points
            reading = ReadLimits(points=limits.points, faces=2 * limits.points, bytes=size)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of data that is left out, for which a response has no place
                return read_point_cloud(source, file_type=self.file_type, limits=reading, columns=columns)
        except (ValueError, OSError, ImportError) as error:
            # Hints at arguments of Python are of no use to a client.
            text = _HOW_TO_RAISE.sub(" by this server", one_line(error))
            # A file of a form has a name alone, and a URL has a type beside it.
            told = r"end its name with .\1" if self._ending() else r'pass "file_type": "\1" beside its url'
            text = _HOW_TO_TELL.sub(told, text)
            raise Refused(400, text if self.name in text else f"{self.name}: {text}", param=self.name) from error

    def _ending(self) -> str:
        return self.name.rpartition(".")[2].lower() if "." in self.name else ""


_ARRAYS = ("points", "colors", "normals")


def upload_of(value: Any, name: str, files: Mapping[str, Upload]) -> Upload:
    """Return the upload of a mapping with the fields of `CloudInput`; `name` is its field, `files` are by name."""
    entry = validated(CloudInput, value, name)
    # Two forms, one field of which is required.
    required, of_other = ("points", ("url", "file_type")) if entry.url is None else ("url", _ARRAYS)
    if getattr(entry, required) is None or any(getattr(entry, field) is not None for field in of_other):
        text = f"{name}: expected url with file_type, or points with colors and normals"
        raise Refused(400, text, param=name)
    if entry.url is not None:
        return _upload_of_url(entry.url, entry.file_type, name, files)
    arrays = {}
    for key in _ARRAYS:
        if (rows := getattr(entry, key)) is not None:
            arrays[key] = np.array(rows, dtype=np.float64 if key == "points" else np.float32)
    return Upload(name, arrays)


_MEDIA_TYPES = {"gltf-binary": "glb", "gltf+json": "gltf", "plain": "txt"}
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)


def _upload_of_url(url: str, file_type: str | None, name: str, files: Mapping[str, Upload]) -> Upload:
    where = f"{name}.url"
    if url.startswith(UPLOAD):
        if (key := url.removeprefix(UPLOAD)) not in files:
            there = ", ".join(files) or "none"
            raise Refused(400, f"{where}: no file {cut(key, 80)!r} in this request; there are: {there}", param=where)
        file = files[key]
        return Upload(file.name, file.content, file_type or file.file_type)
    # Whatever else a URL is stays None, as nothing is fetched.
    data = None
    match = _DATA_URL.match(url)
    if match is not None:
        # Characters outside of base64 are told below, like any other wrong URL.
        with suppress(binascii.Error):
            data = base64.b64decode(url[match.end() :], validate=True)
    if data is None or match is None:
        expected = f"data:[TYPE];base64,…, or {UPLOAD}NAME for a file of the same request"
        text = f"{where}: {cut(url, 60)!r}; this server does not download files; expected {expected}"
        raise Refused(400, text, param=where)
    if file_type is None and match[1] is not None:
        # Such as gltf-binary of model/gltf-binary; unregistered types begin with x-.
        kind = match[1].partition("/")[2].removeprefix("x-").lower()
        kind = _MEDIA_TYPES.get(kind, kind)
        file_type = kind if kind in supported_file_types() else None
    return Upload(name, data, file_type)


_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], value: Any, prefix: str = "") -> _Model:
    """Return a model of a value; the error names the first wrong field, what was seen, and what is allowed."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    # Of a field that takes several types, the error of the type that fits best is the one furthest inside.
    outside = errors[0]["loc"][:-1]
    first = max((one for one in errors if one["loc"][: len(outside)] == outside), key=lambda one: len(one["loc"]))
    # Of such a type, pydantic has the name in the place, in brackets if it is a list.
    place = ".".join(str(part) for part in ((prefix,) if prefix else ()) + first["loc"] if "[" not in str(part))
    seen = "" if first["type"] in ("missing", "extra_forbidden") else f", not {cut(str(first.get('input')), 60)!r}"
    text = "unknown field" if first["type"] == "extra_forbidden" else f"{first['msg']}{seen}"
    raise Refused(400, one_line(f"{place}: {text}"), param=place)

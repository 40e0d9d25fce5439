"""`PointCloud`, a feature of `datasets` for columns of point cloud files, like its `Image`, `Audio` and `Mesh`."""

import io
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pyarrow as pa
import pyarrow.compute

from hf_any3d.data.files import (
    PointCloudData,
    PointCloudError,
    PointCloudFileError,
    file_type_of,
    point_cloud_bytes,
    read_point_cloud,
    supported_file_types,
)
from hf_any3d.data.files.contents import Look, type_under_other_ending
from hf_any3d.data.files.npy import cloud_from_array
from hf_any3d.data.files.source import Source
from hf_any3d.data.files.text_numbers import shorten
from hf_any3d.data.inputs import as_array, to_cloud
from hf_any3d.data.options import one_of
from hf_any3d.data.tables.data_frames import is_table

if TYPE_CHECKING:
    from datasets.features.features import FeatureType

FORMATS = ("ply", "npz")

Tokens = Mapping[str, str | bool | None]
"""Repository on the hub -> token that opens it."""


class StoredFile(TypedDict):
    """A stored value: the content of a file, its path or name, or both."""

    bytes: "bytes | None"
    path: "str | None"


# File type -> mark of a reference to another file.
_REFERENCES = {"obj": b"mtllib", "gltf": b'"uri"'}


@dataclass
class PointCloud:
    """A column of point clouds and meshes, stored as files of any type that `read_point_cloud` reads.

    It accepts:

    - a path (str or PathLike) or URL of a file, whose ending is its type;
    - the bytes of a file of a type with a signature (.ply, .npy, .npz, .glb, .las, .pcd, .off, .stl);
    - a dict with `bytes` and/or `path`, where the ending of the path is the type;
    - an array, tensor or nested list (points, 3 or more), with further columns as in .npy files;
    - a dict with `points` and perhaps `colors`, `normals`, `labels`, `intensity`, `ring`, `return_number`,
      `number_of_returns`, `faces`, `face_colors`, `face_labels`, `offset`;
    - a `PointCloudData`, or a trimesh Trimesh, PointCloud or Scene.

    It returns a dict of arrays with the fields of `PointCloudData`, None for those that the file lacks: `points`
    (points, 3) float32, `colors` (points, 3) float32 in [0, 1], `normals` (points, 3), `labels` (points,) int64,
    `intensity`, `ring`, `return_number` and `number_of_returns` (points,), and for meshes `faces` (faces, 3) and
    `face_labels` (faces,). `PointCloudData(**row["point_cloud"])` is the object that samples surfaces.

    Data with this feature opens only where hf_any3d is imported. For others, `files_to_points` converts it to plain
    columns of arrays.

    Args:
        decode: False returns the stored dict, `{"bytes": …, "path": …}`.
        format: file type of clouds that are stored as new files: "ply", which every program reads and which keeps
            colors in 8 bits, or "npz", which keeps every number.

    Raises:
        ValueError: `format` is neither of the two.
    """

    decode: bool = True
    format: str = "ply"
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "dict"
    pa_type: ClassVar[Any] = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    _type: str = field(default="PointCloud", init=False, repr=False)

    def __post_init__(self):
        one_of("format", self.format, FORMATS)

    def __call__(self) -> pa.DataType:
        """Return the Arrow type of a stored value."""
        return self.pa_type

    def encode_example(self, value: Any) -> StoredFile:
        """Convert a value to its stored form; files are not opened here, arrays and objects are written as files.

        Raises:
            PointCloudError: An array is not `(points, 3)`, or a value is none that a cloud is made of.
            PointCloudFileError: The type of a file is unknown.
        """
        # A text may be a URL and stays as it is; the path of an object is made absolute.
        if isinstance(value, str):
            return self._encode_file({"path": value})
        if isinstance(value, os.PathLike):
            return self._encode_file({"path": os.path.abspath(value)})
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._encode_file({"bytes": value})
        if isinstance(value, Mapping) and "points" not in value:
            return self._encode_file(value)
        # By the name of its module, as trimesh need not be installed
        is_mesh = type(value).__module__.partition(".")[0] == "trimesh"
        if isinstance(value, PointCloudData) or is_mesh or is_table(value):
            cloud = to_cloud(value)
        elif isinstance(value, Mapping):
            points = as_array(value["points"], "points")
            # Further columns have keys of their own here, other than in an array.
            if points.ndim == 2 and points.shape[1] != 3:
                raise PointCloudError(f"points have shape {points.shape}; expected (points, 3)")
            cloud = to_cloud({**value, "points": points})
            for name in ("labels", "face_labels"):
                if value.get(name) is not None:
                    cloud = replace(cloud, **{name: as_array(value[name], name)})
        else:
            array = Source("an array", b"", "npy")
            cloud = cloud_from_array(as_array(value, "points"), array)
            array.tell_left_out()
        # Arrays have no file yet: they become one, with a name that carries its type.
        return {"bytes": point_cloud_bytes(cloud, self.format), "path": f"point_cloud.{self.format}"}

    def decode_example(self, value: Any, token_per_repo_id: Tokens | None = None) -> Mapping[str, np.ndarray | None]:
        """Read a stored value, a dict with `bytes` and `path`, or a path. Decoded values are returned unchanged.

        Raises:
            PointCloudFileError: The stored file is missing, damaged or beyond the limits.
            RuntimeError: The column is one with `decode=False`.
        """
        if not self.decode:
            raise RuntimeError("decoding is switched off for this column; cast it to PointCloud(decode=True)")
        if isinstance(value, str):
            # Results of `map` may be paths or decoded clouds, which were never stored.
            value = {"bytes": None, "path": value}
        if not isinstance(value, Mapping) or "points" in value:
            return value
        return read_stored(value["path"], value["bytes"], token_per_repo_id).arrays()

    def flatten(self) -> "PointCloud | dict[str, FeatureType]":
        """Return the columns of the stored struct if decoding is switched off, else the feature itself."""
        from datasets import Value

        return self if self.decode else {"bytes": Value("binary"), "path": Value("string")}

    def cast_storage(self, storage: pa.Array) -> pa.StructArray:
        """Convert an Arrow array to this feature's storage.

        It has paths (string), bytes (binary), structs with `bytes` and/or `path`, or values of `encode_example` as
        nested lists or structs, such as an Array2D column of points.
        """
        from datasets.table import array_cast

        kind = storage.type
        if pa.types.is_null(kind):
            return pa.nulls(len(storage), self.pa_type)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return self._struct(None, array_cast(storage, pa.string()), storage)
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
            return self._struct(array_cast(storage, pa.binary()), None, storage)
        if pa.types.is_struct(kind) and kind.get_field_index("points") < 0:
            names = {kind.field(number).name for number in range(kind.num_fields)}
            if not names & {"bytes", "path"}:
                raise TypeError(f"a column of {kind} cannot become PointCloud; expected 'bytes', 'path' or 'points'")
            # A struct may have only one of the two.
            data = storage.field("bytes") if "bytes" in names else None
            path = storage.field("path") if "path" in names else None
            return array_cast(self._struct(data, path, storage), self.pa_type)
        # Values of `encode_example`, of which rows of numbers are common, and large.
        if _is_list(kind) and _is_list(kind.value_type):
            clouds = [_points_of_lists(cloud.values) for cloud in storage]
        else:
            clouds = storage.to_pylist()
        return pa.array([None if cloud is None else self.encode_example(cloud) for cloud in clouds], self.pa_type)

    def embed_storage(
        self,
        storage: pa.StructArray,
        token_per_repo_id: Tokens | None = None,
        local_files: bool = True,
        remote_files: bool = True,
    ) -> pa.StructArray:
        """Read files stored as paths, on this machine or remote ones, into the array.

        A local .obj or .gltf that refers to other files is stored in this feature's `format`.
        """

        def embed(row: StoredFile | None) -> StoredFile | None:
            if row is None or row["path"] is None:
                return row
            # `datasets` embeds local files only, or remote ones too, depending on the call.
            if not (remote_files if local_path(row["path"]) is None else local_files):
                return row
            data = row["bytes"]
            # As in `Image` and `Audio`, keep no directories of the machine that made the data.
            name = os.path.basename(row["path"].split("::", 1)[0])
            if data is None:
                local = local_path(row["path"])
                data = fetch(local or row["path"], token_per_repo_id)
                reference = _REFERENCES.get(type_of_path(row["path"], data))
                # Of a mesh with materials in other files, bytes alone would lose the colors, so it is written anew.
                if reference is not None and reference in data and local is not None:
                    data = point_cloud_bytes(read_point_cloud(local), self.format)
                    name = f"{name}.{self.format}"
            return {"bytes": data, "path": name}

        return pa.array([embed(row) for row in storage.to_pylist()], self.pa_type)

    def _encode_file(self, value: Mapping) -> StoredFile:
        data: Any = value.get("bytes")
        path = value.get("path")
        path = None if path is None else os.fspath(path)
        # An unknown type is an error now, not when the row is read.
        if path is None:
            type_of_bytes(bytes(data))
        else:
            type_of_path(path, data)
        return {"bytes": None if data is None else bytes(data), "path": path}

    def _struct(self, data: pa.Array | None, path: pa.Array | None, storage: pa.Array) -> pa.StructArray:
        data = pa.nulls(len(storage), pa.binary()) if data is None else data
        path = pa.nulls(len(storage), pa.string()) if path is None else path
        # A missing row is a missing struct, not a struct of two missing values.
        return pa.StructArray.from_arrays([data, path], ["bytes", "path"], mask=storage.is_null())


def register_point_cloud() -> None:
    """Register the feature in `datasets`, so that stored data with it opens."""
    from datasets.features import features

    if features._FEATURE_TYPES.get(PointCloud.__name__) is not PointCloud:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'register_feature' is experimental")
            features.register_feature(PointCloud, PointCloud.__name__)


def type_of_path(path: str, data: bytes | None = None) -> str:
    """Return a file's type from the ending of its path, which may be a URL or inside an archive.

    Such as `scans/a.OBJ`, `hf://datasets/me/scans/a.ply` or `zip://a.off::scans.zip`. Other endings say nothing: the
    type is then that of the content, `data` or that of a file of this machine.
    """
    # Of a chain such as zip://a.off::scans.zip, the first part is the file itself.
    inner = path.split("::", 1)[0]
    # The query of a URL is no part of the name.
    if "://" in inner:
        inner = inner.split("?", 1)[0]
    file_type = os.path.splitext(inner)[1].lower().removeprefix(".")
    if file_type in supported_file_types():
        return file_type
    local = local_path(path)
    if data is None and local is not None and os.path.isfile(local):
        look = Look.into(local)
    else:
        look = Look.at(bytes(data or b""))
    found, refusal = type_under_other_ending(look, inner)
    if found is None:
        raise PointCloudFileError(f"{path}: {refusal}")
    return found


def type_of_bytes(data: bytes) -> str:
    """Return a file's type from its bytes."""
    file_type = file_type_of(data)
    if file_type is None:
        raise PointCloudFileError(
            f"{len(data)} bytes that start with {shorten(data[:8])} have no known file type; pass "
            "{'bytes': …, 'path': 'name.off'}, with the type as the extension of the path"
        )
    return file_type


def fetch(path: str, tokens: Tokens | None = None) -> bytes:
    """Read a file, also from a URL, the hub or an archive, as `datasets` does."""
    from datasets import DownloadConfig, config
    from datasets.utils.file_utils import xopen
    from datasets.utils.py_utils import string_to_dict

    # The part after the last `::` is the archive or file that is downloaded, and the token belongs to its repository.
    url = path.split("::")[-1]
    pattern = config.HUB_DATASETS_URL if url.startswith(config.HF_ENDPOINT) else config.HUB_DATASETS_HFFS_URL
    fields = string_to_dict(url, pattern)
    token = None if fields is None else (tokens or {}).get(fields["repo_id"])
    try:
        with xopen(path, "rb", download_config=DownloadConfig(token=token)) as file:
            return file.read()
    except FileNotFoundError as error:
        raise PointCloudFileError(f"{path}: no such file ({error})") from error


def read_stored(path: str | None, data: bytes | None, tokens: Tokens | None = None) -> PointCloudData:
    """Read a cloud from its stored path or bytes; with bytes, the path is only a name."""
    if data is None:
        if path is None:
            raise PointCloudFileError("a point cloud with neither path nor bytes; expected at least one of them")
        local = local_path(path)
        if local is not None:
            return read_point_cloud(local)  # finds files that it refers to, such as materials
        data = fetch(path, tokens)
    file_type = type_of_bytes(data) if path is None else type_of_path(path, data)
    file = _NamedBytes(data)
    file.name = path or f"<{len(data)} bytes>"
    return read_point_cloud(file, file_type=file_type)


def local_path(path: str) -> str | None:
    """Return the path in the local file system, also of a file:// URL; None for remote files."""
    from datasets.utils.file_utils import is_local_path

    if path.startswith("file://") and "::" not in path:
        return url2pathname(urlsplit(path).path)
    return path if is_local_path(path) else None


class _NamedBytes(io.BytesIO):
    """A file object with a name, for error messages."""

    name = ""


def _points_of_lists(rows: pa.Array | None) -> np.ndarray | None:
    """Return points (points, channels) from lists of coordinates, None for a missing cloud.

    Without making Python numbers, of which a cloud has hundreds of thousands.
    """
    if rows is None:
        return None
    widths = pyarrow.compute.call_function("list_value_length", [rows]).unique()
    if len(widths) != 1 or rows.null_count:
        raise PointCloudError(f"{len(rows)} rows, empty or of unequal length; expected (points, 3)")
    return rows.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)

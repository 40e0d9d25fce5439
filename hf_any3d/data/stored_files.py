"""Files of clouds as datasets store them: bytes with a name, or a path, local or remote."""

import io
import os
from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import url2pathname

from hf_any3d.data.files import (
    PointCloudData,
    PointCloudFileError,
    file_type_of,
    point_cloud_bytes,
    read_point_cloud,
    supported_file_types,
)

Tokens = Mapping[str, str | bool | None]
"""Repository on the hub -> token that opens it."""

# Types whose files may name others beside them, and what they name them with.
_REFERENCES = {"obj": b"mtllib", "gltf": b'"uri"'}


def type_of_path(path: str) -> str:
    """Tell a file's type from the ending of its path, which may be a URL or lead into an archive.

    Args:
        path: such as `scans/a.OBJ`, `hf://datasets/me/scans/a.ply` or `zip://a.off::scans.zip`.

    Raises:
        PointCloudFileError: a type that cannot be read.
    """
    inner = path.split("::", 1)[0]
    if "://" in inner:
        inner = inner.split("?", 1)[0]
    file_type = os.path.splitext(inner)[1].lower().removeprefix(".")
    if file_type not in supported_file_types():
        seen = f"file type {file_type!r}" if file_type else "no file type"
        raise PointCloudFileError(f"{path}: {seen}; expected one of {', '.join(supported_file_types())}")
    return file_type


def type_of_bytes(data: bytes) -> str:
    """Tell a file's type from its bytes.

    Raises:
        PointCloudFileError: bytes that do not say what they are.
    """
    file_type = file_type_of(data)
    if file_type is None:
        raise PointCloudFileError(
            f"{len(data)} bytes starting with {data[:8]!r} do not tell their file type; pass "
            "{'bytes': …, 'path': 'name.off'}, where the ending of the path tells it"
        )
    return file_type


def fetch(path: str, tokens: Tokens | None = None) -> bytes:
    """Read a file, also from a URL, the hub or an archive, as `datasets` does.

    Raises:
        PointCloudFileError: no such file.
    """
    from datasets import DownloadConfig, config
    from datasets.utils.file_utils import xopen
    from datasets.utils.py_utils import string_to_dict

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
    """Read a cloud from what a dataset stores of it.

    Args:
        path: where the file is, or only its name when `data` is given.
        data: its bytes.
        tokens: for private repositories.

    Raises:
        PointCloudFileError: a file that is missing or cannot be read; the text names it.
        PointCloudError: neither path nor bytes.
    """
    if data is None:
        if path is None:
            raise PointCloudFileError("a point cloud with neither path nor bytes; expected at least one of them")
        if (local := local_path(path)) is not None:
            if not os.path.lexists(local):
                # `to_parquet` writes no files and gives features no way to.
                raise PointCloudFileError(
                    f"{local}: no such file; this dataset stores the path alone: where the file is, write it with "
                    "embed_files(dataset).to_parquet(…) or push_to_hub, which take files along"
                )
            return read_point_cloud(local)  # files beside it, such as materials, are found too
        data = fetch(path, tokens)
    file_type = type_of_bytes(data) if path is None else type_of_path(path)
    return read_point_cloud(_NamedBytes(data, path or f"<{len(data)} bytes>"), file_type=file_type)


def self_contained(path: str, file_format: str, tokens: Tokens | None = None) -> dict[str, bytes | str]:
    """Give a file as bytes and name, so that reading them needs nothing else.

    A local .obj or .gltf that names further files is written anew with what those files say.

    Args:
        path: a file, local or remote.
        file_format: "ply" or "npz", for what has to be written anew.
        tokens: for private repositories.

    Raises:
        PointCloudFileError: a file that is missing or, if it names others, cannot be read.
    """
    local = local_path(path)
    data, name = fetch(local or path, tokens), os.path.basename(path.split("::", 1)[0])
    reference = _REFERENCES.get(type_of_path(path))
    if reference is not None and reference in data and local is not None:
        data, name = point_cloud_bytes(read_point_cloud(local), file_format), f"{name}.{file_format}"
    return {"bytes": data, "path": name}


def local_path(path: str) -> str | None:
    """Give the path in this machine's file system, also of a file:// URL; None for what lies elsewhere."""
    from datasets.utils.file_utils import is_local_path

    if path.startswith("file://") and "::" not in path:
        return url2pathname(urlsplit(path).path)
    return path if is_local_path(path) else None


class _NamedBytes(io.BytesIO):
    """A file object with a name, for error messages."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = name

"""The files of a run: listed in folders and buckets, and read one at a time."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator

from hf_any3d.data.feature import fetch, local_path
from hf_any3d.data.files import PointCloudData, PointCloudFileError, read_point_cloud, supported_file_types
from hf_any3d.identity import input_stamp

_METADATA = ("metadata.csv",)


def list_files(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> list[str]:
    """List point files and meshes, each once.

    Args:
        paths: A file, a folder, a URL of a file or folder that fsspec opens (s3://, gs://, hf://, …), or several. A
            folder stands for the files of readable types in it and below; hidden ones and metadata.csv are left out.

    Returns:
        Absolute paths, and URLs, in the order given; files of a folder sorted by name.

    Raises:
        FileNotFoundError: A path does not exist, or a folder has no readable file.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found = [file for path in given for file in _files_of(os.fspath(path))]
    if not found:
        raise FileNotFoundError("paths is empty; expected files or folders")
    return list(dict.fromkeys(found))


def _files_of(path: str) -> Iterator[str]:
    from fsspec.core import url_to_fs

    local = local_path(path)
    if local is not None and os.path.isfile(local):
        yield os.path.abspath(local)
        return
    system, inner = url_to_fs(path if local is None else os.path.abspath(local))
    if system.isfile(inner):
        yield path
        return
    types = tuple(f".{name}" for name in supported_file_types())
    inner, count = inner.rstrip("/"), 0
    for name in sorted(system.find(inner)):
        parts = name.removeprefix(inner).strip("/").split("/")
        is_hidden = any(part.startswith(".") for part in parts)
        if not is_hidden and parts[-1] not in _METADATA and name.lower().endswith(types):
            count += 1
            yield name if local is not None else system.unstrip_protocol(name)
    if not count:
        what = "no point cloud in this folder" if system.exists(inner) else "no such file or folder"
        raise FileNotFoundError(f"{path}: {what}; readable are {', '.join(types)}")


def stamp_of(path: str) -> str:
    """Return a text that changes when a file of this machine or a bucket does, without reading it."""
    from fsspec.core import url_to_fs

    local = local_path(path)
    if local is not None:
        return input_stamp(local)
    system, inner = url_to_fs(path)
    try:
        return system.ukey(inner)  # of all that the file system says about it, such as an ETag
    except OSError:
        return "missing"


def read_file(path: str, on_invalid: str) -> PointCloudData:
    """Read a file of this machine or a bucket.

    Raises:
        PointCloudFileError: It cannot be fetched or read; names it.
    """
    local = local_path(path)
    if local is not None:
        return read_point_cloud(local, on_invalid=on_invalid)
    try:
        file = io.BytesIO(fetch(path))
    except PointCloudFileError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise PointCloudFileError(f"{path}: cannot be fetched ({type(error).__name__}: {error})") from error
    file.name = path
    return read_point_cloud(file, on_invalid=on_invalid)

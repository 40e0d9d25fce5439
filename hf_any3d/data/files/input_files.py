"""The files of a run: listed in folders and buckets, read one at a time, known by a stamp."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_any3d.registry import FORMATS, PACKED
from hf_any3d.utils.messages import one_line, printable

if TYPE_CHECKING:
    from hf_any3d.data.files import PointCloudData

# Errors of a file, after which the next one is read.
FILE_ERRORS = (ValueError, OSError, ImportError)
_METADATA = ("metadata.csv",)


@dataclass(frozen=True)
class InputFile:
    """A file of this machine or a bucket, or the bytes from standard input, with the name that results have.

    Of one that `is_copied`, a labeled copy will be written, which has all that a cloud cannot hold.
    """

    name: str
    data: bytes | None = None
    file_type: str | None = None
    label_field: str | None = None  # see `read_point_cloud`
    columns: tuple[str, ...] = ()
    fields: tuple[str, ...] | None = None  # all without any
    is_copied: bool = False

    def read(self, on_invalid: str = "drop") -> Cloud:
        """Read the cloud; `on_invalid` is about NaN and infinite coordinates, "drop" for the points, or "raise"."""
        from hf_any3d.data.files import PointCloudFileError, read_point_cloud
        from hf_any3d.data.files.source import nothing_is_lost

        source: Any = self._local()
        if source is None:
            from hf_any3d.data.feature import fetch  # of Arrow, which files of this machine do not need

            try:
                source = io.BytesIO(fetch(self.name) if self.data is None else self.data)
            except PointCloudFileError:
                raise
            except Exception as error:  # each file system has errors of its own
                what = f"{self.name}: cannot be downloaded ({type(error).__name__}: {error})"
                raise PointCloudFileError(what) from error
            # The format is found by the ending of the name, unless it is given.
            source.name = self.name
        with warnings.catch_warnings(record=True) as caught:
            # Python shows a warning once per place; here each file has its own.
            warnings.simplefilter("always")
            with nothing_is_lost() if self.is_copied else nullcontext():
                cloud = read_point_cloud(
                    source,
                    file_type=self.file_type,
                    on_invalid=on_invalid,
                    label_field=self.label_field,
                    columns=self.columns,
                    fields=self.fields,
                )
        return Cloud(self.name, cloud, [one_line(warning.message) for warning in caught])

    def stamp(self) -> str:
        """Return a text that changes when the file does; it is not read, but standard input is."""
        from hf_any3d.data.fingerprints import input_stamp

        local = self._local()
        if self.data is not None or local is not None:
            return input_stamp(local or self.name, self.data)
        from fsspec.core import url_to_fs

        system, inner = url_to_fs(self.name)
        try:
            return system.ukey(inner)  # of all that the file system says about it, such as an ETag
        except OSError:
            # Reading the file gives the error of its row.
            return "missing"

    def _local(self) -> str | None:
        if self.data is not None:
            return None
        if "://" not in self.name:
            return self.name
        from hf_any3d.data.feature import local_path

        return local_path(self.name)


@dataclass
class Cloud:
    """A cloud that was read, with the warnings about its file."""

    name: str
    data: PointCloudData
    warnings: list[str] = field(default_factory=list)

    @property
    def row(self) -> dict[str, Any]:
        """The cloud as input of a pipeline, with the name of its file."""
        return {"points": self.data, "path": self.name}


def with_name(name: str, error: object) -> str:
    """Return the error or warning of a file as one line that names it."""
    text = one_line(error)
    # Errors of readers begin with the file; others do not know it.
    return text if os.path.basename(name) in text else f"{name}: {text}"


def is_readable(place: str) -> bool:
    """Return whether a file is a point cloud or mesh by its path below a folder, `/` between its parts.

    Hidden files, those in hidden folders and metadata files are none.
    """
    parts = place.split("/")
    is_hidden = any(part.startswith(".") for part in parts)
    return not is_hidden and parts[-1] not in _METADATA and place.lower().endswith(readable_types())


def is_point_file(path: Path) -> bool:
    """Return whether a file of this machine is one that a folder stands for, by its name and its first lines."""
    from hf_any3d.data.files.text import is_prose

    return is_readable(path.name) and not is_prose(path)


def readable_types() -> tuple[str, ...]:
    """Return the endings of files with a cloud."""
    return tuple(f".{name}" for name in sorted(FORMATS))


def list_files(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> list[str]:
    """List point files and meshes, each once: absolute paths and URLs, in the order given.

    A path is a file, a folder, or a URL of either that fsspec opens (s3://, gs://, hf://, …). A folder stands for the
    files of readable types in it and below, sorted by name, without hidden and compressed ones and metadata.csv.
    """
    places = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files = [file for path in places for file in _files_of(os.fspath(path))]
    if not files:
        raise FileNotFoundError("paths is empty; pass files or folders")
    # A file that two paths name has one row.
    return list(dict.fromkeys(files))


def _files_of(path: str) -> Iterator[str]:
    from fsspec.core import url_to_fs

    from hf_any3d.data.feature import local_path
    from hf_any3d.data.files.companions import without_companions
    from hf_any3d.data.files.contents import instead_of_clouds
    from hf_any3d.data.files.folder_arrays import OF_POINTS, arrays_beside_points

    local = local_path(path)
    if local is not None and os.path.isfile(local):
        yield os.path.abspath(local)
        return
    # One way for folders of this machine and for buckets.
    system, inner = url_to_fs(path if local is None else os.path.abspath(local))
    if system.isfile(inner):
        yield path
        return
    inner = inner.rstrip("/")
    count = 0
    names = sorted(system.find(inner))
    if packed := [name for name in names if name.lower().endswith(PACKED)]:
        text = f"{path}: {len(packed)} compressed files are skipped, such as {packed[0]}; unpack them first"
        warnings.warn(printable(text), stacklevel=2)
    if arrays := sorted(arrays_beside_points(names)):
        text = f"{path}: {len(arrays)} files are skipped, such as {arrays[0]}: {OF_POINTS}"
        warnings.warn(printable(text), stacklevel=2)
        names = sorted({*names} - {*arrays})
    for name in without_companions(names):
        # By the path below the folder, as hidden folders above it do not count.
        if is_readable(name.removeprefix(inner).strip("/")):
            count += 1
            yield name if local is not None else system.unstrip_protocol(name)
    if not count:
        what = "no point cloud in this folder" if system.exists(inner) else "no such file or folder"
        raise FileNotFoundError(f"{path}: {what}; {instead_of_clouds(names)}")


def point_files(folder: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """List the point files and meshes of a folder of this machine and its subfolders, sorted by name.

    Hidden files, metadata files, text without points and compressed files are left out.

    Returns:
        The files, and the names of those that are left out by the reason, in words.
    """
    from hf_any3d.data.files.companions import without_companions
    from hf_any3d.data.files.folder_arrays import OF_POINTS, arrays_beside_points, photos
    from hf_any3d.data.files.text import is_prose

    def is_hidden(name: str) -> bool:
        return any(part.startswith(".") for part in Path(name).relative_to(folder).parts)

    files: list[Path] = []
    prose: list[str] = []
    packed: list[str] = []
    # All names at once, as files that belong to others are known by the names beside them.
    names = [path.as_posix() for path in sorted(folder.rglob("*"))]
    arrays = arrays_beside_points(names)
    for path in map(Path, without_companions(name for name in names if name not in arrays)):
        place = path.relative_to(folder).as_posix()
        if is_readable(place) and path.is_file():
            prose.append(path.name) if is_prose(path) else files.append(path)
        elif place.lower().endswith(PACKED) and path.is_file():
            packed.append(str(path))
    # Files that people may have expected to be read.
    left_out = {
        "text without points": prose,
        "compressed, unpack it first": packed,
        OF_POINTS: [name for name in arrays if not is_hidden(name)],
        "images": [name for name in photos(names) if not is_hidden(name)],
    }
    return files, left_out

"""`read_point_cloud`, and types of files by their signatures.

A new format is a file in this package and a line of `hf_any3d.registry.FORMATS`.
"""

import io
import os
from collections.abc import Collection, Sequence, Set
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hf_any3d.data.files.contents import Look, content_of, known_type, type_under_other_ending
from hf_any3d.data.files.label_files import chosen_file, file_beside, with_label_file
from hf_any3d.data.files.no_data import no_data_height
from hf_any3d.data.files.point_cloud import FIELDS, PointCloudData, leave_out_height, leave_out_invalid_points
from hf_any3d.data.files.source import (
    MAX_REFERENCES,
    PointCloudError,
    ReadLimits,
    file_errors,
    open_source,
    path_of_reference,
)
from hf_any3d.data.options import one_of
from hf_any3d.modeling.file_stamps import file_stamp
from hf_any3d.registry import FORMATS, full_name
from hf_any3d.utils.shipped import ASSETS

# Flags of LAS, which `further` has under these names, and by which points are left out.
_FLAGS = ("synthetic", "withheld")
# Modules of formats without a header.
_BARE = ("bin", "splats")
# Modules of formats to which rasters are exported; those of scanners flag points that are none.
_OF_RASTERS = ("npy", "pcd", "ply", "text")


def file_type_of(data: bytes) -> str | None:
    """Return the type of a file by its signature, as a `file_type` for `read_point_cloud`, or None.

    Text without a signature (.obj, .xyz, .pts, .txt, .csv, .gltf) and bare rows (.bin of scanners, .splat) are not
    recognized.
    """
    known = known_type(Look.at(data))
    if known is not None:
        return known
    from hf_any3d.data.files.colmap import is_table

    return "colmap" if is_table(data) else None


def supported_file_types() -> tuple[str, ...]:
    """Return the file types of `read_point_cloud`, without dots, in alphabetical order."""
    return tuple(sorted(FORMATS))


def example_file(name: str = "chair.ply") -> Path:
    """Return the path of an example file, a mesh that comes with the package.

    Raises:
        ValueError: The package has no file of this name; the message lists those that it has.
    """
    return ASSETS / one_of("name", name, sorted(path.name for path in ASSETS.glob("*.ply")))


def files_read(path: str | os.PathLike) -> list[Path]:
    """Return the files that `read_point_cloud` opens for a path: it, its labels, and those that it refers to.

    Those of a damaged file are not looked for.
    """
    path = Path(path)
    beside = file_beside(path)
    labels = [] if beside is None else [beside]
    module = FORMATS.get(path.suffix[1:].lower())
    # Only formats whose files refer to others have this function.
    references = getattr(import_module(full_name(module, __package__)), "references", None) if module else None
    if references is None:
        return [path, *labels]
    try:
        names = list(dict.fromkeys(references(path)))[:MAX_REFERENCES]
    except (ValueError, OSError, AttributeError, TypeError, RecursionError):
        return [path, *labels]
    paths = (path_of_reference(path.parent, name) for name in names)
    return [path, *labels, *dict.fromkeys(file for file in paths if file is not None)]


def read_stamp(path: str | os.PathLike) -> tuple[int, ...]:
    """Return numbers that change when what `read_point_cloud` opens for a path does; see `file_stamp`."""
    return tuple(number for file in files_read(path) for number in file_stamp(file))


def _check_arguments(source: object, file_type: object, limits: object, label_field: object, columns: Any) -> None:
    """Check what would otherwise fail within a reader, as if the file were damaged."""
    if isinstance(source, io.TextIOBase):
        raise ValueError("source is a file object of text; open it in binary mode, 'rb'")
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) and not hasattr(source, "read"):
        raise TypeError(f"source is {type(source).__name__}; expected a path, bytes, or a binary file object")
    for name, value in (("file_type", file_type), ("label_field", label_field)):
        if value is not None and not (isinstance(value, str) and value.strip()):
            raise ValueError(f"{name} is {value!r}; expected text or None")
    if limits is not None and not isinstance(limits, ReadLimits):
        raise ValueError(f"limits is {limits!r}; expected ReadLimits or None")
    # One text would be taken for its letters.
    is_list = isinstance(columns, Sequence) and not isinstance(columns, str)
    if not is_list or not all(isinstance(name, str) and name.strip() for name in columns):
        raise ValueError(f"columns is {columns!r}; expected a list of names")
    if len({*columns}) < len(columns):
        raise ValueError(f"columns is {list(columns)}; expected each name once")
    for name in _FLAGS:
        if name in columns:
            raise ValueError(f"columns has {name!r}, a flag of points that are left out; expected columns of numbers")


def _check_fields(fields: Any, label_field: str | None, label_file: object) -> None:
    """Check the names of fields; labels must be among them if their column or file is given."""
    if fields is None:
        return
    is_list = isinstance(fields, (Sequence, Set)) and not isinstance(fields, str)
    if not is_list or not all(isinstance(name, str) for name in fields):
        raise ValueError(f"fields is {fields!r}; expected a list of names, or None for all")
    for name in fields:
        one_of("a name in fields", name, FIELDS)
    for argument, value in (("label_field", label_field), ("label_file", label_file or None)):
        if value is not None and not {"labels", "face_labels"} & {*fields}:
            raise ValueError(f"{argument} is {value!r}, and fields has no labels; expected 'labels' among them")


def _only(cloud: PointCloudData, fields: Collection[str]) -> PointCloudData:
    """Return a cloud with these fields alone, and with what describes them."""
    left_out: dict[str, Any] = dict.fromkeys(name for name in FIELDS if name not in fields)
    if "faces" in left_out:
        left_out |= {"face_colors": None, "face_labels": None}
    if not {"labels", "face_labels"} & {*fields}:
        left_out["label_names"] = None
    for name, nothing in left_out.items():
        setattr(cloud, name, nothing)
    return cloud


def _type_by_content(name: str, content: Path | bytes) -> str:
    """Return the type of a file whose ending is none of ours, by its content."""
    look = Look.into(content) if isinstance(content, Path) else Look.at(content)
    found, refusal = type_under_other_ending(look, name)
    if found is None:
        raise PointCloudError(refusal)
    return found


def _label_file(path: Path | None, label_file: object, label_field: str | None) -> Path | None:
    """Return the file of labels that was asked for, or the one that a cloud has by convention; None for none."""
    if label_file is None:
        # Whoever names a column wants it, and no other file.
        return None if path is None or label_field is not None else file_beside(path)
    if label_file is False:
        return None
    if not isinstance(label_file, (str, os.PathLike)):
        raise ValueError(f"label_file is {label_file!r}; expected a path, an ending, False or None")
    if label_field is not None:
        raise ValueError(f"label_field is {label_field!r} and label_file {os.fspath(label_file)!r}; pass one of them")
    return chosen_file(path, label_file)


def _no_data_height(cloud: PointCloudData, module: str) -> float | None:
    """Return the height that some points have for none, or None, as of formats to which no rasters are exported."""
    # Vertices of a mesh are named by their numbers.
    if module not in _OF_RASTERS or cloud.is_mesh:
        return None
    heights = cloud.points[:, 2] if cloud.offset is None else cloud.points[:, 2] + cloud.offset[2]
    return no_data_height(heights, exact=module == "text")


def _rows_of(masks: list[np.ndarray]) -> np.ndarray | None:
    """Return which points of a file were kept, of masks that were applied one after the other; None if they differ."""
    kept = masks[0].copy()
    for mask in masks[1:]:
        if len(mask) != kept.sum():
            return None  # of several clouds
        kept[kept] = mask
    return kept


def read_point_cloud(
    source: str | os.PathLike | bytes | BinaryIO,
    *,
    file_type: str | None = None,
    limits: ReadLimits | None = None,
    on_invalid: str = "raise",
    label_field: str | None = None,
    label_file: str | os.PathLike | bool | None = None,
    columns: Sequence[str] = (),
    fields: Collection[str] | None = None,
) -> PointCloudData:
    """Read a point cloud or a mesh from a file of any supported type.

    Nothing is merged, dropped or reordered, but for what a format marks as no point, and heights that stand for no
    data, such as -9999 in points of a raster; a warning counts them. A mesh has the vertices of its file. Nothing is
    unpickled or downloaded.
    Files that the given one refers to (materials of OBJ, buffers of glTF) are read only from the same folder or below.

    Args:
        source: a path, the bytes of a file, or a binary file object.
        file_type: one of `supported_file_types()`; by default the ending of the name, and of bytes and of files with
            an ending of none of these the type that their content has by its signature.
        limits: limits of points, faces and bytes of the file; by default `ReadLimits.current()`.
        on_invalid: "raise" refuses a file with NaN or infinite coordinates; "drop" leaves such points and the faces
            on them out, with a warning that counts them.
        label_field: name of the column, property, field, array or extra dimension that labels are read from, whatever
            else the file has; of text without names its number, from 1. By default a usual name, such as `label` or
            `classification`.
        label_file: file with one label for each point or face, instead of those in the file itself: .npy, .npz of one
            array, .label of SemanticKITTI, numbers of 1, 2, 4 or 8 bytes without a header as nuScenes has them, or
            text of one column or with a column of such a name, numbers or words. A path, or an ending such as
            "_labels.npy" that takes the place of the cloud's own. By default a file of the same name that ends with
            .label, .labels or .seg, if the cloud has no labels itself; False for none.
        columns: names of further columns of points, such as extra dimensions of LAS, properties of PLY, fields of PCD
            and columns of text, for `further`, by these names and as float64; NaN where a point has no value.
        fields: names of what is read beside the points and `columns`, such as `["labels", "intensity"]`: colors,
            normals, labels, faces, face_colors, face_labels, intensity, ring, return_number, number_of_returns. None
            for all; without a name for the points alone. Of LAZ in point formats 6 to 10, other fields are not even
            decompressed. What a file does not have is None, as always. The flags of LAS are always read, as they say
            which points count.

    Raises:
        PointCloudFileError: a file that is missing, empty, damaged, cut off, of an unknown type, without points, with
            NaN or infinite coordinates, beyond the limits, without labels under the name `label_field`, or without
            one of the `columns`; then the error lists those that there are.
        ValueError: an argument has a value or a type that is none of those above.

    Example:
        ```python
        heights = read_point_cloud("street.laz", fields=["labels"]).points[:, 2]
        ```
    """
    one_of("on_invalid", on_invalid, ("raise", "drop"))
    _check_arguments(source, file_type, limits, label_field, columns)
    _check_fields(fields, label_field, label_file)
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    has_labels = fields is None or bool({"labels", "face_labels"} & {*fields})
    labels = _label_file(path, label_file, label_field) if has_labels else None
    types = supported_file_types()
    opened = open_source(source, file_type, types, limits, label_field, columns, fields, _type_by_content)
    # Readers are imported when needed: some need packages that are optional, and most runs read one format.
    module = FORMATS[opened.file_type]
    if opened.file_type in ("bin", "txt"):
        # Files of COLMAP share their endings with other formats.
        from hf_any3d.data.files.colmap import is_points3d

        if is_points3d(opened):
            module = "colmap"
    reader = import_module(full_name(module, __package__))
    # PointCloudData finds overflows and NaN, so numpy need not warn of them.
    with (
        file_errors(opened.name, f"{opened.file_type} file"),
        np.errstate(all="ignore"),
        leave_out_invalid_points() if on_invalid == "drop" else nullcontext([]) as left,
    ):
        # Rows of numbers without a header would be read of any content.
        content = content_of(Look.at(opened.data), opened.name, opened.file_type) if module in _BARE else None
        if content is not None:
            raise PointCloudError(content)
        try:
            cloud = reader.read(opened)
        # A missing package, too little memory, and a warning made an error say nothing about the content.
        except (ImportError, MemoryError, Warning):
            raise
        except Exception as error:
            # The ending may be wrong: what the file is says more than where its parsing stopped.
            content = content_of(Look.at(opened.data), opened.name, opened.file_type)
            if content is None:
                raise
            raise PointCloudError(content) from error
        kept = []
        value = _no_data_height(cloud, module)
        if value is not None:
            # Once more, since coordinates are stored in the precision that all of them need.
            with leave_out_height(value) as kept:
                left.clear()
                cloud = reader.read(opened)
            count, dropped = len(kept[0]), int((~kept[0]).sum())
            opened.warn(
                f"{dropped:,} of {count:,} points have the height {value:g}, which stands for no data, and are skipped"
            )
        opened.check_columns_found(cloud.further)
        opened.check_label_found(has_labels=cloud.labels is not None or cloud.face_labels is not None)
        for valid in left:
            dropped = f"{(~valid).sum():,} of {len(valid):,} points"
            opened.warn(f"{dropped} have NaN or infinite coordinates and are skipped")
        opened.tell_left_out()
        # Once more for what was read, whatever the header declared
        opened.limits.check(points=len(cloud), faces=len(cloud.faces) if cloud.is_mesh else 0)
    # Files that belong to others have errors of their own.
    if labels is not None:
        # A reader may build several clouds, of which a single one is that of the file.
        masks = [*kept, *left]
        rows = _rows_of(masks) if masks and masks[-1].sum() == len(cloud) else None
        cloud = with_label_file(cloud, labels, opened, rows, replaces=label_file is not None)
    return cloud if fields is None else _only(cloud, fields)

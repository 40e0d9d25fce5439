"""NPZ: archives of arrays saved by numpy.savez."""

import io
import zipfile

import numpy as np

from hf_any3d.data.files.attributes import usable_colors, usable_labels, usable_normals
from hf_any3d.data.files.npy import cloud_from_array, parse_array
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import listed, shorten

_POINTS = ("points", "xyz", "pos", "positions", "coords", "point_cloud", "pc", "vertices", "arr_0")
_NORMALS = ("normals", "normal")
_COLORS = ("colors", "rgb", "color")
_LABELS = ("labels", "part", "seg", "semantic", "label")


def read(source: Source) -> PointCloudData:
    """Read points and their attributes by the names of the arrays.

    Names: points (or xyz, pos, positions, coords, point_cloud, pc, vertices, arr_0; the only array under any name),
    normals, colors or rgb, labels (or part, seg, semantic, label if it has one value per point), faces, face_colors,
    offset. Other arrays are not opened. Without arrays of colours or normals the points may have more columns, as in
    .npy.

    Args:
        source: the file.

    Returns:
        A cloud, or a mesh if there are faces.

    Raises:
        PointCloudError: no array of points, values that are not numbers, or a damaged archive.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(source.data))
    # A damaged directory can fail anywhere in the parser of the standard library.
    except Exception as error:
        raise PointCloudError(f"not a valid .npz archive ({type(error).__name__}: {str(error)[:80]})") from None
    with archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        opened: dict[str, zipfile.ZipInfo] = {}

        def first(names: tuple[str, ...]) -> np.ndarray | None:
            name = next((name for name in names if name in members), None)
            if name is None:
                return None
            opened[name] = members[name]
            # The sum, since many arrays below the limit may exceed it together.
            source.check(decoded=sum(info.file_size for info in opened.values()))
            return _array(archive, members[name], name)

        points = first(_POINTS if len(members) > 1 else tuple(members))
        if points is None:
            raise PointCloudError(f"no array 'points'; found {listed(members)}")
        source.check(points=len(points) if points.ndim else 0, decoded=12 * len(points) if points.ndim else 0)
        cloud = cloud_from_array(points, source)
        count = len(cloud)
        normals, colors, offset = first(_NORMALS), first(_COLORS), first(("offset",))
        if colors is not None:
            colors = usable_colors(_numeric(colors, "colors"), source)
        if normals is not None:
            normals = usable_normals(_numeric(normals, "normals"), source)
        if offset is not None:
            offset = _numeric(offset, "offset") + (0 if cloud.offset is None else cloud.offset)
        labels = cloud.labels
        for name in _LABELS:
            values = first((name,))
            # A single `label` is the class of the whole cloud.
            if values is not None and values.shape == (count,):
                labels = usable_labels(_numeric(values, name), source)
                break
        face_colors = first(("face_colors",))
        if face_colors is not None:
            face_colors = usable_colors(_numeric(face_colors, "face_colors"), source)
        return PointCloudData(
            cloud.points,
            cloud.colors if colors is None else colors,
            cloud.normals if normals is None else normals,
            labels,
            first(("faces",)),
            face_colors,
            cloud.offset if offset is None else offset,
        )


def _numeric(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise PointCloudError(f"array {shorten(name)} has type {array.dtype}; expected numbers")
    return array


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PointCloudError(f"array {shorten(name)} is compressed by method {info.compress_type}; expected 0 or 8")
    try:
        data = archive.read(info)
    except Exception as error:
        raise PointCloudError(
            f"array {shorten(name)} is damaged ({type(error).__name__}: {str(error)[:80]})"
        ) from None
    try:
        return parse_array(data)
    except PointCloudError as error:
        raise PointCloudError(f"array {shorten(name)}: {error}") from None

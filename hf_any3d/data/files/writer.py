"""Write clouds and meshes: .ply and .obj for other programs, .npz for exact numbers."""

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hf_any3d.data.files.point_cloud import MEASURED, PointCloudData
from hf_any3d.data.files.source import tell_left_out
from hf_any3d.data.options import one_of
from hf_any3d.utils.atomic_files import atomic_write


def write_point_cloud(path: str | os.PathLike, data: PointCloudData) -> None:
    """Write a cloud or a mesh as binary .ply, .obj or .npz, by the ending of the path.

    The file is written atomically. PLY stores colors in 8 bits; NPZ keeps every number; OBJ has colors after the
    coordinates of vertices, as most programs read them; what it has no place for, such as labels, is told of in a
    warning. All three keep up axis and unit, PLY and OBJ in comments. An offset is added to the coordinates of PLY,
    which are then of type double, and of OBJ; NPZ has it as an array.

    Raises:
        ValueError: The path has another ending, or labels do not fit the 32 bits of PLY.
    """
    path = Path(path)
    suffix = one_of(f"file type of {path}", path.suffix.lower(), _WRITERS)
    tell_left_out(path, _not_written(data, suffix), f"{suffix[1:].upper()} cannot store them")
    with atomic_write(path) as unfinished, open(unfinished, "wb") as file:
        _WRITERS[suffix](file, data)


def point_cloud_bytes(data: PointCloudData, file_type: str = "ply") -> bytes:
    """Return the file, "ply", "obj" or "npz", that `write_point_cloud` would write, as bytes."""
    file = io.BytesIO()
    tell_left_out(f"<{file_type}>", _not_written(data, f".{file_type}"), f"{file_type.upper()} cannot store them")
    _WRITERS[f".{file_type}"](file, data)
    return file.getvalue()


def _not_written(data: PointCloudData, suffix: str) -> list[str]:
    """Return the fields of a cloud that a format has no place for."""
    if suffix == ".ply":
        return ["label_names"] * (data.label_names is not None)
    if suffix != ".obj":
        return []
    return [name for name in ("labels", *MEASURED, "face_colors", "face_labels") if getattr(data, name) is not None]


def _frame_lines(data: PointCloudData, comment: str) -> list[str]:
    """Return comments with up axis and unit, which the readers of PLY and OBJ know."""
    values = {"up_axis": data.up_axis, "meters_per_unit": data.meters_per_unit}
    return [f"{comment} {name} {value}" for name, value in values.items() if value is not None]


def _write_npz(file: BinaryIO, data: PointCloudData) -> None:
    arrays: dict[str, Any] = {name: value for name, value in data.arrays().items() if value is not None}
    if data.offset is not None and data.points.dtype == np.float64:
        # With all their decimals, by which a reader tells that float32 would not hold them.
        arrays["points"] = data.points + arrays.pop("offset")
    if data.up_axis is not None:
        arrays["up_axis"] = np.array(data.up_axis)
    if data.meters_per_unit is not None:
        arrays["meters_per_unit"] = np.array(data.meters_per_unit)
    if data.label_names is not None:
        arrays["label_names"] = np.array(data.label_names, str)
    np.savez_compressed(file, **arrays)


def _write_ply(file: BinaryIO, data: PointCloudData) -> None:
    # Large coordinates need double precision; the offset was split off because float32 would round them.
    exact = data.points if data.offset is None else data.points + data.offset
    kind = "float" if exact.dtype == np.float32 else "double"
    vertices = [(axis, kind, exact[:, i]) for i, axis in enumerate("xyz")]
    if data.normals is not None:
        vertices += [(f"n{axis}", "float", data.normals[:, i]) for i, axis in enumerate("xyz")]
    if data.colors is not None:
        vertices += _color_properties(data.colors)
    if data.labels is not None:
        vertices.append(_label_property("labels", data.labels))
    for name in MEASURED:
        values = getattr(data, name)
        if values is not None:
            vertices.append((name, "float", values))
    header = ["ply", "format binary_little_endian 1.0", *_frame_lines(data, "comment")]
    header.append(f"element vertex {len(data)}")
    header += [f"property {kind} {name}" for name, kind, _ in vertices]
    body = [_table(vertices)]
    faces = data.faces if data.is_mesh else None
    if faces is not None:
        properties = [] if data.face_colors is None else _color_properties(data.face_colors)
        if data.face_labels is not None:
            properties.append(_label_property("face_labels", data.face_labels))
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        header += [f"property {kind} {name}" for name, kind, _ in properties]
        # A face is a list: its length, and three corners.
        corners = [(f"corner{i}", "int", faces[:, i]) for i in range(3)]
        body.append(_table([("length", "uchar", np.full(len(faces), 3)), *corners, *properties]))
    file.write("\n".join([*header, "end_header\n"]).encode("ascii"))
    for table in body:
        file.write(table.data)


def _label_property(name: str, labels: np.ndarray) -> tuple[str, str, np.ndarray]:
    if labels.min() < -(2**31) or labels.max() >= 2**31:
        raise ValueError(f"{name}: {labels.min()} to {labels.max()} do not fit PLY's 32 bits; write .npz")
    # Points and faces call it the same, each in its own element.
    return "label", "int", labels


def _color_properties(colors: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    bytes_ = np.rint(colors * 255)
    return [(name, "uchar", bytes_[:, i]) for i, name in enumerate(("red", "green", "blue"))]


def _table(columns: list[tuple[str, str, np.ndarray]]) -> np.ndarray:
    kinds = {"float": "<f4", "double": "<f8", "int": "<i4", "uchar": "u1"}
    table = np.empty(len(columns[0][2]), [(name, kinds[kind]) for name, kind, _ in columns])
    for name, _, values in columns:
        table[name] = values
    return table.view(np.uint8)


def _write_obj(file: BinaryIO, data: PointCloudData) -> None:
    exact = data.points if data.offset is None else data.points + data.offset
    file.write("".join(f"{line}\n" for line in _frame_lines(data, "#")).encode("ascii"))
    vertices = exact if data.colors is None else np.concatenate([exact, data.colors], axis=1)
    # Enough digits to restore every coordinate exactly.
    digits = 9 if exact.dtype == np.float32 else 17
    _write_rows(file, "v" + f" %.{digits}g" * 3 + " %.6g" * (vertices.shape[1] - 3), vertices)
    if data.normals is not None:
        _write_rows(file, "vn" + " %.9g" * 3, data.normals)
    faces = data.faces if data.is_mesh else None
    if faces is not None:
        corner = "%d" if data.normals is None else "%d//%d"
        # Vertices and normals are counted from 1, and a corner names both by the same number.
        corners = faces + 1 if data.normals is None else np.repeat(faces + 1, 2, axis=1)
        _write_rows(file, "f" + f" {corner}" * 3, corners)
    else:
        # Many programs do not show lone vertices, but do show point elements.
        _write_rows(file, "p %d", np.arange(1, len(data) + 1)[:, None])


def _write_rows(file: BinaryIO, form: str, rows: np.ndarray) -> None:
    # In blocks, since the text of all rows is many times larger than their numbers.
    for start in range(0, len(rows), 65536):
        block = rows[start : start + 65536].tolist()
        file.write("".join(f"{form % tuple(row)}\n" for row in block).encode("ascii"))


_WRITERS = {".ply": _write_ply, ".obj": _write_obj, ".npz": _write_npz}

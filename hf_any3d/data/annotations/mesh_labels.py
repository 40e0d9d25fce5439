"""Labels of OBJ meshes, which the format has no place for: names of parts of a mesh, or a JSON file beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_any3d.data.files import PointCloudData, PointCloudError, PointCloudFileError, file_errors, read_point_cloud
from hf_any3d.data.files.obj import Part, read_parts

NOT_LABELED = -1
"""Label of faces without a class, which are neither learned nor judged."""


def read_labeled_meshes(
    files: Sequence[Path], names: Mapping[int, str]
) -> tuple[Iterator[tuple[str, PointCloudData]], dict[int, str]]:
    """Read OBJ meshes with the labels of their vertices or faces.

    Where a `NAME.json` beside each mesh has `labels`, a whole number for each vertex, as in Teeth3DS, these are taken.
    Else a face has the class of its group (`g`), object (`o`) or material (`usemtl`): the first of these kinds that
    has all names of classes or, if none are given, at least two names in all files together.

    Args:
        files: The meshes.
        names: Label -> name of its class; without any, names of parts are numbered from 0 in alphabetical order.

    Returns:
        Name of each file with its mesh, read when it is asked for; and label -> name of its class.

    Raises:
        PointCloudFileError: Labels of a file are missing or of another number, or no parts have these names.
    """
    beside = [file.with_suffix(".json") for file in files]
    without = [file for file in beside if not file.is_file()]
    # Where one mesh has its labels beside it, all have to: groups of the others could mean anything.
    if len(without) < len(files):
        if without:
            raise PointCloudFileError(f"{without[0]}: no such file; other meshes have their labels beside them")
        return (_with_labels_beside(mesh, labels) for mesh, labels in zip(files, beside, strict=True)), dict(names)
    kind, codes = _codes_of_parts(files, names)
    return (_with_labels_of_parts(file, kind, codes) for file in files), {code: name for name, code in codes.items()}


def _with_labels_beside(mesh: Path, path: Path) -> tuple[str, PointCloudData]:
    cloud = read_point_cloud(mesh)
    with file_errors(path, "JSON file with labels of vertices"):
        labels = np.array(json.loads(path.read_text(encoding="utf-8-sig"))["labels"])
        if labels.shape != (len(cloud),):
            raise PointCloudError(f"{labels.size} labels for the {len(cloud)} vertices of {mesh.name}")
        if labels.dtype.kind not in "iu":
            raise PointCloudError(f"labels are of type {labels.dtype}; expected whole numbers")
    cloud.labels = labels.astype(np.int64)
    return mesh.name, cloud


def _with_labels_of_parts(file: Path, kind: str, codes: Mapping[str, int]) -> tuple[str, PointCloudData]:
    cloud, parts = read_parts(file)
    # Parts of other names are neither learned nor judged.
    cloud.face_labels = np.array([codes.get(_name(part, kind), NOT_LABELED) for part in parts], np.int64)
    if (cloud.face_labels == NOT_LABELED).all():
        raise PointCloudFileError(f"{file}: no face has a {kind} called {' or '.join(codes)}")
    return file.name, cloud


def _codes_of_parts(files: Sequence[Path], names: Mapping[int, str]) -> tuple[str, dict[str, int]]:
    """Return whether groups, objects or materials are classes, and the label of each name."""
    # Of all files together, since a single one may have parts of one name only
    parts = {part for file in files for part in read_parts(file)[1]}
    for kind in Part._fields:
        named = {_name(part, kind) for part in parts} - {""}
        if names and named.issuperset(names.values()):
            return kind, {name: code for code, name in names.items()}
        if not names and len(named) > 1:
            return kind, {name: code for code, name in enumerate(sorted(named))}
    wanted = f"called {', '.join(names.values())}" if names else "of two names"
    raise PointCloudFileError(f"{files[0].parent}: no groups, objects or materials {wanted}; expected labels of faces")


def _name(part: Part, kind: str) -> str:
    return getattr(part, kind).decode("utf-8", "replace")

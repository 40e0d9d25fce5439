"""3MF, the 3D printing format: meshes with units and colors, arranged on a build plate, in a ZIP archive of XML."""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

import numpy as np

from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.poses import finite, linear_part
from hf_any3d.data.files.source import NoPointsError, PointCloudError, Source
from hf_any3d.data.files.text_numbers import count_of, shorten
from hf_any3d.data.options import one_of

_RELATIONS = "_rels/.rels"
_MODEL_RELATION = "http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"
_METERS = {
    "micron": 1e-6,
    "millimeter": 1e-3,
    "centimeter": 1e-2,
    "inch": 0.0254,
    "foot": 0.3048,
    "meter": 1.0,
}
# An item or component takes a few bytes and can show a mesh again.
_MAX_PARTS = 1 << 15
_COLOR = re.compile(r"#([0-9A-Fa-f]{6})([0-9A-Fa-f]{2})?")
# Elements that are not read. Groups of materials among them have no colors of their own.
_UNREAD = {
    "texture2dgroup": "textures",
    "compositematerials": "composites",
    "multiproperties": "mixtures",
    "beamlattice": "beams",
    "slicestack": "slices",
}
_NO_COLOR = (np.nan, np.nan, np.nan)


@dataclass
class Shape:
    """An object of a model: a mesh, or a group of other objects."""

    vertices: array = field(default_factory=lambda: array("d"))  # x, y, z of one after the other
    corners: array = field(default_factory=lambda: array("q"))  # three of each triangle
    colors: array = field(default_factory=lambda: array("f"))  # three of each triangle, NaN without one
    components: list[Placed] = field(default_factory=list)
    material: tuple[str | None, str | None] = (None, None)  # group and entry of triangles without their own


@dataclass(frozen=True)
class Placed:
    """An object that is shown, with the part of the package that has it and where it is put."""

    part: str
    shape: str
    transform: np.ndarray  # (4, 3); rows of points are multiplied from the left


@dataclass
class Part:
    """A file of the package with a model."""

    unit: str = "millimeter"
    shapes: dict[str, Shape] = field(default_factory=dict)
    items: list[Placed] = field(default_factory=list)


def read(source: Source) -> PointCloudData:
    """Read the items of the plate, each moved by its transform, with z up and the unit of the file.

    Objects may consist of others, also of other files of the package (production extension). Colors are those of
    triangles, by base materials and color groups; they are kept where all triangles have one. Textures, composites,
    slices, beams and what slicers add are left out. Entities of XML are refused, as 3MF has none.
    """
    with zipfile.ZipFile(io.BytesIO(source.data)) as archive:
        package = Package(archive, source)
        root = package.model_name()
        plate = package.part(root)
        meshes = list(_placed_meshes(package, plate.items))
        unit = plate.unit
    if not meshes:
        raise NoPointsError(f"has no points: none of {len(plate.items)} items of the plate has a mesh")
    points = sum(len(shape.vertices) for shape, _ in meshes) // 3
    faces = sum(len(shape.corners) for shape, _ in meshes) // 3
    # Before any is created: many items may show one mesh.
    source.check(points=points, faces=faces, decoded=24 * points + 36 * faces)
    return _join(meshes, unit, package, source)


def _join(meshes: list[tuple[Shape, np.ndarray]], unit: str, package: Package, source: Source) -> PointCloudData:
    points = []
    faces = []
    colors = []
    start = 0
    for shape, transform in meshes:
        vertices = np.frombuffer(shape.vertices, np.float64).reshape(-1, 3)
        # A transform is four rows of three numbers: the turn, and the translation (3MF core specification).
        points.append(vertices @ transform[:3] + transform[3])
        corners = np.frombuffer(shape.corners, np.int64).reshape(-1, 3)
        if len(corners) and not 0 <= corners.min() <= corners.max() < len(vertices):
            raise PointCloudError(f"a triangle has a corner outside of the {len(vertices)} vertices of its mesh")
        if np.linalg.det(transform[:3]) < 0:
            corners = corners[:, [0, 2, 1]]  # a mirrored triangle turns the other way
        faces.append(corners + start)
        colors.append(np.frombuffer(shape.colors, np.float32).reshape(-1, 3))
        start += len(vertices)
    all_faces = np.concatenate(faces)
    face_colors = np.concatenate(colors)
    # Colors of only some triangles are no colors of the surface, as a cloud has one for each or none.
    has_color = np.asarray(np.isfinite(face_colors).all(axis=1))
    if has_color.any() and not has_color.all():
        source.warn(f"{(~has_color).sum():,} of {len(has_color):,} triangles have no color, so colors are ignored")
    source.leave_out(sorted(package.left_out))
    return PointCloudData(
        np.concatenate(points),
        faces=all_faces if len(all_faces) else None,
        face_colors=face_colors if len(all_faces) and has_color.all() else None,
        up_axis="z",
        meters_per_unit=_METERS[unit],
    )


def _placed_meshes(package: Package, items: list[Placed]) -> Iterator[tuple[Shape, np.ndarray]]:
    """Yield each mesh as often as it is shown, with its transform, in the order of the file."""
    seen = 0
    # A stack instead of recursion: groups within groups may be deeper than Python's stack.
    waiting = list(reversed(items))
    while waiting:
        placed = waiting.pop()
        # This also ends a group that has itself as a component.
        seen = seen + 1
        if seen > _MAX_PARTS:
            raise PointCloudError(f"more than {_MAX_PARTS} parts on the plate; expected at most that many")
        shape = package.part(placed.part).shapes[placed.shape]
        if len(shape.vertices):
            yield shape, placed.transform
        for inner in reversed(shape.components):
            # A component's transform acts first, then that of the object that holds it.
            linear = inner.transform[:3] @ placed.transform[:3]
            moved = inner.transform[3] @ placed.transform[:3] + placed.transform[3]
            waiting.append(Placed(inner.part, inner.shape, np.vstack([linear, moved])))


class Package:
    """The models of a package, each parsed once."""

    def __init__(self, archive: zipfile.ZipFile, source: Source):
        self.archive = archive
        self.source = source
        # Relations write names of parts with a slash in front, which the ZIP has not, and names in other capitals are
        # the same (Open Packaging Conventions, section 6.2.2.3).
        self.names = {info.filename.lstrip("/").lower(): info for info in archive.infolist()}
        self.parts: dict[str, Part] = {}
        self.left_out: set[str] = set()
        self.unpacked = 0

    def model_name(self) -> str:
        """Return the name of the model that the package starts with."""
        targets: list[str] = []

        def start(tag: str, attributes: dict[str, str]) -> None:
            if tag.rpartition("}")[2] == "Relationship" and attributes.get("Type") == _MODEL_RELATION:
                targets.append(attributes["Target"].lstrip("/"))

        # The package says by a relation which of its models is the first one (Open Packaging Conventions).
        _parse(self.content(_RELATIONS), start)
        return targets[0]

    def part(self, name: str) -> Part:
        """Return a model of the package."""
        key = name.lower()
        if key not in self.parts:
            reader = _ModelReader(name, self)
            _parse(self.content(name), reader.start)
            self.parts[key] = reader.part
        return self.parts[key]

    def content(self, name: str) -> bytes:
        """Unpack a file of the package within the limits."""
        if name.lower() not in self.names:
            raise PointCloudError(f"has no part {shorten(name)}; the package is damaged, or no 3MF")
        info = self.names[name.lower()]
        # Before it is unpacked; a package of many small files counts as a whole.
        self.unpacked += info.file_size
        self.source.check(decoded=self.unpacked)
        # Only for these does the declared size bound what is unpacked.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise PointCloudError(f"{shorten(name)} is compressed by method {info.compress_type}; expected 0 or 8")
        return self.archive.read(info)


class _ModelReader:
    """Builds a part from its elements, in the order of the file."""

    def __init__(self, name: str, package: Package):
        self.name = name
        self.package = package
        self.part = Part()
        self.groups: dict[str, list[tuple[float, ...]]] = {}
        self.group: list[tuple[float, ...]] = []
        self.is_mesh = False
        self._begin(Shape())

    def _begin(self, shape: Shape) -> None:
        self.shape = shape
        # Looked up once, since these are called for each of millions of elements
        self.add_vertex = shape.vertices.extend
        self.add_corners = shape.corners.extend
        self.add_color = shape.colors.extend

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Take the start of an element."""
        name = tag.rpartition("}")[2]
        # First what there are millions of.
        if name == "vertex":
            if self.is_mesh:
                self.add_vertex((float(attributes["x"]), float(attributes["y"]), float(attributes["z"])))
            return
        if name == "triangle":
            self.add_corners((int(attributes["v1"]), int(attributes["v2"]), int(attributes["v3"])))
            self.add_color(self._color(attributes))
            return
        match name:
            case "mesh":
                self.is_mesh = True
            case "object":
                self._begin(Shape(material=(attributes.get("pid"), attributes.get("pindex"))))
                self.part.shapes[attributes["id"]] = self.shape
            case "component":
                self.shape.components.append(self._placed(attributes))
            case "item":
                self.part.items.append(self._placed(attributes))
            case "base" | "color":
                # An opacity may follow the color, and is left out.
                match = _COLOR.fullmatch(attributes.get("displaycolor", attributes.get("color", "")))
                rgb = tuple(byte / 255 for byte in bytes.fromhex(match[1])) if match else _NO_COLOR
                self.group.append(rgb)
            case "basematerials" | "colorgroup":
                self.group = self.groups[attributes["id"]] = []
            case "model":
                self.part.unit = one_of("unit", attributes.get("unit", "millimeter"), tuple(_METERS))
            case unread if unread in _UNREAD:
                self.package.left_out.add(_UNREAD[unread])
                self.is_mesh = False  # slices have flat vertices of their own

    def _placed(self, attributes: dict[str, str]) -> Placed:
        # The path belongs to the production extension, and so has its namespace.
        path = next((value for name, value in attributes.items() if name.endswith("}path")), None)
        part = self.name if path is None else posixpath.normpath(path).lstrip("/")
        return Placed(part, attributes["objectid"], _transform(attributes))

    def _color(self, triangle: dict[str, str]) -> tuple[float, ...]:
        """Return the color of a triangle: that of its first corner, of the triangle, or of the object."""
        # A color of its own, else one of the triangle's group, else what the object has (3MF materials extension).
        group = triangle.get("pid")
        entry = triangle.get("p1")
        if entry is None and self.shape.material[1] is None:
            return _NO_COLOR
        if entry is None:
            group, entry = self.shape.material
        elif group is None:
            group = self.shape.material[0]
        if {triangle.get(corner, entry) for corner in ("p2", "p3")} != {entry}:
            self.package.left_out.add("colors that change within a triangle, of which the first corner's is kept")
        if group not in self.groups or entry is None:
            return _NO_COLOR
        return self.groups[group][count_of(entry, "the number of a material")]


def _transform(attributes: dict[str, str]) -> np.ndarray:
    """Return the transform (4, 3) of an item or a component."""
    words = attributes.get("transform", "1 0 0 0 1 0 0 0 1 0 0 0").split()
    name = f"the transform of object {shorten(attributes['objectid'])}"
    try:
        matrix = np.array([float(word) for word in words]).reshape(4, 3)
    except ValueError:
        raise PointCloudError(f"{name} is {shorten(' '.join(words))}; expected 12 numbers") from None
    return np.vstack([linear_part(matrix[:3], name), finite(matrix[3:], name)])


def _parse(text: bytes, start: Callable[[str, dict[str, str]], None]) -> None:
    """Call a function with the name and the attributes of each element of XML; names follow `namespace}`."""

    def refuse(*_: Any) -> None:
        raise PointCloudError("XML with a document type or entities; 3MF has none")

    parser = expat.ParserCreate(namespace_separator="}")
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = start
    parser.Parse(text, True)

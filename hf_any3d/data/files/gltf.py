"""glTF 2.0: .gltf, JSON with separate binary files, and .glb, the same in one binary file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from hf_any3d.data.files.attributes import USABLE, usable_colors, usable_normals, usable_numbers
from hf_any3d.data.files.gltf_document import FIELDS_OF_POINTS, GLB_HEAD, Document, chunks_of
from hf_any3d.data.files.gltf_placement import (
    PlacedMesh,
    Shape,
    active_targets,
    center_of,
    in_scene,
    influences,
    morphed,
    placed_meshes,
)
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import NoPointsError, PointCloudError, Source
from hf_any3d.data.files.text_numbers import listed, shorten

# Extensions that a file may require: those that are read, and those that change no point and no triangle of the scene
# at rest. All others, such as new shapes and encodings, are refused by name.
_SUPPORTED = re.compile(
    # Surfaces, light, sound and motion, of any vendor
    r"[A-Z\d]+_(alt_materials|animation|audio|camera|haptic|image|light|material|packing|physics|techniques|texture"
    r"|xmp)\w*"
    # What is read: numbers, instances, places
    r"|KHR_(mesh_quantization|accessor_float(16|64)|node_visibility)|EXT_mesh_gpu_instancing|CESIUM_RTC"
    # Facts about nodes, points and triangles, and what is drawn or done with them
    r"|KHR_(node_(select|hover)ability|interactivity|collision_shapes|implicit_shapes|rigid_bodies|gaussian_splatting)"
    r"|EXT_(mesh_features|instance_features|structural_metadata|feature_metadata|mesh_manifold"
    r"|mesh_primitive_edge_visibility)"
    r"|CESIUM_(primitive_outline|tile_edges)|MSFT_lod|ADOBE_render_order|GODOT_single_root|FB_geometry_metadata"
    r"|FB_ngon_encoding|GRIFFEL_bim_data|AGI_stk_metadata|CVTOOLS_unity_metadata|NGA_gpm(_local)?"
    r"|VRM|VRMC_\w+"
)
_GLOSSY = "KHR_materials_pbrSpecularGlossiness"
_MORPHED = ("POSITION", "NORMAL", "COLOR_0")
_POINTS, _TRIANGLES, _STRIP, _FAN = 0, 4, 5, 6
# A few bytes per node can show a mesh again, and each takes time however few points it has.
_MAX_PARTS = 1 << 15
_MODES = {1: "lines", 2: "lines", 3: "lines"}
# Attributes of vertices that say nothing about points and triangles beyond what is read.
_ATTRIBUTES = re.compile(r"POSITION|NORMAL|COLOR_0|TANGENT|(TEXCOORD|JOINTS|WEIGHTS)_\d+")
NOT_READ = "texture coordinates, tangents, animations, cameras, lights, hidden nodes"


def read(source: Source) -> PointCloudData:
    """Read all points and triangles that the default scene shows at rest.

    A mesh is where its nodes, its instances (EXT_mesh_gpu_instancing) or the joints of its skin place it, with the
    morph targets of its weights, relative to the center of the file (CESIUM_RTC). Hidden nodes (KHR_node_visibility)
    and those of a scale of 0 0 0 are left out.

    Colors are those of the vertices, or for faces the base color of a material without texture, from linear numbers
    to sRGB, as other formats store them. If some parts have colors of vertices, the vertices of the others get the
    color of their material. Attributes of applications, whose names begin with an underscore, are labels, intensities,
    rings and returns by the names of columns, such as `_CLASSIFICATION` of py3dtiles. Textures, lines and other
    attributes are left out with a warning; animations without one.
    """
    text = source.data
    chunk = None
    if source.data.startswith(b"glTF"):
        text, chunk = chunks_of(source.data)
    content = json.loads(text)
    version = str(content["asset"].get("version"))
    if not version.startswith("2"):
        raise PointCloudError(f"glTF version {shorten(version)}; expected 2.0")
    required = map(str, content.get("extensionsRequired", []))
    unsupported = [name for name in required if not _SUPPORTED.fullmatch(name)]
    if unsupported:
        advice = "; decompress it first" if any("compression" in name for name in unsupported) else ""
        raise PointCloudError(f"requires {listed(unsupported)}, which is not supported{advice}")
    document = Document(content, chunk, source)
    primitives = _placed_primitives(document)
    if not primitives:
        raise NoPointsError("the scene shows no points or triangles; lines and hidden nodes are not read")
    center = center_of(document)
    return _join([_primitive(document, primitive, placed, source) for primitive, placed in primitives], center, source)


def _placed_primitives(document: Document) -> list[tuple[dict, PlacedMesh]]:
    """Return the primitives of points and triangles with their transforms, within the limits; warn about others."""
    source = document.source
    primitives: list[tuple[dict, PlacedMesh]] = []
    left_out: dict[str, None] = {}  # in the order of the file, each once
    # Many primitives may share one table, so their sum is checked before any is created.
    points = indices = faces = moved = 0
    for placed in placed_meshes(document):
        shown = len(placed.transforms)
        for primitive in document.item("meshes", placed.mesh)["primitives"]:
            mode = primitive.get("mode", _TRIANGLES)
            attributes = primitive["attributes"]
            if mode not in (_POINTS, _TRIANGLES, _STRIP, _FAN):
                left_out[_MODES.get(mode, f"primitives of mode {shorten(str(mode))}")] = None
                continue
            if "POSITION" not in attributes:
                continue
            if len(primitives) == _MAX_PARTS:
                raise PointCloudError(f"more than {_MAX_PARTS} parts in the scene; expected at most that many")
            primitives.append((primitive, placed))
            measured = {*document.measures(attributes).values()}
            others = [name for name in attributes if not _ATTRIBUTES.fullmatch(name) and name not in measured]
            left_out |= dict.fromkeys(map(shorten, others))
            count = document.count(attributes["POSITION"])
            corners = count
            if "indices" in primitive:
                corners = document.count(primitive["indices"])
                indices += corners
            _check_lengths(document, primitive, placed, count)
            points += count * shown
            # Joints and weights of four numbers, and changes of three
            moved += count * (8 * influences(primitive) + 3 * len(active_targets(primitive, placed)))
            if mode == _TRIANGLES:
                faces += corners // 3 * shown
            elif mode != _POINTS:
                # A strip or a fan has a triangle for each corner from the third on.
                faces += max(corners - 2, 0) * shown
            # Before anything is read: float64 points and int64 faces of three numbers, the indices, and what moves.
            source.check(points=points, faces=faces, decoded=24 * (points + faces) + 8 * (indices + moved))
    source.leave_out(left_out)
    return primitives


def _check_lengths(document: Document, primitive: dict, placed: PlacedMesh, count: int) -> None:
    """Check that a primitive has one normal, one color and one of all else that is read for each point."""
    attributes = primitive["attributes"]
    names = ["NORMAL", "COLOR_0", *document.measures(attributes).values()]
    if placed.joints is not None:
        names += [name for name in attributes if name.startswith(("JOINTS_", "WEIGHTS_"))]
    read = [(name, attributes[name]) for name in names if name in attributes]
    for target, _ in active_targets(primitive, placed):
        read += [(f"{name} of morph targets", target[name]) for name in _MORPHED if name in target]
    for name, number in read:
        values = document.count(number)
        if values != count:
            raise PointCloudError(f"a primitive has {count} points and {values} values of {name}")


@dataclass
class Part:
    """A primitive in the frame of the scene; colors, normals and the color of its material may be None."""

    points: np.ndarray  # (points, 3) float64
    faces: np.ndarray  # (faces, 3) int64
    colors: np.ndarray | None  # (points, 3)
    normals: np.ndarray | None  # (points, 3)
    color: np.ndarray | None  # (3,)
    measures: dict[str, np.ndarray]  # field of a cloud -> (points,)


def _primitive(document: Document, primitive: dict, placed: PlacedMesh, source: Source) -> Part:
    """Read a primitive, and move it to the frame of the scene."""
    attributes = primitive["attributes"]
    points = morphed(document, primitive, placed, "POSITION", document.positions(primitive).astype(np.float64))
    normals = None
    if "NORMAL" in attributes:
        normals = document.accessor(attributes["NORMAL"], 3).astype(np.float64)
        normals = morphed(document, primitive, placed, "NORMAL", normals)
    shape = Shape(points, normals, _faces(document, primitive, len(points)))
    shape = in_scene(document, primitive, placed, shape)
    normals = shape.normals
    if normals is not None:
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = usable_normals(normals / np.where(length > 0, length, 1), source)
    factor, is_known = _material(document, primitive, source)
    colors = _colors(document, primitive, placed, factor)
    measures: dict[str, np.ndarray] = {}
    for kind, name in document.measures(attributes).items():
        values = USABLE[kind](document.accessor(attributes[name], 1).reshape(-1), source)
        if values is not None:
            measures[kind] = values
    # Instances have the colors and measures of the mesh.
    shown = len(placed.transforms)
    if shown != 1:
        colors = None if colors is None else np.tile(colors, (shown, 1))
        measures = {kind: np.tile(values, shown) for kind, values in measures.items()}
    color = srgb(factor.clip(0, 1)) if is_known else None
    return Part(shape.points, shape.faces, colors, normals, color, measures)


def _colors(document: Document, primitive: dict, placed: PlacedMesh, factor: np.ndarray) -> np.ndarray | None:
    """Return the colors of points (points, 3) in sRGB, multiplied by the factor (3,) of their material before."""
    source = document.source
    attributes = primitive["attributes"]
    if "COLOR_0" not in attributes:
        return None
    steps = document.steps(attributes["COLOR_0"])
    stored = document.accessor(attributes["COLOR_0"], 3, 4, in_steps=steps is not None)
    if stored.shape[1] == 4 and len(stored) > 0 and bool((stored[:, 3] != stored[0, 3]).any()):
        source.leave_out(["alpha of COLOR_0"])
    if steps is not None:
        if "targets" not in primitive and (factor == 1).all():
            # Column by column, as rows are short.
            return np.stack([_srgb_of_steps(steps).take(column) for column in stored.T[:3]], axis=1)
        stored = stored.astype(np.float32) / steps
    if stored.dtype.kind != "f":
        colors = usable_colors(stored[:, :3] * factor, source)
        return None if colors is None else srgb(colors)
    stored = morphed(document, primitive, placed, "COLOR_0", stored)
    # The specification clamps them; floats are never bytes here.
    linear = stored[:, :3].clip(0, 1)
    if (factor != 1).any():
        linear = linear * factor
    colors = usable_numbers(linear, "colors", source)
    return None if colors is None else srgb(colors.clip(0, 1))


@lru_cache
def _srgb_of_steps(steps: int) -> np.ndarray:
    """Return `srgb` of 0, 1, … (steps + 1,) of so many steps: each is converted once, as many points share them."""
    return srgb(np.arange(steps + 1, dtype=np.float32) / steps)


def srgb(linear: np.ndarray) -> np.ndarray:
    """Return colors in sRGB, as scanners and most formats have them, for linear ones; both are float32 in [0, 1].

    Source: IEC 61966-2-1; glTF 2.0, sections 3.7.2.1 and 3.9.2, for what is linear.
    """
    linear = linear.astype(np.float32, copy=False)
    bright = np.float32(1.055) * np.power(linear, np.float32(1 / 2.4)) - np.float32(0.055)
    return np.where(linear <= np.float32(0.0031308), np.float32(12.92) * linear, bright).clip(0, 1)


def _faces(document: Document, primitive: dict, count: int) -> np.ndarray:
    """Return the triangles (faces, 3) of a primitive of `count` points."""
    mode = primitive.get("mode", _TRIANGLES)
    # Without indices, each corner has a point of its own.
    order = np.arange(count)
    if "indices" in primitive:
        order = document.accessor(primitive["indices"], 1).reshape(-1)
        if order.dtype.kind != "u" or (len(order) and order.max() >= count):
            raise PointCloudError(f"indices {order.dtype} up to {order.max()}; allowed are 0 to {count - 1}")
        order = order.astype(np.int64)
    if mode == _POINTS or len(order) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == _TRIANGLES:
        # Corners that do not complete a triangle are ignored, as the specification says.
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    # All triangles of a fan have its first corner; every second one of a strip has the opposite orientation.
    first = np.full(len(order) - 2, order[0]) if mode == _FAN else order[:-2]
    faces = np.stack([first, order[1:-1], order[2:]], axis=1)
    if mode == _STRIP:
        faces[1::2] = faces[1::2, [1, 0, 2]]
    return faces


def _material(document: Document, primitive: dict, source: Source) -> tuple[np.ndarray, bool]:
    """Return the factor of colors (3,) float64, and whether it is the color of the surface."""
    if "material" not in primitive:
        return np.ones(3), False
    material = document.item("materials", primitive["material"])
    extensions = material.get("extensions", {})
    surface = material.get("pbrMetallicRoughness")
    color = "baseColorFactor"
    texture = "baseColorTexture"
    # The extension takes the place of the metallic and rough surface.
    if _GLOSSY in extensions:
        surface = extensions[_GLOSSY]
        color = "diffuseFactor"
        texture = "diffuseTexture"
    # Without either, an extension may define another color than white.
    is_known = surface is not None or not extensions
    surface = surface or {}
    if texture in surface:
        source.leave_out([f"{texture} of materials"], "textures are not used")
        is_known = False  # a texture is multiplied by the factor
    return np.array(surface.get(color, [1, 1, 1, 1]), np.float64)[:3], is_known


def _join(parts: list[Part], center: np.ndarray | None, source: Source) -> PointCloudData:
    """Join the parts of a scene to one cloud, whose points are relative to its center."""
    points = np.concatenate([part.points for part in parts])
    # Each part counts its points from 0.
    faces = []
    start = 0
    for part in parts:
        faces.append(part.faces + start)
        start += len(part.points)
    all_faces = np.concatenate(faces)
    normals = _of_all([part.normals for part in parts], "normals", source)
    if any(part.colors is not None for part in parts):
        # Points of parts without colors have the color of their material.
        for part in parts:
            if part.colors is None and part.color is not None:
                part.colors = np.tile(part.color.astype(np.float32), (len(part.points), 1))
    colors = _of_all([part.colors for part in parts], "colors", source)
    face_colors = None
    of_parts = None
    if colors is None:
        of_parts = _of_all([part.color for part in parts], "colors", source, join=np.stack)
    if of_parts is not None and all(len(part.faces) for part in parts):
        face_colors = np.repeat(of_parts, [len(part.faces) for part in parts], axis=0)
    elif of_parts is not None:
        # Points without faces have the color of their material themselves.
        colors = np.repeat(of_parts, [len(part.points) for part in parts], axis=0)
    # What no part has is not asked for, so that nothing is told of it.
    measures: dict[str, Any] = {}
    for field in FIELDS_OF_POINTS:
        if any(field in part.measures for part in parts):
            measures[field] = _of_all([part.measures.get(field) for part in parts], field, source)
    return PointCloudData(
        points,
        colors,
        normals,
        **measures,
        faces=all_faces if len(all_faces) else None,
        face_colors=face_colors,
        offset=center,
        meters_per_unit=1.0,  # of all linear distances (glTF 2.0, section 3.4)
    )


def _of_all(
    values: list[np.ndarray | None], name: str, source: Source, join: Callable[..., np.ndarray] = np.concatenate
) -> np.ndarray | None:
    """Join what all parts have; what only some have is left out."""
    having = [value for value in values if value is not None]
    if len(having) == len(values):
        return join(having)
    if having:
        source.leave_out([name], f"{len(values) - len(having)} of {len(values)} parts have none")
    return None


def references(file: Path) -> list[str]:
    """Return the names of the buffers that a .glb or .gltf has outside of it."""
    with file.open("rb") as opened:
        text = opened.read(GLB_HEAD)
        if text.startswith(b"glTF"):
            text = opened.read(int.from_bytes(text[12:16], "little"))
        else:
            text += opened.read()
    uris = [buffer.get("uri") for buffer in json.loads(text).get("buffers", ())]
    return [unquote(uri) for uri in uris if isinstance(uri, str) and not uri.startswith("data:")]

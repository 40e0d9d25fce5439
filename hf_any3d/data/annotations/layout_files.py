"""Layouts of rooms as files for other programs: text, JSON, and meshes of walls, openings and boxes."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_any3d.data.frames.scan_frames import turn_about_z
from hf_any3d.data.options import one_of
from hf_any3d.modeling.layers.boxes import upright_rotation
from hf_any3d.modeling.layers.layouts import Layout, Wall
from hf_any3d.utils.atomic_files import write_bytes, write_text

LAYOUT_FILES = ("txt", "json", "obj", "glb")
"""Endings that `write_layout` knows."""
# Walls of no thickness would be no solids.
_THINNEST = 0.02
# Corners of a cuboid, the bottom ones first, and its faces, counterclockwise seen from outside.
_CORNERS = np.array([(x, y, z) for z in (-0.5, 0.5) for y in (-0.5, 0.5) for x in (-0.5, 0.5)])
_FACES = np.array(
    [(0, 2, 3), (0, 3, 1), (4, 5, 7), (4, 7, 6), (0, 1, 5), (0, 5, 4)]
    + [(2, 6, 7), (2, 7, 3), (0, 4, 6), (0, 6, 2), (1, 3, 7), (1, 7, 5)]
)


class Solid(NamedTuple):
    """A wall around its openings, or a box."""

    name: str  # such as wall_0 or bbox_3_chair
    vertices: np.ndarray  # (vertices, 3) float64, in the frame of the layout
    faces: np.ndarray  # (faces, 3) int64, counterclockwise seen from outside


def layout_solids(layout: Layout) -> list[Solid]:
    """Return walls with holes for their doors and windows, and boxes."""
    # Walls and boxes stand upright along z here, and are turned back in the end.
    upright = layout.with_up_axis("z")
    solids = [_wall(wall, upright) for wall in upright.walls]
    for box in upright.boxes:
        vertices = _cuboid((box.x, box.y, box.z), (box.sx, box.sy, box.sz), box.angle)
        solids.append(Solid(f"bbox_{box.id}_{box.label}", vertices, _FACES))
    # Points are rows: times the matrix itself, they turn by its inverse.
    back = layout.upright_rotation
    return [solid._replace(vertices=solid.vertices @ back) for solid in solids]


def _cuboid(center: Sequence[float], size: Sequence[float], angle: float) -> np.ndarray:
    return (_CORNERS * size) @ turn_about_z(angle).T + center


def _wall(wall: Wall, layout: Layout) -> Solid:
    """Return a wall as cuboids: it is cut along the edges of its openings, and the pieces in openings are left out."""
    length = math.dist((wall.ax, wall.ay), (wall.bx, wall.by))
    angle = math.atan2(wall.by - wall.ay, wall.bx - wall.ax)
    along = np.array([math.cos(angle), math.sin(angle)])
    thickness = max(wall.thickness, _THINNEST)
    holes = []
    # The wall is cut at the edges of openings, as far as they are inside.
    across: list[float] = [0, length]
    upward: list[float] = [0, wall.height]
    for opening in (*layout.doors, *layout.windows):
        if opening.wall_id == wall.id:
            # Where the middle of the opening is along the wall, and its lower edge above the foot of the wall
            place = float((np.array([opening.x, opening.y]) - (wall.ax, wall.ay)) @ along)
            bottom = opening.z - opening.height / 2 - wall.az
            hole = (place - opening.width / 2, place + opening.width / 2, bottom, bottom + opening.height)
            holes.append(hole)
            across += hole[:2]
            upward += hole[2:]
    across = np.unique(np.clip(across, 0, length)).tolist()
    upward = np.unique(np.clip(upward, 0, wall.height)).tolist()
    vertices = [np.zeros((0, 3))]
    faces = [np.zeros((0, 3), dtype=np.int64)]
    # A piece between neighboring edges is in an opening, or outside of all, as a whole.
    for left, right in zip(across, across[1:], strict=False):
        for bottom, top in zip(upward, upward[1:], strict=False):
            middle = (left + right) / 2
            height = (bottom + top) / 2
            if any(hole[0] < middle < hole[1] and hole[2] < height < hole[3] for hole in holes):
                continue
            place = np.array([wall.ax, wall.ay]) + along * middle
            # Faces count the vertices from those of the pieces before on.
            faces.append(_FACES + sum(map(len, vertices)))
            center = (*place.tolist(), wall.az + height)
            vertices.append(_cuboid(center, (right - left, thickness, top - bottom), angle))
    return Solid(f"wall_{wall.id}", np.concatenate(vertices), np.concatenate(faces))


def write_layout(path: str | os.PathLike, layout: Layout, *, unit: float = 1.0) -> None:
    """Write a layout as text (.txt), JSON (.json) or mesh (.obj, .glb); `unit` is the length of its unit in meters.

    Files in .glb are in meters, y up.

    Raises:
        ValueError: The layout is empty, or the type of the file is unknown.
    """
    path = Path(path)
    kind = one_of(f"file type of {path}", path.suffix.lower().removeprefix("."), LAYOUT_FILES)
    if kind == "txt":
        write_text(path, layout.write() + "\n")
    elif kind == "json":
        write_text(path, json.dumps(layout.to_dict(), indent=1))
    else:
        # A wall that is nothing but opening has no faces.
        solids = [solid for solid in layout_solids(layout) if len(solid.faces)]
        if not solids:
            raise ValueError(f"{path}: the layout has no walls and no boxes")
        if kind == "obj":
            lines = []
            start = 1
            for solid in solids:
                # A blank would end the name.
                lines.append(f"o {solid.name.replace(' ', '_')}")
                # Micrometers, also in map coordinates of millions of meters.
                lines += [f"v {x:.13g} {y:.13g} {z:.13g}" for x, y, z in solid.vertices.round(6).tolist()]
                lines += [f"f {a} {b} {c}" for a, b, c in (solid.faces + start).tolist()]
                start += len(solid.vertices)
            write_text(path, "\n".join(lines) + "\n")
        else:
            # Upright along z, then along y, in meters
            to_y_up = upright_rotation("y").T @ layout.upright_rotation * unit
            turned = [solid._replace(vertices=solid.vertices @ to_y_up.T) for solid in solids]
            write_bytes(path, _glb(turned))


def _glb(solids: Sequence[Solid]) -> bytes:
    """Return a binary glTF with a node for each solid.

    Source: glTF 2.0 specification, section 4.4.
    """
    data = b""
    views = []
    accessors = []
    # Vertices are float32, too coarse for map coordinates, and places of nodes are not.
    places = [solid.vertices.min(axis=0) for solid in solids]
    for solid, place in zip(solids, places, strict=True):
        # glTF's numbers of float32 and uint32, and of buffers of vertices and of indices
        for values, component, kind, target in (
            ((solid.vertices - place).astype("<f4"), 5126, "VEC3", 34962),
            (solid.faces.reshape(-1).astype("<u4"), 5125, "SCALAR", 34963),
        ):
            accessor = {"bufferView": len(views), "componentType": component, "count": len(values), "type": kind}
            # Positions need bounds, other accessors do not.
            if kind == "VEC3":
                accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
            views.append({"buffer": 0, "byteOffset": len(data), "byteLength": values.nbytes, "target": target})
            accessors.append(accessor)
            data += values.tobytes()
    numbers = range(len(solids))
    content = {
        "asset": {"version": "2.0", "generator": "hf-any3d"},
        "scene": 0,
        "scenes": [{"nodes": [*numbers]}],
        "nodes": [
            {"mesh": number, "name": solid.name, "translation": place.tolist()}
            for number, solid, place in zip(numbers, solids, places, strict=True)
        ],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 2 * n}, "indices": 2 * n + 1}]} for n in numbers],
        "buffers": [{"byteLength": len(data)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    text = json.dumps(content).encode()
    # Chunks are multiples of 4 bytes; JSON is filled up with blanks.
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(data))
    return header + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data

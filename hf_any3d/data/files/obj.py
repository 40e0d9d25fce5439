"""OBJ, the Wavefront object format."""

import io
import mmap
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_any3d.data.files.attributes import usable_colors, usable_normals
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.polygons import polygon_triangles
from hf_any3d.data.files.source import NoPointsError, PointCloudError, Source, file_errors, open_source
from hf_any3d.data.files.stated_units import unit_of_comments
from hf_any3d.data.files.text_numbers import normalized_lines, numbers, positive_number, shorten, unix_lines

# Statements after which faces belong to another part.
_NAMES_A_PART = {b"g": "group", b"o": "object", b"usemtl": "material"}
_MOST_STATEMENTS = 1000
_ON_UNITS = re.compile(rb"(?i)\bunits?\b|_units?\b|\bcoordinates?\b")
NOT_READ = "texture coordinates; groups; all normals, if a vertex has different ones in different faces"


class Part(NamedTuple):
    """Names of what faces belong to, as the file has them; empty where it has none."""

    group: bytes = b""
    object: bytes = b""
    material: bytes = b""


def read(source: Source) -> PointCloudData:
    """Read vertices and faces in the order of the file.

    Colors are those of the vertices (v x y z r g b, or ZBrush's #MRGB) or, for faces, the diffuse color of their
    material without texture, if the material file is in the same folder or below. Normals are kept if each vertex has
    one, the same in all its faces. Lines, curves and other statements are left out with a warning, texture coordinates
    and groups without one. Polygons are cut into triangles inside of their outline; those of one or two corners,
    which some programs write, give none.
    """
    return _read(source)[0]


def read_parts(path: Path) -> tuple[PointCloudData, list[Part]]:
    """Read a mesh, and what each of its triangles belongs to."""
    source = open_source(path, "obj", ("obj",))
    with file_errors(source.name, "OBJ file"), np.errstate(all="ignore"):
        cloud, parts, polygon = _read(source)
        source.tell_left_out()
    return cloud, [parts[number] for number in polygon]


_WIDTHS = {3, 4, 6, 7}  # numbers of a vertex
_CONTINUED = re.compile(rb"(?m)^(?:[^\n]*\\\n)+[^\n]*")


def _read(source: Source) -> tuple[PointCloudData, list[Part], np.ndarray]:
    """Return the cloud, the part of each polygon, and the polygon of each triangle (faces,)."""
    text = unix_lines(source.data)
    if b"\\\n" in text:
        # A backslash at the end continues the line. As many lines follow, so that those after them keep their numbers.
        text = _CONTINUED.sub(lambda lines: lines[0].replace(b"\\\n", b" ") + b"\n" * lines[0].count(b"\n"), text)
    statements = _Statements()
    polygons = statements.polygons
    for number, line in enumerate(io.BytesIO(text), 1):
        statements.add(line, number)
    source.check(points=polygons.vertices)
    table = _vertices(bytes(statements.vertices), source)  # (vertices, 3, 4 with a weight, 6 or 7 with colors)
    if not len(table):
        raise NoPointsError()
    if table.shape[1] not in _WIDTHS:
        raise PointCloudError(f"vertices have {table.shape[1]} numbers; expected 'v x y z', perhaps with a color")
    materials = _read_materials(source, statements.libraries, any(part.material for part in polygons.parts))
    # Only then is it known whether their normals follow the vertices.
    faces, polygon = polygons.faces(table[:, :3], materials, source)
    vertex_normals = None
    order = polygons.normals_of_vertices(len(table))
    if order is not None:
        rows = numbers(normalized_lines(bytes(statements.normals)), columns=3)
        vertex_normals = usable_normals(rows[order], source)
    source.leave_out(f"statements {name}" for name in statements.others)
    colors = _colors(table, bytes(statements.paint), source)
    frame = {**unit_of_comments(statements.units, source), **statements.frame}
    cloud = PointCloudData(table[:, :3], colors, vertex_normals, **faces, **frame)
    return cloud, polygons.parts, polygon


_LONGEST_LINE = 4096  # of names of material files
_UP_AXIS, _UNIT = re.compile(rb"up_axis\s+([xyz])"), re.compile(rb"meters_per_unit\s+(\S+)")
# Statements that change neither points nor triangles; `p` draws points that are there already.
_WITHOUT_LOSS = frozenset(b"vt vp s p mg usemap maplib shadow_obj trace_obj lod bevel c_interp d_interp".split())


class _Statements:
    """Statements of a file, and the names of those that are not read."""

    def __init__(self):
        self.vertices = bytearray()
        self.normals = bytearray()
        self.paint = bytearray()
        self.polygons = _Polygons()
        self.libraries: dict[bytes, None] = {}
        self.others: dict[str, None] = {}
        self.frame: dict[str, Any] = {}
        self.units: list[str] = []  # comments that may state a unit

    def add(self, line: bytes, number: int) -> None:
        """Read a line."""
        key, rest = (*line.split(None, 1), b"", b"")[:2]
        # An empty line for each other one: errors name the line of the file.
        self.vertices += rest.strip() + b"\n" if key == b"v" else b"\n"
        self.normals += rest.strip() + b"\n" if key == b"vn" else b"\n"
        if key == b"v":
            self.polygons.vertices += 1
        elif key == b"f":
            self.polygons.add(rest.split(b"#")[0].strip(), number)
        elif key == b"vn":
            self.polygons.normals += 1
        elif key in _NAMES_A_PART:
            self.polygons.part = self.polygons.part._replace(**{_NAMES_A_PART[key]: _name(rest)})
        elif key == b"mtllib":
            self.libraries[rest.strip()] = None
        elif key.startswith(b"#"):
            # The words may follow the mark without a blank.
            rest = (rest if key in (b"#", b"#MRGB") else line.lstrip(b" \t#")).strip()
            if key == b"#MRGB":
                self.paint += rest
            elif match := _UP_AXIS.fullmatch(rest):
                self.frame["up_axis"] = match[1].decode()
            elif (match := _UNIT.fullmatch(rest)) and (unit := positive_number(match[1].decode("latin1"))) is not None:
                self.frame["meters_per_unit"] = unit
            elif _ON_UNITS.search(rest) and len(self.units) < _MOST_STATEMENTS:
                self.units.append(rest[:_LONGEST_LINE].decode("utf-8", "replace"))
        elif key and key not in _WITHOUT_LOSS and len(self.others) < _MOST_STATEMENTS:
            self.others[shorten(key)] = None


_POLYPAINT, _PAINTED = re.compile(rb"(?:[0-9a-fA-F]{8})+"), 8  # of ZBrush: mask, red, green, blue of each vertex


def _colors(table: np.ndarray, paint: bytes, source: Source) -> np.ndarray | None:
    """Return the colors of vertices, from their rows or from ZBrush's comments."""
    if table.shape[1] == 7 and (table[:, 6] != table[0, 6]).any():
        source.leave_out(["alpha of vertices"])
    if table.shape[1] == 4 and (table[:, 3] != 1).any():
        source.leave_out(["weights of vertices"])
    if table.shape[1] >= 6:
        source.leave_out(["polypaint (#MRGB)"] * bool(paint), "vertices have colors of their own")
        return usable_colors(table[:, 3:6], source)
    if not paint:
        return None
    if not _POLYPAINT.fullmatch(paint) or len(paint) != _PAINTED * len(table):
        source.leave_out(["polypaint (#MRGB)"], f"{len(paint) // _PAINTED} colors for {len(table)} vertices")
        return None
    painted = np.frombuffer(bytes.fromhex(paint.decode("ascii")), np.uint8).reshape(-1, 4)
    return usable_colors(painted[:, 1:], source)


_LIBRARIES = re.compile(rb"mtllib[ \t]+((?:\\\r?\n|[^\r\n])+)")  # lines go on after a backslash


def references(file: Path) -> list[str]:
    """Return the names of the material files that a file may refer to."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        lines = [unix_lines(rest).replace(b"\\\n", b" ") for rest in _LIBRARIES.findall(text)]
    return [name for line in lines for names in _library_names(line) for name in names]


def _vertices(text: bytes, source: Source) -> np.ndarray:
    try:
        return numbers(normalized_lines(text))
    except PointCloudError:
        rows = [line.split(b"#")[0].split() for line in text.split(b"\n")]
        widths = {len(row) for row in rows if row}
        if len(widths) == 1 or not widths <= _WIDTHS:
            raise
        # Some programs write colors of some vertices only.
        colored = sum(len(row) >= 6 for row in rows)
        if colored:
            source.warn(f"{colored} of {sum(map(bool, rows))} vertices have colors, so colors are ignored")
        return numbers(normalized_lines(b"\n".join(b" ".join(row[:3]) for row in rows)))


# Bytes of faces that are split at a time; some 40 bytes are needed for each. A longer face is cut between corners.
_AT_A_TIME = 2**18
_NONE, _BLANK = -1, re.compile(rb"\s")
_GRAY = [0.8, 0.8, 0.8]  # the format's default diffuse color, for unknown materials


class _Polygons:
    """Faces of a file, split into numbers piece by piece, which bounds the memory that this takes."""

    def __init__(self):
        self.vertices = self.normals = 0
        self.part = Part()
        self.parts: list[Part] = []  # of each face; those of one part share it
        self._normal_of = np.zeros(0, np.int64)  # the normal of each vertex so far, `_NONE` of those without
        self._have_one_normal = True
        self._text = bytearray()
        self._known: list[tuple[int, int, int]] = []  # vertices and normals before each face, and its line
        # Number of the first face of each piece, corners that its faces have in it, and vertex of each corner. A long
        # face may be in several pieces.
        self._pieces: list[tuple[int, np.ndarray, np.ndarray]] = []

    def add(self, corners: bytes, line: int) -> None:
        self.parts.append(self.part)
        at = 0
        while len(corners) - at > _AT_A_TIME and (blank := _BLANK.search(corners, at + _AT_A_TIME)):
            self._append(corners[at : blank.start()], line)
            at = blank.start()
        self._append(corners[at:], line)

    def _append(self, corners: bytes, line: int) -> None:
        self._text += corners + b"\n"
        self._known.append((self.vertices, self.normals, line))
        if len(self._text) > _AT_A_TIME:
            self._split()

    def _split(self) -> None:
        letters = np.frombuffer(bytes(self._text), np.uint8)
        slashes = letters == ord("/")
        blank = letters <= ord(" ")
        # All corners of many faces at once, as arrays over letters, without a loop over corners.
        starts = ~blank & np.append(True, blank[:-1])
        # Slashes before each letter of a corner: 0 in its vertex, 1 in its texture, 2 in its normal.
        before = np.cumsum(slashes) - slashes
        # Slashes since the corner began: the running maximum carries the count at its start along.
        field = before - np.maximum.accumulate(np.where(starts, before, 0))
        # The face of each corner, and how many vertices and normals came before that face, for negative numbers.
        line = np.cumsum(letters == ord("\n"))[starts]
        earlier = np.array(self._known)[line]  # (corners, 3)
        chosen = ~blank & ~slashes
        corners = self._numbers(letters, chosen & (field == 0), starts, earlier[:, 0])
        if (field[chosen] > 2).any() or (corners == _NONE).any():
            raise self._error()
        if self._have_one_normal:
            self._add_normals(corners, self._numbers(letters, chosen & (field == 2), starts, earlier[:, 1]))
        # All pieces of a long face but its last fill a split, so the last face here is the last one so far.
        first = len(self.parts) - len(self._known)
        counts = np.bincount(line, minlength=len(self._known))
        self._pieces.append((first, counts, corners.astype(np.int32 if self.vertices < 2**31 else np.int64)))
        self._text.clear()
        self._known.clear()

    def _numbers(self, letters: np.ndarray, chosen: np.ndarray, starts: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        """Return a field of each corner as an index from 0, `_NONE` where it is empty; its letters are chosen."""
        indices_of_corners = np.full(len(earlier), _NONE)
        # With all other letters blank, what is left are the numbers of this field, in order.
        words = np.where(chosen, letters, ord(" ")).tobytes().split()
        if not words:
            return indices_of_corners
        # Seldom is a file wrong; what is wrong in it is found again, corner by corner. 18 digits fit in 64 bits.
        if not re.fullmatch(rb"(?:-?\d{1,18} )*", b" ".join([*words, b""])):
            raise self._error()
        values = np.array(words).astype(np.int64)
        # Which corner each number belongs to: at the first of its letters, the number of corners begun so far.
        corner = (np.cumsum(starts) - 1)[chosen & ~np.append(False, chosen[:-1])]
        # Positive numbers count from 1, negative ones back from the last element before the face.
        indices = np.where(values < 0, values + earlier[corner], values - 1)
        if (indices < 0).any():
            raise self._error()
        indices_of_corners[corner] = indices
        return indices_of_corners

    def _add_normals(self, corners: np.ndarray, normals: np.ndarray) -> None:
        having = normals != _NONE
        corners = corners[having]
        normals = normals[having]
        # Vertices that come after their faces are so rare that their normals may be left out.
        if (corners >= self.vertices).any():
            self._have_one_normal = False
            return
        more = np.full(self.vertices - len(self._normal_of), _NONE)
        self._normal_of = np.concatenate([self._normal_of, more]) if len(more) else self._normal_of
        before = self._normal_of[corners]
        self._normal_of[corners] = normals
        kept = ((before == _NONE) | (before == normals)) & (self._normal_of[corners] == normals)
        self._have_one_normal = bool(kept.all())

    def normals_of_vertices(self, count: int) -> np.ndarray | None:
        """Return the number of each vertex's normal (count,), None unless each has one, the same in all its faces."""
        if not self.normals or not self._have_one_normal:
            return None
        order = np.full(count, _NONE)
        order[: len(self._normal_of)] = self._normal_of[:count]
        # In files with as many normals as vertices, those that no face has a normal for have that of their number.
        if self.normals == count and (order == np.arange(count))[order != _NONE].all():
            return np.arange(count)
        return order if count and order.min() >= 0 and order.max() < self.normals else None

    def _error(self) -> PointCloudError:
        for face, (vertices, normals, line) in zip(bytes(self._text).split(b"\n"), self._known, strict=False):
            for word in face.split():
                vertex, _, rest = word.partition(b"/")
                for text, count in ((vertex, vertices), (rest.partition(b"/")[2] or b"1", normals)):
                    if not re.fullmatch(rb"-?0*[1-9]\d{0,17}", text) or int(text) + count < 0:
                        return PointCloudError(
                            f"line {line}: a face has the corner {shorten(word)}; expected numbers from 1, or "
                            f"negative ones counted from the {count} before it"
                        )
        return PointCloudError("the corners of the faces cannot be read")

    def faces(
        self, points: np.ndarray, materials: dict[bytes, list[float] | None], source: Source
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return `faces` and perhaps `face_colors`, and the polygon (faces,) that each triangle is cut from."""
        if self._text:
            self._split()
        if not self._pieces:
            return {}, np.zeros(0, np.int64)
        counts = np.zeros(len(self.parts), np.int64)
        for first, of_piece, _ in self._pieces:
            counts[first : first + len(of_piece)] += of_piece
        corners = np.concatenate([corners for _, _, corners in self._pieces])
        self._pieces.clear()
        faces, polygon = polygon_triangles(counts, corners, list(points.T), source)
        names = sorted({part.material for part in self.parts})
        used = [materials[name] for name in names if name in materials]
        if None in used:
            textured = used.count(None)
            source.leave_out(
                ["colors of faces"], f"{textured} of {len(names)} materials have a texture, which is not read"
            )
        if None in used or not used:
            return {"faces": faces}, polygon
        number = {name: i for i, name in enumerate(names)}
        colors = np.array([materials.get(name, _GRAY) for name in names], np.float32)
        # A color for each polygon, and from that one for each of its triangles.
        of_polygons = colors[[number[part.material] for part in self.parts]]
        return {"faces": faces, "face_colors": of_polygons[polygon]}, polygon


def _name(rest: bytes) -> bytes:
    return rest.strip().strip(b'"')


def _library_names(line: bytes) -> list[tuple[str, ...]]:
    """Return the names that a line may mean: all of it, which may have blanks, and then the parts between blanks.

    For each part there is also the bare file name, as programs write paths of the computer where they ran.
    """
    text = line[:_LONGEST_LINE].strip().decode("utf-8", "replace").replace("\\", "/")
    words = re.findall(r'"[^"]+"|\S.*?\.mtl(?!\S)|\S+', re.split(r"\s#", text)[0], flags=re.IGNORECASE)
    parts = [word.strip('"') for word in words]
    return [(text.strip('"'),), *((part, part.rpartition("/")[2]) for part in parts)]


def _read_materials(source: Source, libraries: Iterable[bytes], used: bool) -> dict[bytes, list[float] | None]:
    """Read the diffuse color of each material, None for one with a texture; warn of missing files that matter."""
    materials: dict[bytes, list[float] | None] = {}
    read_already: set[int] = set()
    missing: list[bytes] = []
    for line in libraries:
        whole, *parts = _library_names(line)
        files = [_first_file(source, whole)]
        if files == [None]:
            files = [_first_file(source, names) for names in parts]
        if None in files:
            missing.append(line)
        for text in files:
            # `source.neighbor` keeps one bytes object per file, so its id stands for the file.
            if text is not None and id(text) not in read_already:
                read_already.add(id(text))
                _parse_materials(text, materials)
    if missing and used and source.folder is not None:
        # One warning for all: a file may name any number of them.
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        source.warn(
            f"the material file {shorten(missing[0])}{others} is not in the folder; colors of faces may be missing"
        )
    return materials


def _first_file(source: Source, names: tuple[str, ...]) -> bytes | None:
    return next((text for name in names if (text := source.neighbor(name)) is not None), None)


def _parse_materials(text: bytes, materials: dict[bytes, list[float] | None]) -> None:
    name = None
    for line in io.BytesIO(unix_lines(text)):
        key, rest = (*line.lower().split(None, 1), b"", b"")[:2]
        if key == b"newmtl":
            name = _name(line.split(None, 1)[-1])
        elif name is None:
            continue
        elif key == b"map_kd" and rest.strip():
            materials[name] = None  # the color multiplies the texture, and alone is not that of the surface
        # Red, green and blue, some programs add an opacity; or one gray.
        elif key == b"kd" and re.fullmatch(rb"[\d.,eE+-]+((\s+[\d.,eE+-]+){2,3})?\s*", rest):
            try:
                values = [min(max(float(value), 0.0), 1.0) for value in rest.replace(b",", b".").split()]
            except ValueError:
                continue
            if materials.get(name, values) is not None:
                materials[name] = (values * 3)[:3] if len(values) == 1 else values[:3]

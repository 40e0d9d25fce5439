"""The rooms of S3DIS in both forms: folders of annotated pieces, and arrays made of them."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_any3d.data.benchmarks.arrays import parse_table, read_npy
from hf_any3d.data.files import PointCloudError, PointCloudFileError
from hf_any3d.data.files.source import open_source
from hf_any3d.data.files.tables import integers

logger = logging.getLogger(__name__)

CLASS_NAMES = tuple("ceiling floor wall beam column window door table chair sofa bookcase board clutter".split())
CLUTTER = "clutter"
LONGEST_ROOM = 1000.0
"""In metres, far beyond any hallway: what reaches further is damaged, and would be cut into blocks without end."""

_ROOMS: Mapping[int, Mapping[str, int]] = {
    1: {"WC": 1, "conferenceRoom": 2, "copyRoom": 1, "hallway": 8, "office": 31, "pantry": 1},
    2: {"WC": 2, "auditorium": 2, "conferenceRoom": 1, "hallway": 12, "office": 14, "storage": 9},
    3: {"WC": 2, "conferenceRoom": 1, "hallway": 6, "lounge": 2, "office": 10, "storage": 2},
    4: {"WC": 4, "conferenceRoom": 3, "hallway": 14, "lobby": 2, "office": 22, "storage": 4},
    5: {"WC": 2, "conferenceRoom": 3, "hallway": 15, "lobby": 1, "office": 42, "pantry": 1, "storage": 4},
    6: {"conferenceRoom": 1, "copyRoom": 1, "hallway": 6, "lounge": 1, "office": 37, "openspace": 1, "pantry": 1},
}
_ROOM = re.compile(r"Area_([1-6])_([A-Za-z]+)_(\d{1,4})")
# What is neither printable nor white space within a line.
_STRAY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True, order=True)
class Room:
    """A room by area, kind and number; rooms sort in this order."""

    area: int
    kind: str
    number: int

    def __str__(self) -> str:
        return f"Area_{self.area}_{self.kind}_{self.number}"


PUBLISHED_ROOMS = tuple(
    Room(area, kind, number)
    for area, kinds in _ROOMS.items()
    for kind, count in kinds.items()
    for number in range(1, count + 1)
)
"""All 272 rooms."""


@dataclass(frozen=True)
class RoomArrays:
    """The points of a room.

    Attributes:
        points: (num_points, 3) float32 in metres, z up, smallest x, y and z at 0.
        colors: (num_points, 3) uint8.
        labels: (num_points,) int64, index in `CLASS_NAMES`.
    """

    points: np.ndarray
    colors: np.ndarray
    labels: np.ndarray


class ArrayRooms:
    """Rooms as arrays: `Area_1_hallway_1.npy`, each (points, 7) of x, y, z, red, green, blue and class."""

    places = ("", "stanford_indoor3d")
    mark = "Area_[1-6]_*.npy"

    def __init__(self, folder: Path):
        self.folder = folder

    def rooms(self) -> list[Room]:
        """The rooms that are there."""
        return _named(path.stem for path in self.folder.glob(self.mark))

    def path(self, room: Room) -> Path:
        """Where a room lies, or should."""
        return self.folder / f"{room}.npy"

    def files(self, room: Room) -> list[Path]:
        """The files that hold a room."""
        return [path for path in [self.path(room)] if path.is_file()]

    def read(self, room: Room) -> RoomArrays:
        """Read a room.

        Raises:
            PointCloudFileError: a damaged file, or one of another content.
        """
        path = self.path(room)
        table = read_npy(path)
        if table.dtype.kind not in "fiu" or table.ndim != 2 or table.shape[1] != 7:
            raise PointCloudFileError(
                f"{path}: an array of shape {table.shape} and type {table.dtype}; expected numbers (points, 7): "
                "x, y, z, red, green, blue and class"
            )
        try:
            labels = integers(table[:, 6], "class")
        except PointCloudError as error:
            raise PointCloudFileError(f"{path}: {error}") from None
        return RoomArrays(_at_origin(_finite(table[:, :3], path), path), _colors(table[:, 3:6], path), labels)


class AnnotatedRooms:
    """Rooms as published: a folder `Area_1/hallway_1/Annotations` with `ceiling_1.txt`, `chair_12.txt`, … each.

    The class is what stands before the underscore; what is none of the thirteen, such as stairs, is clutter. Pieces
    are read in the order of their names.
    """

    places = ("", "Stanford3dDataset_v1.2_Aligned_Version")
    mark = "Area_[1-6]/*_*/Annotations"

    def __init__(self, folder: Path):
        self.folder = folder

    def rooms(self) -> list[Room]:
        """The rooms that are there."""
        found = self.folder.glob(self.mark)
        return _named(f"{path.parents[1].name}_{path.parent.name}" for path in found if path.is_dir())

    def path(self, room: Room) -> Path:
        """Where a room lies, or should."""
        return self.folder / f"Area_{room.area}" / f"{room.kind}_{room.number}" / "Annotations"

    def files(self, room: Room) -> list[Path]:
        """The pieces of a room, without the hidden files that some systems leave beside them."""
        pieces = (path for path in self.path(room).glob("*.txt") if not path.name.startswith("."))
        return sorted(path for path in pieces if path.is_file())

    def read(self, room: Room) -> RoomArrays:
        """Read a room.

        Raises:
            PointCloudFileError: no pieces, or one with a line that is no point.
        """
        pieces = [(path, _read_piece(path)) for path in self.files(room)]
        if not pieces:
            raise PointCloudFileError(f"{self.path(room)}: no pieces; expected ceiling_1.txt and others")
        labels = [np.full(len(xyz), _class_of(path)) for path, (xyz, _) in pieces]
        return RoomArrays(
            _at_origin(np.concatenate([xyz for _, (xyz, _) in pieces]), self.path(room)),
            np.concatenate([colors for _, (_, colors) in pieces]),
            np.concatenate(labels),
        )


LAYOUTS = {"npy": ArrayRooms, "annotations": AnnotatedRooms}


def _named(names: Iterable[str]) -> list[Room]:
    found = ((name, _ROOM.fullmatch(name)) for name in names)
    rooms = ((name, Room(int(match[1]), match[2], int(match[3]))) for name, match in found if match)
    return sorted(room for name, room in rooms if str(room) == name)


def _class_of(path: Path) -> int:
    name = path.name.partition("_")[0]
    return CLASS_NAMES.index(name if name in CLASS_NAMES else CLUTTER)


def _read_piece(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points, float64, and colours of a piece."""
    data = open_source(path, "txt", ("txt",)).data
    stray = _STRAY.search(data)
    if stray:
        # In Area_5/hallway_6/Annotations/ceiling_1.txt, line 180389, one stands where a space should. Where it has
        # taken the place of a digit, the line has too many numbers afterwards and is refused.
        line = data.count(b"\n", 0, stray.start()) + 1
        logger.warning("%s: line %d has a control character %r, read as a space", path, line, stray.group())
        data = _STRAY.sub(b" ", data)
    table = parse_table(data, path, columns=6)
    if not len(table):
        raise PointCloudFileError(f"{path}: there are no points; expected lines of x, y, z, red, green and blue")
    return _finite(table[:, :3], path), _colors(table[:, 3:], path)


def _finite(xyz: np.ndarray, path: Path) -> np.ndarray:
    bad = ~np.isfinite(xyz).all(axis=1)
    if bad.any():
        raise PointCloudFileError(f"{path}: point {bad.argmax()} has NaN or infinite coordinates")
    return xyz


def _colors(values: np.ndarray, path: Path) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        good = (values >= 0) & (values <= 255) & (values == np.floor(values))
    if not good.all():
        raise PointCloudFileError(f"{path}: a colour is {values[~good][0]}; expected whole numbers from 0 to 255")
    return values.astype(np.uint8)


def _at_origin(xyz: np.ndarray, path: Path) -> np.ndarray:
    """Move the smallest x, y and z to 0 before precision is given up: areas reach far from their origin."""
    with np.errstate(over="ignore"):
        moved = xyz - xyz.min(axis=0)
    if not moved.max() <= LONGEST_ROOM:
        raise PointCloudFileError(f"{path}: reaches over {moved.max():g} m; expected at most {LONGEST_ROOM:g}")
    return moved.astype(np.float32)

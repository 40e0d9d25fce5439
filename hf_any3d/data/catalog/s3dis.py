"""S3DIS: scanned rooms in six areas of three buildings, each point with one of 13 classes."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array2D, ClassLabel, DatasetDict, Features, IterableDatasetDict, List, Value

from hf_any3d.data.blocks import split_into_blocks
from hf_any3d.data.files import PointCloudError, file_errors
from hf_any3d.data.files.source import open_source
from hf_any3d.data.files.text_numbers import integers
from hf_any3d.data.options import one_of
from hf_any3d.data.parquet import License, PublishedDataset, SplitSource, load_published
from hf_any3d.data.parquet.reading import parse_table, read_npy

logger = logging.getLogger(__name__)

CLASS_NAMES = tuple("ceiling floor wall beam column window door table chair sofa bookcase board clutter".split())
CLUTTER = "clutter"
LONGEST_ROOM = 1000.0
"""In meters, far beyond any hallway: a larger extent is damage, and would be cut into endless blocks."""

# Area -> kind of room -> how many there are, numbered from 1
_ROOMS: Mapping[int, Mapping[str, int]] = {
    1: {"WC": 1, "conferenceRoom": 2, "copyRoom": 1, "hallway": 8, "office": 31, "pantry": 1},
    2: {"WC": 2, "auditorium": 2, "conferenceRoom": 1, "hallway": 12, "office": 14, "storage": 9},
    3: {"WC": 2, "conferenceRoom": 1, "hallway": 6, "lounge": 2, "office": 10, "storage": 2},
    4: {"WC": 4, "conferenceRoom": 3, "hallway": 14, "lobby": 2, "office": 22, "storage": 4},
    5: {"WC": 2, "conferenceRoom": 3, "hallway": 15, "lobby": 1, "office": 42, "pantry": 1, "storage": 4},
    6: {"conferenceRoom": 1, "copyRoom": 1, "hallway": 6, "lounge": 1, "office": 37, "openspace": 1, "pantry": 1},
}
_ROOM = re.compile(r"Area_([1-6])_([A-Za-z]+)_(\d{1,4})")
# Control characters other than white space.
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

AREAS = (1, 2, 3, 4, 5, 6)
UP_AXIS = "z"

_COUNTS = {}
for _area, _kinds in _ROOMS.items():
    _rooms = sum(_kinds.values())
    _COUNTS[f"area_{_area}"] = {"train": len(PUBLISHED_ROOMS) - _rooms, "test": _rooms}
    # The number of training blocks depends on their size.
    _COUNTS[f"area_{_area}_blocks"] = {"test": _rooms}

DATASET = PublishedDataset(
    name="s3dis",
    description=(
        "S3DIS: 272 scanned rooms in six areas of three buildings, as colored clouds in meters, z up, each point of "
        "one of 13 classes. One area is for testing."
    ),
    homepage="https://github.com/alexsax/2D-3D-Semantics",
    license=License(
        "other",
        "for non-commercial research, after filling in the authors' form",
        "https://docs.google.com/forms/d/e/1FAIpQLScDimvNMCGhy_rmBA2gHfDu3naktRm6A8BPwAWWDv-Uhm6Shw/viewform",
    ),
    citation="""@inproceedings{armeni20163d,
  title = {3D Semantic Parsing of Large-Scale Indoor Spaces},
  author = {Armeni, Iro and Sener, Ozan and Zamir, Amir R. and Jiang, Helen and Brilakis, Ioannis and
            Fischer, Martin and Savarese, Silvio},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2016}
}""",
    expected_counts=_COUNTS,
    origin=(
        "Fill in the form at "
        "https://docs.google.com/forms/d/e/1FAIpQLScDimvNMCGhy_rmBA2gHfDu3naktRm6A8BPwAWWDv-Uhm6Shw/viewform, get "
        "Stanford3dDataset_v1.2_Aligned_Version.zip, unpack it and pass the folder above it as data_dir"
    ),
    layout="""  Stanford3dDataset_v1.2_Aligned_Version/                          layout "annotations"
    Area_1/hallway_1/Annotations/ceiling_1.txt, wall_1.txt, ...    x y z red green blue in each line
  stanford_indoor3d/Area_1_hallway_1.npy, ...                      layout "npy", as other programs prepare it""",
    class_names=CLASS_NAMES,
)


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    test_area: int = 5,
    layout: str | None = None,
    block_size: float | None = None,
    block_points: int = 4096,
    block_overlap: float = 0.0,
    seed: int = 0,
    **conversion: Any,
) -> DatasetDict | IterableDatasetDict:
    """Read S3DIS, one row a room; training rooms may be cut into blocks.

    Rows have `points` (num_points, 3) in meters, z up, the smallest x, y and z of the room at 0; `colors`
    (num_points, 3) uint8; `labels` (num_points,), one of 13 classes; `room`, such as "Area_1_hallway_1"; and `area`.

    A room has about a million points. Reading all of them for a crop of some thousand is slow, so training rooms can
    be stored as blocks. Rooms of the test split are never cut, since each of their points is judged once.

    Args:
        data_dir: one of the folders in the layout, or the one above it.
        test_area: the area of the test split, 1 to 6; the others are for training. Papers report 5, the only area
            with a building of its own.
        layout: "npy" or "annotations"; None takes the first of these that is there.
        block_size: edge in meters of the square columns into which training rooms are cut, 1.0 in most papers; None
            does not cut them.
        block_points: points of a block.
        block_overlap: share of a column's edge that it has in common with the next one.
        seed: seed of the assignment of a column's points to blocks.
        conversion: `cache_dir`, `verify`, `on_error`, `streaming` and `partial` of
            `hf_any3d.data.parquet.load_published`.

    Source: Armeni et al., "3D Semantic Parsing of Large-Scale Indoor Spaces"; blocks by Qi et al., "PointNet".
    """
    one_of("test_area", test_area, AREAS)
    one_of("layout", layout, (None, *LAYOUTS))
    options: dict[str, object] = {}
    # Without a size of blocks, rooms stay whole.
    cut = None
    if block_size is not None:
        # All that determines the blocks is part of the cache key.
        options = {"size": block_size, "points": block_points, "overlap": block_overlap, "seed": seed}
        cut = partial(
            split_into_blocks,
            num_points=block_points,
            block_size=block_size,
            overlap=block_overlap,
            up_axis=UP_AXIS,
            generator=seed,
        )
        cut(np.zeros((1, 3)))  # wrong arguments raise here, not with the first room
    root = DATASET.root(data_dir)
    name, folder, rooms = _find(root, LAYOUTS if layout is None else (layout,))
    if conversion.get("verify", True) and not conversion.get("partial"):
        # A room of another name would be trained on or judged without being part of the figures in papers.
        unknown = sorted({*rooms} - {*PUBLISHED_ROOMS})
        if unknown:
            raise ValueError(
                f"{_path(name, folder, unknown[0])}: not a published room, one of {len(unknown)}; remove them, or "
                "pass verify=False for rooms of your own"
            )
        # Missing rooms are then missing files, and reported as such.
        rooms = PUBLISHED_ROOMS

    units_of = {
        "train": [room for room in rooms if room.area != test_area],
        "test": [room for room in rooms if room.area == test_area],
    }
    sources = {}
    for split, units in units_of.items():
        # Test rooms stay whole: figures are over all points of a room.
        sources[split] = _source(units, name, folder, cut if split == "train" else None)
    features = Features(
        {
            "points": Array2D((None, 3), "float32"),
            "colors": Array2D((None, 3), "uint8"),
            "labels": List(ClassLabel(names=list(CLASS_NAMES))),
            "room": Value("string"),
            "area": Value("int64"),
        }
    )
    variant = f"area_{test_area}"
    if block_size is not None:
        variant += "_blocks"
    options["layout"] = name
    return load_published(DATASET, folder, sources, features, variant=variant, options=options, **conversion)


def _source(
    rooms: Sequence[Room], layout: str, folder: Path, cut: Callable[[np.ndarray], np.ndarray] | None
) -> SplitSource:
    """Return the source of a split; `cut` returns the points of each block of a room, None leaves rooms whole."""

    def read(room: Room) -> Iterator[Mapping[str, object]]:
        arrays = _read(_path(layout, folder, room))
        # A whole room is a single block.
        blocks: Any = [slice(None)] if cut is None else cut(arrays["points"])
        for block in blocks:
            row: dict[str, object] = {name: values[block] for name, values in arrays.items()}
            yield {**row, "room": str(room), "area": room.area}

    paths = [_path(layout, folder, room) for room in rooms]
    files = []
    for path in paths:
        files += _files(path)
    # The number of blocks is known when rooms are read.
    num_rows = len(rooms) if cut is None else None
    return SplitSource(
        rooms,
        read,
        files,
        num_rows=num_rows,
        describe=lambda room: str(_path(layout, folder, room)),
        missing=[path for path in paths if not path.exists()],
    )


LAYOUTS = {
    "npy": ("Area_[1-6]_*.npy", ("", "stanford_indoor3d")),
    "annotations": ("Area_[1-6]/*_*/Annotations", ("", "Stanford3dDataset_v1.2_Aligned_Version")),
}
"""Layout -> pattern of its rooms, and the folders to search."""


def _find(root: Path, layouts: Iterable[str]) -> tuple[str, Path, Sequence[Room]]:
    """Return the first of the layouts that is there, its folder and its rooms in their order."""
    for layout in layouts:
        pattern, places = LAYOUTS[layout]
        for place in places:
            rooms = set()
            for path in (root / place).glob(pattern):
                name = path.stem if layout == "npy" else f"{path.parents[1].name}_{path.parent.name}"
                match = _ROOM.fullmatch(name)
                if match:
                    room = Room(int(match[1]), match[2], int(match[3]))
                    # A name such as office_01 would be another spelling of a room.
                    if str(room) == name:
                        rooms.add(room)
            if rooms:
                return layout, root / place, sorted(rooms)
    raise DATASET.not_found(f"{root}: no rooms in layout {' or '.join(layouts)}")


def _path(layout: str, folder: Path, room: Room) -> Path:
    if layout == "npy":
        return folder / f"{room}.npy"
    return folder / f"Area_{room.area}" / f"{room.kind}_{room.number}" / "Annotations"


def _files(path: Path) -> list[Path]:
    """Return the array of a room, or its pieces without the hidden files that some systems add."""
    # A room is one array, or a folder with a file for each of its objects.
    pieces = [path] if path.suffix == ".npy" else path.glob("*.txt")
    return sorted(piece for piece in pieces if piece.is_file() and not piece.name.startswith("."))


def _read(path: Path) -> dict[str, np.ndarray]:
    """Read a room.

    In layout "npy" it is an array (points, 7) of x, y, z, red, green, blue and class; in layout "annotations" a folder
    with `ceiling_1.txt`, `chair_12.txt`, …, whose names begin with the class, in the order of these names.

    Returns:
        `points` (num_points, 3) float32 in meters, z up, smallest x, y and z at 0; `colors` (num_points, 3) uint8;
        `labels` (num_points,) int64, index in `CLASS_NAMES`.
    """
    if path.suffix == ".npy":
        table = read_npy(path)
        with file_errors(path, "room"):
            # A class is a floating point number in the table, and has to be whole.
            labels = integers(table[:, 6], "class")
            return {"points": _at_origin(table[:, :3]), "colors": _colors(table[:, 3:6]), "labels": labels}
    points = []
    colors = []
    labels = []
    for piece in _files(path):
        data = open_source(piece, "txt", ("txt",)).data
        stray = _STRAY.search(data)
        if stray:
            # In Area_5/hallway_6/Annotations/ceiling_1.txt, line 180389, one replaces a space. If one replaces a
            # digit, the line has too many numbers afterwards and is refused.
            line = data.count(b"\n", 0, stray.start()) + 1
            logger.warning("%s: line %d has a control character %r, read as a space", piece, line, stray.group())
            data = _STRAY.sub(b" ", data)
        table = parse_table(data, piece, columns=6)
        points.append(table[:, :3])
        with file_errors(piece):
            colors.append(_colors(table[:, 3:]))
        # A few pieces have other names, such as stairs; all programs count them as clutter.
        name = piece.name.partition("_")[0]
        labels.append(np.full(len(table), CLASS_NAMES.index(name if name in CLASS_NAMES else CLUTTER)))
    with file_errors(path, "room"):
        # Over all pieces together, since each of them alone would be moved elsewhere
        xyz = _at_origin(np.concatenate(points))
        return {"points": xyz, "colors": np.concatenate(colors), "labels": np.concatenate(labels)}


def _colors(values: np.ndarray) -> np.ndarray:
    # NaN compares as False, and is refused below.
    with np.errstate(invalid="ignore"):
        good = (values >= 0) & (values <= 255) & (values == np.floor(values))
    if not good.all():
        raise PointCloudError(f"a color is {values[~good][0]}; expected whole numbers from 0 to 255")
    return values.astype(np.uint8)


def _at_origin(xyz: np.ndarray) -> np.ndarray:
    """Move the smallest x, y and z to 0 before rounding to float32, since areas are far from their origin."""
    # Infinite coordinates and NaN are refused below.
    with np.errstate(over="ignore", invalid="ignore"):
        moved = xyz - xyz.min(axis=0)
    if not moved.max() <= LONGEST_ROOM:  # or NaN
        raise PointCloudError(f"extends over {moved.max():g} m; expected at most {LONGEST_ROOM:g}")
    return moved.astype(np.float32)

"""Example files: a folder of labeled scans, labeled tiles, a new tile, a room, stairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.data.generated.tiles import draw_tile, las_bytes
from hf_any3d.utils.atomic_files import write_bytes
from hf_any3d.utils.messages import counted

# Training shapes for a first classifier: a folder for each class, its name the label.
_CLASSES = ("chair", "lamp", "sofa", "table")
_SCANS_PER_CLASS = 5
_LABELED_TILES = 4
_STEPS, _POINTS_ON_STAIRS = 10, 16_384
_TREAD, _WIDTH = 0.6, 2.0  # of a step, in heights of a step


def write_scans(folder: Path) -> str:
    """Write training shapes of the package as PLY files, in a folder for each class."""
    from hf_any3d.data import load_point_dataset

    shapes = load_point_dataset("shapes", split="train").with_format("numpy")
    labels = np.asarray(shapes["label"][:])
    for name in _CLASSES:
        (folder / name).mkdir(parents=True)
        # The first ones of a class, so that everyone has the same scans.
        rows = np.flatnonzero(labels == shapes.features["label"].names.index(name))[:_SCANS_PER_CLASS]
        for number, row in enumerate(rows):
            write_point_cloud(folder / name / f"{number}.ply", PointCloudData(shapes[int(row)]["points"]))
    files = counted(len(_CLASSES) * _SCANS_PER_CLASS, "scan")
    return f"{folder}: {files} in a folder for each class: {', '.join(_CLASSES)}"


def write_tiles(folder: Path) -> str:
    """Write generated tiles with the class of each point, as LAS."""
    folder.mkdir()
    for number in range(_LABELED_TILES):
        # The number is the seed, by which everyone gets the same tile.
        write_bytes(folder / f"{number}.las", las_bytes(draw_tile(number)))
    return f"{folder}: {counted(_LABELED_TILES, 'generated tile')} with ground, vegetation and buildings, z up"


def write_new_tile(path: Path) -> str:
    """Write a generated tile whose points have no class."""
    # The first seed that none of the labeled tiles has.
    write_bytes(path, las_bytes(draw_tile(_LABELED_TILES), labeled=False))
    return f"{path}: a generated tile whose points have no class yet"


def write_room(path: Path) -> str:
    """Write the points of a generated room, in meters with Z up."""
    from hf_any3d.data import load_point_dataset

    # No other room is drawn than the one that is written.
    rooms = load_point_dataset("rooms_with_layouts", train_rooms=0, validation_rooms=0, test_rooms=1)
    room = rooms["test"].with_format("numpy")[0]
    colors = np.asarray(room["colors"]) if "colors" in room else None
    # The file says which axis points up, so that viewers and models need not be told.
    write_point_cloud(path, PointCloudData(np.asarray(room["points"]), colors, up_axis="z", meters_per_unit=1.0))
    return f"{path}: a generated room in meters, z up"


def write_stairs(path: Path) -> str:
    """Write points on a flight of stairs, which is no household object, with Y up."""
    random = np.random.default_rng(1)
    step = random.integers(_STEPS, size=_POINTS_ON_STAIRS)
    along, across, up = random.random((3, _POINTS_ON_STAIRS))
    points = np.stack([across * _WIDTH, step + 1.0, (step + along) * _TREAD], axis=1)
    # Of three points one lies on a riser, and one on a side, which reaches down to the floor.
    kind = random.integers(3, size=_POINTS_ON_STAIRS)
    points[kind == 1, 1:] = np.stack([step + up, step * _TREAD], axis=1)[kind == 1]
    points[kind == 2, 0] = np.round(across[kind == 2]) * _WIDTH
    points[kind == 2, 1] *= up[kind == 2]
    write_point_cloud(path, PointCloudData(points.astype(np.float32), up_axis="y"))
    return f"{path}: points on a flight of stairs, none of the objects that the bundled classifier knows, y up"


WRITERS: dict[str, Callable[[Path], str]] = {
    "scans": write_scans,
    "tiles": write_tiles,
    "new.las": write_new_tile,
    "room.ply": write_room,
    "stairs.ply": write_stairs,
}
"""Name of an example -> function that writes it to a path and says what it is."""
OF_DATASETS = ("scans", "room.ply")
"""Those that `datasets` prepares, perhaps with a bar."""

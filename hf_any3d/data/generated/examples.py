"""Example files: a folder of labeled scans, labeled tiles, a new tile, a room, stairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.files.writer import point_cloud_bytes
from hf_any3d.data.generated.tiles import draw_tile, las_bytes
from hf_any3d.utils.messages import counted

# Training shapes for a first classifier: a folder for each class, its name the label.
_CLASSES = ("chair", "lamp", "sofa", "table")
_SCANS_PER_CLASS = 5
_LABELED_TILES = 4
_STEPS, _POINTS_ON_STAIRS = 10, 16_384
_TREAD, _WIDTH = 0.6, 2.0  # of a step, in heights of a step


class Example(NamedTuple):
    """A file, or a folder of files, to try commands on.

    Attributes:
        files: Contents by their paths in the folder; of a single file by "".
        what: What it is, in words.
    """

    files: dict[str, bytes]
    what: str = ""


def scans() -> Example:
    """Return training shapes of the package as PLY files, in a folder for each class."""
    from hf_any3d.data import load_point_dataset

    shapes = load_point_dataset("shapes", split="train").with_format("numpy")
    labels = np.asarray(shapes["label"][:])
    files = {}
    for name in _CLASSES:
        # The first ones of a class, so that everyone has the same scans.
        rows = np.flatnonzero(labels == shapes.features["label"].names.index(name))[:_SCANS_PER_CLASS]
        for number, row in enumerate(rows):
            files[f"{name}/{number}.ply"] = point_cloud_bytes(PointCloudData(shapes[int(row)]["points"]))
    return Example(files, f"{counted(len(files), 'scan')} with one folder per class: {', '.join(_CLASSES)}")


def tiles() -> Example:
    """Return generated tiles with the class of each point, as LAS."""
    # The number is the seed, by which everyone gets the same tile.
    files = {f"{number}.las": las_bytes(draw_tile(number)) for number in range(_LABELED_TILES)}
    return Example(files, f"{counted(len(files), 'synthetic tile')} with ground, vegetation and buildings, z up")


def new_tile() -> Example:
    """Return a generated tile whose points have no class."""
    # The first seed that none of the labeled tiles has.
    tile = las_bytes(draw_tile(_LABELED_TILES), labeled=False)
    return Example({"": tile}, "a synthetic tile whose points are unclassified")


def room() -> Example:
    """Return the points of a generated room, in meters with Z up."""
    from hf_any3d.data import load_point_dataset

    # No other room is drawn than the one that is written.
    rooms = load_point_dataset("rooms_with_layouts", train_rooms=0, validation_rooms=0, test_rooms=1)
    row = rooms["test"].with_format("numpy")[0]
    colors = np.asarray(row["colors"]) if "colors" in row else None
    # The file says which axis points up, so that viewers and models need not be told.
    cloud = PointCloudData(np.asarray(row["points"]), colors, up_axis="z", meters_per_unit=1.0)
    return Example({"": point_cloud_bytes(cloud)}, "a synthetic room in meters, z up")


def stairs() -> Example:
    """Return points on a flight of stairs, which is no household object, with Y up."""
    random = np.random.default_rng(1)
    step = random.integers(_STEPS, size=_POINTS_ON_STAIRS)
    along, across, up = random.random((3, _POINTS_ON_STAIRS))
    points = np.stack([across * _WIDTH, step + 1.0, (step + along) * _TREAD], axis=1)
    # Of three points one lies on a riser, and one on a side, which reaches down to the floor.
    kind = random.integers(3, size=_POINTS_ON_STAIRS)
    points[kind == 1, 1:] = np.stack([step + up, step * _TREAD], axis=1)[kind == 1]
    points[kind == 2, 0] = np.round(across[kind == 2]) * _WIDTH
    points[kind == 2, 1] *= up[kind == 2]
    cloud = point_cloud_bytes(PointCloudData(points.astype(np.float32), up_axis="y"))
    return Example({"": cloud}, "a point cloud of stairs (y up), none of the classes of the bundled classifier")


GENERATED: dict[str, Callable[[], Example]] = {
    "scans": scans,
    "tiles": tiles,
    "new.las": new_tile,
    "room.ply": room,
    "stairs.ply": stairs,
}
"""Name of an example -> function that makes it."""
OF_DATASETS = ("scans", "room.ply")
"""Those that `datasets` prepares, perhaps with a bar."""

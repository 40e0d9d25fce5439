"""Tiny trees in both layouts of S3DIS, with the quirks of the published one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

CLASSES = "ceiling floor wall beam column window door table chair sofa bookcase board clutter".split()
ROOMS = ("Area_1_office_2", "Area_1_office_10", "Area_3_hallway_1", "Area_5_hallway_6", "Area_5_WC_1")
PIECES = ("ceiling_1", "chair_1", "chair_2", "clutter_1", "floor_1", "stairs_1")
CORNER = np.array([-21.5, 40.25, -0.125])


def piece(room: str, name: str, num_points: int = 30) -> np.ndarray:
    """Points with colors of a piece, (num_points, 6), as in the text: far from the origin, in millimeters."""
    generator = np.random.default_rng(sum(map(ord, room + name)))
    xyz = (CORNER + generator.uniform(0, 3, (num_points, 3))).round(3)
    return np.column_stack([xyz, generator.integers(0, 256, (num_points, 3))])


def room_table(room: str, num_points: int = 30) -> np.ndarray:
    """Build a room as other programs prepare it, (points, 7) float64: pieces together, the smallest corner at 0."""
    tables = []
    for name in PIECES:
        kind = name.partition("_")[0]
        label = CLASSES.index(kind if kind in CLASSES else "clutter")
        tables.append(np.column_stack([piece(room, name, num_points), np.full(num_points, float(label))]))
    table = np.concatenate(tables)
    table[:, :3] -= table[:, :3].min(axis=0)
    return table


def write_annotations(root: Path, rooms: Sequence[str] = ROOMS, num_points: int = 30) -> Path:
    folder = root / "Stanford3dDataset_v1.2_Aligned_Version"
    for room in rooms:
        _, area, kind, number = room.split("_")
        pieces = folder / f"Area_{area}" / f"{kind}_{number}" / "Annotations"
        pieces.mkdir(parents=True)
        (pieces.parent / f"{kind}_{number}.txt").write_text("the complete room, which is not read")
        (folder / f"Area_{area}" / f"Area_{area}_alignmentAngle.txt").write_text("## Global alignment angle\n")
        (pieces / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (pieces / "._ceiling_1.txt").write_bytes(b"\0\5\26\7")
        for name in PIECES:
            path = pieces / f"{name}.txt"
            np.savetxt(path, piece(room, name, num_points), fmt=["%.3f"] * 3 + ["%d"] * 3)
            if (room, name) == ("Area_5_hallway_6", "ceiling_1"):
                # As published: between red and green of one line stands a control character and no space.
                lines = path.read_bytes().split(b"\n")
                numbers = lines[7].split()
                lines[7] = b" ".join([*numbers[:3], b"\x10".join(numbers[3:5]), numbers[5]])
                path.write_bytes(b"\n".join(lines))
    return folder


def write_arrays(root: Path, rooms: Sequence[str] = ROOMS, num_points: int = 30) -> Path:
    folder = root / "stanford_indoor3d"
    folder.mkdir(parents=True)
    for room in rooms:
        np.save(folder / f"{room}.npy", room_table(room, num_points))
    return folder

"""How often are up axis, tilt, unit, turn and floor of scanned rooms found, and how fast?

    python -m studies.scan_frames --output studies/results/scan_frames.csv

Generated rooms are turned, tilted, scaled and shifted, with noise, cut or with a ceiling, and their frames found. All
parts of an answer count apart; the tilt that is left after leveling is a figure of its own.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data import load_point_dataset
from hf_any3d.data.scan_frames import UNITS, ScanFrame, find_frame
from hf_any3d.modeling.layers.boxes import UP_AXES, upright_rotation

KINDS = ("plain", "turned", "noise", "cut", "noise and cut", "ceiling")
TILTS = (0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
"""Degrees."""
ROOMS = ((11, 8000), (12, 3000))
"""Seed and points of nine rooms each."""
NOISE, LARGEST_TURN = 0.03, math.radians(40)
# What counts as right: degrees of the turn and of the tilt that is left, meters of the floor.
TURN, TILT, FLOOR = 2.0, 1.0, 0.06


def made_rooms(most: int | None = None) -> list[np.ndarray]:
    """Return the points of rooms as they were made, z up, in meters."""
    rooms = []
    for seed, count in ROOMS:
        sizes: Any = {"train_rooms": 0, "validation_rooms": 0, "test_rooms": 9, "num_points": count}
        rows = load_point_dataset("rooms_with_layouts", seed=seed, **sizes)["test"].with_format("numpy")
        rooms += [np.asarray(row["points"], dtype=np.float64) for row in rows]
    return rooms[:most]


def changed(points: np.ndarray, kind: str, generator: np.random.Generator) -> np.ndarray:
    """Return a room as one of `KINDS`."""
    if "cut" in kind:
        points = points[(points[:, 0] < np.percentile(points[:, 0], 70)) & (points[:, 2] < 2)]
    if "noise" in kind:
        points = points + generator.normal(0, NOISE, points.shape)
    if kind == "ceiling":
        ceiling = generator.uniform(points.min(axis=0), points.max(axis=0), (1500, 3))
        ceiling[:, 2] = points[:, 2].max()
        points = np.concatenate([points, ceiling])
    return points


def scans(
    rooms: Sequence[np.ndarray], tilts: Sequence[float]
) -> Iterator[tuple[dict[str, Any], np.ndarray, ScanFrame]]:
    """Yield rooms that were moved, and their true frames; each room has another axis and unit for each kind."""
    for tilt in tilts:
        for at, kind in enumerate(KINDS):
            for number, room in enumerate(rooms):
                generator = np.random.default_rng((int(tilt * 10), at, number))
                up_axis = UP_AXES[(number + at) % len(UP_AXES)]
                unit = list(UNITS.values())[(number + 2 * at) % len(UNITS)]
                turn = 0.0 if kind == "plain" else generator.uniform(-LARGEST_TURN, LARGEST_TURN)
                toward = generator.uniform(0, 2 * math.pi)
                lean = math.sin(math.radians(tilt)) * np.array([math.cos(toward), math.sin(toward)])
                upright = np.array([*lean, math.cos(math.radians(tilt))])
                x, y, z = (upright_rotation(up_axis).T @ upright).tolist()
                # The shift is one of the leveled scan, so that the floor's height is known.
                shift = generator.normal(0, 2, 3)
                truth = ScanFrame(up_axis, (x, y, z) if tilt else None, unit, turn, float(shift[2]))
                points = changed(room, kind, generator) + (*shift[:2], 0)
                yield {"kind": kind, "tilt": tilt, "room": number}, truth.undo(points), truth


def judge(points: np.ndarray, truth: ScanFrame) -> dict[str, Any]:
    """Find a frame, and compare it with the true one."""
    begin = time.process_time()
    found = find_frame(points)
    spent = time.process_time() - begin
    own, true = ([0, 0, 1] @ upright_rotation(one.up_axis, one.up) for one in (found, truth))
    left = math.degrees(math.acos(min(max(float(own @ true), -1.0), 1.0)))
    # About the common up direction; levels that differ a little turn a little.
    along = found.rotation @ truth.rotation.T
    turn = math.degrees(abs(math.remainder(math.atan2(along[1, 0], along[0, 0]), math.pi / 2)))
    # The height of the true floor, below the middle of the room, after what was found.
    middle = truth.apply(points).mean(axis=0) * (1, 1, 0)
    height = abs(float(found.apply(truth.undo(middle[None]))[0, 2]))
    row = {
        "up_axis": found.up_axis == truth.up_axis,
        "unit": found.unit == truth.unit,
        "level": left < TILT,
        "turn": turn < TURN,
        "floor": height < FLOOR,
    }
    shown = {"tilt_left": round(left, 2), "turn_left": round(turn, 2), "warnings": len(found.warnings)}
    return row | shown | {"is_leveled": found.up is not None, "right": all(row.values()), "cpu_ms": 1000 * spent}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format as Markdown: a row for each tilt, and one for each kind."""
    parts = ("up_axis", "unit", "level", "turn", "floor", "right")
    lines = [f"| scans | {' | '.join((*parts, 'leveled', 'warned', 'tilt left, mean / most', 'CPU ms'))} |"]
    lines.append("|---" * (len(parts) + 5) + "|")
    groups = [
        (f"{tilt:g}°", [row for row in rows if row["tilt"] == tilt]) for tilt in sorted({r["tilt"] for r in rows})
    ]
    groups += [(kind, [row for row in rows if row["kind"] == kind]) for kind in dict.fromkeys(r["kind"] for r in rows)]
    for name, own in [*groups, ("all", list(rows))]:
        counts = [f"{sum(row[part] for row in own)}" for part in (*parts, "is_leveled")]
        counts.append(f"{sum(row['warnings'] > 0 for row in own)}")
        left = [row["tilt_left"] for row in own]
        counts += [f"{np.mean(left):.2f}° / {max(left):.1f}°", f"{np.median([row['cpu_ms'] for row in own]):.0f}"]
        lines.append(f"| {name} ({len(own)}) | {' | '.join(counts)} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Find the frames of all scans and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tilts", type=float, nargs="+", default=list(TILTS), help="degrees")
    parser.add_argument("--rooms", type=int, help="fewer rooms than 18")
    parser.add_argument("--output", type=Path, help="write a row for each scan to this CSV file")
    options = parser.parse_args(words)
    rows = [told | judge(points, truth) for told, points, truth in scans(made_rooms(options.rooms), options.tilts)]
    print(table(rows))
    if options.output is not None:
        with options.output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(row | {"cpu_ms": round(row["cpu_ms"])} for row in rows)


if __name__ == "__main__":
    main()

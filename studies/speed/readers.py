"""Compare our readers of meshes with trimesh's: time and peak memory, for the formats that both read.

    python -m studies.speed.readers --output readers.json

A sphere of 40,962 vertices and 81,920 triangles is written once in each format. Both readers take turns in one
process; trimesh keeps vertices as they are in the file (`process=False`), as ours do. Peak memory is what Python
allocates while a file is read, numpy's arrays included, measured in a further run.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trimesh

from hf_any3d import read_point_cloud
from hf_any3d.utils.atomic_files import write_json
from studies.speed._measure import timed_in_turns

FORMATS = ("glb", "obj", "off", "ply", "stl")


def peak_megabytes(step: Callable[[], Any]) -> float:
    """Measure the most memory that Python and numpy allocate during a call."""
    tracemalloc.start()
    try:
        step()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def measure(folder: Path, rounds: int, subdivisions: int) -> dict[str, dict[str, float]]:
    """Return milliseconds and megabytes of both readers for each format, and the ratio of the times.

    Raises:
        ValueError: The readers find other numbers of points.
    """
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    rows = {}
    for ending in FORMATS:
        file = folder / f"sphere.{ending}"
        mesh.export(file)
        steps = {
            "ours": functools.partial(read_point_cloud, file),
            "trimesh": functools.partial(trimesh.load, file, process=False, force="mesh"),
        }
        points, vertices = len(steps["ours"]().points), len(steps["trimesh"]().vertices)
        if points != vertices:
            raise ValueError(f"{file.name}: {points} points by our reader, {vertices} by trimesh's")
        spent = timed_in_turns(steps, rounds)
        times = {name: 1000 * statistics.median(one.cpu for one in all_) for name, all_ in spent.items()}
        rows[ending] = {
            **{f"{name}, ms": time for name, time in times.items()},
            **{f"{name}, MB": peak_megabytes(step) for name, step in steps.items()},
            "trimesh / ours": times["trimesh"] / times["ours"],
        }
    return rows


def main() -> None:
    """Print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--subdivisions", type=int, default=6, help="of the sphere; each makes four triangles of one")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments.rounds, arguments.subdivisions)
    for ending, row in rows.items():
        print(f".{ending:<4}", "  ".join(f"{name} {value:.2f}" for name, value in row.items()))
    if arguments.output is not None:
        write_json(arguments.output, rows)


if __name__ == "__main__":
    main()

"""Compare the conversion of many files to Parquet in one process with that in several processes of Ray.

    python -m studies.speed.many_files --files 20000 --workers 2 --output many_files.json

Both sides run the same code on the same files, in turns. The start of Ray and of its processes is reported apart: it
is paid once, whatever the number of files. CPU time is that of the work alone; divided by that of the busiest process,
it is the speed-up of processors without other work. The results of both sides are compared.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from hf_any3d import many_files
from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.many_files.executors import start
from hf_any3d.model_card.run_report import peak_memory
from hf_any3d.utils.atomic_files import write_json

DISTINCT = 32


def build(folder: Path, files: int, points: int) -> None:
    """Write clouds as .ply, .npy and text; all but the first are links, which are read like files of their own."""
    generator, sources = np.random.default_rng(0), []
    for number in range(DISTINCT):
        cloud = PointCloudData(generator.standard_normal((points, 3)).astype(np.float32))
        path = folder / f"cloud-{number:07d}"
        write_point_cloud(path.with_suffix(".ply"), cloud)
        np.save(path.with_suffix(".npy"), cloud.points)
        np.savetxt(path.with_suffix(".xyz"), cloud.points, fmt="%.5f")
        sources += [path.with_suffix(ending) for ending in (".ply", ".npy", ".xyz")]
    for number in range(len(sources), files):
        source = sources[number % len(sources)]
        os.link(source, folder / f"link-{number:07d}{source.suffix}")


def convert(rows: many_files.CloudRows, folder: Path, files_per_part: int, **options: Any) -> dict[str, float]:
    """Convert with some options of `to_parquet`; returns seconds from the first part on, and bytes of memory."""
    cpu: dict[str, float] = defaultdict(float)
    finished: list[tuple[float, dict[str, Any]]] = []

    def note(part: dict[str, Any]) -> None:
        cpu[part["process"]] += part["cpu"]
        finished.append((time.perf_counter(), part))

    begin = time.perf_counter()
    many_files.to_parquet(rows, folder, files_per_part=files_per_part, progress=note, **options)
    ready = min(when - part["wall"] for when, part in finished)
    return {
        "wall": finished[-1][0] - ready,
        "cpu": sum(cpu.values()),
        "busiest_cpu": max(cpu.values()),
        "processes": len(cpu),
        "start": ready - begin,
        "worker_peak": max(part["memory"] for _, part in finished),
    }


def check(one: Path, other: Path) -> int:
    """Compare both results; returns their number of rows.

    Raises:
        AssertionError: They differ.
    """
    names = [sorted(path.name for path in folder.glob("part-*.parquet")) for folder in (one, other)]
    assert names[0] == names[1], "the parts have other names"
    rows = 0
    for name in names[0]:
        first, second = (parquet.read_table(folder / name) for folder in (one, other))
        assert first.equals(second), f"{name} differs"
        rows += len(first)
    return rows


def main() -> None:
    """Measure; print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--points", type=int, default=256, help="points of each file")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--files-per-part", type=int, default=256)
    parser.add_argument("--output", type=Path, help="a JSON file")
    arguments = parser.parse_args()

    rounds = []
    with tempfile.TemporaryDirectory() as temporary:
        clouds = Path(temporary) / "clouds"
        clouds.mkdir()
        build(clouds, arguments.files, arguments.points)
        rows = many_files.read_point_clouds(clouds, num_points=arguments.points)
        begin = time.perf_counter()
        start()
        started = time.perf_counter() - begin
        print(f"{len(rows):,} files; Ray started in {started:.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
        for number in range(arguments.rounds):
            plain, ray = Path(temporary) / f"plain-{number}", Path(temporary) / f"ray-{number}"
            here = convert(rows, plain, arguments.files_per_part, engine="local")
            there = convert(rows, ray, arguments.files_per_part, engine="ray", workers=arguments.workers)
            assert check(plain, ray) == len(rows)
            one = {
                "plain": here,
                "ray": there,
                "faster_by_wall": here["wall"] / there["wall"],
                "faster_by_cpu": here["cpu"] / there["busiest_cpu"],
                "load": os.getloadavg()[0],
            }
            rounds.append(one)
            print(
                f"plain {here['wall']:6.1f} s, CPU {here['cpu']:5.1f} s | Ray {there['wall']:6.1f} s after a start of "
                f"{there['start']:.1f} s, CPU {there['cpu']:5.1f} s, busiest {there['busiest_cpu']:5.1f} s | faster "
                f"{one['faster_by_wall']:.2f} by wall, {one['faster_by_cpu']:.2f} by CPU | worker's peak "
                f"{there['worker_peak'] / 2**20:.0f} MiB, load {one['load']:.1f}",
                flush=True,
            )
    fastest = [min(one[side]["wall"] for one in rounds) for side in ("plain", "ray")]
    report = {
        "files": len(rows),
        "points": arguments.points,
        "workers": arguments.workers,
        "processors": os.cpu_count(),
        "ray_start": started,
        "driver_peak": peak_memory()["process"],
        "faster_by_wall": fastest[0] / fastest[1],
        "rounds": rounds,
    }
    peak = f"this program's peak {report['driver_peak'] / 2**20:.0f} MiB"
    print(
        f"fastest runs: {fastest[0]:.1f} s | {fastest[1]:.1f} s, {report['faster_by_wall']:.2f} times; {peak}",
        flush=True,
    )
    if arguments.output:
        write_json(arguments.output, report)


if __name__ == "__main__":
    main()

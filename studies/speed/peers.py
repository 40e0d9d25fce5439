"""Compare readers, writers, labeled copies and commands with the tools of the trade: processor time and memory.

    python -m studies.speed.peers --output studies/speed/results/peers.md

Each step runs in a process of its own, on one thread, and all that do the same take turns. Of each round the ratio of
our time to that of the other program is taken; the table has the median and the range of these ratios. Seconds are
those of the processor, medians too. Memory is the most that the process held beyond what it held after its imports and
after reading a file of a thousand points; Linux counts it.

Labels are those of the packaged model of tiles, beside laspy's reading of the same points, as no peer is on PyPI that
labels them; OpenPointClass took 19 seconds a million where ours took 13 then.

Readers give coordinates in double precision or as they are stored, the class, the intensity, and colors where there
are any; ours make checked float32 and int64 arrays of them. The scan is drawn: sweeps over hills with trees, in point
format 7. Programs that are not installed are left out: `pip install plyfile pypcd4 open3d` has those that the
package's extras lack.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PROGRAM = ("-c", "import sys; from hf_any3d_command import main; sys.argv[0] = 'hf-any3d'; main()")
_ORIGIN = (650_000.0, 6_860_000.0)
_SWEEP = 2000  # points
_WIDTH, _SPACING = 400.0, 0.2  # meters: of a sweep, and between two
_CLASSES = (2, 5)  # ground and high vegetation
_NAMES = {"<f4": "float", "|u1": "uchar"}
_ZOO = "`import torch, transformers.pipelines`"


class Comparison(NamedTuple):
    """A row of the table: what is done to which file by our step, and the same by others."""

    what: str
    file: str
    ours: str
    others: tuple[str, ...]


COMPARISONS = (
    Comparison("read LAZ", "scan.laz", "hf_any3d", ("laspy",)),
    Comparison("read LAZ, class and intensity alone", "scan.laz", "hf_any3d few", ("laspy few",)),
    Comparison("read LAS", "scan.las", "hf_any3d", ("laspy",)),
    Comparison("read PLY", "cloud.ply", "hf_any3d", ("trimesh", "plyfile", "open3d")),
    Comparison("read PCD", "cloud.pcd", "hf_any3d", ("pypcd4", "open3d")),
    Comparison("read NPZ", "cloud.npz", "hf_any3d", ("numpy",)),
    Comparison("label LAZ", "scan.laz", "hf_any3d label", ("laspy",)),
    Comparison("write PLY", "cloud.ply", "hf_any3d write ply", ("trimesh write", "plyfile write", "open3d write")),
    Comparison("write NPZ", "cloud.npz", "hf_any3d write npz", ("numpy write",)),
    Comparison("labeled copy of LAZ", "scan.laz", "hf_any3d copy", ("laspy copy",)),
    Comparison("labeled copy of LAS", "scan.las", "hf_any3d copy", ("laspy copy",)),
    Comparison("labeled copy of PLY", "cloud.ply", "hf_any3d copy", ("plyfile copy",)),
)


def draw_scan(folder: Path, count: int) -> None:
    """Write sweeps of an airborne scanner over hills with trees as scan.las and scan.laz."""
    import laspy

    generator = np.random.default_rng(0)
    number = np.arange(count)
    x = number % _SWEEP / _SWEEP * _WIDTH
    y = number // _SWEEP * _SPACING
    is_tree = generator.random(count) < 0.3
    z = 20 * np.sin(x / 70) * np.cos(y / 90) + generator.normal(0, 0.05, count)
    header = laspy.LasHeader(point_format=7, version="1.4")
    header.scales = np.full(3, 0.01)
    header.offsets = np.array([*_ORIGIN, 0])
    scan = laspy.LasData(header)
    scan.x = x + _ORIGIN[0]
    scan.y = y + _ORIGIN[1]
    scan.z = z + np.where(is_tree, generator.exponential(4, count), 0)
    scan.classification = np.where(is_tree, *_CLASSES[::-1])
    scan.intensity = generator.integers(200, 3000, count)
    returns = np.where(is_tree, generator.integers(1, 4, count), 1)
    scan.number_of_returns = returns
    scan.return_number = np.minimum(returns, generator.integers(1, 4, count))
    scan.gps_time = 1e8 + number * 2e-6
    brightness = generator.integers(60, 200, count)
    for name, shift in (("red", 0), ("green", 10), ("blue", -10)):
        scan[name] = (brightness + shift) * 256
    for ending in ("las", "laz"):
        scan.write(folder / f"scan.{ending}")


def draw_cloud(folder: Path, count: int) -> None:
    """Write a cloud with colors, intensities and classes as binary PLY and PCD, and as NPZ without compression."""
    generator = np.random.default_rng(0)
    points = generator.uniform(0, 50, (count, 3)).astype(np.float32)
    colors = generator.integers(0, 256, (count, 3), np.uint8)
    intensity = generator.uniform(0, 1000, count).astype(np.float32)
    classes = generator.integers(1, 7, count, np.uint8)
    fields: list[tuple[str, str]] = [(name, "<f4") for name in ("x", "y", "z", "intensity")]
    fields += [(name, "|u1") for name in ("red", "green", "blue", "classification")]
    columns = [*points.T, intensity, *colors.T, classes]
    rows = np.empty(count, fields)
    for (name, _), values in zip(fields, columns, strict=True):
        rows[name] = values
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    lines += [f"property {_NAMES[kind]} {name}" for name, kind in fields]
    (folder / "cloud.ply").write_bytes("\n".join([*lines, "end_header\n"]).encode() + rows.tobytes())
    packed = np.empty(
        count, [(name, "<f4") for name in "xyz"] + [("rgb", "<u4"), ("intensity", "<f4"), ("label", "u1")]
    )
    for axis, name in enumerate("xyz"):
        packed[name] = points[:, axis]
    packed["rgb"] = colors.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    packed["intensity"] = intensity
    packed["label"] = classes
    lines = ["# .PCD v0.7 - Point Cloud Data file format", "VERSION 0.7", "FIELDS x y z rgb intensity label"]
    lines += ["SIZE 4 4 4 4 4 1", "TYPE F F F U F U", "COUNT 1 1 1 1 1 1", f"WIDTH {count}", "HEIGHT 1"]
    lines += ["VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {count}", "DATA binary\n"]
    (folder / "cloud.pcd").write_bytes("\n".join(lines).encode() + packed.tobytes())
    np.savez(folder / "cloud.npz", points=points, colors=colors, intensity=intensity, labels=classes)


def step_of(name: str, file: Path, small: Path) -> Callable[[], Any]:
    """Import what a step needs, read what is written, and return the part that is measured.

    Args:
        name: Program and what it does, such as "laspy copy"; it reads unless it says more.
        file: What is read, or copied.
        small: The same with few points, which is read before, so that nothing is imported later.
    """
    program, _, task = name.partition(" ")
    step = _STEPS[program](task, file)
    warm_up = _STEPS[program](task, small)
    warm_up()
    return step


def _ours(task: str, file: Path) -> Callable[[], Any]:
    # Before the package: its readers then do without torch and transformers.
    importlib.import_module("hf_any3d_command")
    from hf_any3d.data.files import read_point_cloud, write_labels, write_point_cloud

    if task.startswith("write"):
        cloud = read_point_cloud(file)
        return lambda: write_point_cloud(file.with_name(f"ours.{task.split()[1]}"), cloud)
    if task == "copy":
        labels = read_point_cloud(file, fields=["labels"]).labels
        return lambda: write_labels(file, file.with_name(f"ours{file.suffix}"), labels)
    if task == "label":
        from hf_any3d.tasks.direct import open_direct
        from hf_any3d_survey.about import SCENE_MODEL

        pipe = open_direct("point-cloud-segmentation", SCENE_MODEL, "cpu")
        assert pipe is not None
        cloud = read_point_cloud(file)
        return lambda: pipe(cloud, progress=False)
    fields = ["labels", "intensity"] if task == "few" else None
    return lambda: read_point_cloud(file, fields=fields)


def _laspy(task: str, file: Path) -> Callable[[], Any]:
    import laspy

    def read() -> list[np.ndarray]:
        scan = laspy.read(file)
        colors = np.stack([scan.red, scan.green, scan.blue], axis=1)
        return [scan.xyz, colors, np.asarray(scan.classification), np.asarray(scan.intensity)]

    def read_few() -> list[np.ndarray]:
        chosen = laspy.DecompressionSelection.xy_returns_channel() | laspy.DecompressionSelection.Z
        chosen |= laspy.DecompressionSelection.CLASSIFICATION | laspy.DecompressionSelection.INTENSITY
        scan = laspy.read(file, decompression_selection=chosen)
        return [scan.xyz, np.asarray(scan.classification), np.asarray(scan.intensity)]

    if task != "copy":
        return read_few if task == "few" else read
    labels = np.asarray(laspy.read(file).classification)

    def copy() -> None:
        scan = laspy.read(file)
        scan.classification = labels
        scan.write(file.with_name(f"laspy{file.suffix}"))

    return copy


def _trimesh(task: str, file: Path) -> Callable[[], Any]:
    import trimesh

    if task == "write":
        cloud = trimesh.load(file, process=False)
        return lambda: cloud.export(file.with_name("trimesh.ply"))

    def read() -> list[Any]:
        cloud: Any = trimesh.load(file, process=False)
        row = cloud.metadata["_ply_raw"]["vertex"]["data"]
        return [cloud.vertices, cloud.colors, np.asarray(row["intensity"]), np.asarray(row["classification"])]

    return read


def _plyfile(task: str, file: Path) -> Callable[[], Any]:
    from plyfile import PlyData, PlyElement  # pyright: ignore[reportMissingImports]

    def read() -> list[np.ndarray]:
        rows = PlyData.read(file)["vertex"].data
        points = np.stack([rows[name] for name in "xyz"], axis=1)
        colors = np.stack([rows[name] for name in ("red", "green", "blue")], axis=1)
        return [points, colors, np.array(rows["intensity"]), np.array(rows["classification"])]

    if not task:
        return read
    whole = PlyData.read(file, mmap=False)
    target = file.with_name("plyfile.ply")
    if task == "write":
        return lambda: whole.write(target)
    labels = np.array(whole["vertex"]["classification"])

    def copy() -> None:
        rows = np.array(PlyData.read(file)["vertex"].data)
        rows["classification"] = labels
        PlyData([PlyElement.describe(rows, "vertex")]).write(target)

    return copy


def _pypcd4(task: str, file: Path) -> Callable[[], Any]:
    from pypcd4 import PointCloud  # pyright: ignore[reportMissingImports]

    del task

    def read() -> list[np.ndarray]:
        cloud = PointCloud.from_path(file)
        columns = cloud.pc_data
        points = np.stack([columns[name] for name in "xyz"], axis=1)
        colors = PointCloud.decode_rgb(columns["rgb"].view(np.float32))
        return [points, colors, np.array(columns["intensity"]), np.array(columns["label"])]

    return read


def _open3d(task: str, file: Path) -> Callable[[], Any]:
    import open3d  # pyright: ignore[reportMissingImports]

    cloud = open3d.t.io.read_point_cloud(str(file))
    if task == "write":
        return lambda: open3d.t.io.write_point_cloud(str(file.with_name("open3d.ply")), cloud)

    def read() -> list[np.ndarray]:
        cloud = open3d.t.io.read_point_cloud(str(file))
        return [cloud.point[name].numpy() for name in cloud.point]

    return read


def _numpy(task: str, file: Path) -> Callable[[], Any]:
    if task == "write":
        from hf_any3d.data.files import read_point_cloud

        arrays = {name: values for name, values in read_point_cloud(file).arrays().items() if values is not None}
        return lambda: np.savez_compressed(file.with_name("numpy.npz"), **arrays)  # pyright: ignore

    def read() -> list[np.ndarray]:
        with np.load(file) as archive:
            return [archive[name] for name in archive.files]

    return read


_STEPS: dict[str, Callable[[str, Path], Callable[[], Any]]] = {
    "hf_any3d": _ours,
    "laspy": _laspy,
    "trimesh": _trimesh,
    "plyfile": _plyfile,
    "pypcd4": _pypcd4,
    "open3d": _open3d,
    "numpy": _numpy,
}


def _run_step(name: str, file: Path, small: Path) -> None:
    """Measure a step in this process and print its processor seconds and megabytes as JSON."""
    warnings.simplefilter("ignore")
    step = step_of(name, file, small)
    before = held_megabytes()
    start = time.process_time()
    began = time.perf_counter()
    result = step()
    seconds = time.process_time() - start
    waited = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "waited": waited, "megabytes": memory_of("VmHWM") - before}))
    del result


def held_megabytes() -> float:
    """Return what this process holds, and let the kernel count its peak from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_of("VmRSS")


def memory_of(name: str) -> float:
    """Return megabytes of this process, by the name that Linux has for them, such as VmHWM."""
    # Unlike `ru_maxrss`, these do not begin with what the parent process held.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def _environment(threads: int = 1) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return os.environ | dict.fromkeys(names, str(threads)) | {"HF_HUB_OFFLINE": "1"}


def _measured(name: str, file: Path, small: Path, threads: int = 1) -> dict[str, float] | None:
    """Run a step in a process of its own; None if its program is not installed, or cannot be imported."""
    words = [sys.executable, "-m", "studies.speed.peers", "--step", name, str(file), str(small)]
    done = subprocess.run(words, capture_output=True, text=True, env=_environment(threads))
    if done.returncode and ("ModuleNotFoundError" in done.stderr or "ImportError" in done.stderr):
        return None
    if done.returncode:
        raise RuntimeError(f"{name} with {file.name}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)


def compare(comparison: Comparison, folder: Path, rounds: int) -> list[str]:
    """Run a comparison in turns; returns rows of the table, one for each other program that is installed."""
    file = folder / comparison.file
    small = folder / "small" / comparison.file
    spent: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        for name in (comparison.ours, *comparison.others):
            if number and name not in spent:
                continue
            found = _measured(name, file, small)
            if found is not None:
                spent.setdefault(name, []).append(found)
    ours = spent[comparison.ours]
    return [
        f"| {comparison.what} | {_median(ours, 'seconds'):.2f} | {_median(ours, 'megabytes'):,.0f} | "
        f"{name.partition(' ')[0]} | {_median(spent[name], 'seconds'):.2f} | "
        f"{_median(spent[name], 'megabytes'):,.0f} | {_ratios(ours, spent[name], 'seconds')} | "
        f"{_ratios(ours, spent[name], 'megabytes')} |"
        for name in comparison.others
        if name in spent
    ]


def _median(runs: Sequence[dict[str, float]], figure: str) -> float:
    return statistics.median(run[figure] for run in runs)


def _ratios(ours: Sequence[dict[str, float]], others: Sequence[dict[str, float]], figure: str) -> str:
    """Return the median of the ratios of each round, and their range."""
    # A step may need no memory beyond what it held before, or a page of it.
    if figure == "megabytes" and min(run[figure] for run in others) < 1:
        return "–"
    ratios = [one[figure] / other[figure] for one, other in zip(ours, others, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def thread_rows(folder: Path, rounds: int) -> list[str]:
    """Time labels in one thread, in two, and in two processes at once, which share the machine alone, in turns."""
    file, small = folder / "scan.laz", folder / "small" / "scan.laz"
    waited: dict[str, list[float]] = {"one thread": [], "two threads": [], "half of two scans at once": []}
    for _ in range(rounds):
        for name, threads, at_once in zip(waited, (1, 2, 1), (1, 1, 2), strict=True):
            with ThreadPoolExecutor(at_once) as pool:
                runs = [pool.submit(_measured, "hf_any3d label", file, small, threads) for _ in range(at_once)]
            found = [run["waited"] for future in runs if (run := future.result()) is not None]
            waited[name].append(max(found) / at_once)
    return _rows_beside(waited, "one thread")


def command_rows(folder: Path, rounds: int) -> list[str]:
    """Time the start of commands and imports, in turns."""
    steps: dict[str, tuple[str, ...]] = {
        "`hf-any3d --help`": (*PROGRAM, "--help"),
        "`import laspy`": ("-c", "import laspy"),
        "`import trimesh`": ("-c", "import trimesh"),
        "`import torch`": ("-c", "import torch"),
        _ZOO: ("-c", "import torch, transformers.pipelines"),
        "`import hf_any3d`": ("-c", "import hf_any3d"),
        "`hf-any3d predict chair.ply`": (*PROGRAM, "predict", "chair.ply"),
        "`hf-any3d segment new.las`, a tile of the example": (
            *(*PROGRAM, "segment", "new.las", "--model", "outputs/tiles"),
            *("--output", "labeled.las"),
        ),
        "`hf-any3d inventory new.las`": (*PROGRAM, "inventory", "new.las"),
    }
    for words in (
        ("data", "example", "chair.ply", "tiles", "new.las"),
        ("train", "tiles", "--merge", "vegetation=3,5"),
    ):
        _shell(folder, *PROGRAM, *words)
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, words in steps.items():
            (folder / "labeled.las").unlink(missing_ok=True)
            spent[name].append(_shell(folder, *words))
    return _rows_beside(spent, _ZOO)


def _rows_beside(spent: dict[str, list[float]], usual: str) -> list[str]:
    """Return rows of a table with the seconds of each, their range, and the ratio to those of `usual`."""
    rows = []
    for name, seconds in spent.items():
        ratio = statistics.median(own / other for own, other in zip(seconds, spent[usual], strict=True))
        rows.append(
            f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f}–{max(seconds):.2f} | {ratio:.2f} |"
        )
    return rows


def _shell(folder: Path, *words: str) -> float:
    """Return the processor seconds of Python in a folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The checkout, where the package is not installed
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    environment = _environment() | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _version(name: str) -> str | None:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return None


def page(rows: Sequence[str], threads: Sequence[str], commands: Sequence[str], options: argparse.Namespace) -> str:
    """Return the page of results."""
    # Only those that were measured: what is installed may lack a library of the system.
    beside = [name for name in _STEPS if any(f"| {name} |" in row for row in rows)]
    versions = [version for name in dict.fromkeys(("numpy", "lazrs", *beside)) if (version := _version(name))]
    lines = [
        "# Beside the tools of the trade",
        "",
        f"`python -m studies.speed.peers --points {options.points} --cloud {options.cloud} "
        f"--rounds {options.rounds}`: processor seconds on one thread, and megabytes beyond what imports take. "
        f"Medians of {options.rounds} rounds in which all took turns, each in a process of its own; ratios of ours to "
        f"the other's, with their range over the rounds. LAZ and LAS have {options.points:,} points in format 7, "
        f"the other files {options.cloud:,}. Python {sys.version.split()[0]}, {', '.join(versions)}.",
        "",
        "| what | ours, s | MB | beside | s | MB | time, ours / theirs | memory, ours / theirs |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    if threads:
        lines += ["", "| labels of LAZ | seconds | range | beside one thread |", "|---|---|---|---|", *threads]
    if commands:
        lines += ["", f"| command | processor seconds | range | beside {_ZOO} |", "|---|---|---|---|", *commands]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all and print a table, or write it as a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20_000_000, help="of the scan in LAS and LAZ")
    parser.add_argument("--cloud", type=int, default=2_000_000, help="points of the other files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="only what has this in its name, such as 'read' or 'commands'")
    parser.add_argument("--output", type=Path, help="page to write")
    parser.add_argument("--step", nargs=3, metavar=("NAME", "FILE", "SMALL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        name, file, small = options.step
        _run_step(name, Path(file), Path(small))
        return
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder, "small")
        small.mkdir()
        draw_scan(small, 1000)
        draw_cloud(small, 1000)
        chosen = [comparison for comparison in COMPARISONS if options.only in comparison.what]
        if any(comparison.file.startswith("scan") for comparison in chosen):
            draw_scan(Path(folder), options.points)
        draw_cloud(Path(folder), options.cloud)
        for comparison in chosen:
            for row in compare(comparison, Path(folder), options.rounds):
                print(row, flush=True)
                rows.append(row)
            # After each row, so that a run that is interrupted leaves what it measured
            if options.output is not None:
                options.output.write_text(page(rows, [], [], options))
        threads = thread_rows(Path(folder), options.rounds) if options.only in "label LAZ" else []
        commands = command_rows(Path(folder), options.rounds) if options.only in "commands" else []
    print("\n".join([*threads, *commands]))
    if options.output is not None:
        options.output.write_text(page(rows, threads, commands, options))


if __name__ == "__main__":
    main()

"""Measure the peak memory of `hf-any3d segment` on scenes of growing size, complete and thinned out.

    python -m studies.speed.segmentation_memory
    python -m studies.speed.segmentation_memory --points 200000 1000000 --output memory.json
    python -m studies.speed.segmentation_memory --kind street --points 500000 1000000 2000000
    python -m studies.speed.segmentation_memory --kind street --points 200000 --votes

With `--kind street` the scenes are .laz files of a street with intensities, 50 points a square meter, and the model is
a Point Transformer V3 of the supervised layout with the processor for nuScenes; `--votes` follows the authors'
procedure of views and fragments.

The model is small and has random weights: the answers mean nothing. Each scene is a file of its own and labeled by a
process of its own, whose peak of resident memory the system reports; the smallest scene, of as many points as one
block, shows what Python, its libraries and the model need alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_any3d import (
    ActConfig,
    ActForSemanticSegmentation,
    PointCloudProcessor,
    PointTransformerV3Config,
    PointTransformerV3ForPointCloudSegmentation,
    PointTransformerV3Processor,
)
from hf_any3d.conversions.point_transformer_v3.benchmarks import BENCHMARKS
from hf_any3d.modeling.point_transformer_v3 import PRESETS
from hf_any3d.processing.voxels import VOXEL_PRESETS
from hf_any3d.utils.atomic_files import write_json

BLOCK = 16_384
"""Points of a block."""
STREET_BLOCK = 250_000
"""Points of a block of a street; four times as many by default, which need about four times the memory."""
LABELS = 13
"""Classes, as many as S3DIS has."""
POINTS = (200_000, 1_000_000, 5_000_000)
MAX_POINTS = 200_000
# A new process counts the memory of the one that starts it until its program is loaded, so a small one starts it.
_WATCH = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_maxrss, usage.ru_utime + usage.ru_stime)
sys.exit(code)
"""


def save_model(folder: Path) -> None:
    """Save a segmentation model with random weights, and its processor."""
    torch.manual_seed(0)
    small = {"num_groups": 32, "group_size": 16, "patch_widths": (16, 16, 32), "hidden_size": 24, "head_widths": (16,)}
    heads = {"propagation_widths": (32, 20), "segmentation_head_widths": (16, 12), "segmentation_layers": (0, 1)}
    config = ActConfig(**small, **heads, num_hidden_layers=2, num_attention_heads=4, num_labels=LABELS)
    ActForSemanticSegmentation(config).save_pretrained(folder)
    PointCloudProcessor(num_points=BLOCK, scale=None, sampling="first", up_axis="z").save_pretrained(folder)


def save_street_model(folder: Path) -> None:
    """Save a small Point Transformer V3 for nuScenes with random weights, and its processor."""
    torch.manual_seed(0)
    benchmark = BENCHMARKS["nuscenes"]
    small = {"depths": (1, 1, 1), "hidden_sizes": (16, 16, 32), "num_attention_heads": (1, 1, 2)}
    decoder = {"decoder_depths": (1, 1), "decoder_hidden_sizes": (16, 16), "decoder_num_attention_heads": (1, 1)}
    layout = {"patch_sizes": (1024,) * 3, "pooling_strides": (2, 2), "mlp_ratio": 2.0}
    processor = PointTransformerV3Processor(num_points=STREET_BLOCK, **VOXEL_PRESETS["nuscenes"])
    config = PointTransformerV3Config(
        **PRESETS["supervised"] | small | decoder | layout | {"reads_coordinates": True, "block_rule": "branch"},
        in_channels=benchmark.channels,
        grid_size=processor.grid_size,
        id2label=dict(enumerate(benchmark.classes)),
        label_colors=benchmark.hex_colors,
    )
    PointTransformerV3ForPointCloudSegmentation(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def street(num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a generated street, 50 points a square meter: `(points, 3)` in meters and intensities, 0 to 255."""
    generator = np.random.default_rng(0)
    edge = (num_points / 50) ** 0.5
    xyz = generator.random((num_points, 3)) * [edge, edge, 1]
    kind = generator.random(num_points)
    # Ground, walls every 20 m, and boxes of the size of cars.
    xyz[:, 2] = 0.02 * generator.standard_normal(num_points)
    walls, cars = kind < 0.3, kind > 0.8
    xyz[walls, 1] = np.round(xyz[walls, 1] / 20) * 20
    xyz[walls, 2] += 8 * generator.random(walls.sum())
    xyz[cars, :2] = np.round(xyz[cars, :2] / 10) * 10 + generator.random((cars.sum(), 2)) * [4, 2]
    xyz[cars, 2] += 1.5 * generator.random(cars.sum())
    return xyz, generator.integers(0, 256, num_points)


def write_street(path: Path, num_points: int) -> None:
    """Write a generated street as .laz."""
    import laspy

    xyz, intensity = street(num_points)
    header = laspy.LasHeader(point_format=0, version="1.2")
    header.scales = [0.001] * 3
    content = laspy.LasData(header)
    content.x, content.y, content.z = xyz.T
    content.intensity = intensity
    content.write(path)


def write_scene(path: Path, num_points: int) -> None:
    """Write a room of random points, 12 bytes each."""
    points = np.random.default_rng(0).random((num_points, 3), dtype=np.float32)
    np.save(path, points * np.float32([10, 10, 3]))


def peak_of(command: list[str]) -> tuple[float, float]:
    """Run a command in a process of its own; returns its peak of resident memory in MB and its processor seconds.

    Raises:
        RuntimeError: It failed.
    """
    watched = subprocess.run([sys.executable, "-c", _WATCH, *command], stdout=subprocess.PIPE, text=True)
    if watched.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {watched.returncode}")
    peak, seconds = map(float, watched.stdout.split())
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6, seconds


def measure(
    sizes: list[int], max_points: int, folder: Path, kind: str = "rooms", votes: bool = False
) -> list[dict[str, Any]]:
    """Label scenes of these sizes, complete and thinned out to `max_points`; print and return a row for each."""
    is_street = kind == "street"
    (save_street_model if is_street else save_model)(folder / "model")
    print(f"{'points':>9s} {'thinned to':>10s} {'MB of the file':>14s} {'peak MB':>8s} {'CPU s':>6s}")
    rows = []
    for size in [STREET_BLOCK if is_street else BLOCK, *sizes]:
        scene = folder / f"scene_{size}.{'laz' if is_street else 'npy'}"
        (write_street if is_street else write_scene)(scene, size)
        for limit in [None, max_points] if size > max_points else [None]:
            options = ["--votes"] * votes + ([] if limit is None else ["--max-points", str(limit)])
            command = [sys.executable, "-m", "hf_any3d", "segment", str(scene), "--model", str(folder / "model")]
            peak, seconds = peak_of([*command, *options])
            rows.append({"points": size, "max_points": limit, "peak_mb": peak, "cpu_seconds": seconds})
            print(
                f"{size:9,d} {'no' if limit is None else f'{limit:,}':>10s} {scene.stat().st_size / 1e6:14.1f} "
                f"{peak:8.0f} {seconds:6.0f}",
                flush=True,
            )
        scene.unlink()
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=list(POINTS), help="sizes of scenes")
    parser.add_argument("--max-points", type=int, default=MAX_POINTS, help="points that are left by thinning")
    parser.add_argument("--kind", default="rooms", choices=("rooms", "street"), help="what the scenes are")
    parser.add_argument("--votes", action="store_true", help="vote, with --kind street")
    parser.add_argument("--output", type=Path, help="write the rows to this JSON file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.points, options.max_points, Path(folder), options.kind, options.votes)
    if options.output is not None:
        write_json(options.output, {"labels": LABELS, "block": BLOCK, "rows": rows})


if __name__ == "__main__":
    main()

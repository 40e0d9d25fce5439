"""Measure the memory and time of features of every point of a large scene, column by column.

    python -m studies.speed.large_scene --points 2000000

The scene is a row of rooms with furniture, as dense as a scan; the encoder has the layout of Concerto's small model
and random weights. The peak is that of the process, so each size of a scene needs a run of its own.
"""

import argparse
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_any3d.data.files import PointCloudData
from hf_any3d.modeling.point_transformer_v3 import PRESETS, PointTransformerV3Config, PointTransformerV3Model
from hf_any3d.pipelines import scene_features
from hf_any3d.processing.voxels import VOXEL_PRESETS, PointTransformerV3Processor
from hf_any3d.utils.atomic_files import write_json

ROOM = np.array([5.0, 4.0, 2.8])
POINTS_PER_ROOM = 200_000


def rooms(points: int) -> PointCloudData:
    """Rooms in a row, on the faces of boxes, in meters."""
    random = np.random.default_rng(0)
    boxes = [(np.zeros(3), ROOM)]
    for _ in range(8):
        size = random.uniform(0.4, 1.4, 3)
        corner = random.uniform(0, 1, 3) * (ROOM - size) * [1, 1, 0]
        boxes.append((corner, size))
    areas = np.array([size.prod() / size[axis] for _, size in boxes for axis in range(3) for _ in range(2)])
    faces = random.choice(len(areas), points, p=areas / areas.sum())
    box, axis, side = faces // 6, faces % 6 // 2, faces % 2
    corners, sizes = (np.array([entry[part] for entry in boxes]) for part in (0, 1))
    xyz = random.random((points, 3)) * sizes[box]
    rows = np.arange(points)
    xyz[rows, axis] = side * sizes[box, axis] + random.normal(0, 0.002, points)
    xyz += corners[box]
    xyz[:, 0] += ROOM[0] * (rows // POINTS_PER_ROOM)
    return PointCloudData(xyz.astype(np.float32), random.random((points, 3), dtype=np.float32))


def measure(points: int, block_size: float, margin: float) -> dict[str, Any]:
    """Compute features of a scene; returns its size, seconds and the peak memory before and after."""
    torch.manual_seed(0)
    model = PointTransformerV3Model(PointTransformerV3Config(**PRESETS["concerto_small"])).eval()
    processor, scene = PointTransformerV3Processor(**VOXEL_PRESETS["concerto"]), rooms(points)
    before = _peak()
    start, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        features = scene_features(
            model,
            processor,
            scene,
            Path(folder) / "features.npy",
            block_size=block_size,
            margin=margin,
            levels=1,
            dtype="float16",
        )
        shape = list(features.shape)
        del features
    return {
        "features": shape,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "before_gb": before,
        "peak_gb": _peak(),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Measure one scene and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=2_000_000, help="points of the scene")
    parser.add_argument("--block-size", type=float, default=5.0, help="edge of a column, in meters")
    parser.add_argument("--margin", type=float, default=0.5, help="what the model also sees around it, in meters")
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    row = measure(arguments.points, arguments.block_size, arguments.margin)
    print(
        f"{row['features'][0]:,} points: features of {row['features'][1]} channels, {row['cpu_seconds']:.0f} s of one "
        f"thread, peak {row['peak_gb']:.2f} GB ({row['before_gb']:.2f} GB before)"
    )
    if arguments.output:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        write_json(arguments.output, {"machine": machine, **row})


if __name__ == "__main__":
    main()

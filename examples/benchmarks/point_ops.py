"""Time farthest point sampling and nearest neighbours against the loops that papers usually ship.

Both sides run in one process, turn by turn, on one thread, and their indices are compared:

    python examples/benchmarks/point_ops.py --output point_ops.json
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hf_any3d.atomic_files import write_json
from hf_any3d.modeling.point_ops import farthest_point_sample, knn

# batch, points, samples
SAMPLING = [(1, 1024, 128), (16, 1024, 128), (16, 2048, 512), (16, 8192, 512)]
# batch, points, queries
NEIGHBORS = [(1, 2048, 512), (16, 2048, 512), (16, 8192, 512)]
K = 32


def usual_sampling(points: Tensor, num_samples: int) -> Tensor:
    batch, count, _ = points.shape
    rows = torch.arange(batch)
    nearest = torch.full((batch, count), 1e10)
    last = torch.zeros(batch, dtype=torch.long)
    index = torch.zeros(batch, num_samples, dtype=torch.long)
    for step in range(num_samples):
        index[:, step] = last
        distance = torch.sum((points - points[rows, last][:, None]) ** 2, dim=-1)
        closer = distance < nearest
        nearest[closer] = distance[closer]
        last = torch.max(nearest, dim=-1)[1]
    return index


def usual_neighbors(query: Tensor, points: Tensor, k: int) -> Tensor:
    distance = -2 * query @ points.transpose(1, 2)
    distance += (query**2).sum(-1)[:, :, None]
    distance += (points**2).sum(-1)[:, None]
    return distance.argsort(dim=-1)[:, :, :k]


def compare(usual: Callable[[], Tensor], ours: Callable[[], Tensor], repeats: int) -> tuple[float, float, Tensor]:
    """Median milliseconds of both sides, and for every row of the result whether the same indices stand in it."""
    expected, found = usual(), ours()
    seconds = {usual: [], ours: []}
    for _ in range(repeats):
        # Turn by turn, so that a busy moment of the machine hits both.
        for side, times in seconds.items():
            begin = time.perf_counter()
            side()
            times.append(time.perf_counter() - begin)
    same = (expected.sort(-1).values == found.sort(-1).values).all(-1)
    return *(1000 * statistics.median(times) for times in seconds.values()), same


def measure(repeats: int, largest: int) -> list[dict]:
    """Rows of the table, for clouds of up to `largest` points in a batch."""
    generator = torch.Generator().manual_seed(0)
    rows = []

    def add(operation: str, shape: str, usual: Callable[[], Tensor], ours: Callable[[], Tensor]) -> None:
        usual_ms, ours_ms, same = compare(usual, ours, repeats)
        mismatch = 1 - same.double().mean().item()
        row = {"operation": operation, "shape": shape, "usual_ms": usual_ms, "ours_ms": ours_ms}
        rows.append({**row, "ratio": usual_ms / ours_ms, "mismatch": mismatch})

    for batch, count, num_samples in SAMPLING:
        if batch * count <= largest:
            points = torch.rand(batch, count, 3, generator=generator)
            usual, ours = (partial(side, points, num_samples) for side in (usual_sampling, farthest_point_sample))
            if not torch.equal(usual(), ours()):
                raise SystemExit(
                    f"farthest point sampling of {batch}×{count}: the indices differ from the usual loop's"
                )
            add("farthest point sampling", f"{batch}×{count} → {num_samples}", usual, ours)
    for batch, count, queries in NEIGHBORS:
        if batch * count <= largest:
            points = torch.rand(batch, count, 3, generator=generator)
            usual, ours = (partial(side, points[:, :queries], points, K) for side in (usual_neighbors, knn))
            add(f"{K} nearest neighbours", f"{batch}×{count}, {queries} queries", usual, ours)
    return rows


def table(rows: list[dict]) -> str:
    lines = ["| operation | shape | usual, ms | ours, ms | ratio | rows that differ |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['operation']} | {row['shape']} | {row['usual_ms']:.2f} | {row['ours_ms']:.2f} "
            f"| {row['ratio']:.1f} | {row['mismatch']:.2%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each side")
    parser.add_argument("--largest", type=int, default=16 * 8192, help="leave out batches with more points")
    parser.add_argument("--output", type=Path, help="also write the rows to this JSON file")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    rows = measure(arguments.repeats, arguments.largest)
    print(table(rows))
    if arguments.output:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        write_json(arguments.output, {"machine": machine, "repeats": arguments.repeats, "rows": rows})


if __name__ == "__main__":
    main()

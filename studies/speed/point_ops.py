"""Compare farthest point sampling and nearest neighbors with the loops of the released programs of many papers.

    python -m studies.speed.point_ops --output point_ops.json

Both take turns in one process on one thread, and their indices are compared.
"""

import argparse
import platform
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hf_any3d.modeling.point_ops import farthest_point_sample, knn
from hf_any3d.utils.atomic_files import write_json
from studies.speed._measure import timed_in_turns

# batch, points, samples
SAMPLING = [(1, 1024, 128), (16, 1024, 128), (16, 2048, 512), (16, 8192, 512)]
# batch, points, queries
NEIGHBORS = [(1, 2048, 512), (16, 2048, 512), (16, 8192, 512)]
K = 32
LARGEST_MISMATCH = 0.01
"""Share of rows that may differ: the usual form computes distances less exactly, so that near ties change order."""


def usual_sampling(points: Tensor, num_samples: int) -> Tensor:
    """Sample farthest points as released programs do: indices `(batch, num_samples)`."""
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
    """Sort the full distance matrix: indices `(batch, queries, k)`."""
    distance = -2 * query @ points.transpose(1, 2)
    distance += (query**2).sum(-1)[:, :, None]
    distance += (points**2).sum(-1)[:, None]
    return distance.argsort(dim=-1)[:, :, :k]


def compare(usual: Callable[[], Tensor], ours: Callable[[], Tensor], repeats: int) -> tuple[float, float, Tensor]:
    """Measure median milliseconds of both, and whether each row of their results has the same indices."""
    same = (usual().sort(-1).values == ours().sort(-1).values).all(-1)
    spent = timed_in_turns({"usual": usual, "ours": ours}, repeats)
    return *(1000 * statistics.median(one.wall for one in times) for times in spent.values()), same


def measure(repeats: int, largest: int) -> list[dict]:
    """Measure the rows of the table, for batches of up to `largest` points."""
    generator = torch.Generator().manual_seed(0)
    rows = []

    def add(operation: str, shape: str, usual: Callable[[], Tensor], ours: Callable[[], Tensor]) -> None:
        usual_ms, ours_ms, same = compare(usual, ours, repeats)
        mismatch = 1 - same.double().mean().item()
        if mismatch > LARGEST_MISMATCH:
            raise SystemExit(f"{operation} of {shape}: {mismatch:.1%} of the rows differ from the usual form")
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
            add(f"{K} nearest neighbors", f"{batch}×{count}, {queries} queries", usual, ours)
    return rows


def table(rows: list[dict]) -> str:
    """Format the results as a Markdown table."""
    lines = ["| operation | shape | usual, ms | ours, ms | ratio | rows that differ |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['operation']} | {row['shape']} | {row['usual_ms']:.2f} | {row['ours_ms']:.2f} "
            f"| {row['ratio']:.1f} | {row['mismatch']:.2%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Time all shapes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds")
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

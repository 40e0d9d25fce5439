"""Compare the Chamfer distance with its usual form: all distances by torch.cdist, and their minima.

    python -m studies.speed.chamfer --output chamfer.json

Both take turns in one process on one thread; without gradients, a kd-tree of each cloud is compared too. Saved bytes
are what autograd saves for the backward pass next to the two clouds; peak bytes are the most memory in use during
forward and backward. Errors are relative to the definition in double precision, for clouds of edge 1 around the
origin and around (10, 10, 10).
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hf_any3d.atomic_files import write_json
from hf_any3d.modeling.point_ops import chamfer_distance
from studies.speed._measure import saved_bytes, timed_in_turns

# batch, points of x, points of y
SHAPES = [(4096, 32, 32), (4096, 8, 32), (32, 1024, 1024), (1, 8192, 8192)]


def usual(x: Tensor, y: Tensor) -> Tensor:
    """Compute the distance from the full distance matrix."""
    distance = torch.cdist(x, y)  # (batch, points of x, points of y)
    return (distance.min(dim=2).values.mean() + distance.min(dim=1).values.mean()) / 2


def by_trees(x: Tensor, y: Tensor) -> Tensor:
    """Compute the distance with k-d trees, cloud by cloud."""
    means = []
    for one, other in zip(x.numpy(), y.numpy(), strict=True):
        there, back = cKDTree(other).query(one)[0], cKDTree(one).query(other)[0]
        means.append((there.mean() + back.mean()) / 2)
    return torch.tensor(means).mean()


def exactly(x: Tensor, y: Tensor) -> float:
    """Compute the definition in double precision, cloud by cloud."""

    def nearest(one: Tensor, other: Tensor) -> Tensor:
        parts = one.split(1024, dim=1)
        exact = [torch.cdist(part, other, compute_mode="donot_use_mm_for_euclid_dist").amin(2) for part in parts]
        return torch.cat(exact, dim=1).mean()

    pairs = zip(x.double().split(1), y.double().split(1), strict=True)
    return sum(float(nearest(one, other) + nearest(other, one)) / 2 for one, other in pairs) / len(x)


def peak_bytes(step: Callable[[], None]) -> int:
    """Measure the most memory that torch allocates during a step, beyond what was in use before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(shape: tuple[int, int, int], repeats: int) -> dict:
    """Measure times, bytes and errors of all sides for one shape."""
    batch, rows, columns = shape
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(batch, rows, 3, generator=generator) - 0.5).requires_grad_()
    y = torch.rand(batch, columns, 3, generator=generator) - 0.5
    sides = {"usual": usual, "ours": chamfer_distance}
    steps = {name: lambda side=side: side(x, y).backward() for name, side in sides.items()}
    steps |= {f"{name}, no gradient": torch.no_grad()(lambda side=side: side(x, y)) for name, side in sides.items()}
    steps["kd-trees"] = lambda: by_trees(x.detach(), y)
    spent = timed_in_turns(steps, repeats)
    near, far = (x.detach(), y), (x.detach() + 10, y + 10)
    truth = {pair: exactly(*pair) for pair in (near, far)}
    result = {"shape": shape, "sides": {}}
    for name, times in spent.items():
        wall, processor = (1000 * statistics.median(column) for column in zip(*times, strict=True))
        result["sides"][name] = {"processor_ms": processor, "wall_ms": wall}
    clouds = {cloud.untyped_storage().data_ptr() for cloud in (x, y)}
    for name, side in sides.items():
        result["sides"][name] |= {
            "saved_bytes": saved_bytes(lambda side=side: side(x, y), clouds),
            "peak_bytes": peak_bytes(lambda side=side: side(x, y).backward()),
            "error": abs(float(side(*near)) / truth[near] - 1),
            "error_far": abs(float(side(*far)) / truth[far] - 1),
        }
    if (error := max(result["sides"]["ours"][key] for key in ("error", "error_far"))) > 1e-5:
        raise SystemExit(
            f"the Chamfer distance of {shape} differs from the definition by {error:.1e}; allowed is 1e-5"
        )
    return result


def table(results: list[dict]) -> str:
    """Format the results as a Markdown table."""
    lines = [
        "| batch × points | side | CPU ms | wall ms | saved, MB | peak, MB | error | error at 10 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        batch, rows, columns = result["shape"]
        for name, side in result["sides"].items():
            times = f"{side['processor_ms']:.1f} | {side['wall_ms']:.1f}"
            rest = " – | – | – | – "
            if "saved_bytes" in side:
                rest = f" {side['saved_bytes'] / 1e6:.2f} | {side['peak_bytes'] / 1e6:.1f} "
                rest += f"| {side['error']:.0e} | {side['error_far']:.0e} "
            lines.append(f"| {batch} × {rows} : {columns} | {name} | {times} |{rest}|")
    return "\n".join(lines)


def main() -> None:
    """Time all shapes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds")
    parser.add_argument("--largest", type=int, default=1 << 30, help="leave out batches with more distances")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    shapes = [shape for shape in SHAPES if shape[0] * shape[1] * shape[2] <= arguments.largest]
    results = [measure(shape, arguments.repeats) for shape in shapes]
    print(table(results))
    if arguments.output:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        write_json(arguments.output, {"machine": machine, "repeats": arguments.repeats, "results": results})


if __name__ == "__main__":
    main()

"""Time and memory of the Chamfer distance against the usual form, all distances by torch.cdist and their minima.

    python examples/benchmarks/chamfer.py --output chamfer.json

Sides take turns in one process on one thread. Saved bytes are what autograd keeps for the backward pass beside the two
clouds; peak bytes are the most that a forward and backward pass holds at a time. For evaluation, without gradients, a
kd-tree for each cloud is a third side. Errors are relative, against the definition in double precision, for clouds of
edge 1 about the origin and at (10, 10, 10).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hf_any3d.atomic_files import write_json
from hf_any3d.modeling.point_ops import chamfer_distance

# batch, points of x, points of y
SHAPES = [(4096, 32, 32), (4096, 8, 32), (32, 1024, 1024), (1, 8192, 8192)]


def usual(x: Tensor, y: Tensor) -> Tensor:
    distance = torch.cdist(x, y)  # (batch, points of x, points of y)
    return (distance.min(dim=2).values.mean() + distance.min(dim=1).values.mean()) / 2


def by_trees(x: Tensor, y: Tensor) -> Tensor:
    means = []
    for one, other in zip(x.numpy(), y.numpy(), strict=True):
        there, back = cKDTree(other).query(one)[0], cKDTree(one).query(other)[0]
        means.append((there.mean() + back.mean()) / 2)
    return torch.tensor(means).mean()


def exactly(x: Tensor, y: Tensor) -> float:
    """The definition in double precision, cloud by cloud."""
    total = 0.0
    for one, other in zip(x.double().split(1), y.double().split(1), strict=True):
        there = torch.cat(
            [
                torch.cdist(rows, other, compute_mode="donot_use_mm_for_euclid_dist").amin(2)
                for rows in one.split(1024, dim=1)
            ],
            dim=1,
        )
        back = torch.cat(
            [
                torch.cdist(rows, one, compute_mode="donot_use_mm_for_euclid_dist").amin(2)
                for rows in other.split(1024, dim=1)
            ],
            dim=1,
        )
        total += float(there.mean() + back.mean()) / 2
    return total / len(x)


def saved_bytes(measure: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> int:
    """What autograd keeps beside the clouds, every storage counted once."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        measure(x, y)
    clouds = {cloud.untyped_storage().data_ptr() for cloud in (x, y)}
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in clouds)


def peak_bytes(step: Callable[[], None]) -> int:
    """The most that torch holds at a time during a step, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(shape: tuple[int, int, int], repeats: int) -> dict:
    """Seconds, bytes and errors of all sides for one shape."""
    batch, rows, columns = shape
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(batch, rows, 3, generator=generator) - 0.5).requires_grad_()
    y = torch.rand(batch, columns, 3, generator=generator) - 0.5
    sides = {"usual": usual, "ours": chamfer_distance}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in (*sides, "usual, no gradient")}
    seconds |= {"ours, no gradient": [], "kd-trees": []}

    def note(name: str, step: Callable[[], object]) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        step()
        seconds[name].append((time.process_time() - processor, time.perf_counter() - wall))

    for _ in range(repeats + 1):
        # Turn by turn, so that a busy moment of the machine hits all.
        for name, side in sides.items():
            note(name, lambda side=side: side(x, y).backward())
            with torch.no_grad():
                note(f"{name}, no gradient", lambda side=side: side(x, y))
        note("kd-trees", lambda: by_trees(x.detach(), y))
    near, far = (x.detach(), y), (x.detach() + 10, y + 10)
    truth = {pair: exactly(*pair) for pair in (near, far)}
    result = {"shape": shape, "sides": {}}
    for name, times in seconds.items():
        processor, wall = (1000 * statistics.median(column) for column in zip(*times[1:], strict=True))
        result["sides"][name] = {"processor_ms": processor, "wall_ms": wall}
    for name, side in sides.items():
        result["sides"][name] |= {
            "saved_bytes": saved_bytes(side, x, y),
            "peak_bytes": peak_bytes(lambda side=side: side(x, y).backward()),
            "error": abs(float(side(*near)) / truth[near] - 1),
            "error_far": abs(float(side(*far)) / truth[far] - 1),
        }
    return result


def table(results: list[dict]) -> str:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each side")
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

"""Compare a Point Transformer V3 encoder with a transcription that pads patches and convolves a dense table.

    python -m studies.speed.point_transformer_v3 --output point_transformer_v3.json
    python -m studies.speed.point_transformer_v3 --size supervised --rounds 1 --steps none --memory
    python -m studies.speed.point_transformer_v3 --size supervised --scene street --rounds 1 --steps none --memory

The transcription has the weights of the encoder and computes the same features as programs without sparse kernels
usually do: it gathers the 27 neighbors of every voxel, a zero row for missing ones, multiplies them in one product,
and copies queries, keys and values into padded patches. Both take turns in one process on one thread, forward and in
a training step, on a generated room; the shares of convolution and attention are those of the forward pass. With
`--scene street` the scene is a generated street of `--points` points with an intensity each, in cells of 5 cm, as the
supervised layout reads nuScenes. `--memory` adds the peak of a process of each side that runs one forward pass.
"""

import argparse
import platform
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.kernels.submanifold_convolution import NeighborTable
from hf_any3d.modeling.point_ops import patch_table
from hf_any3d.modeling.point_transformer_v3 import PRESETS, PointTransformerV3Config, PointTransformerV3Model
from hf_any3d.modeling.point_transformer_v3.modeling_point_transformer_v3 import (
    PointTransformerV3Attention,
    SubmanifoldConvolution,
)
from hf_any3d.modeling.point_transformer_v3.voxel_stages import Voxels
from hf_any3d.utils.atomic_files import write_json
from studies.speed import segmentation_memory
from studies.speed._measure import timed_in_turns


def room(voxels: int) -> torch.Tensor:
    """Points `(points, 9)` on the faces of boxes in a room, of about as many cells of 0.02."""
    generator = torch.Generator().manual_seed(0)
    points, edge = [], 0.32 * (voxels * 4e-4) ** 0.5
    for number in range(5):
        size = edge * (1 if number == 0 else 0.3) * (0.7 + 0.6 * torch.rand(3, generator=generator))
        corner = torch.rand(3, generator=generator) * edge * 0.6 * (number > 0)
        for axis in range(3):
            for side in (0, 1):
                area = size.prod() / size[axis]
                face = torch.rand(int(area / 4e-4 * 3), 3, generator=generator) * size
                face[:, axis] = side * size[axis] + 0.002 * torch.randn(len(face), generator=generator)
                points.append(face + corner)
    xyz = torch.cat(points)
    return torch.cat([xyz, torch.rand(len(xyz), 6, generator=generator)], dim=1)


def street(points: int) -> torch.Tensor:
    """Points `(points, 4)` of a street, in meters, with intensities from 0 to 1."""
    xyz, intensity = segmentation_memory.street(points)
    return torch.cat([torch.from_numpy(xyz), torch.from_numpy(intensity)[:, None] / 255], dim=1).float()


STREET = {"in_channels": 4, "reads_coordinates": True, "grid_size": 0.05, "block_rule": "branch"}
"""Settings of the supervised layout for streets."""


def dense_table(table: NeighborTable, count: int) -> torch.Tensor:
    """Return the neighbor of each voxel at each kernel position, `(voxels, positions)`; `count` for none."""
    positions = 2 * table.center + 1
    dense = torch.full((count, positions), count)
    dense[:, table.center] = torch.arange(count)
    for position in range(positions):
        if position != table.center:
            voxels, neighbors = table.at(position)
            dense[voxels, position] = neighbors
    return dense


class Transcription:
    """Replaces convolution and attention of an encoder while it is entered."""

    def __init__(self) -> None:
        self.tables: dict[int, torch.Tensor] = {}
        self.kept: list[tuple[type, Any]] = []

    def __enter__(self) -> "Transcription":
        for kind, forward in ((SubmanifoldConvolution, self.convolve), (PointTransformerV3Attention, self.attend)):
            self.kept.append((kind, kind.forward))
            kind.forward = self._as_method(forward)
        return self

    def __exit__(self, *error: object) -> None:
        for kind, forward in self.kept:
            kind.forward = forward
        self.kept.clear()
        self.tables.clear()

    def _as_method(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda module, *arguments: forward(module, *arguments)

    def convolve(self, module: SubmanifoldConvolution, values: torch.Tensor, table: NeighborTable) -> torch.Tensor:
        """Convolve with gathered neighbors in one product."""
        if id(table) not in self.tables:
            self.tables[id(table)] = dense_table(table, len(values))
        filled = torch.cat([values, values.new_zeros(1, values.shape[1])])
        gathered = filled[self.tables[id(table)]].flatten(1)  # (voxels, positions * channels)
        return nn.functional.linear(gathered, module.weight.flatten(1), module.bias)

    def attend(
        self, module: PointTransformerV3Attention, values: torch.Tensor, voxels: Voxels, block: int, prompts: None
    ) -> tuple[torch.Tensor, None]:
        """Attend within padded patches, one length at a time."""
        order = voxels.order(block)
        pad, unpad, starts = patch_table(voxels.counts, voxels.patch_size)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        heads = module.qkv(values)[order[pad]].unflatten(-1, (3, module.num_heads, -1))
        size = int(starts[1])
        query, key, value = heads.unflatten(0, (-1, size)).permute(2, 0, 3, 1, 4).unbind()
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, scale=module.scaling)
        return module.proj(mixed.transpose(1, 2).flatten(0, 1).flatten(1)[unpad[inverse]]), None


def shares(model: PointTransformerV3Model, points: torch.Tensor) -> dict[str, float]:
    """Return the shares of a forward pass that convolution and attention take."""
    spent: dict[str, float] = defaultdict(float)
    kinds = {SubmanifoldConvolution: "convolution", PointTransformerV3Attention: "attention"}
    handles = []
    for module in model.modules():
        if (name := kinds.get(type(module))) is not None:
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: _add(spent, name, -1)))
            handles.append(module.register_forward_hook(lambda *_, name=name: _add(spent, name, 1)))
    start = time.perf_counter()
    with torch.no_grad():
        model(points[None])
    total = time.perf_counter() - start
    for handle in handles:
        handle.remove()
    return {name: seconds / total for name, seconds in spent.items()}


def _add(spent: dict[str, float], name: str, sign: int) -> None:
    spent[name] += sign * time.perf_counter()


def build(size: str, scene: str) -> PointTransformerV3Model:
    """Return an encoder with random weights."""
    torch.manual_seed(0)
    settings = PRESETS[size] | {"drop_path_rate": 0.0, "shuffle_curves": "never"}
    return PointTransformerV3Model(PointTransformerV3Config(**settings | (STREET if scene == "street" else {}))).eval()


def run_once(size: str, scene: str, count: int, side: str) -> None:
    """Run one forward pass of a side."""
    model, points = build(size, scene), street(count) if scene == "street" else room(count)
    with torch.no_grad(), Transcription() if side == "transcription" else nullcontext():
        model(points[None])


def peaks(size: str, scene: str, count: int) -> dict[str, float]:
    """Return the peak memory in GB of a process that only builds the model, and of one of each side."""
    program = "import torch; torch.set_num_threads(1); from studies.speed import point_transformer_v3 as study; "
    runs = {"model alone": f"study.build({size!r}, {scene!r})"}
    runs |= {side: f"study.run_once({size!r}, {scene!r}, {count}, {side!r})" for side in ("transcription", "ours")}
    commands = {name: [sys.executable, "-c", program + run] for name, run in runs.items()}
    return {name: segmentation_memory.peak_of(command)[0] / 1e3 for name, command in commands.items()}


def measure(size: str, voxels: int, rounds: int, steps: str, scene: str = "room") -> dict[str, Any]:
    """Time both on a scene.

    Args:
        size: Name of a preset.
        voxels: About the voxels of the room, or the points of the street.
        rounds: Timed rounds.
        steps: Whose training steps are timed: "both", "ours", whose activations fit into less memory, or "none".
        scene: "room" or "street".
    """
    model = build(size, scene)
    points = street(voxels) if scene == "street" else room(voxels)
    with torch.no_grad():
        ours = model.encode(points[None])
        with Transcription():
            theirs = model.encode(points[None])
    pairs = list(zip(ours.features, theirs.features, strict=True))
    if ours.decoded is not None and theirs.decoded is not None:
        pairs.append((ours.decoded, theirs.decoded))
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    if difference > 1e-3:
        raise SystemExit(f"features differ by {difference:.1e}")

    def forward() -> None:
        with torch.no_grad():
            model(points[None])

    def step() -> None:
        model.zero_grad()
        model(points[None]).pooler_output.square().mean().backward()

    def transcribed(run: Callable[[], None]) -> None:
        with Transcription():
            run()

    row: dict[str, Any] = {"size": size, "scene": scene, "points": len(points), "difference": difference}
    row["voxels"] = ours.stages[0].counts[0]
    row["shares"] = shares(model, points)
    for name, run in {"forward": forward, **({"step": step} if steps != "none" else {})}.items():
        sides = {"transcription": lambda run=run: transcribed(run), "ours": run}
        if name == "step" and steps == "ours":
            del sides["transcription"]
        spent = timed_in_turns(sides, rounds)
        row[name] = {side: statistics.median(one.cpu for one in times) for side, times in spent.items()}
    row["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return row


def table(row: dict[str, Any]) -> str:
    """Format the results as a Markdown table."""
    lines = [
        f"{row['voxels']:,} voxels, {row['size']}: convolution {row['shares']['convolution']:.0%}, attention "
        f"{row['shares']['attention']:.0%} of the forward pass; features differ by {row['difference']:.0e}; peak "
        f"{row['peak_gb']:.1f} GB",
        "",
        "| | transcription, s | ours, s | ratio |",
        "|---|---|---|---|",
    ]
    for name in ("forward", "step"):
        if name in row:
            usual, ours = row[name].get("transcription"), row[name]["ours"]
            compared = ("–", "–") if usual is None else (f"{usual:.2f}", f"{usual / ours:.2f}")
            lines.append(f"| {name} | {compared[0]} | {ours:.2f} | {compared[1]} |")
    if "peaks" in row:
        alone, usual, ours = (row["peaks"][name] for name in ("model alone", "transcription", "ours"))
        lines.append(f"| peak of a process, GB (the model alone {alone:.2f}) | {usual:.2f} | {ours:.2f} | – |")
    return "\n".join(lines)


def main() -> None:
    """Time both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="sonata", choices=sorted(PRESETS), help="size of the encoder")
    parser.add_argument("--voxels", type=int, default=100_000, help="voxels of the room, about")
    parser.add_argument("--scene", default="room", choices=("room", "street"), help="what is encoded")
    parser.add_argument("--points", type=int, default=120_000, help="points of the street")
    parser.add_argument(
        "--memory", action="store_true", help="measure the peak of each side in processes of their own"
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    parser.add_argument(
        "--steps",
        default="both",
        choices=("both", "ours", "none"),
        help="whose training steps are timed; those of the transcription of a large encoder need much memory",
    )
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    if arguments.scene == "street" and arguments.size != "supervised":
        parser.error(f"--scene street is for --size supervised, not {arguments.size}")
    count = arguments.points if arguments.scene == "street" else arguments.voxels
    row = measure(arguments.size, count, arguments.rounds, arguments.steps, arguments.scene)
    if arguments.memory:
        row["peaks"] = peaks(arguments.size, arguments.scene, count)
    print(table(row))
    if arguments.output:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        write_json(arguments.output, {"machine": machine, "rounds": arguments.rounds, **row})


if __name__ == "__main__":
    main()

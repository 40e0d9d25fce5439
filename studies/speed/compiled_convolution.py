"""Time submanifold convolution in plain PyTorch beside spconv's CPU build, which this library does without.

    pip install spconv
    python -m studies.speed.compiled_convolution

Both convolve the same voxels of a generated room with the same weights, and must agree. The search of neighbors, done
once a stage, and the convolution, done in each block, are timed apart.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from hf_any3d.modeling.point_ops.voxels import neighbor_table
from hf_any3d.modeling.point_transformer_v3.voxel_layers import SubmanifoldConvolution
from hf_any3d.utils.atomic_files import write_json
from studies.speed._measure import timed_in_turns
from studies.speed.point_transformer_v3 import room

CELL = 0.02
LAYERS = {"stem, 5³": (6, 32, 5), "block, 3³, 64 channels": (64, 64, 3), "block, 3³, 256 channels": (256, 256, 3)}


@torch.no_grad()
def measure(voxels: int, rounds: int) -> list[dict[str, float | int | str]]:
    """Return a row for each layer: seconds of both sides and the largest difference between their outputs.

    Args:
        voxels: Voxels of the room, about.
        rounds: Timed rounds.

    Raises:
        ImportError: spconv is missing.
        RuntimeError: The two sides disagree.
    """
    import spconv.pytorch as spconv

    cells = (room(voxels)[:, :3] / CELL).floor().long()
    cells = (cells - cells.amin(dim=0)).unique(dim=0)  # (voxels, 3)
    cloud = torch.zeros(len(cells), dtype=torch.long)
    indices = torch.cat([cloud[:, None], cells], dim=1).int()
    shape = (cells.amax(dim=0) + 1).tolist()
    rows = []
    for name, (inputs, width, size) in LAYERS.items():
        torch.manual_seed(0)
        ours = SubmanifoldConvolution(inputs, width, size)
        theirs = spconv.SubMConv3d(inputs, width, size, indice_key="room")
        theirs.weight.copy_(ours.weight)
        assert theirs.bias is not None and ours.bias is not None
        theirs.bias.copy_(ours.bias)
        values = torch.randn(len(cells), inputs)
        table = neighbor_table(cells, cloud, 1, reach=size // 2)
        tensor = spconv.SparseConvTensor(values, indices, shape, 1)
        found = theirs(tensor)
        difference = float((found.features - ours(values, table)).abs().max())
        if difference > 1e-4:
            raise RuntimeError(f"{name}: the two sides differ by {difference:.1e}")
        # A tensor that has been convolved knows its neighbors.
        known = found.replace_feature(values)
        spent = timed_in_turns(
            {
                "search": lambda cells=cells, size=size: neighbor_table(cells, cloud, 1, reach=size // 2),
                "convolution": lambda ours=ours, values=values, table=table: ours(values, table),
                "spconv, both": lambda theirs=theirs, values=values: theirs(
                    spconv.SparseConvTensor(values, indices, shape, 1)
                ),
                "spconv, convolution": lambda theirs=theirs, known=known: theirs(known),
            },
            rounds,
        )
        seconds = {side: statistics.median(one.cpu for one in times) for side, times in spent.items()}
        rows.append({"layer": name, "voxels": len(cells), "difference": difference, **seconds})
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=int, default=100_000, help="voxels of the room, about")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.voxels, arguments.rounds)
    for row in rows:
        print(
            "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{value}" for name, value in row.items())
        )
    if arguments.output is not None:
        write_json(arguments.output, rows)


if __name__ == "__main__":
    main()

"""Measure what votes cost on large clouds: views, fragments, and the passes of the model that they take.

    python -m studies.speed.votes
    python -m studies.speed.votes --points 200000 1000000 --size published

Streets, model and blocks are those of `studies.speed.segmentation_memory`. All fragments of a block are made, and the
first one is passed through the model; a vote takes a pass of this length for each fragment. Beside it stands the one
pass of a block without votes, and the share of a pass in which places of voxels are computed, their neighbors, curves
and patches, which are the same for all fragments of a view.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from hf_any3d import PointTransformerV3ForPointCloudSegmentation, PointTransformerV3Processor
from hf_any3d.conversions.point_transformer_v3.benchmarks import BENCHMARKS
from hf_any3d.data.blocks import split_into_blocks
from hf_any3d.data.files import PointCloudData
from hf_any3d.modeling.point_transformer_v3 import PRESETS, PointTransformerV3Config, voxel_stages
from hf_any3d.pipelines.point_cloud_segmentation import part_of
from studies.speed.segmentation_memory import save_street_model, street

PLACES = ("neighbor_table", "patch_table", "grid_pool", "serialize", "scatter_mean", "curve_depths", "PatchGroups")
"""Functions of `voxel_stages` that read coordinates alone."""


def open_model(size: str) -> tuple[Any, Any]:
    """Return a model for nuScenes with random weights, small or of the published size, and its processor."""
    with tempfile.TemporaryDirectory() as folder:
        save_street_model(Path(folder))
        processor = PointTransformerV3Processor.from_pretrained(folder)
        if size == "small":
            return PointTransformerV3ForPointCloudSegmentation.from_pretrained(folder), processor
    rules = {"reads_coordinates": True, "block_rule": "branch"}
    benchmark = BENCHMARKS["nuscenes"]
    names = dict(enumerate(benchmark.classes))
    config = PointTransformerV3Config(
        **PRESETS["supervised"] | rules, in_channels=benchmark.channels, id2label=names, grid_size=processor.grid_size
    )
    return PointTransformerV3ForPointCloudSegmentation(config).eval(), processor


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor seconds of a call, and what it returned."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


@torch.no_grad()
def measure(points: int, model: Any, processor: Any) -> dict[str, float]:
    """Measure votes on a street of so many points; see the module."""
    xyz, intensity = street(points)
    cloud = PointCloudData(xyz, intensity=intensity)
    blocks = split_into_blocks(
        cloud.points, min(processor.num_points, points), processor.block_size, processor.block_overlap, up_axis="z"
    )
    block = part_of(cloud, blocks[0])
    making, made = seconds(lambda: list(processor.fragments(block)))
    once, _ = seconds(lambda: model(**processor(block)))
    spent = 0.0

    def timed(function: Callable) -> Callable:
        def call(*arguments: Any, **settings: Any) -> Any:
            nonlocal spent
            own, result = seconds(lambda: function(*arguments, **settings))
            spent += own
            return result

        return call

    with ExitStack() as stack:
        for name in PLACES:
            stack.enter_context(mock.patch.object(voxel_stages, name, timed(getattr(voxel_stages, name))))
        one, _ = seconds(lambda: model(**made[0][1]))
    voted = making + one * len(made)
    return {
        "blocks": len(blocks),
        "fragments": len(made),
        "once": once * len(blocks),
        "votes": voted * len(blocks),
        "ratio": voted / once,
        "making": making / voted,
        "places": spent / one,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[200_000, 1_000_000], help="sizes of streets")
    parser.add_argument("--size", default="small", choices=("small", "published"), help="that of the model")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, processor = open_model(options.size)
    print("| points | blocks | fragments of a block | once, s | votes, s | ratio | making fragments | places |")
    print("|---|---|---|---|---|---|---|---|")
    for points in options.points:
        row = measure(points, model, processor)
        print(
            f"| {points:,} | {row['blocks']} | {row['fragments']} | {row['once']:.0f} | {row['votes']:.0f} | "
            f"{row['ratio']:.0f} | {100 * row['making']:.1f} % | {100 * row['places']:.1f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()

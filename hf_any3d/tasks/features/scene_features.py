"""Features of every point of a scene, however large, from a Point Transformer V3."""

import copy
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from scipy.spatial import KDTree

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.options import at_least
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.processing.voxels import PointTransformerV3Processor
from hf_any3d.tasks.segmentation.steps import part_of
from hf_any3d.utils.atomic_files import atomic_write, reserve_room

# Points whose features are in memory at a time.
_PIECE = 65_536


def scene_features(
    model: Any,
    processor: PointTransformerV3Processor,
    cloud: Any,
    output: str | os.PathLike,
    *,
    block_size: float | None = None,
    margin: float = 0.0,
    levels: int | None = None,
    dtype: str = "float32",
) -> np.ndarray:
    """Compute features of every point, one square column of the scene at a time, and write them to an .npy file.

    The memory does not grow with the scene: the model sees one column with a margin around it, and the features lie in
    a file that is mapped into memory. A column has to be large enough for what the model should see around a point;
    without columns the features are those of a single forward pass.

    Args:
        model: A `PointTransformerV3Model`, or a model with a head on one.
        processor: Its processor.
        cloud: A cloud as processors take it.
        output: File to write, `.npy`.
        block_size: Edge of a column across the up axis, in the units of the scene; None for the processor's, and
            without one for the whole scene at once.
        margin: Width of what the model also sees around a column, in the same units.
        levels: Number of the deepest stages whose features are concatenated; None for all.
        dtype: Type of the numbers in the file: "float32" or "float16".

    Returns:
        `(points, channels)`, mapped from the file.
    """
    encoder = model.base_model
    at_least(0, margin=margin)
    block_size = processor.block_size if block_size is None else block_size
    if block_size is not None and processor.scale is not None:
        raise ValueError(f"the processor has scale={processor.scale!r}, which would differ from column to column")
    data = processor.read_whole(cloud)
    if data.is_mesh:
        raise ValueError("cloud: a mesh has no points of its own; sample its surface first")
    # A copy, since the caller's keeps its own limit.
    processor = copy.copy(processor)
    processor.min_points = 1  # a column at the edge of a scene may hold a single point
    with atomic_write(output) as file, evaluation_mode(encoder), torch.no_grad():
        for number, (seen, is_inside) in enumerate(_columns(data, processor, block_size, margin)):
            if len(seen) > processor.num_points:
                raise ValueError(
                    f"block_size={block_size!r}: a column has {len(seen):,} points with its margin; expected at most "
                    f"num_points={processor.num_points:,} of the processor; give smaller columns"
                )
            inputs = processor(part_of(data, seen)).to(encoder.device)
            encoded = encoder.encode(**inputs)
            wanted = torch.from_numpy(np.flatnonzero(is_inside)).to(encoder.device)
            for rows in wanted.split(_PIECE):
                values = encoded.point_features(rows, levels).float().cpu().numpy().astype(dtype)
                # The number of channels is known only with the first features.
                if number == 0 and rows[0] == wanted[0]:
                    open_memmap(file, mode="w+", dtype=dtype, shape=(len(data), values.shape[1]))
                    reserve_room(file)
                # Mapped anew each time: pages that were written would otherwise stay in memory.
                np.load(file, mmap_mode="r+")[seen[rows.cpu().numpy()]] = values
    return np.load(output, mmap_mode="r")


def _columns(
    data: PointCloudData, processor: PointTransformerV3Processor, block_size: float | None, margin: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the points that the model sees at a time, and which of them lie in the column, not in its margin."""
    if block_size is None:
        yield np.arange(len(data)), np.ones(len(data), dtype=bool)
        return
    across = [axis for axis in range(3) if axis != "xyz".index(processor.up_axis)]
    places = data.points[:, across].astype(np.float64)
    cells = np.floor((places - places.min(axis=0)) / block_size).astype(np.int64)  # (points, 2)
    number: Any = np.ravel_multi_index((cells[:, 0], cells[:, 1]), tuple(cells.max(axis=0) + 1))
    # Sorted by column, the points of each are one run of the order.
    order = np.argsort(number, kind="stable")
    starts = np.flatnonzero(np.diff(number[order], prepend=-1))
    tree = KDTree(places) if margin > 0 else None
    for rows in np.split(order, starts[1:]):
        if tree is None:
            yield np.sort(rows), np.ones(len(rows), dtype=bool)
            continue
        # All rows lie in the cell of the first.
        low = places.min(axis=0) + (cells[rows[0]] * block_size)
        middle = low + block_size / 2
        reach = block_size / 2 + margin
        # The square around the column, as all points within a distance along each axis.
        seen = np.sort(tree.query_ball_point(middle, reach, p=np.inf, return_sorted=False))
        yield seen, number[seen] == number[rows[0]]

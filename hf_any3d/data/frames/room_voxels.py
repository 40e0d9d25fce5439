"""Voxels of scanned rooms as SpatialLM's program makes them, and the way of layouts back to the scan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from hf_any3d.data.frames.scan_frames import ScanFrame
from hf_any3d.data.point_arrays import means_of_cells
from hf_any3d.modeling.layers.layouts import EXTENT, Layout

_NEIGHBORS, _DEVIATIONS = 15, 2.0


@dataclass
class VoxelizedRoom:
    """A scan as voxels."""

    points: np.ndarray  # (voxels, 6) float64, meters from the corner and colors in [-1, 1]
    grid_coord: np.ndarray  # (voxels, 3) int64, their cells
    corner: np.ndarray  # (3,) float64, the lowest corner of the scan, which is added to the positions of an answer
    index: np.ndarray  # (voxels,), the point of the cleaned cloud that each voxel was taken from
    inverse: np.ndarray  # (cleaned points,), the voxel of each of its points
    frame: ScanFrame | None = None  # what was changed before: axes, tilt, unit, floor and turn of the scan
    offset: np.ndarray | None = None  # (3,), to be added to positions in the frame of the scan

    def to_scan(self, layout: Layout) -> Layout:
        """Return a layout that a model wrote, in meters, in the frame and unit of the scan."""
        layout = layout.translated(self.corner)
        frame = self.frame
        if frame is not None:
            layout = layout.translated((0, 0, frame.floor))
            # A turn by nothing would still wrap the angles of boxes.
            layout = (layout.rotated(frame.angle) if frame.angle else layout).scaled(1 / frame.unit)
            layout = layout.with_up_axis(frame.up_axis, frame.up)
        return layout if self.offset is None else layout.translated(self.offset)

    def from_scan(self, layout: Layout) -> Layout:
        """Return a layout in the frame and unit of the scan as a model writes it, in meters; inverse of `to_scan`."""
        layout = layout if self.offset is None else layout.translated(-self.offset)
        frame = self.frame
        if frame is not None:
            if layout.up_axis != frame.up_axis:
                raise ValueError(
                    f"the layout has up_axis={layout.up_axis!r}; expected that of the scan, {frame.up_axis!r}"
                )
            layout = dataclasses.replace(layout, up=frame.up).with_up_axis("z").scaled(frame.unit)
            layout = layout.rotated(-frame.angle) if frame.angle else layout
            layout = layout.translated((0, 0, -frame.floor))
        return layout.translated(-self.corner)

    def count_tokens(self, stride: int) -> int:
        """Count the cells that are `stride` times as large, which have a token each."""
        return len(np.unique(self.grid_coord // stride, axis=0))


def clean_room(points: np.ndarray, colors: np.ndarray, grid_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Average points and colors `(points, 3)` float64 in each voxel, and remove those that are far from all others.

    A voxel stays if its mean distance to the 15 nearest ones, itself among them, is at most two standard deviations
    above the mean of all, and it has neighbors elsewhere. This is what the released program lets Open3D do.

    Returns:
        Positions and colors of the voxels that stay, sorted by x, y, z.
    """
    from scipy.spatial import KDTree

    # Open3D's cells begin half a cell before the lowest point.
    origin = points.min(axis=0) - grid_size / 2
    cells = np.floor((points - origin) / grid_size).astype(np.int64)
    points, colors = means_of_cells(cells, points, colors)
    if len(points) < 2:
        return points, colors
    distances, _ = KDTree(points).query(points, k=min(_NEIGHBORS, len(points)))
    spacing = distances.mean(axis=1)  # (voxels,)
    kept = (spacing > 0) & (spacing < spacing.mean() + _DEVIATIONS * spacing.std(ddof=1))
    # Voxels that are all equally far apart, such as two, have no deviation and would all go.
    return (points[kept], colors[kept]) if kept.any() else (points, colors)


def voxelize_room(
    points: np.ndarray, colors: np.ndarray | None, num_bins: int, draws: np.ndarray | np.random.Generator | None = None
) -> VoxelizedRoom:
    """Move a scan `(points, 3)`, in meters, to the corner of its box, and keep one point of each cell.

    Colors are 0 to 255; None stands for black. Cells beyond 32 m, the last of `num_bins`, fall into it. Of `draws`, a
    generator draws the point of each cell, an array has the numbers that it would draw; None takes the middle one.
    """
    corner = points.min(axis=0)
    xyz = points - corner
    rgb = (np.zeros_like(xyz) if colors is None else colors) / 127.5 - 1
    cells = np.floor(xyz / (EXTENT / num_bins)).astype(np.int64)
    cells = np.clip(cells - cells.min(axis=0), 0, num_bins - 1)
    # The order of cells decides which one a draw belongs to, so it is that of the released program's hash.
    keys = np.full(len(cells), 14695981039346656037, dtype=np.uint64)
    # FNV, which multiplies by its prime and takes in a coordinate
    for axis in range(3):
        keys = (keys * np.uint64(1099511628211)) ^ cells[:, axis].astype(np.uint64)
    order = np.argsort(keys, kind="stable")
    _, first, inverse, counts = np.unique(keys[order], return_index=True, return_inverse=True, return_counts=True)
    most = int(counts.max())
    if draws is None:
        numbers = np.full(len(counts), most // 2)
    elif isinstance(draws, np.random.Generator):
        numbers = draws.integers(0, most, len(counts))
    else:
        numbers = draws
    # Numbers go up to the fullest cell; the remainder is a point of each cell.
    index = order[first + numbers % counts]
    of_point = np.empty(len(cells), dtype=np.int64)
    of_point[order] = inverse.reshape(-1)
    return VoxelizedRoom(np.concatenate([xyz, rgb], axis=1)[index], cells[index], corner, index, of_point)

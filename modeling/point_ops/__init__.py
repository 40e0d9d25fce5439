"""Point operations without compiled extensions: sampling, neighbors, grouping, cells, interpolation, distances."""

from hf_any3d.modeling.kernels.coordinates import LARGEST_COORDINATE
from hf_any3d.modeling.point_ops.chamfer import chamfer_distance, reconstruction_scores
from hf_any3d.modeling.point_ops.geometry import Geometry, normalize_centers, scatter_max, scatter_mean, voxel_cells
from hf_any3d.modeling.point_ops.grouping import (
    ball_query,
    gather_points,
    group,
    in_full_precision,
    knn,
    three_nearest_interpolate,
)
from hf_any3d.modeling.point_ops.sampling import farthest_point_sample
from hf_any3d.modeling.point_ops.serialization import CURVES, PatchGroups, patch_table, serialize
from hf_any3d.modeling.point_ops.voxels import (
    grid_pool,
    grid_sample,
    has_duplicates,
    neighbor_table,
    submanifold_convolution,
)

__all__ = [
    "CURVES",
    "LARGEST_COORDINATE",
    "Geometry",
    "PatchGroups",
    "ball_query",
    "chamfer_distance",
    "farthest_point_sample",
    "gather_points",
    "grid_pool",
    "grid_sample",
    "group",
    "has_duplicates",
    "in_full_precision",
    "knn",
    "neighbor_table",
    "normalize_centers",
    "patch_table",
    "reconstruction_scores",
    "scatter_max",
    "scatter_mean",
    "serialize",
    "submanifold_convolution",
    "three_nearest_interpolate",
    "voxel_cells",
]

"""Point operations: sampling, neighbours and grouping, without compiled extensions."""

from hf_any3d.modeling.point_ops.grouping import gather_points, group
from hf_any3d.modeling.point_ops.neighbors import knn
from hf_any3d.modeling.point_ops.sampling import farthest_point_sample

__all__ = ["farthest_point_sample", "gather_points", "group", "knn"]

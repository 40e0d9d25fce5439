"""Reading point clouds and meshes from files, and writing them."""

from .errors import PointCloudError, PointCloudFileError
from .point_cloud import PointCloudData
from .registry import read_point_cloud, supported_file_types
from .writer import write_point_cloud

__all__ = [
    "PointCloudData",
    "PointCloudError",
    "PointCloudFileError",
    "read_point_cloud",
    "supported_file_types",
    "write_point_cloud",
]

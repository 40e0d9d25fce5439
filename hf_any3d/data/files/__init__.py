"""Reading point clouds and meshes from files, and writing them."""

from .errors import PointCloudError, PointCloudFileError
from .limits import ReadLimits
from .point_cloud import PointCloudData
from .registry import read_point_cloud, supported_file_types
from .signatures import file_type_of
from .writer import point_cloud_bytes, write_point_cloud

__all__ = [
    "PointCloudData",
    "PointCloudError",
    "PointCloudFileError",
    "ReadLimits",
    "file_type_of",
    "point_cloud_bytes",
    "read_point_cloud",
    "supported_file_types",
    "write_point_cloud",
]

"""Read and write files of point clouds and meshes."""

from hf_any3d.data.files.labels import write_labels
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.registry import example_file, file_type_of, read_point_cloud, supported_file_types
from hf_any3d.data.files.rgbd import Intrinsics, read_rgbd
from hf_any3d.data.files.source import NoPointsError, PointCloudError, PointCloudFileError, ReadLimits, file_errors
from hf_any3d.data.files.writer import point_cloud_bytes, write_point_cloud

__all__ = [
    "Intrinsics",
    "NoPointsError",
    "PointCloudData",
    "PointCloudError",
    "PointCloudFileError",
    "ReadLimits",
    "example_file",
    "file_errors",
    "file_type_of",
    "point_cloud_bytes",
    "read_point_cloud",
    "read_rgbd",
    "supported_file_types",
    "write_labels",
    "write_point_cloud",
]

"""Public names for type checkers, written by `python -m docs.tools.stubs`."""

from hf_any3d.processing.chat import MiniGPT3DProcessor as MiniGPT3DProcessor
from hf_any3d.processing.point_clouds import PointCloudProcessor as PointCloudProcessor
from hf_any3d.processing.rooms import SpatialLMProcessor as SpatialLMProcessor
from hf_any3d.processing.voxels import PointTransformerV3Processor as PointTransformerV3Processor

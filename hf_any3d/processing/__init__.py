"""Processors, one file each: from a file or an array to what a model takes."""

from typing import TYPE_CHECKING

from hf_any3d.utils.public_names import imported_on_use

if TYPE_CHECKING:  # for editors and type checkers
    from hf_any3d.processing.chat import MiniGPT3DProcessor as MiniGPT3DProcessor
    from hf_any3d.processing.local_features import LocalFeaturesProcessor as LocalFeaturesProcessor
    from hf_any3d.processing.point_clouds import PointCloudProcessor as PointCloudProcessor
    from hf_any3d.processing.rooms import SpatialLMProcessor as SpatialLMProcessor
    from hf_any3d.processing.voxels import PointTransformerV3Processor as PointTransformerV3Processor

__all__, __getattr__, __dir__ = imported_on_use(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]

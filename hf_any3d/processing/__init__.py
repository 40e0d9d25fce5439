"""Processors, one file each: from a file or an array to what a model takes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_any3d.utils.public_names import names_for_type_checkers

if TYPE_CHECKING:  # for editors and type checkers
    from hf_any3d.processing.chat import MiniGPT3DProcessor as MiniGPT3DProcessor
    from hf_any3d.processing.point_clouds import PointCloudProcessor as PointCloudProcessor
    from hf_any3d.processing.rooms import SpatialLMProcessor as SpatialLMProcessor
    from hf_any3d.processing.voxels import PointTransformerV3Processor as PointTransformerV3Processor

_PUBLIC = names_for_type_checkers(__name__, __file__)
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)

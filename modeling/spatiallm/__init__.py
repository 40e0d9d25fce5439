"""SpatialLM 1.1 (arXiv 2506.07491): a language model that reads a scan of a room and writes its layout."""

from hf_any3d.modeling.layers.layouts import Box, Door, DroppedLine, Layout, Wall, Window, read_lines
from hf_any3d.modeling.spatiallm.configuration_spatiallm import SpatialLMConfig
from hf_any3d.modeling.spatiallm.modeling_spatiallm import (
    SpatialLMForConditionalGeneration,
    SpatialLMModel,
    SpatialLMModelOutput,
    SpatialLMOutput,
    SpatialLMPreTrainedModel,
)

__all__ = [
    "Box",
    "Door",
    "DroppedLine",
    "Layout",
    "SpatialLMConfig",
    "SpatialLMForConditionalGeneration",
    "SpatialLMModel",
    "SpatialLMModelOutput",
    "SpatialLMOutput",
    "SpatialLMPreTrainedModel",
    "Wall",
    "Window",
    "read_lines",
]

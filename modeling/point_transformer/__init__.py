"""Plain transformer on patches of points (Point-BERT), shared by several models."""

from hf_any3d.modeling.point_transformer.blocks import PointAttention, PointBlock, PointBlocks
from hf_any3d.modeling.point_transformer.patch_encoder import PatchEncoder, Patches, group_patches

__all__ = ["PatchEncoder", "Patches", "PointAttention", "PointBlock", "PointBlocks", "group_patches"]

"""Tiny Point Transformer V3 models."""

import torch
from transformers import AutoConfig, PreTrainedModel

from hf_any3d.modeling.point_transformer_v3 import PRESETS, PointTransformerV3ForZeroShotPointCloudSegmentation
from tests.tiny_text_towers import saved_text_tower

SMALL = {
    "in_channels": 6,
    "grid_size": 0.05,
    "depths": (1, 2),
    "hidden_sizes": (16, 24),
    "num_attention_heads": (2, 2),
    "patch_sizes": (64, 64),
    "pooling_strides": (2,),
    "mlp_ratio": 2.0,
    "head_widths": (16,),
}


def tiny_ptv3(model_class: type[PreTrainedModel], **changes) -> PreTrainedModel:
    """Make a small model in eval mode."""
    torch.manual_seed(0)
    return model_class(model_class.config_class(**(SMALL | {"num_labels": 3} | changes))).eval()


# Channels of points among texts.
TEXTS = 20
FIND3D = {
    **PRESETS["find3d"],
    **SMALL,
    "decoder_depths": (1,),
    "decoder_hidden_sizes": (16,),
    "decoder_num_attention_heads": (2,),
    "text_head_widths": (16, 16),
    "text_embedding_size": TEXTS,
}


def tiny_find3d(**changes) -> PointTransformerV3ForZeroShotPointCloudSegmentation:
    """Make a small Find3D in eval mode whose text tower is a tiny SigLIP, with weights of different clouds."""
    tower = saved_text_tower("siglip")
    width = AutoConfig.from_pretrained(tower).text_config.projection_size
    own = {"in_channels": 9, "text_embedding_size": width, "parts": {"text_tower": {"name_or_path": tower}}}
    model = tiny_ptv3(PointTransformerV3ForZeroShotPointCloudSegmentation, **{**FIND3D, **own, **changes})
    for name, tensor in model.state_dict().items():
        if name.endswith("weight") and tensor.ndim > 1:
            tensor.mul_(4)  # features that differ between points
    return model

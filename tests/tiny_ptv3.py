"""Tiny Point Transformer V3 models."""

import torch
from transformers import PreTrainedModel

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

"""Tiny encoders that are aligned with texts, and the models around them."""

import torch
from transformers import AutoConfig, PreTrainedModel

from hf_any3d.modeling.patchalign3d import PatchAlign3DForZeroShotPointCloudSegmentation
from tests.tiny_text_towers import saved_text_tower

# Channels of the feature in the space of texts.
FEATURES = 20
SMALL = {
    "num_groups": 12,
    "group_size": 8,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": FEATURES,
    "head_widths": (16,),
    "segmentation_layers": (0, 2),
    "propagation_widths": (32, 20),
    "segmentation_head_widths": (16, 12),
}
OWN = {
    "openshape": {"group_radius": 0.6, "patch_widths": (12, 16, 20)},
    "patchalign3d": {"patch_widths": (12, 16, 24), "patch_pooled_width": 20, "drop_path_rate": 0.0},
    "uni3d": {"patch_widths": (12, 16, 24), "patch_pooled_width": 20},
}


def tiny_aligned(model_class: type[PreTrainedModel], **changes) -> PreTrainedModel:
    """Make a small model in eval mode with random norm statistics."""
    torch.manual_seed(0)
    config = model_class.config_class
    model = model_class(config(**(SMALL | OWN[config.model_type] | {"num_labels": 3} | changes)))
    for name, tensor in model.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif name.endswith("weight"):
            tensor.mul_(4)  # features that differ between clouds
    return model.eval()


def tiny_parts_by_name() -> PatchAlign3DForZeroShotPointCloudSegmentation:
    """Make a model of parts by name whose text tower is a tiny CLIP."""
    tower = saved_text_tower("clip")
    width = AutoConfig.from_pretrained(tower).projection_dim
    parts = {"text_tower": {"name_or_path": tower}}
    return tiny_aligned(PatchAlign3DForZeroShotPointCloudSegmentation, projection_dim=width, parts=parts)

"""Tiny ACT models."""

import torch
from transformers import PreTrainedModel

from hf_any3d.modeling.pointgpt import PointGPTConfig

SMALL = {
    "num_groups": 12,
    "group_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "mlp_ratio": 2.0,
    "head_widths": (16,),
    "segmentation_layers": (0, 2),
    "propagation_widths": (32, 20),
    "segmentation_head_widths": (16, 12),
    "category_width": 6,
}
PARTS = {"category_parts": [[0, 1], [2, 3, 4]], "category_names": ["table", "lamp"], "num_labels": 5}


def tiny_act(model_class: type[PreTrainedModel], **changes) -> PreTrainedModel:
    """Make a small model in eval mode with random norm statistics."""
    torch.manual_seed(0)
    if "Part" in model_class.__name__:
        changes = PARTS | changes
    sizes = SMALL | {"num_labels": 3}
    if issubclass(model_class.config_class, PointGPTConfig):
        # The loss of a classifier is that of its labels here, by which the common suites judge it.
        sizes |= {"decoder_num_hidden_layers": 1, "generation_loss_weight": 0.0}
    model = model_class(model_class.config_class(**(sizes | changes)))
    for name, tensor in model.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif name.endswith("weight"):
            tensor.mul_(4)  # logits that differ between clouds
    return model.eval()


def clouds(batch: int = 2, count: int = 60, channels: int = 3) -> torch.Tensor:
    """Draw random clouds `(batch, count, channels)`."""
    return torch.rand(batch, count, channels, generator=torch.Generator().manual_seed(0)) - 0.5

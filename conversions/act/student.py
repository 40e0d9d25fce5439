"""The tensors of ACT's point transformer, alone or with a head, under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

# Patterns of released names with ours; of several, the first that fits from its start on counts.
PATCH_ENCODER = {
    r"first_conv\.0": "lift",
    r"first_conv\.1": "lift_norm",
    r"first_conv\.3": "widen",
    r"second_conv\.0": "join",
    r"second_conv\.1": "join_norm",
    r"second_conv\.3": "out",
}
BODY = {
    r"cls_token$": "class_token.token",
    r"cls_pos$": "class_token.position",
    r"pos_embed\b": "position_embed",
    r"blocks\.blocks\.(\d+)\.attn": r"blocks.layers.\1.attention",
    r"blocks\.blocks\.(\d+)\.": r"blocks.layers.\1.",
    r"norm\b": "norm",
    r"side_(projection|alpha)\b": r"side_\1",
    **{rf"encoder\.{theirs}": f"patch_encoder.{ours}" for theirs, ours in PATCH_ENCODER.items()},
    **{rf"side\.{theirs}": f"side.{ours}" for theirs, ours in PATCH_ENCODER.items()},
}
HEAD = {
    r"cls_head_finetune\.0": "classifier.hidden.0",
    r"cls_head_finetune\.1": "classifier.norms.0",
    r"cls_head_finetune\.4": "classifier.hidden.1",
    r"cls_head_finetune\.5": "classifier.norms.1",
    r"cls_head_finetune\.8": "classifier.out",
}
LINEAR_HEAD = {r"cls_head_finetune\.0": "classifier.out"}
# One linear layer of theirs on things laid side by side is several of ours; see `_PARTS`.
SEGMENTATION = {
    r"label_conv_cls\.0": "category_embedding",
    r"label_conv_cls\.1": "category_norm",
    r"propagation_0_cls\.mlp_convs\.0": "propagation.from_points",
    r"propagation_0_cls\.mlp_bns\.0": "propagation.mixed_norm",
    r"propagation_0_cls\.mlp_convs\.1": "propagation.out",
    r"propagation_0_cls\.mlp_bns\.1": "propagation.out_norm",
    r"convs1_cls": "segmenter.from_points",
    r"bns1_cls": "segmenter.norm",
    r"convs2_cls": "segmenter.head.hidden.0",
    r"bns2_cls": "segmenter.head.norms.0",
    r"convs3_cls": "segmenter.head.out",
}
# Of the columns of a weight, those from this one on belong to another layer.
_PARTS = {
    "propagation.from_points.weight": (3, "propagation.from_tokens.weight"),
    "segmenter.from_points.weight": (1024, "segmenter.from_cloud.weight"),
}


def rename_student(name: str, *, linear_head: bool = False) -> str:
    """Our name for a released tensor; of one that is split, the name of its first part.

    Args:
        name: A name of the classification or segmentation program, or one of the pretraining program's student.
        linear_head: Whether `cls_head_finetune.0` is the whole head.

    Raises:
        KeyError: If the name belongs to no known part.
    """
    plain = name.removeprefix("module.").removeprefix("ACT_encoder.")
    for prefix, table in (("act.", BODY), ("", LINEAR_HEAD if linear_head else HEAD), ("", SEGMENTATION)):
        for pattern, ours in table.items():
            if match := re.match(pattern, plain):
                return prefix + match.expand(ours) + plain[match.end() :]
    raise KeyError(name)


def convert_student(original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename, split and reshape the state dict of a classifier or segmenter.

    Args:
        original: The released program's tensors.

    Returns:
        Tensors of `ActForPointCloudClassification`, `ActForPartSegmentation` or `ActForSemanticSegmentation`.

    Raises:
        KeyError: If a name belongs to no known part.
    """
    linear_head = not any("cls_head_finetune.8." in name for name in original)
    converted = {}
    for name, tensor in original.items():
        ours = rename_student(name, linear_head=linear_head)
        if tensor.ndim == 3:
            # Their layers are convolutions of width one; their class token has axes for clouds and tokens.
            tensor = tensor.flatten() if "class_token" in ours else tensor.squeeze(-1)
        if ours == "category_embedding.weight":
            tensor = tensor.T
        if ours in _PARTS:
            column, other = _PARTS[ours]
            converted[other] = tensor[:, column:].contiguous()
            tensor = tensor[:, :column]
        converted[ours] = tensor.contiguous()
    return converted

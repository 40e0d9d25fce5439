"""Layers that several programs have under the same names: the point transformer of Point-BERT, and CLIP's towers."""

from collections.abc import Mapping
from typing import Any

import torch

from hf_any3d.conversions.renaming import Names, count_of, under

# CLIP's own program calls them resblocks.
BLOCK = r"(?:res)?blocks\.(?P<layer>\d+)\."
_CLIP = "encoder.layers.{layer}."
CLIP_NAMES: Names = {
    BLOCK + r"attn\.in_proj_(?P<tensor>\w+)": tuple(_CLIP + f"self_attn.{part}_proj.{{tensor}}" for part in "qkv"),
    BLOCK + r"attn\.out_proj\.": _CLIP + "self_attn.out_proj.",
    BLOCK + r"ln_(?P<norm>[12])\.": _CLIP + "layer_norm{norm}.",
    BLOCK + r"mlp\.c_fc\.": _CLIP + "mlp.fc1.",
    BLOCK + r"mlp\.c_proj\.": _CLIP + "mlp.fc2.",
}
PATCH_ENCODER: Names = {
    r"first_conv\.0\.": "lift.",
    r"first_conv\.1\.": "lift_norm.",
    r"first_conv\.3\.": "widen.",
    r"second_conv\.0\.": "join.",
    r"second_conv\.1\.": "join_norm.",
    r"second_conv\.3\.": "out.",
}
# Layers of `PointBlocks`; the original has `blocks.` once or twice before their numbers.
BLOCKS: Names = {r"(?P<layer>\d+)\.attn\.": "{layer}.attention.", r"(?P<layer>\d+)\.(?=norm[12]\.|mlp\.)": "{layer}."}
STUDENT: Names = {
    r"cls_token$": "class_token.token",
    r"cls_pos$": "class_token.position",
    **under("encoder.", "patch_encoder.", PATCH_ENCODER),
    r"reduce_dim\.": "patch_encoder.project.",
    r"pos_embed\.": "position_embed.",
    **under("blocks.blocks.", "blocks.layers.", BLOCKS),
    r"norm\.": "norm.",
    **under("side.", "side.", PATCH_ENCODER),
    r"side_projection\.": "side_projection.",
    r"side_alpha$": "side_alpha",
}


def below(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors below a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def student_sizes(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the settings of a point transformer under our names, without attention heads and patch counts."""
    width = state["norm.weight"].shape[0]
    pooled = state["patch_encoder.out.weight"].shape[0]
    # A layer behind the pooling, which other widths need.
    is_projected = pooled != width or "patch_encoder.project.weight" in state
    return {
        "in_channels": state["patch_encoder.lift.weight"].shape[1],
        "hidden_size": width,
        "patch_pooled_width": pooled if is_projected else None,
        "num_hidden_layers": count_of(state, r"blocks\.layers\.(\d+)\."),
        "mlp_ratio": state["blocks.layers.0.mlp.fc1.weight"].shape[0] / width,
        "qkv_bias": "blocks.layers.0.attention.qkv.bias" in state,
        # What a model does not have leaves no tensor.
        "use_class_token": "class_token.token" in state,
        "side_network": "side_alpha" in state,
    }

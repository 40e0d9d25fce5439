"""The tensors of PatchAlign3D's point encoder under our names, and the sizes that their shapes imply."""

from collections.abc import Mapping
from typing import Any

import torch

from hf_any3d.conversions.renaming import Names, as_linear, as_vector, count_of, heads_of, rename_tensors

_BLOCK = r"blocks\.blocks\.(?P<layer>\d+)\."
NAMES: Names = {
    r"cls_token$": "class_token.token",
    r"cls_pos$": "class_token.position",
    r"encoder\.first_conv\.0\.": "patch_encoder.lift.",
    r"encoder\.first_conv\.1\.": "patch_encoder.lift_norm.",
    r"encoder\.first_conv\.3\.": "patch_encoder.widen.",
    r"encoder\.second_conv\.0\.": "patch_encoder.join.",
    r"encoder\.second_conv\.1\.": "patch_encoder.join_norm.",
    r"encoder\.second_conv\.3\.": "patch_encoder.out.",
    r"reduce_dim\.": "patch_encoder.project.",
    r"pos_embed\.": "position_embed.",
    _BLOCK + r"attn\.(?P<part>qkv|proj)\.": "blocks.layers.{layer}.attention.{part}.",
    _BLOCK + r"(?P<part>norm1|norm2|mlp\.fc1|mlp\.fc2)\.": "blocks.layers.{layer}.{part}.",
    r"norm\.": "norm.",
}
PROJECTION_NAMES: Names = {r"proj\.": "projection."}
_CONVOLUTIONS = tuple(f"patch_encoder.{name}.weight" for name in ("lift", "widen", "join", "out"))


def convert_patchalign3d_state_dict(
    original: Mapping[str, torch.Tensor], projection: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Rename the tensors of the encoder and of its projection to those of a `PatchAlign3DModel`."""
    state = rename_tensors(original, NAMES) | rename_tensors(projection, PROJECTION_NAMES)
    for name, tensor in state.items():
        if name in _CONVOLUTIONS:
            state[name] = as_linear(tensor)
        elif name.startswith("class_token."):
            state[name] = as_vector(tensor)
    return state


def patchalign3d_sizes(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the fields of `PatchAlign3DConfig` that the tensors of a `PatchAlign3DModel` imply."""
    hidden = state["class_token.token"].shape[0]
    return {
        "in_channels": state["patch_encoder.lift.weight"].shape[1],
        "patch_widths": [state[f"patch_encoder.{name}.weight"].shape[0] for name in ("lift", "widen", "join")],
        "patch_pooled_width": state["patch_encoder.out.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": state["blocks.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count_of(state, r"blocks\.layers\.(\d+)\."),
        "num_attention_heads": heads_of(hidden),
        "projection_dim": state["projection.weight"].shape[0],
    }

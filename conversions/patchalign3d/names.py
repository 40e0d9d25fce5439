"""The tensors of PatchAlign3D's point encoder under our names, and the sizes that their shapes imply."""

from collections.abc import Mapping
from typing import Any

import torch

from hf_any3d.conversions.renaming import Names, as_linear, as_vector, count_of, rename_tensors, size_of

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
_HEAD_WIDTH = 64


def convert_patchalign3d_state_dict(
    original: Mapping[str, torch.Tensor], projection: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Rename the tensors of the encoder and of its projection to those of a `PatchAlign3DModel`.

    Args:
        original: The entry "model" of a checkpoint.
        projection: Its entry "proj".

    Raises:
        ValueError: A tensor belongs to no known part, two to the same, a kernel is larger than 1, or numbers are NaN
            or infinite.
    """
    state = rename_tensors(original, NAMES) | rename_tensors(projection, PROJECTION_NAMES)
    for name, tensor in state.items():
        if name in _CONVOLUTIONS:
            state[name] = as_linear(name, tensor)
        elif name.startswith("class_token."):
            state[name] = as_vector(name, tensor)
    return state


def patchalign3d_sizes(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the fields of `PatchAlign3DConfig` that the tensors of a `PatchAlign3DModel` imply.

    Raises:
        ValueError: Tensors are missing, or the width is not a multiple of 64, the width of a head.
    """
    hidden = size_of(state, "class_token.token")
    if hidden % _HEAD_WIDTH:
        raise ValueError(
            f"an encoder of width {hidden}; expected a multiple of {_HEAD_WIDTH}, the width of an attention head"
        )
    return {
        "in_channels": size_of(state, "patch_encoder.lift.weight", axis=1),
        "patch_widths": [size_of(state, f"patch_encoder.{name}.weight") for name in ("lift", "widen", "join")],
        "patch_pooled_width": size_of(state, "patch_encoder.out.weight"),
        "hidden_size": hidden,
        "intermediate_size": size_of(state, "blocks.layers.0.mlp.fc1.weight"),
        "num_hidden_layers": count_of(state, r"blocks\.layers\.(\d+)\."),
        "num_attention_heads": hidden // _HEAD_WIDTH,
        "projection_dim": size_of(state, "projection.weight"),
    }

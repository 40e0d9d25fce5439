"""The tensors of OpenShape's point encoders under our names, and the sizes that their shapes imply."""

from collections.abc import Mapping
from typing import Any

import torch

from hf_any3d.conversions.renaming import Names, as_linear, count_of, heads_of, rename_tensors

# Everything but the projection has a prefix where there is a projection.
_BODY = r"(?:ppat\.)?"
_BLOCK = _BODY + r"transformer\.layers\.(?P<layer>\d+)\."
NAMES: Names = {
    _BODY + r"cls_token$": "class_token",
    _BODY + r"sa\.mlp_convs\.": "patch_encoder.layers.",
    _BODY + r"sa\.mlp_bns\.": "patch_encoder.norms.",
    _BODY + r"lift\.0\.": "lift.",
    _BODY + r"lift\.2\.": "lift_norm.",
    _BLOCK + r"0\.norm\.": "blocks.layers.{layer}.norm1.",
    _BLOCK + r"0\.fn\.to_qkv\.": "blocks.layers.{layer}.attention.qkv.",
    _BLOCK + r"0\.fn\.to_out\.0\.": "blocks.layers.{layer}.attention.proj.",
    _BLOCK + r"1\.norm\.": "blocks.layers.{layer}.norm2.",
    _BLOCK + r"1\.fn\.net\.0\.": "blocks.layers.{layer}.mlp.fc1.",
    _BLOCK + r"1\.fn\.net\.3\.": "blocks.layers.{layer}.mlp.fc2.",
    r"proj\.": "projection.",
}
# Of the published files with the image towers of CLIP B/32 and L/14.
PREFIX = "pc_encoder."
# Channels of a patch -> number, size and radius of patches; no tensor shows them.
_GROUPS = {
    256: {"num_groups": 384, "group_size": 64, "group_radius": 0.2},
    128: {"num_groups": 64, "group_size": 256, "group_radius": 0.4},
}


def convert_openshape_state_dict(original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of an encoder, without the prefix of its file, to those of an `OpenShapeModel`."""
    state = rename_tensors(original, NAMES)
    return {
        name: as_linear(tensor) if name.startswith(("patch_encoder.layers.", "lift.")) else tensor
        for name, tensor in state.items()
    }


def openshape_sizes(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the fields of `OpenShapeConfig` that the tensors of an `OpenShapeModel` imply.

    The number, size and radius of patches are those of the published encoder with as wide patches, if there is one.
    """
    layers = count_of(state, r"patch_encoder\.layers\.(\d+)\.")
    widths = [state[f"patch_encoder.layers.{number}.weight"].shape[0] for number in range(layers)]
    hidden = state["class_token"].shape[0]
    return {
        # The layer takes offsets from the center beside a point's own channels.
        "in_channels": state["patch_encoder.layers.0.weight"].shape[1] - 3,
        "patch_widths": widths,
        "hidden_size": hidden,
        "intermediate_size": state["blocks.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count_of(state, r"blocks\.layers\.(\d+)\."),
        "num_attention_heads": heads_of(hidden),
        "projection_dim": state["projection.weight"].shape[0] if "projection.weight" in state else None,
        **_GROUPS.get(widths[-1], {}),
    }

"""Convert a released Uni3D encoder into a directory with model, processor and card."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from hf_any3d.conversions.aligned_encoders import LOGIT_SCALE, save_aligned_encoder
from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint
from hf_any3d.conversions.common_layers import PATCH_ENCODER
from hf_any3d.conversions.renaming import Names, as_linear, as_vector, count_of, heads_of, rename_tensors, under
from hf_any3d.modeling.uni3d import Uni3DConfig, Uni3DForZeroShotPointCloudClassification

_RELEASED: dict[str, Any] = {"sampling_min_squared_norm": 1e-3}
_TOWER = "OpenCLIP EVA02-E-14-plus (laion2b_s9b_b144k)"
_ENCODER = r"point_encoder\."
_BLOCK = _ENCODER + r"visual\.blocks\.(?P<layer>\d+)\."
_OURS = "blocks.layers.{layer}."
NAMES: Names = {
    LOGIT_SCALE + "$": LOGIT_SCALE,
    _ENCODER + r"cls_token$": "class_token.token",
    _ENCODER + r"cls_pos$": "class_token.position",
    _ENCODER + r"pos_embed\.": "position_embed.",
    **under("point_encoder.encoder.", "patch_encoder.", PATCH_ENCODER),
    _ENCODER + r"encoder2trans\.": "patch_encoder.project.",
    _BLOCK + r"norm(?P<norm>[12])\.": _OURS + "norm{norm}.",
    # Queries, keys and values are joined afterwards.
    _BLOCK + r"attn\.qkv\.weight$": _OURS + "attention.qkv.weight",
    _BLOCK + r"attn\.(?P<part>[qkv])_proj\.": _OURS + "attention.{part}.",
    _BLOCK + r"attn\.(?P<part>[qv])_bias$": _OURS + "attention.{part}.bias",
    _BLOCK + r"attn\.proj\.": _OURS + "attention.proj.",
    # The first layer of a packed gated MLP is split afterwards.
    _BLOCK + r"mlp\.fc1\.": _OURS + "mlp.fc1.",
    _BLOCK + r"mlp\.fc1_g\.": _OURS + "mlp.gate.",
    _BLOCK + r"mlp\.fc1_x\.": _OURS + "mlp.fc1.",
    _BLOCK + r"mlp\.norm\.": _OURS + "mlp.norm.",
    _BLOCK + r"mlp\.fc2\.": _OURS + "mlp.fc2.",
    _ENCODER + r"visual\.fc_norm\.": "norm.",
    _ENCODER + r"trans2embed\.": "projection.",
    # Parts of the image transformer that clouds do not pass.
    _ENCODER + r"visual\.(cls_token|pos_embed)$": None,
    _ENCODER + r"visual\.(patch_embed\.proj|head)\.": None,
}
_CONVOLUTIONS = tuple(f"patch_encoder.{layer}." for layer in ("lift", "widen", "join", "out"))
# The giant one's heads are wider; no tensor shows it.
_HEAD_WIDTHS = {1408: 88}


def convert_uni3d_encoder(
    original: Mapping[str, torch.Tensor], num_attention_heads: int | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors of a `Uni3DModel`, with `logit_scale`, and the fields of `Uni3DConfig` that they imply.

    Queries, keys and values become one layer, whose bias of keys, which has no effect, is zero. Parts of the image
    transformer that clouds do not pass are left out.
    """
    state = rename_tensors(original, NAMES)
    for name in list(state):
        if name.startswith(_CONVOLUTIONS):
            state[name] = as_linear(state[name])
        elif name.startswith("class_token."):
            state[name] = as_vector(state[name])
    for number in range(count_of(state, r"blocks\.layers\.(\d+)\.")):
        attention = f"blocks.layers.{number}.attention."
        mlp = f"blocks.layers.{number}.mlp."
        # Base and large have a layer for each of the three, the other sizes one for all.
        weights = []
        for part in "qkv":
            if f"{attention}{part}.weight" in state:
                weights.append(state.pop(f"{attention}{part}.weight"))
        if weights:
            state[f"{attention}qkv.weight"] = torch.cat(weights)
        # Its image transformer has no bias of keys, which would not change the softmax; our joined layer has zeros.
        query = state.pop(f"{attention}q.bias")
        value = state.pop(f"{attention}v.bias")
        state[f"{attention}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
        rows = state[f"{mlp}fc1.weight"].shape[0]
        columns = state[f"{mlp}fc2.weight"].shape[1]
        # Some sizes store gate and values in layers of their own, others in one layer with twice as many rows.
        if f"{mlp}gate.weight" not in state and rows == 2 * columns:
            for name in (f"{mlp}fc1.weight", f"{mlp}fc1.bias"):
                state[name.replace("fc1", "gate")], state[name] = state[name].chunk(2)
    hidden = state["class_token.token"].shape[0]
    first = "blocks.layers.0.mlp."
    return state, {
        "in_channels": state["patch_encoder.lift.weight"].shape[1],
        "patch_widths": [state[f"patch_encoder.{layer}.weight"].shape[0] for layer in ("lift", "widen", "join")],
        "patch_pooled_width": state["patch_encoder.out.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": state[f"{first}fc2.weight"].shape[1],
        "num_hidden_layers": count_of(state, r"blocks\.layers\.(\d+)\."),
        "num_attention_heads": heads_of(hidden, num_attention_heads, _HEAD_WIDTHS.get(hidden, 64)),
        "gated_mlp": f"{first}gate.weight" in state,
        "mlp_norm": f"{first}norm.weight" in state,
        "projection_dim": state["projection.weight"].shape[0],
    }


def convert_uni3d(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    num_attention_heads: int | None = None,
) -> dict[str, Any]:
    """Convert the `model.pt` of any size of Uni3D; the size is found from the shapes of its tensors.

    Numbers in half precision, as published, become float32, in which the released program computes.

    Args:
        checkpoint: The authors' file.
        output: Directory to create.
        num_groups: Patches per cloud; 512 by default, as published.
        group_size: Points per patch; 64 by default, as published.
        num_attention_heads: By default one for 64 channels, for the giant size one for 88.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`.
    """
    original = read_checkpoint(checkpoint, ("module",))
    patches = {"num_groups": num_groups, "group_size": group_size}
    with errors_about(checkpoint):
        # The scale belongs to training, but without it scores would not be those of the authors.
        state, sizes = convert_uni3d_encoder(original, num_attention_heads)
        logit_scale = state.pop(LOGIT_SCALE)
        sizes |= {name: value for name, value in patches.items() if value is not None}
        config = Uni3DConfig(**sizes, **_RELEASED, aligned_with=_TOWER)
    return save_aligned_encoder(
        checkpoint,
        output,
        Uni3DForZeroShotPointCloudClassification,
        config,
        state,
        logit_scale=logit_scale,
        sections={
            "What it computes": "The released program: points within 0.0316 of the origin are never sampled as "
            "centers of patches (`sampling_min_squared_norm=1e-3`), except for the first point. Parts of the image "
            "transformer that clouds do not pass are left out.",
            "License": "The authors publish their program under the MIT license; the license of these weights is on "
            "the card of their repository.",
        },
    )

"""The tensors of 3DETR's detectors under our names, and the sizes that their shapes imply."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from hf_any3d.conversions.renaming import Names, as_linear, count_of, rename_tensors

_QKV = ("q_proj", "k_proj", "v_proj")
_HEADS = {
    "sem_cls_head": "class_head",
    "center_head": "center_head",
    "size_head": "size_head",
    "angle_cls_head": "heading_class_head",
    "angle_residual_head": "heading_residual_head",
}
# Rows of `_PARTS` below each head.
_HEAD_LAYERS = (
    ("layers.0.", "hidden.0."),
    ("layers.1.", "norms.0."),
    ("layers.4.", "hidden.1."),
    ("layers.5.", "norms.1."),
    ("layers.8.", "out."),
)


def _parts_of_heads() -> list[tuple[str, str]]:
    parts = []
    for their_head, our_head in _HEADS.items():
        for their_layer, our_layer in _HEAD_LAYERS:
            parts.append((f"mlp_heads.{their_head}.{their_layer}", f"{our_head}.{our_layer}"))
    return parts


# Their name and ours; "#" is the number of a layer. The three layers of an attention are one matrix there.
_PARTS: tuple[tuple[str, str], ...] = (
    ("pre_encoder.mlp_module.layer#.conv.", "detr3d.group_encoder.layers.#.linear."),
    ("pre_encoder.mlp_module.layer#.bn.bn.", "detr3d.group_encoder.layers.#.norm."),
    ("encoder.interim_downsampling.mlp_module.layer#.conv.", "detr3d.encoder.downsampling.layers.#.linear."),
    ("encoder.interim_downsampling.mlp_module.layer#.bn.bn.", "detr3d.encoder.downsampling.layers.#.norm."),
    ("encoder.layers.#.linear1.", "detr3d.encoder.layers.#.mlp.fc1."),
    ("encoder.layers.#.linear2.", "detr3d.encoder.layers.#.mlp.fc2."),
    ("encoder.layers.#.norm1.", "detr3d.encoder.layers.#.self_attn_layer_norm."),
    ("encoder.layers.#.norm2.", "detr3d.encoder.layers.#.final_layer_norm."),
    ("encoder_to_decoder_projection.layers.0.", "detr3d.memory_projection.0.linear."),
    ("encoder_to_decoder_projection.layers.1.", "detr3d.memory_projection.0.norm."),
    ("encoder_to_decoder_projection.layers.3.", "detr3d.memory_projection.1.linear."),
    ("encoder_to_decoder_projection.layers.4.", "detr3d.memory_projection.1.norm."),
    ("encoder_to_decoder_projection.layers.6.", "detr3d.memory_projection.2.linear."),
    ("encoder_to_decoder_projection.layers.7.", "detr3d.memory_projection.2.norm."),
    ("pos_embedding.gauss_B", "detr3d.positions.frequencies"),
    ("query_projection.layers.#.", "detr3d.positions.projection.#."),
    ("decoder.layers.#.linear1.", "detr3d.layers.#.mlp.fc1."),
    ("decoder.layers.#.linear2.", "detr3d.layers.#.mlp.fc2."),
    ("decoder.layers.#.norm1.", "detr3d.layers.#.self_attn_layer_norm."),
    ("decoder.layers.#.norm2.", "detr3d.layers.#.encoder_attn_layer_norm."),
    ("decoder.layers.#.norm3.", "detr3d.layers.#.final_layer_norm."),
    ("decoder.norm.", "detr3d.layer_norm."),
    *_parts_of_heads(),
)
_ATTENTIONS = (
    ("encoder.layers.#.self_attn.", "detr3d.encoder.layers.#.self_attn."),
    ("decoder.layers.#.self_attn.", "detr3d.layers.#.self_attn."),
    ("decoder.layers.#.multihead_attn.", "detr3d.layers.#.encoder_attn."),
)


def _pattern(name: str) -> str:
    return re.escape(name).replace(r"\#", r"(?P<number>\d+)")


def _filled(name: str) -> str:
    return name.replace("#", "{number}")


def _names_to_ours() -> Names:
    """Return the table of the tensors of the original."""
    names: dict[str, str | tuple[str, ...] | None] = {}
    for theirs, ours in _PARTS:
        names[_pattern(theirs)] = _filled(ours)
    for theirs, ours in _ATTENTIONS:
        names[_pattern(f"{theirs}out_proj.")] = _filled(f"{ours}out_proj.")
        for kind in ("weight", "bias"):
            names[_pattern(f"{theirs}in_proj_{kind}")] = tuple(_filled(f"{ours}{part}.{kind}") for part in _QKV)
    return names


NAMES = _names_to_ours()
SCANNET_MEAN_COLOR = (109.8, 97.2, 83.8)
"""What the released program subtracts from the colors of ScanNet, from 0 to 255."""


def convert_detr3d_state_dict(original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of a 3DETR checkpoint to those of a `Detr3DForPointCloudObjectDetection`.

    Queries, keys and values become layers of their own. The original turns boxes clockwise; the rows of its last
    layers for angles are reordered, so that headings are counterclockwise.
    """
    renamed = rename_tensors(original, NAMES)
    state = {name: as_linear(tensor) for name, tensor in renamed.items()}
    return _other_direction(state)


def scale_colors(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Let a detector with colors read them from 0 to 1, where the released program gives it `(255 * color - m) / 256`.

    The factor goes into the first layer, and the shift into the mean of its norm; in training the norm cancels it.
    """
    layer = "detr3d.group_encoder.layers.0.linear.weight"
    norm = "detr3d.group_encoder.layers.0.norm.running_mean"
    weight = state[layer].double()
    factor = weight.new_ones(weight.shape[1])
    # Offsets to the center are the first three columns, colors the next.
    factor[3:6] = 255 / 256
    scaled = weight * factor
    shift = weight[:, 3:6] @ weight.new_tensor(SCANNET_MEAN_COLOR) / 256  # (outputs,)
    mean = state[norm].double() + shift
    return {**state, layer: scaled.to(state[layer]), norm: mean.to(state[norm])}


def _other_direction(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Let the heads for angles turn boxes the other way: bin k becomes -k, and the rest changes its sign."""
    turned = dict(state)
    for head, sign in (("heading_class_head", 1), ("heading_residual_head", -1)):
        for kind in ("weight", "bias"):
            name = f"{head}.out.{kind}"
            if name in turned:
                rows = turned[name]
                # Bin 0 stays, and bin k changes places with bin n - k.
                turned[name] = sign * rows[-torch.arange(len(rows)) % max(len(rows), 1)]
    return turned


def detr3d_sizes(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the fields of `Detr3DConfig` and `num_labels` that the tensors of a converted model imply.

    Attention heads, the numbers of tokens and queries, radii and dropout are not among them.
    """
    encoder = "detr3d.encoder."
    groups = "detr3d.group_encoder.layers."
    sizes = {
        "in_channels": state[f"{groups}0.linear.weight"].shape[1],
        "group_widths": [state[f"{groups}{number}.linear.weight"].shape[0] for number in range(2)],
        "encoder_hidden_size": state[f"{groups}2.linear.weight"].shape[0],
        "encoder_layers": count_of(state, r"detr3d\.encoder\.layers\.(\d+)\."),
        "encoder_ffn_dim": state[f"{encoder}layers.0.mlp.fc1.weight"].shape[0],
        "hidden_size": state["detr3d.layer_norm.weight"].shape[0],
        "decoder_layers": count_of(state, r"detr3d\.layers\.(\d+)\."),
        "decoder_ffn_dim": state["detr3d.layers.0.mlp.fc1.weight"].shape[0],
        "num_heading_bins": state["heading_class_head.out.weight"].shape[0],
        # The last row is "no object".
        "num_labels": state["class_head.out.weight"].shape[0] - 1,
    }
    if is_masked(state):
        places = (f"{encoder}downsampling.layers.{number}.linear.weight" for number in range(2))
        sizes["downsampling_widths"] = [state[place].shape[0] for place in places]
    return sizes


def is_masked(state: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a converted model's encoder limits its attention and halves its tokens."""
    return any(name.startswith("detr3d.encoder.downsampling.") for name in state)

"""Convert a released OpenShape encoder into a directory with model, processor and card."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from hf_any3d.conversions.aligned_encoders import LOGIT_SCALE, save_aligned_encoder
from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint
from hf_any3d.conversions.common_layers import below
from hf_any3d.conversions.renaming import Names, as_linear, count_of, heads_of, rename_tensors
from hf_any3d.modeling.openshape import OpenShapeConfig, OpenShapeForZeroShotPointCloudClassification
from hf_any3d.modeling.point_encoders.aligned_encoders.configuration_aligned_encoders import TEXT_TOWER

# Channels of the feature -> the model whose texts share its space, and where transformers opens it.
_TOWERS = {
    512: ("CLIP ViT-B/32", "openai/clip-vit-base-patch32"),
    768: ("CLIP ViT-L/14", "openai/clip-vit-large-patch14"),
    1280: ("OpenCLIP ViT-bigG-14 (laion2b_s39b_b160k)", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"),
}
# These take x, z, y: a mirrored cloud with z up.
_EXCHANGED = (1280,)
_TRAINING_ENTRY = "state_dict"
_GROUPS = ("num_groups", "group_size", "group_radius")
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
_PREFIX = "pc_encoder."
# Channels of a patch -> number, size and radius of patches; no tensor shows them.
_PATCHES = {
    256: {"num_groups": 384, "group_size": 64, "group_radius": 0.2},
    128: {"num_groups": 64, "group_size": 256, "group_radius": 0.4},
}


def convert_openshape_encoder(original: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors of an `OpenShapeModel`, and the fields of `OpenShapeConfig` that they imply.

    The names are without the prefix of a file. The number, size and radius of patches are those of the published
    encoder with as wide patches, if there is one.
    """
    state = rename_tensors(original, NAMES)
    for name, tensor in state.items():
        if name.startswith(("patch_encoder.layers.", "lift.")):
            state[name] = as_linear(tensor)
    layers = count_of(state, r"patch_encoder\.layers\.(\d+)\.")
    widths = [state[f"patch_encoder.layers.{number}.weight"].shape[0] for number in range(layers)]
    hidden = state["class_token"].shape[0]
    return state, {
        # The layer takes offsets from the center beside a point's own channels.
        "in_channels": state["patch_encoder.layers.0.weight"].shape[1] - 3,
        "patch_widths": widths,
        "hidden_size": hidden,
        "intermediate_size": state["blocks.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count_of(state, r"blocks\.layers\.(\d+)\."),
        "num_attention_heads": heads_of(hidden),
        "projection_dim": state["projection.weight"].shape[0] if "projection.weight" in state else None,
        **_PATCHES.get(widths[-1], {}),
    }


def convert_openshape(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    group_radius: float | None = None,
) -> dict[str, Any]:
    """Convert the `model.pt` of one of OpenShape's PointBERT repositories.

    Args:
        checkpoint: The authors' file.
        output: Directory to create.
        num_groups: Patches per cloud; by default those of the published encoder with as wide patches.
        group_size: Points per patch; likewise.
        group_radius: Radius of a patch; likewise.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`, and `left_out`, the names of entries of the file that
        are no part of the encoder.
    """
    original, logit_scale, left_out = _read(checkpoint)
    given = {"num_groups": num_groups, "group_size": group_size, "group_radius": group_radius}
    with errors_about(checkpoint):
        state, sizes = convert_openshape_encoder(original)
        sizes |= {name: value for name, value in given.items() if value is not None}
        # No tensor depends on number, size or radius of patches, and a guess would give wrong features without an
        # error.
        missing = [name for name in _GROUPS if name not in sizes]
        if missing:
            raise ValueError(
                f"patches of {sizes['patch_widths'][-1]} channels are not those of a published encoder, so "
                f"{', '.join(missing)} cannot be known; give them"
            )
        features = sizes["projection_dim"] or sizes["hidden_size"]
        if features not in _TOWERS:
            raise ValueError(
                f"its features have {features} channels; expected those of a published encoder: "
                f"{', '.join(map(str, _TOWERS))}"
            )
        name, tower = _TOWERS[features]
        config = OpenShapeConfig(**sizes, aligned_with=name, parts={TEXT_TOWER: {"name_or_path": tower}})
    is_exchanged = features in _EXCHANGED
    start = "Sampling of patches starts at a cloud's first point, not at a random one as in the released program."
    if logit_scale is None:
        start += (
            f" The file has no scale of cosines under a known name; here it is {1 / config.temperature:.2f}, the "
            "initial value of training. It changes how sure scores look, not their order."
        )
    if is_exchanged:
        start += " The processor exchanges y and z of clouds with y up, as in training."
    facts = save_aligned_encoder(
        checkpoint,
        output,
        OpenShapeForZeroShotPointCloudClassification,
        config,
        state,
        logit_scale=logit_scale,
        axes="xzy" if is_exchanged else "xyz",
        up_axis="z" if is_exchanged else "y",
        sections={
            "What it computes": start,
            "License": "The cards of the published encoders name the MIT license; the text tower has its own.",
        },
    )
    return facts | {"left_out": left_out}


def _read(checkpoint: str | os.PathLike) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, list[str]]:
    """Return the tensors of the encoder, the logarithm of the scale, and the names of other entries."""
    state = read_checkpoint(checkpoint, (_TRAINING_ENTRY,))
    # A checkpoint of training holds more than the encoder, which has a prefix there.
    inside = below(state, _PREFIX)
    if inside:
        others = {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}
        return inside, others.pop(LOGIT_SCALE, None), sorted(others)
    try:
        return state, read_checkpoint(checkpoint, (LOGIT_SCALE,)).get(LOGIT_SCALE), []
    except ValueError:  # no such entry
        return state, None, []

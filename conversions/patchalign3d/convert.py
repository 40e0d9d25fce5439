"""Convert a released PatchAlign3D encoder, of either training stage, into a directory that opens."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_any3d.conversions.aligned_encoders import save_aligned_encoder
from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint, read_entries
from hf_any3d.conversions.common_layers import STUDENT
from hf_any3d.conversions.renaming import Names, as_linear, as_vector, count_of, heads_of, rename_tensors
from hf_any3d.conversions.tensor_checks import account
from hf_any3d.modeling.patchalign3d import (
    PatchAlign3DConfig,
    PatchAlign3DForPreTraining,
    PatchAlign3DForZeroShotPointCloudSegmentation,
)
from hf_any3d.modeling.point_encoders.aligned_encoders.configuration_aligned_encoders import TEXT_TOWER
from hf_any3d.modeling.point_encoders.text_templates import PART_TEMPLATES

_RELEASED: dict[str, Any] = {"sampling_min_squared_norm": 1e-3}
_LOG_SCALE = "log_scale"
# Channels of the feature -> the model whose texts share its space, and where transformers opens it, if it is known.
_TOWERS = {
    1280: ("OpenCLIP ViT-bigG-14 (laion2b_s39b_b160k)", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"),
    512: ("OpenCLIP ViT-B-16", None),
}
# Channels of DINOv2's base model, which the first stage imitates
_IMAGE_FEATURES = 768
_PROCESSOR: dict[str, Any] = {"num_points": 2048}
# Point-BERT's encoder, with a layer between pooled patch and token.
NAMES: Names = STUDENT
PROJECTION_NAMES: Names = {r"proj\.": "projection."}
_CONVOLUTIONS = tuple(f"patch_encoder.{name}.weight" for name in ("lift", "widen", "join", "out"))


def convert_patchalign3d_encoder(
    original: Mapping[str, torch.Tensor], projection: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors of a `PatchAlign3DModel`, and the fields of `PatchAlign3DConfig` that they imply."""
    # Encoder, projection and temperature are state dicts of their own in one file.
    state = rename_tensors(original, NAMES) | rename_tensors(projection, PROJECTION_NAMES)
    for name, tensor in state.items():
        if name in _CONVOLUTIONS:
            state[name] = as_linear(tensor)
        # Stored with two axes of length 1 in front
        elif name.startswith("class_token."):
            state[name] = as_vector(tensor)
    hidden = state["class_token.token"].shape[0]
    return state, {
        "in_channels": state["patch_encoder.lift.weight"].shape[1],
        "patch_widths": [state[f"patch_encoder.{name}.weight"].shape[0] for name in ("lift", "widen", "join")],
        "patch_pooled_width": state["patch_encoder.out.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": state["blocks.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count_of(state, r"blocks\.layers\.(\d+)\."),
        "num_attention_heads": heads_of(hidden),
        "projection_dim": state["projection.weight"].shape[0],
    }


def convert_patchalign3d(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
) -> dict[str, Any]:
    """Convert `patchalign3d.pt`, or a `last.pt` of either training stage.

    A file with a temperature is of the second stage and becomes a model that finds parts by name; without, it is of
    the first and becomes one that predicts features of an image encoder.

    Args:
        checkpoint: The authors' file.
        output: Directory to create.
        num_groups: Patches per cloud; 128 by default, as published.
        group_size: Points per patch; 32 by default, as published.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`.
    """
    original = read_checkpoint(checkpoint, ("model",))
    projection = read_checkpoint(checkpoint, ("proj",))
    temperature = None
    if "temp" in read_entries(checkpoint):
        temperature = read_checkpoint(checkpoint, ("temp",))
    given = {"num_groups": num_groups, "group_size": group_size}
    with errors_about(checkpoint):
        state, sizes = convert_patchalign3d_encoder(original, projection)
        sizes |= {name: value for name, value in given.items() if value is not None}
        features = sizes["projection_dim"]
        model_class: type[PreTrainedModel]
        # Only the second stage compares patches with texts, and has a temperature.
        if temperature is None:
            model_class = PatchAlign3DForPreTraining
            logit_scale = None
            if features != _IMAGE_FEATURES:
                raise ValueError(
                    f"it has no entry 'temp', so it is of the first stage, but its features have {features} channels; "
                    f"expected {_IMAGE_FEATURES}, those of DINOv2"
                )
            settings: dict[str, Any] = {"aligned_with": "DINOv2 (facebook/dinov2-base, features of patches)"}
        else:
            model_class = PatchAlign3DForZeroShotPointCloudSegmentation
            # Readers of the program ignore what does not fit; here a wrong entry is an error.
            account(checkpoint, temperature, {_LOG_SCALE: torch.empty(())})
            logit_scale = temperature[_LOG_SCALE]
            # Of an unknown width the texts are unknown too; the encoder can be used without them.
            name, tower = _TOWERS.get(features, (None, None))
            parts = None
            if tower is not None:
                parts = {TEXT_TOWER: {"name_or_path": tower}}
            settings = {"aligned_with": name, "parts": parts}
        config = PatchAlign3DConfig(**sizes, **settings, **_RELEASED)
    return save_aligned_encoder(
        checkpoint,
        output,
        model_class,
        config,
        state,
        logit_scale=logit_scale,
        templates=PART_TEMPLATES,
        processor=_PROCESSOR,
        is_aligned=temperature is not None,
        sections={
            "What it computes": "The released program: y and z of clouds are exchanged in the model "
            "(`exchange_axes=True`), which takes clouds with y up in the unit sphere; points within 0.0316 of the "
            "origin are never sampled as centers of patches (`sampling_min_squared_norm=1e-3`), except for the first "
            "point. Scores of parts are cosines divided by 0.07; the scale that training learned is kept for further "
            "training and not part of them.",
            "License": "The authors publish their program under the MIT license; the license of these weights is on "
            "the card of their repository. The text tower has its own.",
        },
    )

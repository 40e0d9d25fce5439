"""Write converted encoders that are aligned with texts: model, processor and card.

Used by OpenShape, Uni3D and PatchAlign3D.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_any3d.conversions.checkpoints import errors_about
from hf_any3d.conversions.saving import save_converted
from hf_any3d.conversions.tensor_checks import check_finite
from hf_any3d.modeling.point_encoders.aligned_encoders.configuration_aligned_encoders import AlignedEncoderConfig
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.utils.markdown import code, inline

LOGIT_SCALE = "logit_scale"
# Of training and evaluation of OpenShape and Uni3D; clouds without colors are gray.
_PROCESSOR: dict[str, Any] = {"num_points": 10_000, "features": ("xyz", "rgb"), "default_rgb": (0.4, 0.4, 0.4)}
# The 64 texts that ULIP published, with which these two were evaluated.
TEMPLATES = (
    "a point cloud model of {}.",
    "There is a {} in the scene.",
    "There is the {} in the scene.",
    "a photo of a {} in the scene.",
    "a photo of the {} in the scene.",
    "a photo of one {} in the scene.",
    "itap of a {}.",
    "itap of my {}.",
    "itap of the {}.",
    "a photo of a {}.",
    "a photo of my {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of many {}.",
    "a good photo of a {}.",
    "a good photo of the {}.",
    "a bad photo of a {}.",
    "a bad photo of the {}.",
    "a photo of a nice {}.",
    "a photo of the nice {}.",
    "a photo of a cool {}.",
    "a photo of the cool {}.",
    "a photo of a weird {}.",
    "a photo of the weird {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a photo of a clean {}.",
    "a photo of the clean {}.",
    "a photo of a dirty {}.",
    "a photo of the dirty {}.",
    "a bright photo of a {}.",
    "a bright photo of the {}.",
    "a dark photo of a {}.",
    "a dark photo of the {}.",
    "a photo of a hard to see {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of a {}.",
    "a low resolution photo of the {}.",
    "a cropped photo of a {}.",
    "a cropped photo of the {}.",
    "a close-up photo of a {}.",
    "a close-up photo of the {}.",
    "a jpeg corrupted photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a blurry photo of a {}.",
    "a blurry photo of the {}.",
    "a pixelated photo of a {}.",
    "a pixelated photo of the {}.",
    "a black and white photo of the {}.",
    "a black and white photo of a {}",
    "a plastic {}.",
    "the plastic {}.",
    "a toy {}.",
    "the toy {}.",
    "a plushie {}.",
    "the plushie {}.",
    "a cartoon {}.",
    "the cartoon {}.",
    "an embroidered {}.",
    "the embroidered {}.",
    "a painting of the {}.",
    "a painting of a {}.",
)


def save_aligned_encoder(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    model_class: type[PreTrainedModel],
    config: AlignedEncoderConfig,
    state: Mapping[str, torch.Tensor],
    *,
    logit_scale: torch.Tensor | None = None,
    templates: Sequence[str] = TEMPLATES,
    processor: Mapping[str, Any] = _PROCESSOR,
    axes: str = "xyz",
    up_axis: str = "y",
    is_aligned: bool = True,
    sections: Mapping[str, str],
) -> dict[str, Any]:
    """Write a directory that opens with `AutoModel` and the auto class of a model around the encoder.

    `state` has the tensors of the encoder, `logit_scale` the logarithm of the scale of cosines; without one the
    initial value is stored, which changes no ranking. A model that is not `is_aligned` compares nothing with texts.
    """
    # Texts of the published evaluation, so that its numbers can be had again.
    config.hypothesis_templates = list(templates)
    config.expected_pose = "upright"
    # The model around the encoder is stored, as it has the scale too; the encoder alone opens from the same directory.
    tensors = {f"{model_class.base_model_prefix}.{name}": tensor for name, tensor in state.items()}
    aligned_with = inline(config.aligned_with or "a model that its file does not name")
    space = f"Its features are those of {aligned_with}."
    if is_aligned:
        scale = logit_scale
        if scale is None:
            scale = torch.tensor(1 / config.temperature).log()
        with errors_about(checkpoint):
            check_finite({LOGIT_SCALE: scale})
            # Files hold it with or without an axis of length 1.
            tensors[f"alignment.{LOGIT_SCALE}"] = scale.reshape(())
        space = (
            f"Its text tower is that of {aligned_with}, which cannot be opened here: give features of texts that were "
            "computed with it as `text_embeds`."
        )
        tower = config.part("text_tower").name_or_path
        if tower:
            space = f"Texts are encoded by {code(tower)}, which is loaded when first needed."
    channels = "coordinates" if config.in_channels == 3 else "coordinates, then colors from 0 to 1"
    return save_converted(
        output,
        model_class,
        config,
        tensors,
        PointCloudProcessor(**processor, axes=axes, up_axis=up_axis),
        {"Encoder": Path(checkpoint)},
        f"{config.in_channels} channels per point: {channels}. {space}",
        sections,
    )

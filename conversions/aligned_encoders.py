"""Write converted encoders that are aligned with texts: model, processor and card.

Used by OpenShape, Uni3D and PatchAlign3D.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from hf_any3d.conversions.checkpoints import account, errors_about
from hf_any3d.conversions.model_cards import write_converted_card
from hf_any3d.conversions.saving import new_directory, save_weights, stored_bytes
from hf_any3d.modeling.point_encoders.aligned_encoders import AlignedEncoderConfig
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
    remarks: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write a directory that opens with `AutoModel` and the auto class of a model around the encoder.

    Args:
        checkpoint: The authors' file, for messages and the card.
        output: Directory to create.
        model_class: Class of the model around the encoder, such as one that compares clouds with texts.
        config: Its config.
        state: Tensors of its encoder.
        logit_scale: Logarithm of the scale of cosines; None for the initial value, which changes no ranking.
        templates: Texts with `{}` for a label.
        processor: Settings of the processor.
        axes: Order of coordinates, as of `PointCloudProcessor`.
        up_axis: The up axis after that.
        remarks: Sections of the card, title to text.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`.

    Raises:
        ValueError: Tensors are missing, left over, or of another shape.
        FileExistsError: `output` exists and is not empty.
    """
    config.hypothesis_templates = list(templates)
    # Names and shapes are all that is needed: tensors go from one file to the other without a model in memory.
    with torch.device("meta"), no_init_weights():
        model = model_class(config)
    prefix = f"{model.base_model_prefix}."
    tensors = {prefix + name: tensor for name, tensor in state.items()}
    if logit_scale is None:
        logit_scale = torch.tensor(1 / config.temperature).log()
    if logit_scale.numel() != 1:
        raise ValueError(f"{checkpoint}: {LOGIT_SCALE} has shape {tuple(logit_scale.shape)}; expected one number")
    # Models of the first training stage compare nothing with texts, and have no scale.
    if hasattr(model, "alignment"):
        tensors[f"alignment.{LOGIT_SCALE}"] = logit_scale.reshape(())
    account(checkpoint, tensors, model.state_dict())
    with new_directory(output) as directory, errors_about(checkpoint):
        save_weights(directory, model_class.__name__, config, tensors, torch.float32)
        made = PointCloudProcessor(**processor, axes=axes, up_axis=up_axis)
        made.save_pretrained(directory)
        channels = "coordinates" if config.in_channels == 3 else "coordinates, then colors from 0 to 1"
        write_converted_card(
            directory,
            Path(output).name,
            model,
            f"{config.in_channels} channels per point: {channels}. {_space(model)}",
            {"Encoder": Path(checkpoint)},
            remarks or {},
            made.num_points,
        )
    return {
        "output": os.fspath(output),
        "model": model_class.__name__,
        "parameters": model.num_parameters(),
        "bytes": stored_bytes(output),
    }


def _space(model: PreTrainedModel) -> str:
    """Describe the space of an aligned encoder's features."""
    config = model.config
    aligned_with = (
        "a model that its file does not name" if config.aligned_with is None else inline(config.aligned_with)
    )
    if not hasattr(model, "alignment"):
        return f"Its features are those of {aligned_with}."
    if tower := config.part("text_tower").name_or_path:
        return f"Texts are encoded by {code(tower)}, which is loaded when first needed."
    return (
        f"Its text tower is that of {aligned_with}, which cannot be opened here: give features of texts that were "
        "computed with it as `text_embeds`."
    )

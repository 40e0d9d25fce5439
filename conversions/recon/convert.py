"""Convert a checkpoint of ReCon's programs into a directory with model, processor and card."""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_any3d.conversions.act.convert import Choices, student_settings, task_config
from hf_any3d.conversions.act.datasets import UNLABELED
from hf_any3d.conversions.act.names import DEEP_HEAD, LINEAR_HEAD, SEGMENTER, reshape_tensors
from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint
from hf_any3d.conversions.common_layers import BLOCKS, STUDENT
from hf_any3d.conversions.point_starts import start_of
from hf_any3d.conversions.renaming import Names, count_of, is_left_out, matches_some, rename_tensors, under
from hf_any3d.conversions.saving import save_converted
from hf_any3d.modeling.act import ActConfig, ActModel
from hf_any3d.modeling.point_encoders.aligned_encoders.configuration_aligned_encoders import TEXT_TOWER
from hf_any3d.modeling.recon import (
    ReconConfig,
    ReconForPartSegmentation,
    ReconForPointCloudClassification,
    ReconForPreTraining,
    ReconForZeroShotPointCloudClassification,
    ReconModel,
)
from hf_any3d.processing.point_clouds import PointCloudProcessor

# By the kinds of `hf_any3d.conversions.point_starts`.
_CLASSES = {
    "pretrain": ReconForPreTraining,
    "cls": ReconForPointCloudClassification,
    "partseg": ReconForPartSegmentation,
    "zero_shot": ReconForZeroShotPointCloudClassification,
    "transformer": ReconModel,
}
_CONTRAST = r"(?P<layer>\d+)\.(?P<part>norm1|norm2|mlp)_contrast\."
_QUERIES: Names = {
    r"img_token$": "image_token.token",
    r"img_pos$": "image_token.position",
    r"text_token$": "text_token.token",
    r"text_pos$": "text_token.position",
    r"blocks\.blocks\.(?P<layer>\d+)\.attn_contrast\.": "blocks.layers.{layer}.attention_contrast.",
    rf"blocks\.blocks\.{_CONTRAST}": "blocks.layers.{layer}.{part}_contrast.",
}
_PROJECTIONS: Names = {r"img_proj\.": "image_projection.", r"text_proj\.": "text_projection."}
_DECODER: Names = {
    r"mask_token$": "mask_token",
    r"decoder_pos_embed\.": "decoder_position_embed.",
    **under("MAE_decoder.blocks.", "decoder.layers.", BLOCKS),
    r"MAE_decoder\.norm\.": "decoder_norm.",
    r"increase_dim\.0\.": "prediction_head.",
    r"cls_proj\.": "contrast_head.",
}
# A file without it lacks a tensor.
_CLASS_TOKEN = {"use_class_token": True}
# The model whose texts clouds are compared with, by the width of its features.
_CLIP, _CLIP_WIDTH = "openai/clip-vit-base-patch32", 512
_LEFT_OUT = {
    "its frozen encoder of images (img_encoder)": r"img_encoder\.",
    "its frozen encoder of texts (text_encoder)": r"text_encoder\.",
    "the queries of image and text (img_token, img_pos, text_token, text_pos)": r"MAE_encoder\.(img|text)_",
    "the layers of the queries in its blocks (…_contrast)": r"MAE_encoder\.blocks\..*_contrast\.",
    "the decoder (mask_token, decoder_pos_embed, MAE_decoder, increase_dim)": r"mask_token|decoder|MAE_dec|increase",
    "the projections to features (img_proj, text_proj, cls_proj)": r"(img|text|cls)_proj\.",
}
_QUIRK = (
    "The released program: points within 0.0316 of the origin are never sampled as centers of patches "
    "(`sampling_min_squared_norm=1e-3`), except for the first point."
)
_LICENSE = "The authors publish their program under the MIT license, and say nothing of the weights."


def convert_recon(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    kind: str | None = None,
    plain_blocks: bool = False,
    num_groups: int | None = None,
    group_size: int | None = None,
    num_attention_heads: int | None = None,
    dataset: str | None = None,
    num_points: int | None = None,
    text_weight: float | None = None,
) -> dict[str, Any]:
    """Convert a checkpoint of ReCon: of pretraining, a classifier, part segmentation, zero-shot, or none of these.

    Args:
        checkpoint: The authors' file.
        output: Directory to create.
        kind: "pretrain", "cls", "partseg", "zero_shot" or "transformer"; None for what its tensors show.
        plain_blocks: Open a pretraining file in the blocks of ACT and Point-MAE, without image and text queries, as
            the programs of PointGST, PPT and others do "on ReCon". It is another network than ReCon: residual
            connections add tokens before the norm. Their published figures start from it.
        num_groups: Patches per cloud; 64 by default, for a classifier that of its dataset.
        group_size: Points per patch; by default as published.
        num_attention_heads: By default one for 64 channels.
        dataset: Of classifier and part segmentation: the dataset of the training, as for `convert_act`.
        num_points: Points per cloud that the processor returns.
        text_weight: Of zero-shot and pretraining: factor of the text query, by default that of ModelNet40, 0.25.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`, `left_out`.

    Raises:
        ValueError: The checkpoint has tensors of no known part, or lacks some; names them.
    """
    original = read_checkpoint(checkpoint, ("base_model", "model_state_dict"))
    start = start_of(original)
    if start is None:
        raise ValueError(f"{os.fspath(checkpoint)}: taken for none that is known; expected one of ReCon")
    if start.system != "ReCon" or start.kind not in _CLASSES or kind not in (None, start.kind):
        found = f"{start.described} of {start.system}"
        raise ValueError(f"{os.fspath(checkpoint)}: taken for {found}; expected one of ReCon")
    kind = start.kind
    model_class: type[PreTrainedModel] = _CLASSES[kind]
    choices = Choices(num_groups, group_size, num_attention_heads, dataset, num_points)
    with errors_about(checkpoint):
        if plain_blocks and kind != "pretrain":
            raise ValueError(f"plain_blocks=True with {start.described}; expected a pretraining file")
        if dataset is not None and kind not in ("cls", "partseg"):
            raise ValueError(f"dataset={dataset!r} with {start.described}, which has no labels; expected None")
        if text_weight is not None and (plain_blocks or kind not in ("pretrain", "zero_shot")):
            described = "plain_blocks=True" if plain_blocks else start.described
            raise ValueError(f"text_weight={text_weight} with {described}, which reads no texts; expected None")
    with _taken_for(checkpoint, start.described), errors_about(checkpoint):
        names = _names(kind, plain_blocks, original)
        state = reshape_tensors(kind, rename_tensors(original, names))
        processor: dict[str, Any] = dict(UNLABELED)
        if kind in ("cls", "partseg"):
            config, trained_on = task_config(checkpoint, kind, state, choices, _CLASS_TOKEN, ReconConfig)
            if trained_on is not None:
                processor = dict(trained_on.processor)
        else:
            given = {"num_groups": num_groups, "group_size": group_size, "text_weight": text_weight}
            sizes: dict[str, Any] = student_settings(state, choices) | _CLASS_TOKEN
            if not plain_blocks:
                sizes |= _sizes(kind, state)
            sizes |= {name: value for name, value in given.items() if value is not None}
            config = ActConfig(**sizes) if plain_blocks else ReconConfig(**sizes)
        if num_points is not None:
            processor["num_points"] = num_points
        if plain_blocks:
            model_class = ActModel
        state = _placed(state, model_class)
        left_out = _left_out_parts(original, names)
        sections = {"What it computes": _QUIRK, "License": _LICENSE}
        if plain_blocks:
            sections["What it computes"] += (
                " **This is not ReCon's network.** Its patches run in the blocks of ACT and Point-MAE, whose residual "
                "connections add tokens before the norm, as the published programs of adapters open ReCon's file."
            )
        if left_out:
            sections["Left out"] = f"Tensors of the file that are not here: {', '.join(left_out)}."
        facts = save_converted(
            output,
            model_class,
            config,
            state,
            PointCloudProcessor(**processor),
            {"Network": Path(checkpoint)},
            "single objects.",
            sections,
        )
    return facts | {"left_out": left_out}


@contextmanager
def _taken_for(checkpoint: str | os.PathLike, described: str) -> Iterator[None]:
    """Say in errors about the tensors of a file what it is taken for."""
    try:
        yield
    except ValueError as error:
        text = str(error).removeprefix(f"{os.fspath(checkpoint)}: ")
        raise ValueError(f"{os.fspath(checkpoint)}: taken for {described} of ReCon: {text}") from error


def _placed(state: Mapping[str, torch.Tensor], model_class: type[PreTrainedModel]) -> dict[str, torch.Tensor]:
    """Return tensors with those of the transformer, which are below `act.`, where a model has them."""
    # Base models have no prefix of their own.
    prefix = "" if model_class in (ActModel, ReconModel) else "recon."
    placed = {}
    for name, tensor in state.items():
        if name.startswith("act."):
            name = prefix + name.removeprefix("act.")
        placed[name] = tensor
    return placed


def _left_out_parts(original: Collection[str], names: Names) -> list[str]:
    """Return the parts of a file some of whose tensors a table leaves out."""
    left_out = [name for name in original if is_left_out(name, names)]
    return [part for part, pattern in _LEFT_OUT.items() if matches_some(pattern, left_out)]


_ENCODER = "MAE_encoder."
# Frozen encoders of images and texts, which the program saves too.
_TOWERS: Names = {r"img_encoder\.": None, r"text_encoder\.": None}


def _names(kind: str, plain_blocks: bool, original: Collection[str]) -> Names:
    if plain_blocks:
        dropped: Names = {rf"(MAE_encoder\.)?{pattern}": None for pattern in _QUERIES}
        dropped = {**dropped, **dict.fromkeys((*_DECODER, *_PROJECTIONS, *_TOWERS))}
        return {**dropped, **under(_ENCODER, "act.", STUDENT)}
    encoder: Names = {**_QUERIES, **STUDENT}
    if kind == "pretrain":
        return {**under(_ENCODER, "act.", encoder), **_DECODER, **_PROJECTIONS, **_TOWERS}
    student = under("", "act.", encoder)
    if kind == "cls":
        # A linear head has layer 0 alone.
        deep = any(name.startswith("cls_head_finetune.1.") for name in original)
        return {**student, **(DEEP_HEAD if deep else LINEAR_HEAD)}
    if kind == "partseg":
        return {**student, **SEGMENTER}
    if kind == "zero_shot":
        return {**student, **_PROJECTIONS}
    return student


def _sizes(kind: str, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the settings that only some kinds of checkpoint have."""
    if kind == "transformer":
        # What the program gives a support vector machine.
        return {"pooling": ("queries", "max+mean")}
    # One that is missing is named when tensors are compared.
    sizes: dict[str, Any] = {}
    for name in ("image", "text"):
        weight = state.get(f"{name}_projection.weight")
        if weight is not None:
            sizes[f"{name}_width"] = len(weight)
    if kind == "zero_shot":
        # Of one space
        width = max(sizes.values())
        sizes = {"image_width": width, "text_width": width}
    # Also a pretraining file, if its frozen encoder of images was that of CLIP
    if sizes.get("image_width") == sizes.get("text_width") == _CLIP_WIDTH:
        sizes |= {"aligned_with": "CLIP ViT-B/32", "parts": {TEXT_TOWER: {"name_or_path": _CLIP}}}
    if kind == "pretrain":
        # All patches, as released
        sizes["encode_visible_only"] = False
        sizes["group_size"] = state["prediction_head.weight"].shape[0] // 3
        sizes["decoder_num_hidden_layers"] = count_of(state, r"decoder\.layers\.(\d+)\.")
        if "contrast_head.0.weight" in state:
            sizes["contrast_widths"] = [state[f"contrast_head.{layer}.weight"].shape[0] for layer in (0, 3)]
    return sizes

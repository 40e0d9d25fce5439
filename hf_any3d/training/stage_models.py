"""The model that a stage of MiniGPT-3D's training starts from."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoTokenizer, BitsAndBytesConfig

from hf_any3d.chat.processing import RELEASED_POINTS, MiniGPT3DProcessor
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig, MiniGPT3DForConditionalGeneration, build_from_parts, set_stage
from hf_any3d.modeling.minigpt3d.configuration_minigpt3d import PARTS
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training.stage_settings import StageArguments

PUBLISHED_LORA: Mapping[str, Mapping[str, Any]] = {
    "text_lora": {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05},
    "qformer_lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["query", "key", "value"]},
}
"""LoRA of models from parts, where nothing else is said."""

logger = logging.getLogger(__name__)


def open_for_stage(
    arguments: StageArguments, num_points: int, sampling: str = "random"
) -> tuple[MiniGPT3DForConditionalGeneration, MiniGPT3DProcessor]:
    """Open the model of the stage before, or build one from parts, ready for the stage.

    Args:
        arguments: Say which.
        num_points: Points of a cloud, for a model from parts.
        sampling: How larger clouds are reduced to them, see `PointCloudProcessor`.

    Raises:
        ValueError: If the model was last in another stage than the one before.
    """
    if arguments.model_name_or_path is not None:
        model, processor = _opened(arguments)
    else:
        model, processor = _built(arguments, num_points, sampling)
    for name, value in arguments.processor_config.items():
        setattr(processor, name, value)
    if arguments.store_parts:
        model.store_parts()
    set_stage(model, arguments.stage)
    return model, processor


def _opened(arguments: StageArguments) -> tuple[MiniGPT3DForConditionalGeneration, MiniGPT3DProcessor]:
    name, revision = arguments.model_name_or_path, arguments.model_revision
    hub = {} if revision is None else {"revision": revision}
    config = MiniGPT3DConfig.from_pretrained(name, **hub)
    check_stage_order(config.stage, arguments.stage, name)
    model = MiniGPT3DForConditionalGeneration.from_pretrained(
        name, config=config, dtype=torch.float32, **hub, **_quantized(arguments)
    )
    return model, MiniGPT3DProcessor.from_pretrained(name, **hub)


def _quantized(arguments: StageArguments) -> dict[str, BitsAndBytesConfig]:
    settings = arguments.quantization_config
    return {"quantization_config": BitsAndBytesConfig(**settings)} if settings else {}


def check_checkpoint(checkpoint: str | None, stage: int) -> None:
    """Refuse to go on from a checkpoint of another stage.

    Raises:
        ValueError: It is of another stage.
    """
    if checkpoint is None:
        return
    before = MiniGPT3DConfig.from_pretrained(checkpoint).stage
    if before != stage:
        raise ValueError(
            f"{checkpoint} is of stage {before}; expected one of stage {stage}, another --output_dir, or "
            "--resume_from_checkpoint false"
        )


def halve_frozen(model: MiniGPT3DForConditionalGeneration, dtype: torch.dtype) -> None:
    """Keep the matrices of the language model that don't train in half precision, for training with autocast.

    Raises:
        ValueError: If the language model is stored with the model, where halves would take the place of its weights.
    """
    if "language_model" not in (model.config.parts or {}):
        raise ValueError("--frozen_in_half with a language model that is stored with the model; expected a named one")
    for parameter in model.language_model.parameters():
        if parameter.is_floating_point() and parameter.ndim > 1 and not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def check_stage_order(before: int | None, stage: int, name: str) -> None:
    """Refuse a model that is not of the stage before; warn where its stage is not recorded.

    Args:
        before: The stage that the model was last in, `MiniGPT3DConfig.stage`.
        stage: The stage that is to follow.
        name: Of the model, for messages.
    """
    if before is None and stage > 1:
        logger.warning(
            "%s does not say which stage it was trained in; stage %d follows stage %d", name, stage, stage - 1
        )
    elif (before or 0) != stage - 1:
        expected = f"a model of stage {stage - 1}" if stage > 1 else "one that no stage has trained, or parts"
        raise ValueError(f"--stage {stage} of {name}, a model of stage {before}; expected {expected}")


def _built(
    arguments: StageArguments, num_points: int, sampling: str
) -> tuple[MiniGPT3DForConditionalGeneration, MiniGPT3DProcessor]:
    revisions = {part: getattr(arguments, f"{part}_revision") for part in PARTS}
    tokenizer = AutoTokenizer.from_pretrained(arguments.language_model, revision=revisions["language_model"] or "main")
    # Behind all tokens; for Phi-2 the released one.
    config = {**PUBLISHED_LORA, "point_token_id": len(tokenizer), **arguments.model_config}
    qformer = None if arguments.qformer.lower() == "none" else arguments.qformer
    model = build_from_parts(
        arguments.point_encoder,
        qformer,
        arguments.language_model,
        torch.float32,
        revisions=revisions,
        **_quantized(arguments),
        **config,
    )
    points = PointCloudProcessor(**RELEASED_POINTS | {"num_points": num_points, "sampling": sampling})
    return model, MiniGPT3DProcessor.from_config(model.config, tokenizer, points)


def warn_of_local_parts(parts: Mapping[str, Mapping[str, str | None]] | None) -> None:
    """Say which parts of a model that is to be shared only this machine can find."""
    for part, recorded in (parts or {}).items():
        if os.path.isdir(recorded["name_or_path"]):
            logger.warning(
                "the %s is named as the directory %s, which others do not have; name a repository, or --store_parts",
                part,
                recorded["name_or_path"],
            )


def trained_groups(model: MiniGPT3DForConditionalGeneration) -> dict[str, int]:
    """How many parameters of each part train."""
    groups: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            first, second, *_ = name.split(".")
            part = f"{first} {second}" if first == "bridge" else first
            kind = (
                " LoRA" if ".lora_" in name else " norms" if first == "language_model" or second == "qformer" else ""
            )
            groups[part.replace("_", " ") + kind] += parameter.numel()
    return dict(groups)

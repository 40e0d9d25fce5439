"""The model that a stage of MiniGPT-3D's training starts from."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoTokenizer

from hf_any3d.chat.processing import RELEASED_POINTS, MiniGPT3DProcessor
from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration, build_from_parts, set_stage
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training.stage_settings import PARTS, StageArguments

PUBLISHED_LORA: Mapping[str, Mapping[str, Any]] = {
    "text_lora": {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05},
    "qformer_lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["query", "key", "value"]},
}
"""LoRA of models from parts, where nothing else is said."""

logger = logging.getLogger(__name__)


def open_for_stage(
    arguments: StageArguments, num_points: int
) -> tuple[MiniGPT3DForConditionalGeneration, MiniGPT3DProcessor]:
    """Open the model of the stage before, or build one from parts, ready for the stage.

    Args:
        arguments: Say which.
        num_points: Points of a cloud, for a model from parts.

    Raises:
        ValueError: If the model was last in another stage than the one before.
    """
    if arguments.model_name_or_path is not None:
        model, processor = _opened(arguments.model_name_or_path, arguments.model_revision, arguments.stage)
    else:
        model, processor = _built(arguments, num_points)
    set_stage(model, arguments.stage)
    return model, processor


def _opened(
    name: str, revision: str | None, stage: int
) -> tuple[MiniGPT3DForConditionalGeneration, MiniGPT3DProcessor]:
    hub = {} if revision is None else {"revision": revision}
    config = MiniGPT3DForConditionalGeneration.config_class.from_pretrained(name, **hub)
    check_stage_order(config.stage, stage, name)
    model = MiniGPT3DForConditionalGeneration.from_pretrained(name, config=config, dtype=torch.float32, **hub)
    return model, MiniGPT3DProcessor.from_pretrained(name, **hub)


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


def _built(arguments: StageArguments, num_points: int) -> tuple[MiniGPT3DForConditionalGeneration, MiniGPT3DProcessor]:
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
        **config,
    )
    points = PointCloudProcessor(**RELEASED_POINTS | {"num_points": num_points})
    return model, MiniGPT3DProcessor.from_config(model.config, tokenizer, points)


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

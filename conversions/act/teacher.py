"""The frozen teacher in an ACT checkpoint: named and compared, or kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from hf_any3d.conversions.act.sizes import teacher_sizes
from hf_any3d.conversions.saving import check_frozen
from hf_any3d.modeling.act import ActAutoencoderConfig
from hf_any3d.modeling.encoders import encoder_settings, load_encoder

_HEAD_WIDTH = 64
# What an encoder has in front of its layers and behind them, none of which reads tokens of points.
_UNREAD = ("embeddings.", "pooler.")


@dataclass(frozen=True)
class Teacher:
    """One kind of teacher that the released programs know.

    Args:
        described: What people call it.
        tower: The tower of a checkpoint with several.
        config: What its config must say, and, where it is kept, says.
        layer_norm_eps: Of all its norms in the released programs.
        no_embeddings: Settings that make the embeddings, which no checkpoint holds, as small as can be.
        released: What `ActAutoencoderConfig` sets for it, its accidents included.
    """

    described: str
    tower: str | None
    config: Mapping[str, Any]
    layer_norm_eps: float
    no_embeddings: Mapping[str, Any]
    released: Mapping[str, Any]


_NO_IMAGE = {"image_size": 1, "patch_size": 1, "num_channels": 1}
TEACHERS = {
    "vit": Teacher(
        described="a ViT or DeiT",
        tower=None,
        config={"hidden_act": "gelu"},
        layer_norm_eps=1e-6,
        no_embeddings=_NO_IMAGE,
        released={},
    ),
    "clip_vision_model": Teacher(
        described="a CLIP image tower",
        tower="vision",
        config={"hidden_act": "quick_gelu"},
        layer_norm_eps=1e-5,
        no_embeddings=_NO_IMAGE,
        released={},
    ),
    "bert": Teacher(
        described="a BERT",
        tower=None,
        config={"hidden_act": "gelu"},
        layer_norm_eps=1e-12,
        no_embeddings={"vocab_size": 1, "max_position_embeddings": 1, "type_vocab_size": 1},
        released={"position_injection": "input", "use_input_norm": False, "teacher_dropout": True},
    ),
}


def released_settings(kind: str | None, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """What the released programs do with a teacher and a sound model would not, as `ActAutoencoderConfig` names it.

    Args:
        kind: `model_type` of the teacher, or None.
        sizes: What `autoencoder_sizes` gave.
    """
    settings = {"sampling_min_squared_norm": 1e-3, "noise_in_eval": True}
    if kind is None:
        return settings
    settings |= TEACHERS[kind].released
    if kind == "clip_vision_model" and sizes["prompt_depth"] == "deep":
        settings["attention_axis"] = "batch"
    if not sizes["num_prompts"]:
        settings["detach_teacher"] = True
    return settings


def kept_teacher(kind: str, frozen: Mapping[str, torch.Tensor]) -> PreTrainedConfig:
    """Config of a teacher that stays in the converted repository.

    Args:
        kind: Its `model_type`.
        frozen: Its tensors.

    Raises:
        ValueError: If its width cannot be told from its tensors, or is no multiple of 64, so that the number of heads
            is unknown.
    """
    sizes = teacher_sizes(frozen)
    width = sizes["hidden_size"]
    if width % _HEAD_WIDTH:
        raise ValueError(
            f"its teacher has {width} channels, no multiple of {_HEAD_WIDTH}, so its number of attention heads is "
            "unknown; name the teacher by --teacher"
        )
    teacher = TEACHERS[kind]
    return AutoConfig.for_model(
        kind,
        **sizes,
        **teacher.config,
        **teacher.no_embeddings,
        num_attention_heads=width // _HEAD_WIDTH,
        layer_norm_eps=teacher.layer_norm_eps,
    )


def named_teacher(
    checkpoint: str | os.PathLike,
    kind: str,
    frozen: Mapping[str, torch.Tensor],
    name: str | os.PathLike,
    revision: str | None,
) -> tuple[dict[str, Any], PreTrainedModel]:
    """Open a public encoder, and make sure that it is the teacher in a checkpoint.

    Args:
        checkpoint: The file, for messages.
        kind: `model_type` of the teacher in it.
        frozen: Its tensors.
        name: Directory or hub name of the encoder; of its layers as many are taken as the checkpoint holds.
        revision: Branch, tag or commit on the hub.

    Returns:
        What a config records of the encoder, and the encoder.

    Raises:
        ValueError: If it is another one.
    """
    teacher = TEACHERS[kind]
    settings = encoder_settings(name, teacher.tower, revision, teacher_sizes(frozen)["num_hidden_layers"])
    config = settings["encoder_config"]
    wrong = [
        f"{key}={getattr(config, key, None)!r}, expected {value!r}"
        for key, value in teacher.config.items()
        if getattr(config, key, None) != value
    ]
    if wrong:
        raise ValueError(
            f"encoder {os.fspath(name)!r} ({config.model_type}) does not fit the checkpoint, whose teacher is "
            f"{teacher.described}: it has {'; '.join(wrong)}"
        )
    config.layer_norm_eps = teacher.layer_norm_eps
    encoder = load_encoder(ActAutoencoderConfig(**settings))
    expected = {key: value for key, value in encoder.state_dict().items() if not key.startswith(_UNREAD)}
    check_frozen(checkpoint, os.fspath(name), expected, frozen, "--teacher")
    return settings, encoder


def unread_tensors(names: Mapping[str, Any]) -> list[str]:
    """Those of an encoder's tensors that no checkpoint holds, as nothing reads them."""
    return [name for name in names if name.startswith(_UNREAD)]

"""Settings of MiniGPT-3D's parts that the shapes of their tensors imply; heads and numbers of patches have none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from hf_any3d.conversions.act.sizes import student_sizes
from hf_any3d.conversions.renaming import count_of, numbers_in, size_of

_State = Mapping[str, torch.Tensor]
_HEAD_WIDTH = 64


def point_encoder_sizes(state: _State) -> dict[str, Any]:
    """Return settings of `ActConfig`.

    Args:
        state: The result of `convert_point_encoder_state_dict`.

    Raises:
        ValueError: A tensor that a size is read from is missing, or the number of heads is unknown.
    """
    found = student_sizes({f"act.{name}": tensor for name, tensor in state.items()})
    patches = [size_of(state, f"patch_encoder.{layer}.weight") for layer in ("lift", "widen", "join")]
    return found | {
        "patch_widths": patches,
        "patch_pooled_width": size_of(state, "patch_encoder.out.weight"),
        "num_attention_heads": _heads("the point encoder", found["hidden_size"]),
    }


def qformer_sizes(state: _State) -> dict[str, Any]:
    """Return settings of `Blip2QFormerConfig`.

    Args:
        state: The result of `convert_blip2_state_dict`.

    Raises:
        ValueError: A tensor that a size is read from is missing, or the number of heads is unknown.
    """
    layer = "qformer.encoder.layer."
    width = size_of(state, "qformer.layernorm.weight")
    crossed = sorted(numbers_in(state, rf"{re.escape(layer)}(\d+)\.crossattention\."))
    depth = count_of(state, rf"{re.escape(layer)}(\d+)\.")
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": _heads("the Q-Former", width),
        "intermediate_size": size_of(state, f"{layer}0.intermediate_query.dense.weight"),
        "encoder_hidden_size": size_of(state, f"{layer}0.crossattention.attention.key.weight", 1),
        "cross_attention_frequency": crossed[1] if len(crossed) > 1 else depth,
    }


def bridge_sizes(state: _State) -> dict[str, Any]:
    """Return the settings of `MiniGPT3DConfig` for the trained parts that are there.

    Args:
        state: The results of `convert_minigpt3d_state_dict` for all files together.

    Raises:
        ValueError: A tensor that a size is read from is missing.
    """
    sizes: dict[str, Any] = {"projector_width": size_of(state, "bridge.projector.fc1.weight")}
    if layers := count_of(state, r"bridge\.point_mlp\.layers\.(\d+)\."):
        hidden = range(layers - 1)
        sizes["point_mlp_widths"] = [size_of(state, f"bridge.point_mlp.layers.{number}.weight") for number in hidden]
    if "bridge.experts.router.0.weight" in state:
        sizes["router_width"] = size_of(state, "bridge.experts.router.0.weight")
        sizes["num_query_experts"] = size_of(state, "bridge.experts.router.2.weight")
    return sizes


def lora_rank(state: _State, part: str) -> int | None:
    """Return the rank of the LoRA below a prefix; None if there is none."""
    ranks = (size_of(state, name) for name in state if name.startswith(part) and ".lora_A." in name)
    return next(ranks, None)


def _heads(part: str, width: int) -> int:
    if width % _HEAD_WIDTH:
        raise ValueError(
            f"{part} has {width} channels; expected a multiple of {_HEAD_WIDTH}, since its heads are that wide"
        )
    return width // _HEAD_WIDTH

"""Phi's tensors under the names of `NormedPhiForCausalLM`, from each of the three layouts that it was released in."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from hf_any3d.conversions.renaming import Names, rename_tensors
from hf_any3d.conversions.shapes import join_rows, size_of

_LAYER = r"(transformer\.h|model\.layers)\.(?P<layer>\d+)\."
_TO = "model.layers.{layer}."
# Microsoft's first layout (`Wqkv`), that of transformers 4.36 (`query_key_value`), and today's (`q_proj` and so on).
PHI: Names = {
    r"(transformer\.embd\.wte|model\.embed_tokens)\.": "model.embed_tokens.",
    _LAYER + r".*(rotary_emb|inner_attn|inner_cross_attn)\.": None,  # tables that are computed anew
    _LAYER + r"mixer\.Wqkv\.": _TO + "self_attn.stacked.",
    _LAYER + r"mixer\.out_proj\.": _TO + "self_attn.dense.",
    _LAYER + r"ln\.": _TO + "input_layernorm.",
    _LAYER: _TO,
    r"(lm_head\.ln|model\.final_layernorm)\.": "model.final_layernorm.",
    r"lm_head\.(linear\.)?": "lm_head.",
}
_THIRDS = ("q_proj", "k_proj", "v_proj")


def convert_phi_state_dict(original: Mapping[str, torch.Tensor], num_attention_heads: int) -> dict[str, torch.Tensor]:
    """Rename Phi's tensors, and bring queries, keys and values into one layer, head by head.

    The norms that the language model of MiniGPT-3D has and Phi has not are added, without effect on what they norm
    but that it is normed.

    Args:
        original: Of any of the three layouts.
        num_attention_heads: Of the model.

    Raises:
        ValueError: If a tensor belongs to no known part, two to the same, or one of queries, keys and values is
            missing or cannot be cut into heads.
    """
    state = rename_tensors(original, PHI)
    fused: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        part = layer.rpartition(".")[2]
        if part == "stacked":
            fused[f"{layer.removesuffix(part)}query_key_value.{kind}"] = _by_head(name, tensor, num_attention_heads)
        elif part == _THIRDS[0]:
            parts = [f"{layer.removesuffix(part)}{third}.{kind}" for third in _THIRDS]
            if missing := [third for third in parts if third not in state]:
                raise ValueError(f"the checkpoint lacks tensors: {', '.join(missing)}")
            stacked = join_rows(parts, [state[third] for third in parts])
            fused[f"{layer.removesuffix(part)}query_key_value.{kind}"] = _by_head(name, stacked, num_attention_heads)
        elif part not in _THIRDS:
            fused[name] = tensor
    return _with_norms(fused, num_attention_heads)


def _by_head(name: str, stacked: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows `(query | key | value, head, channel)` in the order `(head, query | key | value, channel)`."""
    if not stacked.ndim or len(stacked) % (3 * heads):
        raise ValueError(
            f"{name} has shape {tuple(stacked.shape)}; expected rows in a multiple of 3 times {heads} heads"
        )
    return stacked.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)


def _with_norms(state: dict[str, torch.Tensor], heads: int) -> dict[str, torch.Tensor]:
    complete = dict(state)
    for name in state:
        if match := re.fullmatch(r"(model\.layers\.\d+\.)input_layernorm\.weight", name):
            layer, width = match[1], size_of(state, name)
            added = {f"{layer}post_layernorm.weight": torch.ones(width)}
            for part in ("q", "k"):
                added |= {
                    f"{layer}self_attn.{part}_layernorm.weight": torch.ones(width // heads),
                    f"{layer}self_attn.{part}_layernorm.bias": torch.zeros(width // heads),
                }
            # Where a file has one of them it has to have all; those that it lacks are then told to be missing.
            if not added.keys() & state.keys():
                complete |= added
    return complete

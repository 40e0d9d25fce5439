"""Tensors of the original MiniGPT-3D files under our names, for every training stage and pretrained part."""

import re
from collections.abc import Mapping

import torch

from hf_any3d.conversions.common_layers import STUDENT
from hf_any3d.conversions.renaming import Names, as_linear, as_vector, rename_tensors, under
from hf_any3d.modeling.minigpt3d.lora import name_of_today

_LAYER = r"(transformer\.h|model\.layers)\.(?P<layer>\d+)\."
_TO = "model.layers.{layer}."
# Microsoft's first layout (`Wqkv`), that of transformers 4.36 (`query_key_value`), and today's (`q_proj` and so on).
PHI: Names = {
    r"(transformer\.embd\.wte|model\.embed_tokens)\.": "model.embed_tokens.",
    _LAYER + r".*(rotary_emb|inner_attn|inner_cross_attn)\.": None,  # tables that are computed
    _LAYER + r"mixer\.Wqkv\.": _TO + "self_attn.stacked.",
    _LAYER + r"mixer\.out_proj\.": _TO + "self_attn.dense.",
    _LAYER + r"ln\.": _TO + "input_layernorm.",
    _LAYER: _TO,
    r"(lm_head\.ln|model\.final_layernorm)\.": "model.final_layernorm.",
    r"lm_head\.(linear\.)?": "lm_head.",
}
_THIRDS = ("q_proj", "k_proj", "v_proj")


def convert_phi_state_dict(original: Mapping[str, torch.Tensor], num_attention_heads: int) -> dict[str, torch.Tensor]:
    """Rename Phi's tensors, fuse queries, keys and values head by head, and add the norms that Phi does not have.

    The added norms are those of MiniGPT-3D's language model, with weight 1 and bias 0.
    """
    state = rename_tensors(original, PHI)
    fused: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        part = layer.rpartition(".")[2]
        if part == "stacked":
            fused[f"{layer.removesuffix(part)}query_key_value.{kind}"] = _by_head(tensor, num_attention_heads)
        elif part == _THIRDS[0]:
            parts = [f"{layer.removesuffix(part)}{third}.{kind}" for third in _THIRDS]
            stacked = torch.cat([state[third] for third in parts])
            fused[f"{layer.removesuffix(part)}query_key_value.{kind}"] = _by_head(stacked, num_attention_heads)
        elif part not in _THIRDS:
            fused[name] = tensor
    for name in list(fused):
        if not re.fullmatch(r"model\.layers\.\d+\.input_layernorm\.weight", name):
            continue
        layer = name.removesuffix("input_layernorm.weight")
        width = fused[name].shape[0]
        norms = {f"{layer}post_layernorm.weight": torch.ones(width)}
        for part in ("q", "k"):
            norms[f"{layer}self_attn.{part}_layernorm.weight"] = torch.ones(width // num_attention_heads)
            norms[f"{layer}self_attn.{part}_layernorm.bias"] = torch.zeros(width // num_attention_heads)
        # A file with one of them must have all; missing ones are then reported.
        if not norms.keys() & fused.keys():
            fused |= norms
    return fused


def _by_head(stacked: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder rows from `(query | key | value, head, channel)` to `(head, query | key | value, channel)`."""
    # The layout of the released checkpoints, whose LoRA was trained on rows in this order.
    return stacked.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)


# The Q-Former of BLIP-2; only the path of the queries is used.
QFORMER: Names = {
    r"bert\.embeddings\.LayerNorm\.": "layernorm.",
    r"bert\.embeddings\.|bert\.encoder\.layer\.\d+\.(intermediate|output)\.|cls\.": None,
    r"bert\.encoder\.layer\.(?P<layer>\d+)\.attention\.self\.": "encoder.layer.{layer}.attention.attention.",
    r"bert\.encoder\.layer\.(?P<layer>\d+)\.crossattention\.self\.": "encoder.layer.{layer}.crossattention.attention.",
    r"bert\.encoder\.": "encoder.",
}
MINIGPT3D: Names = {
    **under("point_encoder.", "point_encoder.", STUDENT),
    r"point_2_Qformer_proj\.0\.": "bridge.point_mlp.layers.0.",
    r"point_2_Qformer_proj\.2\.": "bridge.point_mlp.layers.1.",
    r"point_2_Qformer_proj\.4\.": "bridge.point_mlp.layers.2.",
    r"point_2_Qformer_proj\.": "bridge.point_mlp.layers.0.",
    **under("Qformer.", "bridge.qformer.", QFORMER),
    r"query_expert_dict\.": "bridge.experts.queries.",
    r"query_router\.": "bridge.experts.router.",
    r"llama_proj\.": "bridge.projector.fc1.",
    r"llama_proj2\.": "bridge.projector.fc2.",
    r"llama_model\.base_model\.model\.": "language_model.",
    # Parts of the image model that training starts from.
    r"(visual_encoder|ln_vision)\.": None,
}
# The complete file of a BLIP-2 model of LAVIS, under the names of transformers' BLIP-2. Its vision encoder, language
# model and heads of its first stage are not used.
BLIP2: Names = {
    r"query_tokens$": "query_tokens",
    **under("Qformer.", "qformer.", QFORMER),
    r"(visual_encoder|ln_vision|(t5|opt|llm)_(proj|model)|vision_proj|text_proj|itm_head)\.|temp$": None,
}
# Alternative names for the same tensor, and the one that counts.
ALIASES = {"query_tokens": "query_expert_dict.0", "pc_encoder.": "point_encoder."}


def convert_minigpt3d_state_dict(original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring the tensors of a released file to the names and shapes of `MiniGPT3DForConditionalGeneration`.

    Returns:
        The tensors without duplicates and unused ones. A layer with a LoRA has the names that it has without one; see
        `hf_any3d.modeling.minigpt3d.names_in` for those that it has with one.
    """
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in original.items():
        for alias, counts in ALIASES.items():
            if name.startswith(alias):
                name = counts + name.removeprefix(alias)
        # The released programs save some modules twice, under the names of two owners.
        first = kept.setdefault(name, tensor)
        if first is not tensor and (first.dtype != tensor.dtype or not torch.equal(first, tensor)):
            raise ValueError(f"{name}: the file holds it twice, with different values")
    state = {name_of_today(name): tensor for name, tensor in rename_tensors(kept, MINIGPT3D).items()}
    for name, tensor in state.items():
        if ".class_token." in name:
            state[name] = as_vector(tensor)
        elif ".queries." in name:
            state[name] = tensor.squeeze(0)  # (queries, channels)
        elif ".patch_encoder." in name:
            state[name] = as_linear(tensor)
    return state

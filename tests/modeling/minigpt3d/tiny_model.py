"""MiniGPT-3D with few and small layers."""

from __future__ import annotations

import torch

from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig, MiniGPT3DForConditionalGeneration

PLACES, POINT_TOKEN = 3, 99
SIZES = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = {
    "normed_phi": {**SIZES, "intermediate_size": 32, "partial_rotary_factor": 0.5},
    "llama": {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1},
    "qwen2": {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1},
    "gpt2": {"vocab_size": 24, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "opt": {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 16},
}


def tiny_config(text: str = "normed_phi", **changes) -> MiniGPT3DConfig:
    settings = {
        "point_config": {
            "model_type": "act3d",
            "in_channels": 6,
            "num_groups": 8,
            "group_size": 4,
            "patch_pooled_width": 12,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        "qformer_config": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "encoder_hidden_size": 20,
        },
        "text_config": {"model_type": text, **TEXTS[text], "bos_token_id": 1, "eos_token_id": 1},
        "point_mlp_widths": (18,),
        "num_query_tokens": PLACES,
        "num_query_experts": 4,
        "router_width": 8,
        "projector_width": 24,
        "point_token_id": POINT_TOKEN,
        "text_lora": {"r": 4, "lora_alpha": 8},
        "qformer_lora": {"r": 2, "lora_alpha": 4, "target_modules": ["query", "key", "value"]},
    }
    return MiniGPT3DConfig(**(settings | changes))


def tiny_model(text: str = "normed_phi", *, seed: int = 0, **changes) -> MiniGPT3DForConditionalGeneration:
    torch.manual_seed(seed)
    return MiniGPT3DForConditionalGeneration(tiny_config(text, **changes)).eval()


def clouds(*counts: int, seed: int = 0) -> list[torch.Tensor]:
    """Clouds with the given numbers of points."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 6, generator=generator) for count in counts]

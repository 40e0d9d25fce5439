"""MiniGPT-3D models of several sizes with random weights, and inputs for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import Pipeline, PreTrainedTokenizerFast, pipeline

import hf_any3d  # noqa: F401  registers the models
from hf_any3d import MiniGPT3DProcessor, PointCloudProcessor
from hf_any3d.chat import RELEASED_POINTS
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig, MiniGPT3DForConditionalGeneration

QUESTION = "Caption this 3D model in detail."
LORA = {
    "text_lora": {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["query_key_value", "dense"]},
    "qformer_lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["query", "key", "value"]},
}


def _language_model(width: int, layers: int, heads: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width}
    return {"model_type": "normed_phi", "num_hidden_layers": layers, "num_attention_heads": heads, **sizes}


# Except in "tiny", which is for tests, point encoder, Q-Former, projector and vocabulary have the released sizes.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "point_config": {
            **{"model_type": "act3d", "in_channels": 6, "num_groups": 8, "group_size": 4, "patch_pooled_width": 16},
            **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        },
        "qformer_config": {
            **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
            **{"encoder_hidden_size": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        },
        "text_config": _language_model(20, 2, 2) | {"vocab_size": 300, "bos_token_id": 298, "eos_token_id": 298},
        "num_query_tokens": 4,
        "projector_width": 16,
        "point_token_id": 299,
    },
    "small": {"text_config": _language_model(640, 8, 8)},
    "medium": {"text_config": _language_model(1280, 16, 16)},
    "released": {"text_config": _language_model(2560, 32, 32)},
}
"""Fields of `MiniGPT3DConfig`."""


def build_model(preset: str) -> MiniGPT3DForConditionalGeneration:
    """Build a model with random weights and the released LoRA."""
    torch.manual_seed(0)
    return MiniGPT3DForConditionalGeneration(MiniGPT3DConfig(**PRESETS[preset], **LORA)).eval()


def build_pipeline(preset: str) -> Pipeline:
    """Build a pipeline of the model with a tokenizer for its vocabulary."""
    model = build_model(preset)
    text = model.config.text_config
    tokenizer = word_tokenizer(text.vocab_size, text.eos_token_id)
    points = PointCloudProcessor(**RELEASED_POINTS | {"num_points": 64 if preset == "tiny" else 8192})
    processor = MiniGPT3DProcessor.from_config(model.config, tokenizer, points)
    return pipeline("point-cloud-text-to-text", model=model, processor=processor, device="cpu")


def word_tokenizer(size: int, end: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one word or letter per id, so that any answer is tokenized back to the same ids."""
    letters = [chr(number) for number in range(128)]
    names = [*letters, *(f" w{number}" for number in range(len(letters), size))]
    names[end] = "<|endoftext|>"
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token=letters[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" w\d+|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {key: names[end] for key in ("bos_token", "eos_token", "pad_token")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def random_clouds(count: int, points: int) -> list[np.ndarray]:
    """Generate colored clouds, each `(points, 6)`."""
    generator = np.random.default_rng(0)
    return [generator.random((points, 6), dtype=np.float32) for _ in range(count)]

"""Tiny pretrained parts, a tiny PointLLM folder and short settings for MiniGPT-3D's stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration
from tests.chat.tiny_tokenizers import byte_tokenizer
from tests.data.catalog.pointllm_trees import TRAIN, talk, write_pointllm
from tests.modeling.minigpt3d.test_parts import blip2
from tests.modeling.minigpt3d.tiny_model import TEXTS, tiny_model

CONFIG = {
    "point_mlp_widths": [18],
    "num_query_experts": 4,
    "router_width": 8,
    "projector_width": 24,
    "text_lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
    "qformer_lora": {"r": 2, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": ["query", "key", "value"]},
}
SHORT = {
    "dataset_options": {"verify": False},
    "num_points": 40,
    "max_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "learning_rate": 0.01,
    "per_device_eval_batch_size": 2,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}
BATCHES = {1: [2], 2: [2], 3: [2, 3, 2], 4: [2, 3, 2]}


def tiny_text(**changes: Any) -> dict[str, Any]:
    """Settings of a language model for the byte tokenizer."""
    tokenizer = byte_tokenizer()
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    return {"model_type": "normed_phi", **TEXTS["normed_phi"], **sizes, **special, **changes}


def write_parts(folder: Path, **changes: Any) -> dict[str, str]:
    """Save a point encoder, a BLIP-2 model and a language model with its tokenizer; returns program arguments."""
    torch.manual_seed(0)
    source = tiny_model(text_config=tiny_text(**changes), text_lora=None, qformer_lora=None)
    names = {part: str(folder / part) for part in ("point_encoder", "qformer", "language_model")}
    source.point_encoder.save_pretrained(names["point_encoder"])
    blip2().save_pretrained(names["qformer"])
    source.language_model.save_pretrained(names["language_model"])
    byte_tokenizer().save_pretrained(names["language_model"])
    return names


def write_talks(root: Path) -> Path:
    """Write a PointLLM folder with a few conversations of each kind."""
    write_pointllm(root)
    talks = [talk(name, "detailed_description") for name in TRAIN]
    talks += [talk(name, "single_round") for name in (*TRAIN, *TRAIN)]
    talks += [talk(name, "multi_round", rounds=2 + number) for number, name in enumerate(TRAIN)]
    (root / "anno_data" / "PointLLM_complex_instruction_70K.json").write_text(json.dumps(talks))
    return root


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Load all tensors of a saved stage, those of its pretrained parts too."""
    return MiniGPT3DForConditionalGeneration.from_pretrained(folder).state_dict()

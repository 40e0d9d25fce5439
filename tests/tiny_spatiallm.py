"""Tiny SpatialLMs, prompts with a cloud, and their cases of the common suites."""

from __future__ import annotations

from typing import Any

import torch

from hf_any3d.modeling.spatiallm import SpatialLMConfig, SpatialLMForConditionalGeneration, SpatialLMModel
from hf_any3d.processing.rooms import END as END_TEXT, PLACE as PLACE_TEXT, START as START_TEXT, SpatialLMProcessor
from tests.chat.tiny_tokenizers import byte_tokenizer
from tests.common.case import Case, spread_weights, varied_clouds
from tests.tiny_ptv3 import SMALL

WORDS, START, END, PLACE = 24, 25, 26, 27
TEXT = {
    "model_type": "qwen2",
    "vocab_size": 28,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
POINT = {name: value for name, value in SMALL.items() if name != "head_widths"} | {
    "model_type": "point_transformer_v3",
    "grid_size": 0.5,
}
_CELLS = torch.randint(0, 8, (20, 3), generator=torch.Generator().manual_seed(1)).unique(dim=0)
_TOKENS = len((_CELLS // 2).unique(dim=0))


def tiny_spatiallm(**changes: Any) -> SpatialLMForConditionalGeneration:
    """Return a small model, in eval mode."""
    torch.manual_seed(0)
    tokens = {"point_start_token_id": START, "point_end_token_id": END, "point_token_id": PLACE}
    settings = {"point_config": POINT, "text_config": TEXT, "num_bins": 64, **tokens}
    return SpatialLMForConditionalGeneration(SpatialLMConfig(**(settings | changes))).eval()


def tiny_processor(**settings: Any) -> SpatialLMProcessor:
    """Return a processor with a tokenizer of bytes."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [START_TEXT, PLACE_TEXT, END_TEXT]})
    tokenizer.chat_template = (
        "{% for one in messages %}[{{ one['role'] }}] {{ one['content'] }}\n{% endfor %}[assistant] "
    )
    # Tiny clouds have no walls to be aligned by.
    return SpatialLMProcessor(tokenizer, **({"align": False} | settings))


def fitting_spatiallm(processor: SpatialLMProcessor, **changes: Any) -> SpatialLMForConditionalGeneration:
    """Return a small model for a processor, whose words vary with the cloud."""
    ids = processor.tokenizer.convert_tokens_to_ids([START_TEXT, END_TEXT, PLACE_TEXT])
    tokens = dict(zip(("point_start_token_id", "point_end_token_id", "point_token_id"), ids, strict=True))
    end = processor.tokenizer.eos_token_id
    text = TEXT | {"vocab_size": len(processor.tokenizer), "bos_token_id": end, "eos_token_id": end}
    model = tiny_spatiallm(**({"num_bins": processor.num_bins, "text_config": text, **tokens} | changes))
    spread_weights(model)
    return model


def _spread(**settings: Any) -> SpatialLMForConditionalGeneration:
    model = tiny_spatiallm(**settings)
    spread_weights(model)
    return model


def prompts(rows: int = 3, seed: int = 2) -> dict[str, Any]:
    """Return prompts of equal length with a cloud in each row, and the cells of its points."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(2, WORDS, (rows, 6), generator=generator)
    marks = torch.tensor([START, *[PLACE] * _TOKENS, END]).expand(rows, -1)
    input_ids = torch.cat([words[:, :2], marks, words[:, 2:]], dim=1)
    return {
        "input_ids": input_ids,
        "points": varied_clouds(rows, len(_CELLS), 6, seed),
        "grid_coord": _CELLS.expand(rows, -1, -1),
        "attention_mask": torch.ones_like(input_ids),
    }


def _labels(rows: int) -> dict[str, Any]:
    labels = torch.randint(2, WORDS, (rows, 8 + _TOKENS), generator=torch.Generator().manual_seed(4))
    labels[:, : 4 + _TOKENS] = -100
    return {"labels": labels}


_STILL = {"point_config": POINT | {"drop_path_rate": 0.0, "shuffle_curves": "never"}}
CASES = (
    Case(
        SpatialLMModel,
        lambda **settings: _spread(**settings).base_model,
        prompts,
        None,
        "last_hidden_state",
        still_settings=_STILL,
    ),
    Case(
        SpatialLMForConditionalGeneration,
        _spread,
        prompts,
        _labels,
        "logits",
        "spatiallm.language_model.lm_head",
        _STILL,
    ),
)
"""For `tests.common.models`."""

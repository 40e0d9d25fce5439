"""The full model in the sizes of the stored runs: real widths, few layers, a tiny language model."""

from __future__ import annotations

import torch
from torch import nn

from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig, MiniGPT3DForConditionalGeneration
from tests.modeling.minigpt3d.conversations import POINT_TOKEN
from tests.modeling.minigpt3d.reference_case import ReferenceCase

TEXT_LORA = {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05}
QFORMER_LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["query", "key", "value"]}


def released_config(case: ReferenceCase, **changes) -> MiniGPT3DConfig:
    text = case.manifest["constructor"]["llm"]
    settings = {
        "text_config": {"model_type": "normed_phi", **text},
        "qformer_config": {"num_hidden_layers": 2},
        "point_token_id": POINT_TOKEN,
        "text_lora": TEXT_LORA,
        "qformer_lora": QFORMER_LORA,
    }
    return MiniGPT3DConfig(**(settings | changes))


def released_model(
    case: ReferenceCase, point_encoder: nn.Module | None = None, **changes
) -> MiniGPT3DForConditionalGeneration:
    with torch.device("meta"):
        model = MiniGPT3DForConditionalGeneration(released_config(case, **changes), point_encoder)
    # The rotary position tables are not in the state dict.
    model.language_model.model.rotary_emb = type(model.language_model.model.rotary_emb)(model.config.text_config)
    return case.load_into(model)

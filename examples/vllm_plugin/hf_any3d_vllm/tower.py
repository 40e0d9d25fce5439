"""The part of a chat model before its language model, and what a saved model must be like for vLLM."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig
from hf_any3d.modeling.minigpt3d.qformer import Bridge


class PointTower(nn.Module):
    """Point encoder and bridge; tensors have their names in the chat model.

    Args:
        config: Configuration of the chat model.
    """

    def __init__(self, config: MiniGPT3DConfig):
        super().__init__()
        self.point_encoder = AutoModel.from_config(config.point_config)
        self.bridge = Bridge(config)
        self.requires_grad_(False).eval()

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Encode clouds `(clouds, points, channels)` to tokens `(clouds, num_query_tokens, text hidden)`."""
        points = points.to(next(self.point_encoder.parameters()).dtype)
        tokens = self.point_encoder(points, return_dict=True).last_hidden_state
        return self.bridge(tokens.to(self.bridge.projector.fc1.weight.dtype)).tokens


def text_architecture(config: MiniGPT3DConfig) -> str:
    """Return the name of the language model's class.

    Raises:
        ValueError: The model has LoRA, does not hold all its weights, or has a language model that vLLM lacks.
    """
    if config.text_lora is not None or config.qformer_lora is not None:
        raise ValueError("the model has LoRA; merge it: merge_lora(model).save_pretrained(folder)")
    if any(config.part(name).is_elsewhere for name in config.parts or {}):
        raise ValueError("the model's parts are in other repositories; expected all weights: model.store_parts()")
    kind = config.get_text_config().model_type
    if kind == "normed_phi" or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"the language model has the type {kind!r}, which vLLM lacks; expected one of transformers")
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]


def body_name(name: str) -> str:
    """Return the name that a tensor of a saved chat model has in its body."""
    return name.removeprefix("minigpt3d.")


def is_of_tower(name: str) -> bool:
    """Return whether a tensor of a saved chat model belongs to the tower.

    Args:
        name: Its name in the body, see `body_name`.

    Raises:
        ValueError: It belongs neither to the tower nor to the language model.
    """
    part = name.partition(".")[0]
    if part not in ("point_encoder", "bridge", "language_model"):
        raise ValueError(f"tensor {name!r}; expected those of point_encoder, bridge and language_model")
    return part != "language_model"

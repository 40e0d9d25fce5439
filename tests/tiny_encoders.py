"""Tiny random encoders of every registered family, saved as transformers saves them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModel, CLIPModel, PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.any2point import (
    Any2PointForPartSegmentation,
    Any2PointForPointCloudClassification,
    Any2PointForSemanticSegmentation,
    Any2PointPreTrainedModel,
)
from hf_any3d.tuners import GuidedAdapterConfig

HIDDEN = 48
LAYERS = 2
_SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 96}
_TEXT = {"vocab_size": 30, "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
_IMAGE = {"image_size": 64, "patch_size": 16}
_OWN_SIZES = {
    "bert": _TEXT,
    "roberta": _TEXT,
    "clip_text_model": _TEXT,
    "clip_vision_model": _IMAGE,
    "vit": _IMAGE,
    "dinov2": _IMAGE,
    # 3 rows of frequency, 5 columns of time
    "imagebind_audio": {"num_mel_bins": 36, "num_frames": 56},
    "audio-spectrogram-transformer": {"num_mel_bins": 36, "max_length": 56, "patch_size": 16},
}
# The smallest model that keeps every part: three stages, several tokens in a cell, a hidden layer in the head.
SMALL = {"num_tokens": 8, "tokenizer_neighbors": 4, "tokenizer_blocks": (1, 1, 1), "head_widths": (16,)}


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """A tiny config of an encoder family; a family without one fails here, whichever test meets it first."""
    assert model_type in _OWN_SIZES, f"'{model_type}' has no tiny config; add its sizes to {__file__}"
    return AutoConfig.for_model(model_type, **(_SIZES | _OWN_SIZES[model_type] | changes))


def random_encoder(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """An encoder in which no weight is zero or one by default, so that a forgotten one shows."""
    torch.manual_seed(seed)
    encoder = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.eval()


def saved_encoder(model_type: str) -> str:
    """The directory of a family's tiny encoder, or of one CLIP with both towers; written once a test run."""
    directory = Path(os.environ["HF_HOME"]) / "tiny-encoders" / model_type
    if not directory.is_dir():
        if model_type == "clip":
            text, vision = (tiny_config(f"clip_{tower}_model").to_dict() for tower in ("text", "vision"))
            config = AutoConfig.for_model("clip", text_config=text, vision_config=vision, projection_dim=16)
            assert isinstance(encoder := random_encoder(config), CLIPModel)
        else:
            encoder = random_encoder(tiny_config(model_type))
        encoder.save_pretrained(directory)
    return str(directory)


def tiny_model(
    encoder: str = "bert",
    model_class: type[Any2PointPreTrainedModel] = Any2PointForPointCloudClassification,
    **kwargs: Any,
) -> Any2PointPreTrainedModel:
    """A model of three labels around a tiny encoder: a `model_type`, a directory or a name on the hub."""
    source = saved_encoder(encoder) if encoder in (*_OWN_SIZES, "clip") else encoder
    torch.manual_seed(1)
    settings = {"num_labels": 3} | SMALL | kwargs
    return model_class.from_encoder_pretrained(source, **settings)


def tiny_scene_model(encoder: str = "bert", **kwargs: Any) -> Any2PointForSemanticSegmentation:
    """`tiny_model` for the objects of scenes."""
    return tiny_model(encoder, Any2PointForSemanticSegmentation, **{"propagation_width": 8, **kwargs})


def tiny_part_model(encoder: str = "bert", **kwargs: Any) -> Any2PointForPartSegmentation:
    """`tiny_model` for five parts of two categories."""
    settings = {
        "propagation_width": 8,
        "num_labels": 5,
        "category_parts": [[0, 1], [2, 3, 4]],
        "category_names": ["table", "lamp"],
    }
    return tiny_model(encoder, Any2PointForPartSegmentation, **settings | kwargs)


def adapted_model(encoder: str = "bert", adapter: dict[str, Any] | None = None, **kwargs: Any) -> PeftModel:
    """`tiny_model` with a guided adapter that changes something from the start, in eval mode."""
    model = tiny_model(encoder, **kwargs)
    settings = {"r": 4, "init_weights": False, "bottleneck_dropout": 0.0} | (adapter or {})
    return get_peft_model(model, GuidedAdapterConfig(**settings)).eval()


def clouds(count: int = 3, points: int = 48, channels: int = 3, seed: int = 2) -> torch.Tensor:
    """Random clouds `(count, points, channels)` in the cube from -1 to 1."""
    return torch.rand(count, points, channels, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def train_step(model: torch.nn.Module, points: torch.Tensor | None = None) -> torch.Tensor:
    """One AdamW step in train mode on fixed labels; returns the loss it started from."""
    points = clouds() if points is None else points
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    loss = model(points=points, labels=torch.arange(len(points)) % 3).loss
    loss.backward()
    optimizer.step()
    return loss.detach()

"""Encoder families with learned absolute positions: text tables on a line, patch tables on a plane."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from hf_any3d.modeling.encoders.position_table import PositionTable
from hf_any3d.modeling.encoders.registry import EncoderFamily, register_composite, register_family


def _line(weight: torch.Tensor) -> PositionTable:
    return PositionTable("line", weight, 1, weight.shape[0])


def _plane(weight: torch.Tensor, special_tokens: int, rows: int) -> PositionTable:
    patches = weight.reshape(-1, weight.shape[-1])[special_tokens:]
    return PositionTable("plane", patches, rows, patches.shape[0] // rows)


def _image_rows(model: PreTrainedModel) -> int:
    height, patch = (
        size[0] if isinstance(size, (list, tuple)) else size
        for size in (model.config.image_size, model.config.patch_size)
    )
    return height // patch


def _bert_positions(model: PreTrainedModel) -> PositionTable:
    embeddings = model.embeddings
    # Every token of a single text carries type 0: its vector is part of what layer 1 expects to see.
    return _line(embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0])


def _roberta_positions(model: PreTrainedModel) -> PositionTable:
    table = _bert_positions(model)
    # Rows up to padding_idx are never used by text: real positions start behind them.
    return _line(table.weight[model.config.pad_token_id + 1 :])


def _ast_positions(model: PreTrainedModel) -> PositionTable:
    config = model.config
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    return _plane(model.embeddings.position_embeddings, 2, rows)


register_family(
    EncoderFamily(
        name="BERT",
        model_types=("bert",),
        tower="text",
        layers="encoder.layer",
        branch="output.dense",
        positions=_bert_positions,
        input_norm="embeddings.LayerNorm",
    )
)
register_family(
    EncoderFamily(
        name="RoBERTa",
        model_types=("roberta",),
        tower="text",
        layers="encoder.layer",
        branch="output.dense",
        positions=_roberta_positions,
        input_norm="embeddings.LayerNorm",
    )
)
register_family(
    EncoderFamily(
        name="CLIP text",
        model_types=("clip_text_model",),
        tower="text",
        layers="encoder.layers",
        branch="mlp",
        positions=lambda model: _line(model.embeddings.position_embedding.weight),
        final_norm="final_layer_norm",
    )
)
register_family(
    EncoderFamily(
        name="CLIP vision",
        model_types=("clip_vision_model",),
        tower="vision",
        layers="encoder.layers",
        branch="mlp",
        positions=lambda model: _plane(model.embeddings.position_embedding.weight, 1, _image_rows(model)),
        final_norm="post_layernorm",
        input_norm="pre_layrnorm",
        class_token=lambda model: model.embeddings.class_embedding,
    )
)
register_family(
    EncoderFamily(
        name="ViT",
        model_types=("vit",),
        tower="vision",
        layers="layers",
        branch="mlp",
        positions=lambda model: _plane(model.embeddings.position_embeddings, 1, _image_rows(model)),
        final_norm="layernorm",
        class_token=lambda model: model.embeddings.cls_token.flatten(),
    )
)
register_family(
    EncoderFamily(
        name="DINOv2",
        model_types=("dinov2",),
        tower="vision",
        layers="encoder.layer",
        branch="layer_scale2",
        positions=lambda model: _plane(model.embeddings.position_embeddings, 1, _image_rows(model)),
        final_norm="layernorm",
        class_token=lambda model: model.embeddings.cls_token.flatten(),
    )
)
register_family(
    EncoderFamily(
        name="Audio Spectrogram Transformer",
        model_types=("audio-spectrogram-transformer",),
        tower="audio",
        layers="layers",
        branch="mlp",
        positions=_ast_positions,
        final_norm="layernorm",
        class_token=lambda model: model.embeddings.cls_token.flatten(),
    )
)
register_composite("clip", {"text": "text_config", "vision": "vision_config"})

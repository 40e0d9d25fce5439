"""Audio encoders: convolutional positions of waveforms, tables of spectrogram patches and frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.families.common import LEARNED_PLANE, SINUSOID_LINE, free_line, line, plane
from hf_any3d.modeling.encoders.positions import LayerPass, PositionTable, bidirectional_inputs, line_bias
from hf_any3d.modeling.encoders.registry import EncoderFamily, register_family
from hf_any3d.modeling.layers.forward_contract import onloaded

_KIND = "convolution, on a line"
_REACHED = "the encoder's convolution along each view's line, mean over the views"


def _input_norm(config: PreTrainedConfig) -> str | None:
    return None if _is_stable(config) else "encoder.layer_norm"


def _final_norm(config: PreTrainedConfig) -> str | None:
    return "encoder.layer_norm" if _is_stable(config) else None


def _is_stable(config: PreTrainedConfig) -> bool:
    return getattr(config, "do_stable_layer_norm", False)


def _convolution(model: PreTrainedModel, frames: torch.Tensor) -> torch.Tensor:
    return model.encoder.pos_conv_embed(frames)


def _wavlm_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    attention = call.layers[0].attention
    bias = line_bias(call.places, attention.rel_attn_embed, attention._relative_positions_bucket)
    bias = bias.flatten(0, 1).to(call.hidden_states.dtype)  # (batch * heads, queries, keys)
    for layer in call.layers:
        # Its attention reads the weights of these modules instead of calling them.
        attention = layer.attention
        with onloaded(attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            yield {"position_bias": bias}


for name, model_type, inputs in (
    ("wav2vec 2.0", "wav2vec2", bidirectional_inputs),
    ("HuBERT", "hubert", bidirectional_inputs),
    ("Data2Vec audio", "data2vec-audio", bidirectional_inputs),
    ("UniSpeech", "unispeech", bidirectional_inputs),
    ("UniSpeech-SAT", "unispeech-sat", bidirectional_inputs),
    ("WavLM", "wavlm", _wavlm_inputs),
):
    gated = inputs is _wavlm_inputs
    register_family(
        EncoderFamily(
            name=name,
            model_types=(model_type,),
            tower="audio",
            layers="encoder.layers",
            branch="feed_forward",
            positions=free_line,
            kind=f"{_KIND}; relative bias" if gated else _KIND,
            reached=f"{_REACHED}; interpolated bias of each pair" if gated else _REACHED,
            final_norm=_final_norm,
            input_norm=_input_norm,
            layer_inputs=inputs,
            line_convolution=_convolution,
        )
    )


def _ast_positions(model: PreTrainedModel) -> PositionTable:
    config = model.config
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    return plane(model.embeddings.position_embeddings, 2, rows)


def _imagebind_positions(model: PreTrainedModel) -> PositionTable:
    # rows: mel bins, columns: time
    return plane(model.embeddings.position_embeddings, 1, model.config.patch_grid[0])


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
        **LEARNED_PLANE,
    )
)
register_family(
    EncoderFamily(
        name="ImageBind audio",
        model_types=("imagebind_audio",),
        tower="audio",
        layers="layers",
        branch="mlp",
        positions=_imagebind_positions,
        final_norm="layernorm",
        class_token=lambda model: model.embeddings.cls_token.flatten(),
        **LEARNED_PLANE,
    )
)
register_family(
    EncoderFamily(
        name="Whisper encoder",
        model_types=("whisper",),
        tower="audio",
        layers="encoder.layers",
        branch="fc2",
        positions=lambda model: line(model.encoder.embed_positions.weight),
        final_norm="encoder.layer_norm",
        unused=("decoder",),
        **SINUSOID_LINE,
    )
)

"""Audio encoders: convolutional positions of waveforms, tables of spectrogram patches and frames."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.positions import (
    LEARNED_PLANE,
    SINUSOID_LINE,
    LayerPass,
    PositionTable,
    bidirectional_inputs,
    class_token,
    free_line,
    line,
    line_bias,
    plane,
)
from hf_any3d.modeling.encoders.registry import EncoderFamily, register_family
from hf_any3d.modeling.layers.forward_contract import onloaded

_KIND = "convolution, on a line"
_REACHED = "the encoder's convolution along each view's line, mean over the views"


def _is_stable(config: PreTrainedConfig) -> bool:
    return getattr(config, "do_stable_layer_norm", False)


def _convolve_positions(model: PreTrainedModel, frames: torch.Tensor) -> torch.Tensor:
    """Compute convolutional positions of frames, both `(batch, length, hidden)`.

    Groups of fewer than 16 channels are computed in full precision on CPUs: in bfloat16, torch 2.13 returns wrong
    numbers for them on CPUs with AMX. No published encoder has such narrow groups.
    """
    module = model.encoder.pos_conv_embed
    half = frames.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled("cpu")
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv1d)]
    if frames.device.type != "cpu" or not half or all(part.in_channels // part.groups >= 16 for part in convolutions):
        return module(frames)
    tensors = chain(module.named_parameters(), module.named_buffers())
    full = {name: tensor.float() for name, tensor in tensors if tensor.is_floating_point()}
    # The module keeps its weights; only this call gets them in full precision.
    with torch.autocast("cpu", enabled=False):
        return functional_call(module, full, (frames.float(),)).to(frames.dtype)


def _wavlm_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    # The first layer alone has the biases; it hands them on to the others.
    attention = call.layers[0].attention
    bias = line_bias(call.places, attention.rel_attn_embed, attention._relative_positions_bucket)
    bias = bias.flatten(0, 1).to(call.hidden_states.dtype)  # (batch * heads, queries, keys)
    for layer in call.layers:
        # Its attention reads the weights of these modules instead of calling them.
        attention = layer.attention
        with onloaded(attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            yield {"position_bias": bias}


for name, model_type in (
    ("wav2vec 2.0", "wav2vec2"),
    ("HuBERT", "hubert"),
    ("Data2Vec audio", "data2vec-audio"),
    ("UniSpeech", "unispeech"),
    ("UniSpeech-SAT", "unispeech-sat"),
    ("WavLM", "wavlm"),
):
    gated = model_type == "wavlm"
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
            final_norm=lambda config: "encoder.layer_norm" if _is_stable(config) else None,
            input_norm=lambda config: None if _is_stable(config) else "encoder.layer_norm",
            layer_inputs=_wavlm_inputs if gated else bidirectional_inputs,
            line_convolution=_convolve_positions,
        )
    )


def _ast_positions(model: PreTrainedModel) -> PositionTable:
    config = model.config
    # Patches overlap: their distance is the stride, not their size.
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    # Two special tokens come first, of the class and of the distillation.
    return plane(model.embeddings.position_embeddings, 2, rows)


def _imagebind_positions(model: PreTrainedModel) -> PositionTable:
    # rows: mel bins, columns: time
    return plane(model.embeddings.position_embeddings, 1, model.config.patch_grid[0])


for name, model_type, positions in (
    ("Audio Spectrogram Transformer", "audio-spectrogram-transformer", _ast_positions),
    ("ImageBind audio", "imagebind_audio", _imagebind_positions),
):
    register_family(
        EncoderFamily(
            name=name,
            model_types=(model_type,),
            tower="audio",
            layers="layers",
            branch="mlp",
            positions=positions,
            final_norm="layernorm",
            class_token=class_token,
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

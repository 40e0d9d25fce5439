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
    LayerPass,
    PositionTable,
    class_token,
    free_line,
    line_bias,
    plane,
)
from hf_any3d.modeling.encoders.registry import EncoderFamily, register_family
from hf_any3d.modeling.layers.direct_weights import onloaded


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


def _ast_positions(model: PreTrainedModel) -> PositionTable:
    config = model.config
    # Patches overlap: their distance is the stride, not their size.
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    # Two special tokens come first, of the class and of the distillation.
    return plane(model.embeddings.position_embeddings, 2, rows)


_CONVOLVED = {
    "kind": "convolution, on a line",
    "reached": "the encoder's convolution along each view's line, mean over the views",
    "final_norm": lambda config: "encoder.layer_norm" if _is_stable(config) else None,
    "input_norm": lambda config: None if _is_stable(config) else "encoder.layer_norm",
    "line_convolution": _convolve_positions,
}
_SPECTROGRAM = LEARNED_PLANE | {"final_norm": "layernorm", "class_token": class_token}
# name, model_type, layers, branch, positions, further fields
for name, model_type, layers, branch, positions, fields in (
    ("wav2vec 2.0", "wav2vec2", "encoder.layers", "feed_forward", free_line, _CONVOLVED),
    ("HuBERT", "hubert", "encoder.layers", "feed_forward", free_line, _CONVOLVED),
    ("Data2Vec audio", "data2vec-audio", "encoder.layers", "feed_forward", free_line, _CONVOLVED),
    ("UniSpeech", "unispeech", "encoder.layers", "feed_forward", free_line, _CONVOLVED),
    ("UniSpeech-SAT", "unispeech-sat", "encoder.layers", "feed_forward", free_line, _CONVOLVED),
    (
        "WavLM",
        "wavlm",
        "encoder.layers",
        "feed_forward",
        free_line,
        _CONVOLVED
        | {
            "kind": f"{_CONVOLVED['kind']}; relative bias",
            "reached": f"{_CONVOLVED['reached']}; interpolated bias of each pair",
            "layer_inputs": _wavlm_inputs,
        },
    ),
    (
        "Audio Spectrogram Transformer",
        "audio-spectrogram-transformer",
        "layers",
        "mlp",
        _ast_positions,
        _SPECTROGRAM,
    ),
    (
        "ImageBind audio",
        "imagebind_audio",
        "layers",
        "mlp",
        # rows: mel bins, columns: time
        lambda model: plane(model.embeddings.position_embeddings, 1, model.config.patch_grid[0]),
        _SPECTROGRAM,
    ),
):
    register_family(EncoderFamily(name, (model_type,), "audio", layers, branch, positions, **fields))

"""Sound encoders with tables: patches of a spectrogram, frames of a log-mel spectrum."""

from __future__ import annotations

from transformers import PreTrainedModel

from hf_any3d.modeling.encoders.families.parts import LEARNED_PLANE, SINUSOID_LINE, line, plane
from hf_any3d.modeling.encoders.position_table import PositionTable
from hf_any3d.modeling.encoders.registry import EncoderFamily, register_family


def _ast_positions(model: PreTrainedModel) -> PositionTable:
    config = model.config
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    return plane(model.embeddings.position_embeddings, 2, rows)


def _imagebind_positions(model: PreTrainedModel) -> PositionTable:
    # Rows of mel, columns of time.
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

"""The family of ImageBind's audio encoder."""

from __future__ import annotations

from transformers import PreTrainedModel

from hf_any3d.modeling.encoders.position_table import PositionTable
from hf_any3d.modeling.encoders.registry import EncoderFamily, register_family


def _positions(model: PreTrainedModel) -> PositionTable:
    # Behind the class token's: rows of mel, columns of time.
    return PositionTable("plane", model.embeddings.position_embeddings[0, 1:], *model.config.patch_grid)


register_family(
    EncoderFamily(
        name="ImageBind audio",
        model_types=("imagebind_audio",),
        tower="audio",
        layers="layers",
        branch="mlp",
        positions=_positions,
        final_norm="layernorm",
        class_token=lambda model: model.embeddings.cls_token.flatten(),
    )
)

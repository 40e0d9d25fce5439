"""Image encoders: tables and rotations on the grid of patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.families.parts import LEARNED_PLANE, class_token, image_grid, plane
from hf_any3d.modeling.encoders.position_table import PositionTable
from hf_any3d.modeling.encoders.registry import EncoderFamily, register_family
from hf_any3d.modeling.encoders.rotary import rotation
from hf_any3d.modeling.encoders.token_places import LayerPass


def _grid(special_tokens: int) -> Callable[[PreTrainedModel], PositionTable]:
    def positions(model: PreTrainedModel) -> PositionTable:
        return plane(model.embeddings.position_embeddings, special_tokens, image_grid(model.config)[0])

    return positions


def _free_grid(model: PreTrainedModel) -> PositionTable:
    return PositionTable("plane", None, *image_grid(model.config))


def _dinov3_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    sizes = call.places.entry.new_tensor([call.places.rows, call.places.columns])
    # Middles of patches span (-1, 1), and the rows come first.
    coordinates = (call.places.entry.flip(-1) + 0.5) / sizes * 2 - 1
    pair = rotation(call, coordinates, 2 * math.pi * call.encoder.rope_embeddings.inv_freq)
    for _ in call.layers:
        yield {"attention_mask": call.mask, "is_causal": False, "position_embeddings": pair}


def _dpt_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    # Its layers say by themselves that attention is not causal, and take no mask.
    for _ in call.layers:
        yield {}


def _refuses_dpt(config: PreTrainedConfig) -> str | None:
    return "its patches come from a convolutional backbone (is_hybrid=True)" if config.is_hybrid else None


_VIT_LIKE = {"tower": "vision", "final_norm": "layernorm"} | LEARNED_PLANE
for name, model_type, special_tokens in (
    ("ViT", "vit", 1),
    ("DeiT", "deit", 2),
    ("ViT-MAE", "vit_mae", 1),
    ("ViT-MSN", "vit_msn", 1),
):
    register_family(
        EncoderFamily(
            name=name,
            model_types=(model_type,),
            layers="layers",
            branch="mlp",
            positions=_grid(special_tokens),
            class_token=class_token,
            **_VIT_LIKE,
        )
    )
register_family(
    EncoderFamily(
        name="I-JEPA", model_types=("ijepa",), layers="layers", branch="mlp", positions=_grid(0), **_VIT_LIKE
    )
)
for name, model_type in (("DINOv2", "dinov2"), ("DINOv2 with registers", "dinov2_with_registers")):
    register_family(
        EncoderFamily(
            name=name,
            model_types=(model_type,),
            layers="encoder.layer",
            branch="layer_scale2",
            positions=_grid(1),
            class_token=class_token,
            **_VIT_LIKE,
        )
    )
register_family(
    EncoderFamily(
        name="DPT",
        model_types=("dpt",),
        layers="encoder.layer",
        branch="output.dense",
        positions=_grid(1),
        class_token=class_token,
        layer_inputs=_dpt_inputs,
        refuses=_refuses_dpt,
        **_VIT_LIKE,
    )
)
register_family(
    EncoderFamily(
        name="DINOv3 ViT",
        model_types=("dinov3_vit",),
        tower="vision",
        layers="model.layer",
        branch="layer_scale2",
        positions=_free_grid,
        kind="rotary, on a grid",
        reached="rotations at the places themselves, views combined by `rotary_views`",
        final_norm="norm",
        class_token=class_token,
        layer_inputs=_dinov3_inputs,
    )
)
_CLIP_LIKE = {"tower": "vision", "layers": "encoder.layers", "branch": "mlp", "final_norm": "post_layernorm"}
register_family(
    EncoderFamily(
        name="CLIP vision",
        model_types=("clip_vision_model",),
        positions=lambda model: plane(model.embeddings.position_embedding.weight, 1, image_grid(model.config)[0]),
        input_norm="pre_layrnorm",
        class_token=lambda model: model.embeddings.class_embedding,
        **_CLIP_LIKE,
        **LEARNED_PLANE,
    )
)
for name, model_type, rows_of in (
    ("SigLIP vision", "siglip_vision_model", lambda config: image_grid(config)[0]),
    ("SigLIP 2 vision", "siglip2_vision_model", lambda config: math.isqrt(config.num_patches)),
):
    register_family(
        EncoderFamily(
            name=name,
            model_types=(model_type,),
            positions=lambda model, rows_of=rows_of: plane(
                model.embeddings.position_embedding.weight, 0, rows_of(model.config)
            ),
            **_CLIP_LIKE,
            **LEARNED_PLANE,
        )
    )

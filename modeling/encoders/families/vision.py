"""Image encoders: tables, relative biases and rotations on the grid of patches."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.positions import (
    LEARNED_PLANE,
    Addend,
    LayerPass,
    PositionTable,
    class_token,
    image_grid,
    plane,
    plane_bias,
)
from hf_any3d.modeling.encoders.registry import EncoderFamily, register_family
from hf_any3d.modeling.encoders.rotary import rotation
from hf_any3d.modeling.layers.forward_contract import onloaded

_RELATIVE = {"kind": "relative bias, on a grid", "reached": "interpolated bias of each pair, mean over the views"}


def _optional_grid(model: PreTrainedModel) -> PositionTable:
    rows, columns = image_grid(model.config)
    table = getattr(model.embeddings, "position_embeddings", None)
    return PositionTable("plane", None, rows, columns) if table is None else plane(table, 1, rows)


def _beit_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    shared = call.encoder.shared_position_bias
    for layer in call.layers:
        own = layer.relative_position_bias
        bias = _bias(call, shared, own)
        inputs = {"interpolate_pos_encoding": True, "resolution": _resolution(call.encoder.config)}
        yield {"attention_mask": call.mask if bias is None else bias, "is_causal": False, **inputs}


def _data2vec_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    shared = getattr(call.encoder.encoder, "relative_position_bias", None)
    for layer in call.layers:
        own = getattr(layer.attention.attention, "relative_position_bias", None)
        bias = _bias(call, shared, own)
        inputs = {"interpolate_pos_encoding": True, "resolution": _resolution(call.encoder.config)}
        yield {"relative_position_bias": bias if own is None else Addend(bias), **inputs}


def _bias(call: LayerPass, shared: torch.nn.Module | None, own: torch.nn.Module | None) -> torch.Tensor | None:
    """Return the bias at the tokens' coordinates, minus the bias of image patches that a layer adds itself."""
    if shared is None and own is None:
        return None
    holders = [module for module in (shared, own) if module is not None]
    with onloaded(*holders):
        table = sum(module.relative_position_bias_table for module in holders)
    bias = plane_bias(call.places, table)
    if own is not None:
        bias = bias - own((call.places.rows, call.places.columns), True, dim_size=call.hidden_states.shape[1])
    return bias.to(call.hidden_states.dtype)


def _resolution(config: PreTrainedConfig) -> tuple[int, int]:
    return tuple(count * config.patch_size for count in image_grid(config))


register_family(
    EncoderFamily(
        name="BEiT",
        model_types=("beit",),
        tower="vision",
        layers="layers",
        branch="mlp",
        positions=_optional_grid,
        # With mean pooling, the norm is applied after the mean, not to tokens.
        final_norm=lambda config: "pooler.layernorm" if config.use_mean_pooling else "layernorm",
        class_token=class_token,
        layer_inputs=_beit_inputs,
        **_RELATIVE,
    )
)
register_family(
    EncoderFamily(
        name="Data2Vec vision",
        model_types=("data2vec-vision",),
        tower="vision",
        layers="encoder.layer",
        branch="output.dense",
        positions=_optional_grid,
        final_norm=lambda config: None if config.use_mean_pooling else "layernorm",
        class_token=class_token,
        layer_inputs=_data2vec_inputs,
        **_RELATIVE,
    )
)


def _grid(special_tokens: int) -> Callable[[PreTrainedModel], PositionTable]:
    def positions(model: PreTrainedModel) -> PositionTable:
        return plane(model.embeddings.position_embeddings, special_tokens, image_grid(model.config)[0])

    return positions


def _dinov3_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    sizes = call.places.entry.new_tensor([call.places.rows, call.places.columns])
    # Centers of patches are in (-1, 1), rows first.
    coordinates = (call.places.entry.flip(-1) + 0.5) / sizes * 2 - 1
    pair = rotation(call, coordinates, 2 * math.pi * call.encoder.rope_embeddings.inv_freq)
    for _ in call.layers:
        yield {"attention_mask": call.mask, "is_causal": False, "position_embeddings": pair}


def _dpt_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    # Its layers set is_causal themselves and take no mask.
    for _ in call.layers:
        yield {}


_VIT_LIKE = {"tower": "vision", "final_norm": "layernorm"} | LEARNED_PLANE
for name, model_type, layers, branch, special_tokens in (
    ("ViT", "vit", "layers", "mlp", 1),
    # With a token for distillation beside that of the class.
    ("DeiT", "deit", "layers", "mlp", 2),
    ("ViT-MAE", "vit_mae", "layers", "mlp", 1),
    ("ViT-MSN", "vit_msn", "layers", "mlp", 1),
    ("I-JEPA", "ijepa", "layers", "mlp", 0),
    ("DINOv2", "dinov2", "encoder.layer", "layer_scale2", 1),
    ("DINOv2 with registers", "dinov2_with_registers", "encoder.layer", "layer_scale2", 1),
):
    register_family(
        EncoderFamily(
            name=name,
            model_types=(model_type,),
            layers=layers,
            branch=branch,
            positions=_grid(special_tokens),
            class_token=class_token if special_tokens else None,
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
        refuses=lambda config: (
            "its patches come from a convolutional backbone (is_hybrid=True)" if config.is_hybrid else None
        ),
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
        positions=lambda model: PositionTable("plane", None, *image_grid(model.config)),
        kind="rotary, on a grid",
        reached="rotations at the coordinates, views combined by `rotary_views`",
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

"""The tensors of released Point Transformer V3 encoders under our names, and their arguments as our config."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch

from hf_any3d.conversions.renaming import Names, as_vector, rename_tensors
from hf_any3d.modeling.point_transformer_v3 import PRESETS

_BLOCK: dict[str, str] = {
    r"cpe\.0\.": "positions.convolution.",
    r"cpe\.1\.": "positions.linear.",
    r"cpe\.2\.": "positions.norm.",
    r"norm(?P<norm>[12])\.0\.": "norm{norm}.",
    r"attn\.(?P<layer>qkv|proj)\.": "attention.{layer}.",
    r"attn\.rpe\.rpe_table$": "attention.relative_bias.table",
    r"ls(?P<scale>[12])\.0\.": "scale{scale}.",
    r"mlp\.0\.(?P<layer>fc[12])\.": "mlp.{layer}.",
}


def _block_names(theirs: str, ours: str) -> dict[str, str]:
    """Return the table of the blocks of encoder or decoder."""
    names = {}
    for pattern, name in _BLOCK.items():
        names[rf"{theirs}(?P<stage>\d+)\.block(?P<block>\d+)\.{pattern}"] = f"{ours}.{{stage}}.{{block}}.{name}"
    return names


# Stages are numbered as in the original; `_renumber` numbers blocks and decoder stages through.
NAMES: Names = {
    r"embedding\.mask_token$": "embeddings.mask_token",
    r"embedding\.stem\.linear\.": "embeddings.projection.",
    r"embedding\.stem\.conv\.": "embeddings.convolution.",
    r"embedding\.stem\.norm\.": "embeddings.norm.",
    r"enc\.enc(?P<stage>\d+)\.down\.proj\.": "poolings.{stage}.projection.",
    r"enc\.enc(?P<stage>\d+)\.down\.norm\.0\.": "poolings.{stage}.norm.",
    **_block_names(r"enc\.enc", "blocks"),
    **_block_names(r"dec\.dec", "decoder_blocks"),
    r"dec\.dec(?P<stage>\d+)\.up\.proj\.0\.": "unpoolings.{stage}.projection.",
    r"dec\.dec(?P<stage>\d+)\.up\.proj\.1\.": "unpoolings.{stage}.norm.",
    r"dec\.dec(?P<stage>\d+)\.up\.proj_skip\.0\.": "unpoolings.{stage}.skip_projection.",
    r"dec\.dec(?P<stage>\d+)\.up\.proj_skip\.1\.": "unpoolings.{stage}.skip_norm.",
}
# The supervised layout: an encoder in a model, with the heads beside it.
_HEADS: dict[str, str] = {
    r"seg_head\.": "segmenter.out.",
    r"seg_heads\.(?P<head>\d+)\.": "segmenter.heads.{head}.",
    r"proj_head\.": "segmenter.projection.",
    r"class_embedding$": "segmenter.class_embeddings",
    r"logit_scale$": "segmenter.logit_scale",
    r"cls_head\.0\.": "classifier.hidden.0.",
    r"cls_head\.1\.": "classifier.norms.0.",
    r"cls_head\.4\.": "classifier.hidden.1.",
    r"cls_head\.5\.": "classifier.norms.1.",
    r"cls_head\.8\.": "classifier.out.",
}
_ENCODER = "point_transformer_v3."


def _encoder_names(prefix: str) -> dict[str, str]:
    """Return the table of an encoder below a prefix."""
    return {re.escape(prefix) + pattern: f"{_ENCODER}{name}" for pattern, name in NAMES.items()}


SUPERVISED: Names = {
    r"embedding_table\.": f"{_ENCODER}conditions.",
    **_HEADS,
    **_encoder_names("backbone."),
}
EXTRACTOR = "extractor."
"""Where Find3D has its encoder."""
FIND3D: Names = {
    r"ln_logit_scale$": "text_head.logit_scale",
    r"fc(?P<layer>[123])\.": "text_head.hidden.{layer}.",
    r"fc4\.": "text_head.out.",
    **_encoder_names(EXTRACTOR),
}
# Norms of several data sets, within the place of one norm.
_OF_CONDITIONS = re.compile(r"(?<=norm\.|orm1\.|orm2\.)norm\.(?=\d)")
# Find3D numbers its layers from 1.
_HIDDEN = re.compile(r"^(text_head\.hidden\.)(\d+)\.")
_FREQUENCIES = re.compile(r"(enc\.enc|dec\.dec)\d+\.block\d+\.attn\.rope\.inv_freq$")
# Argument of the original's constructor -> field of our config.
_FIELDS = {
    "in_channels": "in_channels",
    "order": "curves",
    "stride": "pooling_strides",
    "enc_depths": "depths",
    "enc_channels": "hidden_sizes",
    "enc_num_head": "num_attention_heads",
    "enc_patch_size": "patch_sizes",
    "dec_depths": "decoder_depths",
    "dec_channels": "decoder_hidden_sizes",
    "dec_num_head": "decoder_num_attention_heads",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "qk_scale": "attention_scale",
    "attn_drop": "attention_dropout",
    "proj_drop": "hidden_dropout",
    "drop_path": "drop_path_rate",
    "layer_scale": "layer_scale_init_value",
    "pre_norm": "pre_norm",
    "enable_rpe": "relative_position_bias",
    "mask_token": "use_mask_token",
    "freeze_encoder": "freeze_encoder",
    "rope_base": "rope_theta",
    "shift_coords": "rope_shift",
    "jitter_coords": "rope_jitter",
    "rescale_coords": "rope_rescale",
}
# Arguments of the supervised layout alone.
_SUPERVISED_FIELDS = {
    "pdnorm_bn": "condition_batch_norms",
    "pdnorm_ln": "condition_layer_norms",
    "pdnorm_adaptive": "adaptive_norms",
    "pdnorm_affine": "norm_affine",
}
# Those of curves and patches differ between its programs.
SUPERVISED_DEFAULTS = {
    "enc_depths": (2, 2, 2, 6, 2),
    "enc_channels": (32, 64, 128, 256, 512),
    "enc_num_head": (2, 4, 8, 16, 32),
    "dec_depths": (2, 2, 2, 2),
    "dec_channels": (64, 64, 128, 256),
    "dec_num_head": (4, 4, 8, 16),
}
_CONDITIONS = ("ScanNet", "S3DIS", "Structured3D")
# What the constructor has where a file says nothing; the same as our defaults for all others.
_DEFAULTS = {
    "in_channels": 6,
    "order": ("z", "z-trans"),
    "stride": (2, 2, 2, 2),
    "enc_depths": (3, 3, 3, 12, 3),
    "enc_channels": (48, 96, 192, 384, 512),
    "enc_num_head": (3, 6, 12, 24, 32),
    "enc_patch_size": (1024,) * 5,
    "dec_depths": (3, 3, 3, 3),
    "dec_channels": (96, 96, 192, 384),
    "dec_num_head": (6, 6, 12, 32),
    "dec_patch_size": (1024,) * 4,
    "drop_path": 0.3,
}
# Arguments without a field: how attention is computed, whether there is a decoder, and a switch that stays random.
_OTHERS = (
    "dec_patch_size",
    "enable_flash",
    "upcast_attention",
    "upcast_softmax",
    "enc_mode",
    "shuffle_orders",
    "traceable",
)
# Utonia computes the frequencies in float32.
_CLOSE = 1e-6


def ptv3_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `PointTransformerV3Config` for arguments of the original's constructor.

    What depends on the other clouds of a batch, and the shuffling of curves at inference, stay off.
    """
    # An argument that is passed over may change what weights compute.
    unknown = sorted(set(arguments) - set(_FIELDS) - set(_OTHERS))
    if unknown:
        raise ValueError(f"config has {unknown[0]!r}; expected some of {', '.join(sorted({*_FIELDS, *_OTHERS}))}")
    settings = _DEFAULTS | dict(arguments)
    fields: dict[str, Any] = {}
    for theirs, ours in _FIELDS.items():
        if theirs in settings:
            value = settings[theirs]
            fields[ours] = list(value) if isinstance(value, (tuple, list)) else value
    for name in ("mlp_ratio", "drop_path_rate", "attention_dropout", "hidden_dropout", "rope_theta"):
        value = fields.get(name)
        # Configs of transformers check types, and files have 1 or 0 where a float is meant.
        if isinstance(value, int):
            fields[name] = float(value)
    fields["use_decoder"] = not settings.get("enc_mode", False)
    fields["upcast_attention"] = bool(settings.get("upcast_attention") or settings.get("upcast_softmax"))
    if not fields["use_decoder"]:
        fields = {name: value for name, value in fields.items() if not name.startswith("decoder_")}
    elif list(settings["dec_patch_size"]) != fields["patch_sizes"][: len(settings["dec_patch_size"])]:
        raise ValueError(
            f"config has dec_patch_size={settings['dec_patch_size']}; expected that of the encoder's stages, whose "
            f"patches the decoder uses: {fields['patch_sizes']}"
        )
    return fields


def supervised_fields(arguments: Mapping[str, Any], *, block_rule: str, depth_rule: str) -> dict[str, Any]:
    """Return the fields of `PointTransformerV3Config` for the constructor of the original, supervised layout."""
    settings = dict(arguments)
    # The older name.
    settings["enc_mode"] = settings.pop("cls_mode", settings.get("enc_mode", False))
    norms = {}
    for theirs, ours in _SUPERVISED_FIELDS.items():
        if theirs in settings:
            norms[ours] = settings.pop(theirs)
    conditions = settings.pop("pdnorm_conditions", _CONDITIONS)
    settings.pop("pdnorm_decouple", None)  # other norms than those of True would not fit
    fields = ptv3_fields(SUPERVISED_DEFAULTS | settings)
    if norms.get("condition_batch_norms") or norms.get("condition_layer_norms"):
        fields["norm_conditions"] = list(conditions)
    layout = ("stem", "stage_norm", "pooling", "decoder_convolution")
    fields |= {name: PRESETS["supervised"][name] for name in layout} | norms
    return fields | {"block_rule": block_rule, "depth_rule": depth_rule, "lovasz_weight": 1.0}


def convert_supervised_state_dict(
    original: Mapping[str, torch.Tensor], fields: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Rename the tensors of a supervised model to those of ours with a head."""
    state = {}
    names = FIND3D if is_find3d(original) else SUPERVISED
    for name, tensor in rename_tensors(original, names).items():
        if name.startswith(_ENCODER):
            name = _ENCODER + _renumber(name.removeprefix(_ENCODER), fields)
        name = _HIDDEN.sub(lambda match: f"{match[1]}{int(match[2]) - 1}.", name)
        name = _OF_CONDITIONS.sub("norms.", name).replace(".modulation.1.", ".modulation.")
        # An older spconv has the kernel's three equal axes first; channels are never as few as its edge.
        is_kernel = name.endswith("convolution.weight") and tensor.ndim == 5
        if is_kernel and tensor.shape[0] == tensor.shape[1] == tensor.shape[2] != tensor.shape[3]:
            tensor = tensor.permute(4, 0, 1, 2, 3).contiguous()  # (out, x, y, z, in)
        state[name] = tensor
    return state


def head_alone(names: Collection[str]) -> dict[str, Any] | None:
    """Return no arguments for the file of a linear head, with tensors of nothing else; None for other files."""
    if names and all(name.startswith("seg_head.") for name in names):
        return {}
    return None


def is_find3d(original: Mapping[str, torch.Tensor]) -> bool:
    """Return whether tensors are those of Find3D."""
    return any(name.startswith(EXTRACTOR) for name in original)


def convert_ptv3_state_dict(
    original: Mapping[str, torch.Tensor], fields: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Rename the tensors of a released encoder to those of a `PointTransformerV3Model`.

    Frequencies of rotary positions, which follow from the config, are compared and left out.
    """
    theta = fields.get("rope_theta")
    stored = {}
    for name, tensor in original.items():
        # Our model computes frequencies, so they need not be stored; they must only be the same.
        if _FREQUENCIES.match(name):
            _check_frequencies(name, tensor, theta)
        else:
            stored[name] = tensor
    state = rename_tensors(stored, NAMES)
    renamed = {_renumber(name, fields): tensor for name, tensor in state.items()}
    if "embeddings.mask_token" in renamed:
        renamed["embeddings.mask_token"] = as_vector(renamed["embeddings.mask_token"])
    return renamed


def _check_frequencies(name: str, frequencies: torch.Tensor, theta: float | None) -> None:
    """Check that the frequencies of rotary positions are those of a config."""
    # θ^(-j / n) for the j-th of n frequencies, from 1 down
    steps = torch.arange(frequencies.numel(), dtype=torch.float64) / frequencies.numel()
    expected = (theta or torch.nan) ** -steps
    if frequencies.ndim != 1 or not torch.allclose(frequencies.double(), expected, atol=_CLOSE, rtol=0):
        begin = ", ".join(f"{value:g}" for value in frequencies.flatten()[:4].tolist())
        raise ValueError(
            f"{name} has the shape {tuple(frequencies.shape)} and begins with {begin}; expected the frequencies "
            f"of rope_base={theta}"
        )


def _renumber(name: str, fields: Mapping[str, Any]) -> str:
    """Change the numbers of a name: blocks through all stages, poolings from 0, parts of the decoder as they run."""
    part, *rest = name.split(".")
    if part == "poolings":
        # Theirs belong to the stage that they lead to, which is never the first.
        rest[0] = str(int(rest[0]) - 1)
    elif part == "unpoolings":
        rest[0] = str(len(fields["decoder_depths"]) - 1 - int(rest[0]))
    elif part in ("blocks", "decoder_blocks"):
        places = _places_of_blocks(part, fields)
        place = int(rest[0]), int(rest[1])
        if place in places:  # else it is deeper than the config, and the name is left over
            rest[:2] = [str(places.index(place))]
    return ".".join((part, *rest))


def _places_of_blocks(part: str, fields: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the stage of each block, in the order in which they run, and its number there."""
    depths = fields["depths" if part == "blocks" else "decoder_depths"]
    stages = list(range(len(depths)))
    if part == "decoder_blocks":
        # The decoder runs from the coarsest stage, which has the highest number, to the finest.
        stages.reverse()
    return [(stage, block) for stage in stages for block in range(depths[stage])]

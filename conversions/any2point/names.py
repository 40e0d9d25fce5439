"""Rename, split and stack the tensors of an original Any2Point checkpoint."""

from __future__ import annotations

import re
from collections import defaultdict

import torch

from hf_any3d.conversions.any2point.variants import BLOCK, MODEL, Variant
from hf_any3d.conversions.checkpoints import check_finite
from hf_any3d.conversions.renaming import Names, as_linear, as_vector, check_owners, split_rows, stack

_STAGE = r"patch_embed\.EncP\.LGA_list\.(?P<stage>\d)\.linear2\.(?P<block>\d)\."
_OUR_STAGE = MODEL + "point_tokenizer.stages.{stage}.blocks.{block}."
_ATTENTION = "{layers}.0.guided_adapter_attention."
# Patterns of trained tensors with our names. Our names may end in [view]: such tensors are stacked.
TRAINED_NAMES: Names = {
    r"cls_token$": MODEL + "class_token.token",
    r"cls_pos$": MODEL + "class_token.position",
    r"norm\.": MODEL + "output_norm.",
    r"patch_embed\.EncP\.raw_point_embed\.net\.0\.": MODEL + "point_tokenizer.embed.",
    r"patch_embed\.EncP\.raw_point_embed\.net\.1\.": MODEL + "point_tokenizer.embed_norm.",
    _STAGE + r"net1\.0\.": _OUR_STAGE + "reduce.",
    _STAGE + r"net1\.1\.": _OUR_STAGE + "reduce_norm.",
    _STAGE + r"net2\.0\.": _OUR_STAGE + "expand.",
    _STAGE + r"net2\.1\.": _OUR_STAGE + "expand_norm.",
    BLOCK + r"adapter\.ln1\.": "{layers}.{layer}.guided_adapter_down.",
    BLOCK + r"adapter\.ln2\.": "{layers}.{layer}.guided_adapter_up.",
    BLOCK + r"out_transform_3d\.0\.(?P<tensor>\w+)": "{layers}.{layer}.guided_adapter_voxel_norm.{tensor}[0]",
    BLOCK + r"out_transform_[12]d\.(?P<view>\d)\.0\.(?P<tensor>\w+)": "{layers}.{layer}.guided_adapter_view_norm."
    "{tensor}[{view}]",
    r"attn1\.(?P<view>\d)\.qkv\.(?P<tensor>\w+)": _ATTENTION + "qkv_{tensor}[{view}]",
    r"attn1\.(?P<view>\d)\.proj\.(?P<tensor>\w+)": _ATTENTION + "out_{tensor}[{view}]",
    r"norm3\.(?P<view>\d)\.(?P<tensor>\w+)": _ATTENTION + "norm_{tensor}[{view}]",
    # The head of the programs for ScanObjectNN, then that of the programs for ModelNet40.
    r"prediction\.head\.0\.0\.": "classifier.hidden.0.",
    r"prediction\.head\.0\.1\.": "classifier.norms.0.",
    r"prediction\.head\.2\.0\.": "classifier.hidden.1.",
    r"prediction\.head\.2\.1\.": "classifier.norms.1.",
    r"prediction\.head\.4\.0\.": "classifier.out.",
    r"cls_head_finetune\.0\.": "classifier.hidden.0.",
    r"cls_head_finetune\.1\.": "classifier.norms.0.",
    r"cls_head_finetune\.4\.": "classifier.hidden.1.",
    r"cls_head_finetune\.5\.": "classifier.norms.1.",
    r"cls_head_finetune\.8\.": "classifier.out.",
}


def rename(name: str, variant: Variant) -> tuple[bool, tuple[str, ...]]:
    """Return whether an original tensor belongs to the frozen encoder, and our names for it.

    A tensor that is split has several names; the name of one that is stacked ends in `[view]`.

    Raises:
        KeyError: The name belongs to no known part.
    """
    # Half of the programs store all but the head under this prefix.
    plain = name.removeprefix("encoder.")
    for frozen, table in ((True, variant.encoder_names), (False, TRAINED_NAMES)):
        for pattern, ours in table.items():
            match = re.match(pattern, plain)
            if match:
                fields = {**match.groupdict(), "layers": variant.layers}
                names = ours if isinstance(ours, tuple) else (ours,)
                return frozen, tuple(ours_name.format(**fields) + plain[match.end() :] for ours_name in names)
    raise KeyError(name)


def convert_state_dict(
    original: dict[str, torch.Tensor], variant: Variant
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Rename, split, stack and reshape a released state dict.

    Args:
        original: The released program's tensors.
        variant: The program that made it.

    Returns:
        Tensors of the frozen encoder, under transformers' names, and all trained ones, under ours, adapters as PEFT
        stores them.

    Raises:
        ValueError: A tensor belongs to no known part, two to the same, tensors cannot be split, stacked or reshaped,
            or hold NaN or infinite numbers.
    """
    encoder: dict[str, torch.Tensor] = {}
    trained: dict[str, torch.Tensor] = {}
    stacks: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
    owners: dict[str, str] = {}
    unknown, twice = [], []
    for name, tensor in original.items():
        try:
            frozen, names = rename(name, variant)
        except KeyError:
            unknown.append(name)
            continue
        if first := owners.get(names[0]):
            twice.append(f"{first} and {name}")
            continue
        owners[names[0]] = name
        for ours, piece in zip(
            names, split_rows(name, tensor, len(names)) if len(names) > 1 else (tensor,), strict=True
        ):
            stacked = re.fullmatch(r"(.+)\[(\d+)\]", ours)
            if stacked is None:
                (encoder if frozen else trained)[ours] = _reshape(ours, piece)
            elif piece.ndim:  # our stacked norms have no num_batches_tracked
                stacks[stacked[1]][int(stacked[2])] = piece
    check_owners(unknown, twice)
    for name, views in stacks.items():
        if gaps := set(range(max(views) + 1)) - views.keys():
            raise ValueError(f"the checkpoint lacks tensors: {', '.join(f'{name}[{view}]' for view in sorted(gaps))}")
        trained[name] = stack([f"{name}[{view}]" for view in sorted(views)], [views[view] for view in sorted(views)])
    check_finite(original)
    return encoder, trained


def _reshape(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if "class_token" in name:
        return as_vector(name, tensor)
    return as_linear(name, tensor) if name.endswith("weight") else tensor

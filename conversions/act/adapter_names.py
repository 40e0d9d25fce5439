"""Tensors that programs of adapters add to the transformer of ACT, Point-MAE or ReCon, under our names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from hf_any3d.conversions.renaming import Names, rename_tensors

_LAYER = "act.blocks.layers."
_SCALES = {
    ("", 1): "scales_norm1",
    ("", 2): "scales_norm2",
    # The third pair in a block scales the prompt.
    ("", 3): "prompt",
    (r"attn\.", 1): "scales_attention_qkv",
    (r"attn\.", 2): "scales_attention_proj",
    (r"mlp\.", 1): "scales_mlp_fc1",
    (r"mlp\.", 2): "scales_mlp_fc2",
}
"""DAPT's scales and shifts in a block: ours by the module that has theirs and their number."""


@dataclass(frozen=True)
class Adapters:
    """Additions of one program.

    Args:
        title: Its name, for messages.
        marks: Parts of the names of its tensors, which no tensor of the transformer has.
        prefix: Prefix of our parameters.
        trained: Modules that it trains in full besides.
    """

    title: str
    marks: tuple[str, ...]
    prefix: str
    trained: tuple[str, ...] = ("classifier", "class_token")


PROGRAMS = {
    # Parts of names that occur in no tensor of the transformer itself
    "pointgst": Adapters("PointGST", ("gft_adapter.",), "pointgst_"),
    "idpt": Adapters("IDPT", ("blocks.cls.", "prompt_pos"), "idpt_"),
    "dapt": Adapters("DAPT", ("tfts_", "Adapter_MLP."), "dapt_"),
    "ppt": Adapters(
        "PPT",
        ("blocks.prompt_",),
        "ppt_",
        ("classifier", "class_token", "position_embed", "patch_encoder.lift", "lift_norm", "patch_encoder.widen"),
    ),
}
"""By the name of our method."""


def rename_added(
    method: str, added: Mapping[str, torch.Tensor], depth: int, prompt_layer: int | None = None
) -> dict[str, torch.Tensor]:
    """Rename the tensors that a program has added, to those of our classifier with an adapter called "default"."""
    if method == "idpt":
        added = _without_copied_norms(added)
    return rename_tensors(added, added_names(method, depth, prompt_layer))


def _without_copied_norms(added: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out the norms that IDPT's program stores twice, by themselves and in a sequence with their convolution."""
    kept = dict(added)
    # In modules without three layers it stores one that it never reads.
    unread = "5" if prompt_module(added) in ("dgcnn_light", "mlp") else None
    for name, tensor in added.items():
        match = re.match(r"blocks\.cls\.bn(\d)\.(\w+)$", name)
        if match is None:
            continue
        layer, kind = match.groups()
        twin = f"conv{layer}.1.{kind}"
        copy = added.get(f"blocks.cls.{twin}")
        if layer != unread and (copy is None or not torch.equal(copy, tensor)):
            raise ValueError(f"{name} is not equal to {twin}, whose copy it is in IDPT's program")
        del kept[name]
    return kept


def added_names(method: str, depth: int, prompt_layer: int | None = None) -> Names:
    """Return the table of the names of these tensors, for the arguments of `rename_added`."""
    last = depth - 1
    if method == "idpt":
        # No tensor says before which block the prompt is made.
        here = f"{_LAYER}{last if prompt_layer is None else prompt_layer}.idpt_"
        block = r"blocks\.cls\.blocks\.blocks\.0\."
        return {
            r"prompt_pos$": here + "position.default",
            # A transformer block as prompt module; PEFT stores names of one level.
            rf"{block}attn\.(?P<part>\w+)\.": here + "block_attention_{part}.default.",
            rf"{block}mlp\.(?P<part>\w+)\.": here + "block_mlp_{part}.default.",
            rf"{block}(?P<part>\w+)\.": here + "block_{part}.default.",
            r"blocks\.cls\.(?P<conv>conv\d)\.(?P<part>\d)\.": here + "{conv}_{part}.default.",
        }
    if method == "dapt":
        names = {
            r"tfts_(?P<kind>gamma|beta)_1$": _LAYER + "0.dapt_tokens.default.{kind}",
            r"tfts_(?P<kind>gamma|beta)_2$": f"{_LAYER}{last}.dapt_scales_final_norm.default." + "{kind}",
            r"blocks\.blocks\.(?P<layer>\d+)\.Adapter_MLP\.(?P<part>\w+)\.": (
                _LAYER + "{layer}.dapt_adapter_{part}.default."
            ),
        }
        for (theirs, number), ours in _SCALES.items():
            pattern = rf"blocks\.blocks\.(?P<layer>\d+)\.{theirs}tfts_(?P<kind>gamma|beta)_{number}$"
            names[pattern] = f"{_LAYER}{{layer}}.dapt_{ours}.default.{{kind}}"
        return names
    # All blocks share three MLPs, which the first one owns.
    if method == "ppt":
        return {r"blocks\.(?P<part>prompt_\w+)\.(?P<number>\d)\.": _LAYER + "0.ppt_{part}_{number}.default."}
    return {
        r"blocks\.blocks\.(?P<layer>\d+)\.gft_adapter\.(?P<part>down|adapt1|norm_ly1|norm_ly2|up)\.": (
            _LAYER + "{layer}.pointgst_{part}.default."
        )
    }


def prompt_module(names: Collection[str]) -> str:
    """Return IDPT's kind of module by the names of its tensors."""
    parts = set()
    for name in names:
        match = re.match(r"blocks\.cls\.(conv\d|blocks)\.", name)
        if match is not None:
            parts.add(match[1])
    kinds = {
        frozenset({"conv1", "conv2", "conv3", "conv5"}): "dgcnn",
        frozenset({"conv1", "conv2", "conv5"}): "dgcnn_light2",
        frozenset({"conv1", "conv5"}): "dgcnn_light",
        frozenset({"conv5"}): "mlp",
        frozenset({"blocks"}): "transformer",
    }
    # Tensors of an unknown module do not fit the published one.
    return kinds.get(frozenset(parts), "dgcnn")

"""The names that authors gave to their tensors, for copies of published weights in torch-pointcloud's layout.

torch-pointcloud publishes weights of others as safetensors, under the names of its own layers. `read_checkpoint` gives
them their authors' names again, so that each conversion reads both files.
"""

import re
from collections.abc import Callable, Mapping

import torch

from hf_any3d.conversions.renaming import Names, matches_some, numbers_in, rename_tensors, under

_State = Mapping[str, torch.Tensor]


def _layers(theirs: str, authors: str, step: int, layers: int = 3) -> dict[str, str]:
    """Return the table of an `MLP`: one layer every `step` modules of the authors' sequence, its norm behind it."""
    table = {}
    for number in range(layers):
        table[rf"{theirs}\.lins\.{number}\."] = f"{authors}.{number * step}."
        table[rf"{theirs}\.norms\.{number}\."] = f"{authors}.{number * step + 1}."
    return table


def _named_layers(theirs: str, linear: str, norm: str, first: int = 0, layers: int = 3) -> dict[str, str]:
    """Return the table of an `MLP` whose layers and norms have numbers in the authors' names, from `first`."""
    table = {}
    for number in range(layers):
        table[rf"{theirs}\.lins\.{number}\."] = linear.format(number + first)
        table[rf"{theirs}\.norms\.{number}\."] = norm.format(number + first)
    return table


# The networks of patches, positions and blocks that Point-BERT, Point-MAE and PointGPT share.
_TOKENS: Names = {**_layers("local_mlp", "first_conv", 3), **_layers("global_mlp", "second_conv", 3)}
_BLOCK: Names = {
    r"(?P<layer>\d+)\.mlp\.lins\.0\.": "{layer}.mlp.fc1.",
    r"(?P<layer>\d+)\.mlp\.lins\.1\.": "{layer}.mlp.fc2.",
    r"(?P<layer>\d+)\.(?P<part>attn|norm1|norm2)\.": "{layer}.{part}.",
}
_TRANSFORMER: Names = {
    r"cls_token$": "cls_token",
    r"cls_pos$": "cls_pos",
    r"mask_token$": "mask_token",
    **under("encoder.", "encoder.", _TOKENS),
    **_layers("pos_embed", "pos_embed", 2),
    r"reduce_dim\.": "reduce_dim.",
    r"norm\.": "norm.",
}
_HEAD: Names = _layers("head", "cls_head_finetune", 4)
_MAE: Names = {**_TRANSFORMER, **under("blocks.blocks.", "blocks.blocks.", _BLOCK)}
_BERT: Names = {**_TRANSFORMER, **under("blocks.", "blocks.blocks.", _BLOCK)}
_POINT_MAE: Names = {
    **under("MAE_encoder.", "MAE_encoder.", _MAE),
    **under("MAE_decoder.blocks.", "MAE_decoder.blocks.", _BLOCK),
    r"MAE_decoder\.norm\.": "MAE_decoder.norm.",
    r"mask_token$": "mask_token",
    **_layers("decoder_pos_embed", "decoder_pos_embed", 2),
    **_layers("increase_dim", "increase_dim", 1, 1),
}
_POINT_MAE_CLASSIFIER: Names = {**_MAE, r"norm_f\.": "norm.", **_HEAD}
_POINT_MAE_PARTS: Names = {
    **_MAE,
    r"norm_f\.": "norm.",
    **_layers("label_conv", "label_conv", 1, 1),
    **_named_layers(r"propagation_0\.mlp", "propagation_0.mlp_convs.{}.", "propagation_0.mlp_bns.{}."),
    **_named_layers("head", "convs{}.", "bns{}.", 1),
}
_POINT_BERT: Names = {
    **under("", "transformer_q.", _BERT),
    r"lm_head\.": "transformer_q.lm_head.",
    **_layers("cls_head", "transformer_q.cls_head", 2),
}
# Its head has no norms, and dropout in their place.
_POINT_BERT_CLASSIFIER: Names = {**under("encoder.", "", _BERT), **_layers("head", "cls_head_finetune", 3)}
_GRAPH: Names = {
    r"input_trans\.lins\.0\.": "input_trans.",
    r"layer(?P<layer>\d)[._]conv\.": "layer{layer}.0.",
    r"layer(?P<layer>\d)[._]norm\.": "layer{layer}.1.",
}
_DVAE: Names = {
    r"codebook$": "codebook",
    **under("encoder.", "encoder.", _TOKENS),
    **{rf"(?P<graph>\w+_[12])\.{pattern}": f"{{graph}}.{name}" for pattern, name in _GRAPH.items()},
    **_layers(r"decoder\.mlp", "decoder.mlp", 2),
    **_layers(r"decoder\.final_conv", "decoder.final_conv", 3),
}
_GPT_BLOCKS: Names = {
    r"(?P<place>sos$|ln_f\.|layers\.\d+\.(?:ln_1|ln_2|attn)\.)": "{place}",
    r"layers\.(?P<layer>\d+)\.mlp\.lins\.0\.": "layers.{layer}.mlp.0.",
    r"layers\.(?P<layer>\d+)\.mlp\.lins\.1\.": "layers.{layer}.mlp.2.",
    r"increase_dim\.lins\.0\.": "increase_dim.0.",
}
_GPT: Names = {
    r"(?P<place>cls_token|cls_pos|sos_pos)$": "{place}",
    **under("encoder.", "encoder.", _TOKENS),
    **under("blocks.", "blocks.", _GPT_BLOCKS),
    **under("generator_blocks.", "generator_blocks.", _GPT_BLOCKS),
    r"norm\.": "norm.",
}
_POINT_GPT: Names = under("", "GPT_Transformer.", _GPT)
_POINT_GPT_CLASSIFIER: Names = {
    **_GPT,
    r"cls_norm\.": "blocks.cls_norm.",
    **_layers("head", "blocks.cls_head_finetune", 4),
}
_GROUPS: Names = _named_layers(r"sa\.convs\.0\.local_nn", "mlp_module.layer{}.conv.", "mlp_module.layer{}.bn.bn.")
_DETR3D: Names = {
    **under("pre_encoder.", "pre_encoder.", _GROUPS),
    **under("encoder.interim_downsampling.", "encoder.interim_downsampling.", _GROUPS),
    r"pos_embedding\.gauss_b$": "pos_embedding.gauss_B",
    r"(?P<part>encoder|decoder|mlp_heads|query_projection|encoder_to_decoder_projection)\.": "{part}.",
}
_PTV3_BLOCK: Names = {
    r"cpe_conv\.": "cpe.0.",
    r"cpe_proj\.": "cpe.1.",
    r"cpe_norm\.": "cpe.2.",
    r"norm(?P<norm>[12])\.": "norm{norm}.0.",
    r"attn\.": "attn.",
    r"mlp\.0\.": "mlp.0.fc1.",
    r"mlp\.3\.": "mlp.0.fc2.",
}


def _ptv3_blocks(theirs: str, authors: str) -> dict[str, str]:
    """Return the table of the blocks of all stages of encoder or decoder."""
    table = {}
    for pattern, name in _PTV3_BLOCK.items():
        block = rf"{theirs}\.blocks\.(?P<stage>\d+)\.blocks\.(?P<block>\d+)\.{pattern}"
        table[block] = f"{authors}{{stage}}.block{{block}}.{name}"
    return table


_PTV3: Names = {
    r"encoder\.stem\.stem\.": "backbone.embedding.stem.conv.",
    r"encoder\.stem\.norm\.": "backbone.embedding.stem.norm.",
    r"encoder\.blocks\.(?P<stage>\d+)\.downsample\.proj\.": "backbone.enc.enc{stage}.down.proj.",
    r"encoder\.blocks\.(?P<stage>\d+)\.downsample\.norm\.": "backbone.enc.enc{stage}.down.norm.0.",
    r"decoder\.blocks\.(?P<stage>\d+)\.upsample\.(?P<part>proj|proj_skip)\.": "backbone.dec.dec{stage}.up.{part}.0.",
    r"decoder\.blocks\.(?P<stage>\d+)\.upsample\.norm\.": "backbone.dec.dec{stage}.up.proj.1.",
    r"decoder\.blocks\.(?P<stage>\d+)\.upsample\.norm_skip\.": "backbone.dec.dec{stage}.up.proj_skip.1.",
    **_ptv3_blocks("encoder", "backbone.enc.enc"),
    **_ptv3_blocks("decoder", "backbone.dec.dec"),
    r"head\.": "seg_head.",
}


def authors_names(state: _State) -> dict[str, torch.Tensor]:
    """Return tensors in torch-pointcloud's layout under the names of their authors, and all others as they are.

    Raises:
        ValueError: A tensor belongs to no part of the model that the others are of; names it.
    """
    # Its norms are within modules that take the numbers of clouds along.
    plain = {name.replace(".module.", "."): tensor for name, tensor in state.items()}
    for marks, rename in _LAYOUTS.items():
        if not all(matches_some(mark, plain) for mark in marks):
            continue
        if callable(rename):
            return rename(plain)
        return rename_tensors(plain, rename)
    return dict(state)


def _rename_point_mae_parts(state: _State) -> dict[str, torch.Tensor]:
    """Rename a Point-MAE for parts, which reads `[tokens ; xyz]` of each point, where the authors' reads xyz first."""
    joined = "propagation_0.mlp.lins.0.weight"
    weight = state[joined]
    return rename_tensors({**state, joined: torch.cat((weight[:, -3:], weight[:, :-3]), dim=1)}, _POINT_MAE_PARTS)


def _rename_ptv3(state: _State) -> dict[str, torch.Tensor]:
    """Rename a Point Transformer V3, whose decoder the authors number from the finest stage."""
    decoder = r"decoder\.blocks\.(\d+)\."
    last = max(numbers_in(state, decoder))

    def from_the_finest(match: re.Match[str]) -> str:
        return f"decoder.blocks.{last - int(match[1])}."

    renamed = {}
    for name, tensor in state.items():
        renamed[re.sub(decoder, from_the_finest, name)] = tensor
    return rename_tensors(renamed, _PTV3)


def _rename_edge_convolutions(state: _State) -> dict[str, torch.Tensor]:
    """Rename a network of edge convolutions.

    Its layers have biases before their norms, which become part of the norms' means, and the first layer of an edge
    reads `[point ; neighbor - point]`, where the authors' reads the two the other way round.
    """
    edge = r"encoder\.blocks\.(\d+)\.conv\.nn\.lins\.(\d+)\.weight$"
    places = []
    tensors = dict(state)
    for name in state:
        match = re.match(edge, name)
        if match is not None:
            places.append((int(match[1]), int(match[2])))
        mean = re.sub(r"\.lins\.(\d+)\.bias$", r".norms.\1.running_mean", name)
        if mean != name and mean in state:
            tensors[mean] = state[mean] - tensors.pop(name)
        elif match is not None and match[2] == "0":
            halves = state[name].chunk(2, dim=1)
            tensors[name] = torch.cat(halves[::-1], dim=1)
    # Patterns with a place for "lins" or "norms", in the authors' order.
    layers = [rf"encoder\.blocks\.{block}\.conv\.nn\.{{}}\.{layer}\." for block, layer in sorted(places)]
    layers.append(r"proj\.{}\.0\.")
    is_classifier = tensors["head.lins.0.weight"].shape[1] == 2 * len(tensors["proj.lins.0.weight"])
    table = {}
    if is_classifier:
        for number in range(3):
            table[rf"head\.lins\.{number}\."] = f"linear{number + 1}."
            table[rf"head\.norms\.{number}\."] = f"bn{len(layers) + number + 1}."
    else:
        layers += [r"head\.{}\.0\.", r"head\.{}\.1\."]
        table[r"head\.lins\.2\.weight$"] = f"conv{len(layers) + 1}.weight"
        # The authors' last layer has no bias; another one than zero stays, and belongs to no part.
        if not tensors["head.lins.2.bias"].any():
            tensors.pop("head.lins.2.bias")
    for number, layer in enumerate(layers, 1):
        table[layer.format("lins")] = f"conv{number}.0."
        table[layer.format("norms")] = f"conv{number}.1."
    return rename_tensors(tensors, table)


# What some names begin with -> how a file with all of them is renamed; the first one counts.
_LAYOUTS: Mapping[tuple[str, ...], Names | Callable[[_State], dict[str, torch.Tensor]]] = {
    (r"encoder\.blocks\.\d+\.blocks\.\d+\.cpe_conv\.", "decoder"): _rename_ptv3,
    (r"pre_encoder\.sa\.convs\.",): _DETR3D,
    (r"encoder\.blocks\.\d+\.conv\.nn\.lins\.", r"proj\.lins\."): _rename_edge_convolutions,
    (r"codebook$", r"decoder\.mlp\.lins\."): _DVAE,
    (r"MAE_encoder\.encoder\.local_mlp\.lins\.",): _POINT_MAE,
    (r"generator_blocks\.", r"head\.lins\."): _POINT_GPT_CLASSIFIER,
    (r"generator_blocks\.", r"encoder\.local_mlp\.lins\."): _POINT_GPT,
    (r"encoder\.reduce_dim\.", r"head\.lins\."): _POINT_BERT_CLASSIFIER,
    (r"reduce_dim\.", r"encoder\.local_mlp\.lins\."): _POINT_BERT,
    (r"norm_f\.", r"label_conv\.lins\."): _rename_point_mae_parts,
    (r"norm_f\.", r"encoder\.local_mlp\.lins\.", r"head\.lins\."): _POINT_MAE_CLASSIFIER,
}

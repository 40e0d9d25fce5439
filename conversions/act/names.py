"""Tensors of the original ACT checkpoints under our names: patterns, kinds of checkpoint, implied settings."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_any3d.conversions.checkpoints import without_parallel_prefix
from hf_any3d.conversions.common_layers import (
    BLOCK,
    BLOCKS,
    CLIP_NAMES,
    PATCH_ENCODER,
    STUDENT,
)
from hf_any3d.conversions.renaming import HEAD, Names, as_linear, as_vector, count_of, fits, rename_tensors, under

_State = Mapping[str, torch.Tensor]


def autoencoder_sizes(state: _State) -> dict[str, Any]:
    """Return the settings of `ActAutoencoderConfig`, without the numbers of patches and graph neighbors."""
    layers = count_of(state, r"graph_encoder\.layers\.(\d+)\.")
    sizes = {
        "in_channels": state["patch_encoder.lift.weight"].shape[1],
        "hidden_size": state["codebook.weight"].shape[1],
        "num_codes": state["codebook.weight"].shape[0],
        "graph_input_width": state["graph_encoder.input.weight"].shape[0],
        "graph_widths": [state[f"graph_encoder.layers.{number}.norm.weight"].shape[0] for number in range(layers)],
        "coarse_width": state["decoder.coarse.0.weight"].shape[0],
        "folding_width": state["decoder.widen.weight"].shape[0],
        # Three coordinates per coarse point, and a coarse point for every four points of a patch.
        "group_size": state["decoder.coarse.4.weight"].shape[0] // 3 * 4,
    }
    if "teacher_in.weight" in state:
        # Prompts are (sets, prompts, hidden), deep ones with a set for each layer.
        deep = "prompts.tokens" in state and state["prompts.tokens"].shape[0] > 1
        sizes["num_prompts"] = state["prompts.tokens"].shape[1] if "prompts.tokens" in state else 0
        sizes["prompt_depth"] = "deep" if deep else "shallow"
    return sizes


def teacher_sizes(frozen: _State) -> dict[str, int]:
    """Return width, depth and MLP width of a frozen teacher, given its tensors under transformers' names."""
    depth = count_of(frozen, r".*?layers?\.(\d+)\.")
    # The teachers name their layers differently; the first layer of the MLP has both sizes in its shape.
    wide = next(
        (name for name in frozen if re.search(r"layers?\.0\.(mlp\.fc1|intermediate\.dense)\.weight$", name)),
        "the MLP of the first layer of the teacher",
    )
    return {
        "hidden_size": frozen[wide].shape[1],
        "intermediate_size": frozen[wide].shape[0],
        "num_hidden_layers": depth,
    }


# A linear head has layer 0 alone; see `_names`.
LINEAR_HEAD: Names = {r"cls_head_finetune\.0\.": "classifier.out."}
DEEP_HEAD: Names = under("cls_head_finetune.", "classifier.", HEAD)
# A `joined` weight holds the columns of two of our layers; see `convert_act_state_dict`.
SEGMENTER: Names = {
    r"label_conv_cls\.0\.": "category_embedding.",
    r"label_conv_cls\.1\.": "category_norm.",
    r"propagation_0_cls\.mlp_convs\.0\.weight$": "propagation.joined.weight",
    r"propagation_0_cls\.mlp_convs\.0\.": "propagation.from_points.",
    r"propagation_0_cls\.mlp_bns\.0\.": "propagation.mixed_norm.",
    r"propagation_0_cls\.mlp_convs\.1\.": "propagation.out.",
    r"propagation_0_cls\.mlp_bns\.1\.": "propagation.out_norm.",
    r"convs1_cls\.weight$": "segmenter.joined.weight",
    r"convs1_cls\.": "segmenter.from_points.",
    r"bns1_cls\.": "segmenter.norm.",
    r"convs2_cls\.": "segmenter.head.hidden.0.",
    r"bns2_cls\.": "segmenter.head.norms.0.",
    r"convs3_cls\.": "segmenter.head.out.",
}


_GRAPH: Names = {
    r"input_trans\.": "input.",
    **{rf"layer{number + 1}\.0\.": f"layers.{number}.linear." for number in range(4)},
    **{rf"layer{number + 1}\.1\.": f"layers.{number}.norm." for number in range(4)},
    r"layer5\.0\.": "output.",
    r"layer5\.1\.": "norm.",
}
_DECODER: Names = {
    r"mlp\.": "coarse.",
    r"final_conv\.0\.": "lift.",
    r"final_conv\.1\.": "lift_norm.",
    r"final_conv\.3\.": "widen.",
    r"final_conv\.4\.": "widen_norm.",
    r"final_conv\.6\.": "out.",
}
_VIT_BLOCK = r"visual_embed\.0\.(?P<layer>\d+)\."
_CLIP_BLOCK = r"visual_embed\.1\.(?P<layer>\d+)\."
_VIT = "layers.{layer}."
# No name of one teacher matches a pattern of another.
VIT_TEACHER: Names = {
    _VIT_BLOCK + r"norm1\.": _VIT + "layernorm_before.",
    _VIT_BLOCK + r"attn\.qkv\.(?P<tensor>\w+)": tuple(_VIT + f"attention.{part}_proj.{{tensor}}" for part in "qkv"),
    _VIT_BLOCK + r"attn\.proj\.": _VIT + "attention.o_proj.",
    _VIT_BLOCK + r"norm2\.": _VIT + "layernorm_after.",
    _VIT_BLOCK + r"mlp\.fc(?P<linear>[12])\.": _VIT + "mlp.fc{linear}.",
    r"visual_embed\.1\.(?=weight$|bias$)": "layernorm.",
}
CLIP_TEACHER: Names = {
    r"visual_embed\.0\.(?=weight$|bias$)": "pre_layrnorm.",
    **{_CLIP_BLOCK + pattern.removeprefix(BLOCK): ours for pattern, ours in CLIP_NAMES.items()},
    r"visual_embed\.2\.": "post_layernorm.",
}
BERT_TEACHER: Names = {r"visual_embed\.0\.layer\.": "encoder.layer."}
TEACHERS = {"vit": VIT_TEACHER, "clip_vision_model": CLIP_TEACHER, "bert": BERT_TEACHER}

AUTOENCODER: Names = {
    r"codebook$": "codebook.weight",
    **under("encoder.", "patch_encoder.", PATCH_ENCODER),
    **under("dgcnn_1.", "graph_encoder.", _GRAPH),
    **under("dgcnn_2.", "graph_decoder.", _GRAPH),
    **under("decoder.", "decoder.", _DECODER),
    r"proj_pre\.": "teacher_in.",
    r"proj_post\.": "teacher_out.",
    r"visual_pos_embed\.": "position_embed.",
    r"visual_prompt_token$": "prompts.tokens",
    r"visual_prompt_pos$": "prompts.positions",
    r"deep_prompt_tokens$": "prompts.deep_tokens",
    r"deep_prompt_pos$": "prompts.deep_positions",
    **{
        pattern: tuple(f"encoder.{name}" for name in ours) if isinstance(ours, tuple) else f"encoder.{ours}"
        for table in TEACHERS.values()
        for pattern, ours in table.items()
    },
}


PRETRAINING: Names = {
    # Scores of codes, which nothing reads.
    r"ACT_encoder\.lm_head\.": None,
    r"ACT_encoder\.cls_head\.": "feature_head.",
    **under("ACT_encoder.", "act.", STUDENT),
    **under("dvae_tokenizer.", "autoencoder.", AUTOENCODER),
    r"mask_token$": "mask_token",
    r"cls_pos$": "decoder_class_position",
    r"decoder_pos_embed\.": "decoder_position_embed.",
    **under("ACT_decoder.blocks.", "decoder.layers.", BLOCKS),
    r"ACT_decoder\.norm\.": "decoder_norm.",
    r"proj_head\.": "prediction_head.",
}


@dataclass(frozen=True)
class Kind:
    """One kind of checkpoint.

    Args:
        name: What the command line calls it.
        described: What it is, for messages.
        mark: Prefix of a name that identifies the kind; the first match in `KINDS` counts.
    """

    name: str
    described: str
    mark: str


KINDS = {
    kind.name: kind
    for kind in (
        # In this order: a checkpoint of stage II holds a codebook too.
        Kind("pretrain", "a student with its frozen autoencoder (stage II)", "ACT_encoder."),
        Kind("dvae", "a discrete autoencoder (stage I)", "codebook"),
        Kind("cls", "a classifier", "cls_head_finetune."),
        Kind("partseg", "a part segmentation model", "label_conv_cls."),
        Kind("semseg", "a semantic segmentation model", "convs3_cls."),
    )
}


def kind_of(names: Collection[str]) -> dict[str, str] | None:
    """Return the argument `kind` of checkpoints with tensors of these names; None if they are not ACT's."""
    for kind in KINDS.values():
        if any(name.startswith(kind.mark) for name in names):
            return {"kind": kind.name}
    return None


# A layer over concatenated point and other channels, our two layers, and the tensor whose rows are the point channels;
# without one these are xyz.
_JOINED = (
    ("propagation.joined.weight", "propagation.from_points.weight", "propagation.from_tokens.weight", None),
    (
        "segmenter.joined.weight",
        "segmenter.from_points.weight",
        "segmenter.from_cloud.weight",
        "propagation.out.weight",
    ),
)
_VECTORS = ("_token.token", "_token.position", "mask_token", "decoder_class_position")


def convert_act_state_dict(kind: str, original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename, split and reshape the tensors of a checkpoint.

    Returns:
        Tensors of our model; those of the frozen teacher are below `encoder.`, under transformers' names.
    """
    state = without_parallel_prefix(original)
    renamed = rename_tensors(state, _names(kind, state))
    # The first layer's prompts are joined with those of the later layers, if these have their own.
    for name in [name for name in renamed if ".deep_" in name]:
        first = name.replace(".deep_", ".")
        renamed[first] = torch.cat((renamed[first], renamed.pop(name)))
    return reshape_tensors(renamed, is_segmenter=kind in ("partseg", "semseg"))


def reshape_tensors(renamed: _State, *, is_segmenter: bool) -> dict[str, torch.Tensor]:
    """Turn tensors of the released programs under our names into those of our layers."""
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in renamed.items():
        if name.endswith(_VECTORS):
            converted[name] = as_vector(tensor)
        elif name == "category_embedding.weight":
            # A linear layer over one-hot categories becomes an embedding.
            converted[name] = as_linear(tensor).T
        elif name.endswith("weight"):
            converted[name] = as_linear(tensor)
        else:
            converted[name] = tensor
    for joined, points, others, like in _JOINED if is_segmenter else ():
        # As many columns as the point has channels; the others are of tokens or of the cloud.
        columns = 3 if like is None else converted[like].shape[0]
        weight = converted.pop(joined)
        # A linear layer over concatenated channels is the sum of two over the parts, which need not be concatenated in
        # memory.
        converted |= {points: weight[:, :columns], others: weight[:, columns:]}
    return converted


def teacher_of(original: Mapping[str, torch.Tensor]) -> str | None:
    """Return the `model_type` of the frozen teacher in a checkpoint of stage I or II; None if there is none."""
    prefix = "dvae_tokenizer." if any(name.startswith("dvae_tokenizer.") for name in original) else ""
    names = {name.removeprefix(prefix): tensor for name, tensor in original.items() if "visual_embed." in name}
    if not names:
        return None
    # A teacher of another kind has at least one name that matches no pattern.
    return next((kind for kind, table in TEACHERS.items() if fits(names, table)), None)


def _names(kind: str, state: Mapping[str, torch.Tensor]) -> Names:
    if kind == "dvae":
        return AUTOENCODER
    if kind == "pretrain":
        return PRETRAINING
    student = under("", "act.", STUDENT)
    if kind == "cls":
        # Linear probes have a head of a single layer under the same name.
        deep = any(name.startswith("cls_head_finetune.1.") for name in state)
        return {**student, **(DEEP_HEAD if deep else LINEAR_HEAD)}
    return {**student, **SEGMENTER}

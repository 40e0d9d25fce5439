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
    token_width = state["patch_encoder.out.weight"].shape[0]
    decoder_width = state["decoder.coarse.0.weight"].shape[1]
    hidden_size = state["codebook.weight"].shape[1]
    sizes = {
        "in_channels": state["patch_encoder.lift.weight"].shape[1],
        "hidden_size": hidden_size,
        "patch_token_width": token_width if token_width != hidden_size else None,
        "decoder_width": decoder_width if decoder_width != hidden_size else None,
        "num_codes": state["codebook.weight"].shape[0],
        "graph_input_width": state["graph_encoder.input.weight"].shape[0],
        "graph_widths": [state[f"graph_encoder.layers.{number}.norm.weight"].shape[0] for number in range(layers)],
        "coarse_width": state["decoder.coarse.0.weight"].shape[0],
        "folding_width": state["decoder.widen.weight"].shape[0],
        # Three coordinates per coarse point, and a coarse point for every four points of a patch.
        "group_size": state["decoder.coarse.4.weight"].shape[0] // 3 * 4,
    }
    if "teacher_in.weight" in state:
        sizes |= {"num_prompts": 0, "prompt_depth": "shallow"}
        if "prompts.tokens" in state:
            # (sets, prompts, hidden), deep ones with a set for each layer
            prompts = state["prompts.tokens"].shape
            sizes["num_prompts"] = prompts[1]
            if prompts[0] > 1:
                sizes["prompt_depth"] = "deep"
    return sizes


def teacher_sizes(frozen: _State) -> dict[str, int]:
    """Return width, depth and MLP width of a frozen teacher, given its tensors under transformers' names."""
    wide = _first_mlp(frozen)
    return {
        "hidden_size": wide.shape[1],
        "intermediate_size": wide.shape[0],
        "num_hidden_layers": count_of(frozen, r".*?layers?\.(\d+)\."),
    }


def _first_mlp(frozen: _State) -> torch.Tensor:
    """Return the weight of the first layer of a teacher's first MLP, which the teachers name differently."""
    for name, tensor in frozen.items():
        if re.search(r"layers?\.0\.(mlp\.fc1|intermediate\.dense)\.weight$", name):
            return tensor
    raise KeyError("the MLP of the first layer of the teacher")


# A linear head has layer 0 alone; see `_names`.
LINEAR_HEAD: Names = {r"cls_head_finetune\.0\.": "classifier.out."}
DEEP_HEAD: Names = under("cls_head_finetune.", "classifier.", HEAD)
# Of classifiers of Point-BERT: one hidden layer without a norm.
PLAIN_HEAD: Names = {r"cls_head_finetune\.0\.": "classifier.hidden.0.", r"cls_head_finetune\.3\.": "classifier.out."}


def _propagation(theirs: str, ours: str) -> dict[str, str]:
    """Return the names of layers that propagate features to points."""
    return {
        rf"{theirs}\.mlp_convs\.0\.weight$": f"{ours}joined.weight",
        rf"{theirs}\.mlp_convs\.0\.": f"{ours}from_points.",
        rf"{theirs}\.mlp_bns\.0\.": f"{ours}mixed_norm.",
        rf"{theirs}\.mlp_convs\.1\.": f"{ours}out.",
        rf"{theirs}\.mlp_bns\.1\.": f"{ours}out_norm.",
    }


# A `joined` weight holds the columns of two of our layers; see `convert_act_state_dict`.
# ACT appends `_cls` to names that its relatives have without, in order to train them by name.
SEGMENTER: Names = {
    r"label_conv(_cls)?\.0\.": "category_embedding.",
    r"label_conv(_cls)?\.1\.": "category_norm.",
    **_propagation("propagation_0(_cls)?", "propagation."),
    r"convs1(_cls)?\.weight$": "segmenter.joined.weight",
    r"convs1(_cls)?\.": "segmenter.from_points.",
    r"bns1(_cls)?\.": "segmenter.norm.",
    r"convs2(_cls)?\.": "segmenter.head.hidden.0.",
    r"bns2(_cls)?\.": "segmenter.head.norms.0.",
    r"convs3(_cls)?\.": "segmenter.head.out.",
}


# Point-BERT's own head for points.
LEVELS_SEGMENTER: Names = {
    **_propagation("propagation_0", "propagation."),
    **_propagation("propagation_1", "fine_propagation."),
    **_propagation("propagation_2", "coarse_propagation."),
    r"dgcnn_pro_1\.layer1\.0\.": "fine_graph.layers.0.linear.",
    r"dgcnn_pro_1\.layer1\.1\.": "fine_graph.layers.0.norm.",
    r"dgcnn_pro_1\.layer2\.0\.": "fine_graph.layers.1.linear.",
    r"dgcnn_pro_1\.layer2\.1\.": "fine_graph.layers.1.norm.",
    r"dgcnn_pro_2\.layer1\.0\.": "coarse_graph.layers.0.linear.",
    r"dgcnn_pro_2\.layer1\.1\.": "coarse_graph.layers.0.norm.",
    r"dgcnn_pro_2\.layer2\.0\.": "coarse_graph.layers.1.linear.",
    r"dgcnn_pro_2\.layer2\.1\.": "coarse_graph.layers.1.norm.",
    r"conv1\.": "segmenter.hidden.0.",
    r"bn1\.": "segmenter.norms.0.",
    r"conv2\.": "segmenter.out.",
}

_GRAPH: Names = {
    r"input_trans\.": "input.",
    r"layer1\.0\.": "layers.0.linear.",
    r"layer1\.1\.": "layers.0.norm.",
    r"layer2\.0\.": "layers.1.linear.",
    r"layer2\.1\.": "layers.1.norm.",
    r"layer3\.0\.": "layers.2.linear.",
    r"layer3\.1\.": "layers.2.norm.",
    r"layer4\.0\.": "layers.3.linear.",
    r"layer4\.1\.": "layers.3.norm.",
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
    **under("", "encoder.", VIT_TEACHER),
    **under("", "encoder.", CLIP_TEACHER),
    **under("", "encoder.", BERT_TEACHER),
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


POINT_MAE: Names = {
    **under("MAE_encoder.", "act.", STUDENT),
    r"mask_token$": "mask_token",
    r"decoder_pos_embed\.": "decoder_position_embed.",
    **under("MAE_decoder.blocks.", "decoder.layers.", BLOCKS),
    r"MAE_decoder\.norm\.": "decoder_norm.",
    r"increase_dim\.0\.": "prediction_head.",
}


def _masked_student(theirs: str, ours: str) -> dict[str, str | tuple[str, ...] | None]:
    """Return the names of Point-BERT's student, or of its moving average."""
    return {
        rf"{theirs}mask_token$": f"{ours}mask_token",
        rf"{theirs}lm_head\.": f"{ours}code_head.",
        rf"{theirs}cls_head\.": f"{ours}feature_head.",
        **under(theirs, f"{ours}act.", STUDENT),
    }


POINT_BERT: Names = {
    **_masked_student("transformer_q.", ""),
    **_masked_student("transformer_k.", "average."),
    **under("dvae.", "autoencoder.", AUTOENCODER),
    r"queue$": "queue",
    r"queue_ptr$": "queue_place",
}


@dataclass(frozen=True)
class Kind:
    """One kind of checkpoint.

    Args:
        name: What the command line calls it.
        described: What it is, for messages.
        mark: Prefix of a name that identifies the kind; the first match in `KINDS` counts. None if one is not enough.
    """

    name: str
    described: str
    mark: str | None


_KINDS = (
    # In this order: a checkpoint of stage II holds a codebook too.
    Kind("pretrain", "a student of ACT with its frozen autoencoder (stage II)", "ACT_encoder."),
    Kind("dvae", "a discrete autoencoder (stage I)", "codebook"),
    Kind("cls", "a classifier of ACT or Point-MAE", "cls_head_finetune."),
    Kind("partseg", "a part segmentation model of ACT or Point-MAE", "label_conv_cls."),
    Kind("semseg", "a semantic segmentation model", "convs3_cls."),
    # Relatives of ACT; `hf_any3d.conversions.point_starts` knows their marks.
    Kind("point_mae", "a pretraining file of Point-MAE", None),
    Kind("point_bert", "a pretraining file of Point-BERT", None),
    Kind("point_bert_cls", "a classifier of Point-BERT", None),
    Kind("point_bert_partseg", "a part segmentation model of Point-BERT", None),
)
KINDS = {kind.name: kind for kind in _KINDS}


def kind_of(names: Collection[str]) -> dict[str, str] | None:
    """Return the argument `kind` of checkpoints with tensors of these names; None if they are not ACT's."""
    for kind in KINDS.values():
        if kind.mark is not None and any(name.startswith(kind.mark) for name in names):
            return {"kind": kind.name}
    return None


# Layers over concatenated channels of points and of others: the beginning of the names of our two, and the others.
_JOINED = (
    ("propagation.", "tokens"),
    ("segmenter.", "cloud"),
    (r"fine_propagation.", "tokens"),
    (r"coarse_propagation.", "tokens"),
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
    for name in list(renamed):
        if ".deep_" in name:
            first = name.replace(".deep_", ".")
            renamed[first] = torch.cat((renamed[first], renamed.pop(name)))
    return reshape_tensors(kind, renamed)


def reshape_tensors(kind: str, renamed: _State) -> dict[str, torch.Tensor]:
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
    for layer, others in _JOINED:
        weight = converted.pop(f"{layer}joined.weight", None)
        if weight is not None:
            columns = _point_columns(kind, layer, converted, weight)
            # A linear layer over concatenated channels is the sum of two over the parts, which need not be joined
            # in memory.
            converted[f"{layer}from_points.weight"] = weight[:, :columns]
            converted[f"{layer}from_{others}.weight"] = weight[:, columns:]
    return converted


def _point_columns(kind: str, layer: str, state: _State, joined: torch.Tensor) -> int:
    """Return how many columns of a joined layer are of a point, which come before those of tokens or of the cloud."""
    if layer == "segmenter.":
        return state["propagation.out.weight"].shape[0]
    if kind == "point_bert_partseg":
        # All but those of a token: xyz, for all points also the category.
        return joined.shape[1] - state["act.norm.weight"].shape[0]
    return 3


def teacher_of(original: Mapping[str, torch.Tensor]) -> str | None:
    """Return the `model_type` of the frozen teacher in a checkpoint of stage I or II; None if there is none."""
    # Stage II has the autoencoder, with its teacher, below a prefix.
    frozen = {}
    for name, tensor in original.items():
        if "visual_embed." in name:
            frozen[name.removeprefix("dvae_tokenizer.")] = tensor
    if not frozen:
        return None
    for kind, table in TEACHERS.items():
        # A teacher of another kind has at least one name that matches no pattern.
        if fits(frozen, table):
            return kind
    return None


_TABLES = {"dvae": AUTOENCODER, "pretrain": PRETRAINING, "point_mae": POINT_MAE, "point_bert": POINT_BERT}


def _names(kind: str, state: Mapping[str, torch.Tensor]) -> Names:
    if kind in _TABLES:
        return _TABLES[kind]
    student = under("", "act.", STUDENT)
    if kind == "point_bert_cls":
        return {**student, **PLAIN_HEAD}
    if kind == "point_bert_partseg":
        return {**student, **LEVELS_SEGMENTER}
    if kind == "cls":
        # Linear probes have a head of a single layer under the same name.
        deep = any(name.startswith("cls_head_finetune.1.") for name in state)
        return {**student, **(DEEP_HEAD if deep else LINEAR_HEAD)}
    return {**student, **SEGMENTER}

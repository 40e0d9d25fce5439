"""The student: patches, mini-PointNet, transformer blocks, and the heads that it is fine-tuned with."""

from hf_any3d.conversions.any2point.variants import BLOCK, CLIP_NAMES
from hf_any3d.conversions.renaming import Names, under

PATCH_ENCODER: Names = {
    r"first_conv\.0\.": "lift.",
    r"first_conv\.1\.": "lift_norm.",
    r"first_conv\.3\.": "widen.",
    r"second_conv\.0\.": "join.",
    r"second_conv\.1\.": "join_norm.",
    r"second_conv\.3\.": "out.",
}
# `PointBlocks`, in front of whose numbers the original has `blocks.` once or twice.
BLOCKS: Names = {
    r"(?P<layer>\d+)\.attn\.": "{layer}.attention.",
    r"(?P<layer>\d+)\.(?=norm[12]\.|mlp\.)": "{layer}.",
}
STUDENT: Names = {
    r"cls_token$": "class_token.token",
    r"cls_pos$": "class_token.position",
    **under("encoder.", "patch_encoder.", PATCH_ENCODER),
    r"pos_embed\.": "position_embed.",
    **under("blocks.blocks.", "blocks.layers.", BLOCKS),
    r"norm\.": "norm.",
    **under("side.", "side.", PATCH_ENCODER),
    r"side_projection\.": "side_projection.",
    r"side_alpha$": "side_alpha",
}
# A linear head has layer 0 alone; see `convert_act_state_dict`.
LINEAR_HEAD: Names = {r"cls_head_finetune\.0\.": "classifier.out."}
DEEP_HEAD: Names = {
    r"cls_head_finetune\.0\.": "classifier.hidden.0.",
    r"cls_head_finetune\.1\.": "classifier.norms.0.",
    r"cls_head_finetune\.4\.": "classifier.hidden.1.",
    r"cls_head_finetune\.5\.": "classifier.norms.1.",
    r"cls_head_finetune\.8\.": "classifier.out.",
}
# Names in `joined` are columns of two layers of ours, which `state_dicts` takes apart.
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
# No name of one teacher fits a pattern of another.
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
    # Nothing ever reads the scores of codes that this layer gives.
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

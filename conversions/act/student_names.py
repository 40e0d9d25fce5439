"""The student: patches, mini-PointNet, transformer blocks, and the heads that it is fine-tuned with."""

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

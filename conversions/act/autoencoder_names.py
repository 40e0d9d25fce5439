"""The discrete autoencoder of stage I, and the frozen teacher inside it under transformers' names."""

from hf_any3d.conversions.act.student_names import PATCH_ENCODER
from hf_any3d.conversions.any2point.variants import BLOCK, CLIP_NAMES
from hf_any3d.conversions.renaming import Names, under

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

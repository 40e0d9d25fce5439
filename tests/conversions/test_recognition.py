"""Programs by the names of tensors, one name at a time, and the plan for files in any order."""

import json
import re

import pytest
import torch

from hf_any3d.conversions.programs import PROGRAMS, plan, recognize
from tests.errors import raises

ANY2POINT = "patch_embed.EncP.raw_point_embed.net.0.weight"
BLOCK = "blocks.blocks.0."
# Names of tensors -> conversion, role, settings.
MARKS = {
    (ANY2POINT, "blocks.0.attn.in_proj_weight"): ("any2point", "checkpoint", {"variant": "clip-scan"}),
    (f"encoder.{ANY2POINT}", "encoder.blocks.0.ls1.gamma", "cls_head_finetune.0.weight"): (
        *("any2point", "checkpoint"),
        {"variant": "dinov2-modelnet"},
    ),
    (ANY2POINT,): ("any2point", "checkpoint", {"variant": "imagebind-scan"}),
    ("modality_trunks.audio.blocks.0.norm_1.weight",): ("imagebind_audio", "checkpoint", {}),
    ("pre_encoder.mlp_module.layer0.conv.weight",): ("detr3d", "checkpoint", {}),
    ("conv9.weight", "bn1.weight"): ("dgcnn", "checkpoint", {}),
    ("feature_model.conv1.weight", "linear3.bias"): ("pointnet", "checkpoint", {}),
    ("sa.mlp_convs.0.weight",): ("openshape", "checkpoint", {}),
    ("ppat.sa.mlp_convs.0.weight",): ("openshape", "checkpoint", {}),
    ("pc_encoder.ppat.sa.mlp_convs.0.weight",): ("openshape", "checkpoint", {}),
    ("GPT_Transformer.norm.weight", "GPT_Transformer.encoder.first_conv.0.weight"): (
        *("pointgpt", "checkpoint"),
        {"kind": "pretrain"},
    ),
    ("cls_token", "blocks.cls_head_finetune.0.weight"): ("pointgpt", "checkpoint", {"kind": "cls"}),
    ("label_conv.0.weight", "generator_blocks.sos"): ("pointgpt", "checkpoint", {"kind": "partseg"}),
    ("point_backbone.input_proj.weight", "model.norm.weight"): ("spatiallm", "checkpoint", {}),
    ("point_encoder.visual.blocks.0.norm1.weight",): ("uni3d", "checkpoint", {}),
    ("extractor.embedding.stem.conv.weight",): ("find3d", "checkpoint", {}),
    ("backbone.embedding.stem.conv.weight",): ("ptv3", "checkpoint", {}),
    ("embedding.stem.linear.weight",): ("ptv3", "checkpoint", {}),
    ("seg_head.weight", "seg_head.bias"): ("ptv3", "head", {}),
    ("query_router.0.weight", "query_expert_dict.1"): ("minigpt3d", "checkpoint", {"order": 4}),
    ("llama_proj.weight", "Qformer.bert.layer.lora_A.default.weight"): ("minigpt3d", "checkpoint", {"order": 3}),
    ("llama_proj2.weight", "point_2_Qformer_proj.0.weight"): ("minigpt3d", "checkpoint", {"order": 0}),
    ("llama_model.norm.weight",): ("minigpt3d", "checkpoint", {"order": 0}),
    ("point_2_Qformer_proj.0.weight",): ("minigpt3d", "checkpoint", {"order": 1}),
    ("Qformer.bert.embeddings.LayerNorm.weight",): ("minigpt3d", "qformer", {}),
    ("encoder.first_conv.0.weight", f"{BLOCK}norm1.weight"): ("minigpt3d", "point_encoder", {}),
    (f"{BLOCK}gft_adapter.down.weight",): ("act_adapter", "checkpoint", {"method": "pointgst"}),
    ("blocks.cls.conv5.0.weight",): ("act_adapter", "checkpoint", {"method": "idpt"}),
    ("prompt_pos", "cls_pos"): ("act_adapter", "checkpoint", {"method": "idpt"}),
    (f"{BLOCK}Adapter_MLP.up_proj.bias",): ("act_adapter", "checkpoint", {"method": "dapt"}),
    ("blocks.prompt_all_mlp.0.weight",): ("act_adapter", "checkpoint", {"method": "ppt"}),
    ("ACT_encoder.norm.weight", "codebook"): ("act", "checkpoint", {"kind": "pretrain"}),
    ("codebook",): ("act", "checkpoint", {"kind": "dvae"}),
    ("cls_head_finetune.0.weight", "encoder.first_conv.0.weight"): ("act", "checkpoint", {"kind": "cls"}),
    ("label_conv_cls.0.weight", "convs3_cls.weight"): ("act", "checkpoint", {"kind": "partseg"}),
    ("convs3_cls.weight",): ("act", "checkpoint", {"kind": "semseg"}),
    ("mask_token", "MAE_encoder.norm.weight"): ("act", "checkpoint", {"kind": "point_mae"}),
    (f"{BLOCK}norm1.weight", "label_conv.0.weight"): ("act", "checkpoint", {"kind": "partseg"}),
    ("dvae.codebook", "transformer_q.norm.weight"): ("act", "checkpoint", {"kind": "point_bert"}),
    ("cls_head_finetune.3.weight", f"{BLOCK}norm1.weight"): ("act", "checkpoint", {"kind": "point_bert_cls"}),
    ("dgcnn_pro_1.layer1.0.weight", f"{BLOCK}norm1.weight"): ("act", "checkpoint", {"kind": "point_bert_partseg"}),
}


def stored(folder, name: str, *tensors: str, key: str = "state_dict", **others):
    """Write a file of tensors of these names."""
    torch.save({key: {tensor: torch.ones(2) for tensor in tensors}, **others}, folder / name)
    return folder / name


@pytest.mark.parametrize("names", MARKS, ids=lambda names: "+".join(names)[:60])
def test_names_of_tensors_tell_conversion_role_and_settings(names, tmp_path):
    convert, role, settings = MARKS[names]
    found = recognize(stored(tmp_path, "file.pth", *names))
    assert (found.program.convert, found.program.role) == (f"convert_{convert}", role)
    assert found.settings == settings and found.path == tmp_path / "file.pth"


def test_a_file_of_no_program_is_told_by_its_first_tensors(tmp_path):
    file = stored(tmp_path, "other.pth", *(f"layer{number}.weight" for number in range(7)), "seg_head.weight")
    titles = ", ".join(dict.fromkeys(program.title for program in PROGRAMS))
    names = ", ".join(f"layer{number}.weight" for number in range(5))
    with pytest.raises(
        ValueError,
        match=f"^{re.escape(f'{file}: unrecognized checkpoint; its tensor names match none of {titles}: {names}')}$",
    ):
        recognize(file)
    with raises(FileNotFoundError, naming="absent.pth"):
        recognize(tmp_path / "absent.pth")


def test_files_of_stages_are_put_in_the_order_of_training(tmp_path):
    parts = {}
    for role, kind in (("point_encoder", "act3d"), ("qformer", "blip-2"), ("language_model", "phi")):
        (tmp_path / role).mkdir()
        (tmp_path / role / "config.json").write_text(json.dumps({"model_type": kind}))
        parts[role] = tmp_path / role
    marks = {
        4: "query_router.0.weight",
        3: "Qformer.a.lora_A.default",
        0: "llama_proj.weight",
        1: "point_2_Qformer_proj.x",
    }
    files = {order: stored(tmp_path, f"stage_{order}.pth", mark) for order, mark in marks.items()}
    again = stored(tmp_path, "stage_2.pth", marks[3])
    for given, expected in (
        ([files[4], files[3]], [files[3], files[4]]),
        ([files[1], files[0]], [files[0], files[1]]),
        # These two look alike, and keep their order.
        ([again, files[3]], [again, files[3]]),
        ([files[3], again], [files[3], again]),
        ([files[0]], [files[0]]),
    ):
        arguments = dict(zip(("checkpoint", "second_checkpoint"), expected, strict=False))
        assert plan([given[0], *parts.values(), *given[1:]]) == ("convert_minigpt3d", parts | arguments)
    with raises(ValueError, naming="stage_4.pth"):
        plan([files[4], files[3], files[1], *parts.values()])
    with raises(ValueError, naming="lacks point_encoder"):
        plan([files[4], files[3], parts["qformer"]])
    two = {role: parts[role] for role in ("language_model", "qformer")}
    assert plan(list(two.values())) == ("convert_minigpt3d_parts", two)

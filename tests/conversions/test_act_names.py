"""ACT's released names under ours, for every kind of checkpoint and teacher."""

import json
from pathlib import Path

import pytest
import torch

from hf_any3d.conversions.act import KINDS, convert_act_state_dict, kind_of, teacher_of
from hf_any3d.conversions.act.names import student_sizes
from tests.errors import raises

FOLDER = Path(__file__).parents[1] / "reference"
CASES = {
    "cls": ("cls", None),
    "cls_modelnet": ("cls", None),
    "partseg": ("partseg", None),
    "semseg": ("semseg", None),
    "dvae": ("dvae", "vit"),
    "dvae_shallow": ("dvae", "vit"),
    "dvae_bert": ("dvae", "bert"),
    "dvae_clip": ("dvae", "clip_vision_model"),
    "dvae_clip_deep": ("dvae", "clip_vision_model"),
    "dvae_plain": ("dvae", None),
    "pretrain": ("pretrain", "vit"),
    "pretrain_cls": ("pretrain", "vit"),
}


def names_of(case):
    """The released state dict, shapes only."""
    manifest = json.loads((FOLDER / f"act_{case}.json").read_text())
    return {name: torch.empty(shape, device="meta") for name, (shape, _) in manifest["state_dict"].items()}


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_of_a_released_state_dict_is_converted_once(case):
    kind, teacher = CASES[case]
    original = names_of(case)
    assert kind_of(original) is KINDS[kind]
    assert teacher_of(original) == teacher
    converted = convert_act_state_dict(kind, original)
    left_out = sum(tensor.numel() for name, tensor in original.items() if "lm_head" in name)
    assert sum(t.numel() for t in converted.values()) + left_out == sum(t.numel() for t in original.values())
    assert not [name for name, tensor in converted.items() if name.endswith("weight") and tensor.ndim > 2]


def test_sizes_of_a_student_are_read_from_its_tensors():
    state = convert_act_state_dict("cls", names_of("cls"))
    found = student_sizes(state)
    names = {"in_channels", "hidden_size", "num_hidden_layers", "mlp_ratio", "qkv_bias", "use_class_token"}
    assert found.keys() == {*names, "side_network"}
    assert found["in_channels"] == 3 and found["mlp_ratio"] == 4 and found["use_class_token"]
    assert (found["hidden_size"], found["num_hidden_layers"]) == (384, 12)
    assert not found["side_network"]
    assert student_sizes(state | {"act.side_alpha": torch.empty(1, device="meta")})["side_network"]


def test_prefixes_of_data_parallel_training_are_removed():
    original = names_of("cls")
    parallel = {f"module.{name}": tensor for name, tensor in original.items()}
    assert convert_act_state_dict("cls", parallel).keys() == convert_act_state_dict("cls", original).keys()


def test_first_and_deep_prompts_become_one_tensor_in_the_order_of_the_layers():
    original = names_of("dvae")
    for number, name in enumerate(("visual_prompt_pos", "deep_prompt_pos")):
        original[name] = torch.full(original[name].shape, float(number))
    positions = convert_act_state_dict("dvae", original)["prompts.positions"]
    assert positions[:, 0, 0].tolist() == [0, 1, 1]
    del original["visual_prompt_pos"]
    with pytest.raises(ValueError, match=r"lacks tensors: the first layer's part of prompts\.positions"):
        convert_act_state_dict("dvae", original)


def test_stacked_queries_keys_and_values_are_split_in_this_order():
    original = names_of("dvae")
    stacked = torch.arange(3 * 768).float().unsqueeze(1).expand(-1, 768)
    original["visual_embed.0.2.attn.qkv.weight"] = stacked
    converted = convert_act_state_dict("dvae", original)
    for number, part in enumerate("qkv"):
        assert torch.equal(converted[f"encoder.layers.2.attention.{part}_proj.weight"], stacked.chunk(3)[number])


@pytest.mark.parametrize(
    ("case", "kind", "message"),
    [
        ("cls", "partseg", "not a part segmentation model but a classifier; give --kind cls"),
        ("semseg", "partseg", "but a semantic segmentation model; give --kind semseg"),
        ("partseg", "semseg", "but a part segmentation model; give --kind partseg"),
        ("pretrain", "dvae", r"but a student with its frozen autoencoder \(stage II\); give --kind pretrain"),
        ("dvae_plain", "pretrain", r"but a discrete autoencoder \(stage I\); give --kind dvae"),
        ("dvae", "dVAE", "kind='dVAE'; expected one of pretrain, dvae, cls, partseg, semseg"),
    ],
)
def test_another_kind_is_named(case, kind, message):
    with pytest.raises(ValueError, match=message):
        convert_act_state_dict(kind, names_of(case))


def test_other_checkpoints_are_described_by_their_prefixes():
    state = {"MAE_encoder.norm.weight": torch.ones(2), "mask_token": torch.ones(1)}
    assert kind_of(state) is None
    with raises(ValueError, naming="mask_token"):
        convert_act_state_dict("cls", state)


def test_unknown_and_doubled_tensors_are_listed():
    original = names_of("dvae") | {"visual_embed.3.weight": torch.ones(2), "extra": torch.ones(2)}
    with raises(ValueError, naming="visual_embed"):
        convert_act_state_dict("dvae", original)
    twice = names_of("cls") | {"module.cls_pos": torch.ones(1, 1, 384)}
    with raises(ValueError, naming="cls_pos"):
        convert_act_state_dict("cls", twice)


def test_teacher_of_an_unknown_kind_is_not_recognized():
    original = {
        "visual_embed.0.0.norm1.weight": torch.ones(2),
        "visual_embed.0.0.mlp_tokens.fc1.weight": torch.ones(2),
    }
    assert teacher_of(original) is None

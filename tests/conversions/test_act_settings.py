"""Settings of ACT's models that their files imply: data sets, poolings of heads, adapters, teachers."""

import re

import pytest
import torch

from hf_any3d.conversions.act import names
from hf_any3d.conversions.act.adapter_names import PROGRAMS, added_by, rename_added
from hf_any3d.conversions.act.adapters import _pooling
from hf_any3d.conversions.act.convert import TEACHERS, _released_settings
from hf_any3d.conversions.act.datasets import DATASETS, UNLABELED, choose_dataset
from tests.errors import raises

LABELS = {
    "scanobjectnn": ("cls", 15),
    "modelnet40": ("cls", 40),
    "shapenetpart": ("partseg", 50),
    "s3dis": ("semseg", 13),
}


def test_data_sets_are_chosen_by_kind_name_and_number_of_labels():
    assert list(DATASETS) == list(LABELS)
    for name, (kind, count) in LABELS.items():
        known = DATASETS[name]
        assert (known.name, known.kind, len(known.labels)) == (name, kind, count)
        assert choose_dataset(kind, None, count) is choose_dataset(kind, name, count) is known
        assert choose_dataset(kind, "none", count) is choose_dataset(kind, None, count + 1) is None
        message = f"dataset={name!r} has {count} labels, but the checkpoint 7; give none for labels without names"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            choose_dataset(kind, name, 7)
    with raises(ValueError, naming="dataset='s3dis'; expected one of scanobjectnn"):
        choose_dataset("cls", "s3dis", 13)
    assert [known.num_groups for known in DATASETS.values()] == [128, 64, 128, 128]
    farthest = {"sampling": "farthest", "min_squared_norm": 1e-3}
    assert [dict(known.processor) for known in DATASETS.values()] == [
        {"num_points": 2048, "center": False, "scale": None} | farthest,
        {"num_points": 1024, "extent": "all"} | farthest,
        {"num_points": 2048, "extent": "all"},
        {"num_points": 2048, "center": "ground", "scale": None, "up_axis": "z", "block_size": 1.0},
    ]
    assert UNLABELED == {"num_points": 1024} and len(DATASETS["shapenetpart"].categories) == 16


def head_of(features: int, labels: int = 15) -> dict[str, torch.Tensor]:
    """The tensors of a classifier of width 8 that tell what its head reads."""
    shapes = {
        "act.norm.weight": (8,),
        "classifier.hidden.0.weight": (4, features),
        "classifier.out.weight": (labels, 4),
    }
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("method", "features", "labels", "pooling"),
    [
        ("pointgst", 16, 15, ["cls", "max"]),
        ("idpt", 24, 15, ["cls", "prompt_mean", "max"]),
        ("idpt", 8, 15, ["prompt_mean"]),
        ("dapt", 24, 15, ["cls", "prompt_mean", "max"]),
        ("dapt", 16, 15, ["cls", "prompt_mean"]),
        ("dapt", 16, 40, ["cls", "max"]),
        ("ppt", 24, 40, ["cls", "mean", "prompt_mean"]),
    ],
)
def test_what_a_published_head_reads_is_known_by_its_width(method, features, labels, pooling):
    assert _pooling(method, head_of(features, labels), None) == pooling


@pytest.mark.parametrize(
    ("method", "features", "labels", "chosen", "message"),
    [
        ("pointgst", 24, 15, None, "setting of PointGST for as many classes does; expected 2 * 8, or give --pooling"),
        ("idpt", 16, 15, None, "the head reads 16 features, which no published setting of IDPT for as many classes"),
        ("idpt", 9, 15, None, "expected 1 * 8 or 3 * 8, or give --pooling"),
        ("dapt", 16, 16, None, "expected 3 * 8, or give --pooling"),
        ("dapt", 8, 15, None, "expected 2 * 8 or 3 * 8, or give --pooling"),
        ("ppt", 24, 15, "cls,max", "pooling='cls,max'; the head reads 24 features, of tokens with 8 channels"),
        ("ppt", 17, 15, "cls,max", "pooling='cls,max'; the head reads 17 features, of tokens with 8 channels"),
    ],
)
def test_heads_of_other_widths_are_named(method, features, labels, chosen, message):
    assert _pooling(method, head_of(16), "max,mean") == ["max", "mean"]
    with pytest.raises(ValueError, match=f"{re.escape(message)}$|{re.escape(message)}"):
        _pooling(method, head_of(features, labels), chosen)


# Names in the programs -> ours, in a model of three blocks.
ADDED = {
    "pointgst": {
        "blocks.blocks.1.gft_adapter.down.weight": "act.blocks.layers.1.pointgst_down.default.weight",
        "blocks.blocks.0.gft_adapter.norm_ly2.bias": "act.blocks.layers.0.pointgst_norm_ly2.default.bias",
    },
    "idpt": {
        "prompt_pos": "act.blocks.layers.2.idpt_position.default",
        "blocks.cls.conv5.0.weight": "act.blocks.layers.2.idpt_conv5_0.default.weight",
        "blocks.cls.conv5.1.running_mean": "act.blocks.layers.2.idpt_conv5_1.default.running_mean",
    },
    "dapt": {
        "tfts_gamma_1": "act.blocks.layers.0.dapt_tokens.default.gamma",
        "tfts_beta_2": "act.blocks.layers.2.dapt_scales_final_norm.default.beta",
        "blocks.blocks.1.Adapter_MLP.up_proj.bias": "act.blocks.layers.1.dapt_adapter_up_proj.default.bias",
        "blocks.blocks.1.tfts_gamma_1": "act.blocks.layers.1.dapt_scales_norm1.default.gamma",
        "blocks.blocks.1.tfts_beta_2": "act.blocks.layers.1.dapt_scales_norm2.default.beta",
        "blocks.blocks.1.tfts_beta_3": "act.blocks.layers.1.dapt_prompt.default.beta",
        "blocks.blocks.1.attn.tfts_gamma_1": "act.blocks.layers.1.dapt_scales_attention_qkv.default.gamma",
        "blocks.blocks.1.attn.tfts_gamma_2": "act.blocks.layers.1.dapt_scales_attention_proj.default.gamma",
        "blocks.blocks.1.mlp.tfts_beta_1": "act.blocks.layers.1.dapt_scales_mlp_fc1.default.beta",
        "blocks.blocks.1.mlp.tfts_beta_2": "act.blocks.layers.1.dapt_scales_mlp_fc2.default.beta",
    },
    "ppt": {"blocks.prompt_all_mlp.2.weight": "act.blocks.layers.0.ppt_prompt_all_mlp_2.default.weight"},
}


@pytest.mark.parametrize("method", ADDED)
def test_tensors_of_adapters_have_their_places(method):
    table = ADDED[method]
    state = {name: torch.full((2,), float(number)) for number, name in enumerate(table)}
    others = {"blocks.blocks.1.mlp.fc1.weight": torch.ones(1), "cls_pos": torch.ones(1)}
    added = added_by(method, state | others)
    assert list(added) == list(table)
    found = rename_added(method, added, 3)
    assert list(found) == list(table.values())
    assert all(torch.equal(found[ours], state[theirs]) for theirs, ours in table.items())
    assert PROGRAMS[method].prefix == f"{method}_" and PROGRAMS[method].title.lower() == method


def test_idpts_module_is_placed_before_a_block_and_its_copies_are_left_out():
    block = "blocks.cls.blocks.blocks.0."
    state = {
        "prompt_pos": torch.ones(1),
        f"{block}attn.qkv.weight": torch.ones(2),
        f"{block}mlp.fc1.bias": torch.ones(3),
    }
    found = rename_added("idpt", state | {f"{block}norm2.weight": torch.ones(4)}, 5, prompt_layer=1)
    here = "act.blocks.layers.1.idpt_"
    expected = {f"{here}position.default": 1, f"{here}block_attention_qkv.default.weight": 2}
    expected |= {f"{here}block_mlp_fc1.default.bias": 3, f"{here}block_norm2.default.weight": 4}
    assert {name: len(tensor) for name, tensor in found.items()} == expected
    copied = {"blocks.cls.conv1.1.weight": torch.ones(2), "blocks.cls.bn1.weight": torch.ones(2)}
    # The light modules hold a norm that nothing reads.
    light = copied | {"blocks.cls.conv5.0.weight": torch.ones(1), "blocks.cls.bn5.bias": torch.zeros(3)}
    assert len(rename_added("idpt", light, 2)) == 2
    for harm in ({"blocks.cls.bn1.weight": torch.zeros(2)}, {"blocks.cls.bn1.bias": torch.zeros(2)}):
        with pytest.raises(
            ValueError, match=r"bn1\.(weight|bias) is not equal to conv1\.1\.(weight|bias), whose copy"
        ):
            rename_added("idpt", light | harm, 2)


def test_teachers_have_the_settings_of_their_programs():
    released = {"sampling_min_squared_norm": 1e-3, "noise_in_eval": True}
    deep, none = {"prompt_depth": "deep", "num_prompts": 4}, {"prompt_depth": "shallow", "num_prompts": 0}
    bert = {"position_injection": "input", "use_input_norm": False, "teacher_dropout": True}
    for kind, found, more in (
        (None, none, {}),
        ("vit", deep, {}),
        ("vit", none, {"detach_teacher": True}),
        ("clip_vision_model", deep, {"attention_axis": "batch"}),
        ("clip_vision_model", none, {"detach_teacher": True}),
        ("bert", deep, bert),
        ("bert", none, bert | {"detach_teacher": True}),
    ):
        assert _released_settings(kind, found) == released | more
    image = {"image_size": 1, "patch_size": 1, "num_channels": 1}
    words = {"vocab_size": 1, "max_position_embeddings": 1, "type_vocab_size": 1}
    expected = {
        "vit": (None, {"hidden_act": "gelu"}, 1e-6, image),
        "clip_vision_model": ("vision", {"hidden_act": "quick_gelu"}, 1e-5, image),
        "bert": (None, {"hidden_act": "gelu"}, 1e-12, words),
    }
    assert {
        kind: (one.tower, one.config, one.layer_norm_eps, one.no_embeddings) for kind, one in TEACHERS.items()
    } == expected


def test_sizes_of_pretraining_and_teachers_are_read_from_their_tensors():
    def tensors(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
        return {name.replace("__", "."): torch.empty(shape) for name, shape in shapes.items()}

    state = tensors(decoder__layers__0__x=(1,), decoder__layers__1__x=(1,), feature_head__0__weight=(7, 3))
    expected = {"decoder_num_hidden_layers": 2, "class_token_loss": False, "feature_head_width": 7}
    assert names.pretraining_sizes(state) == expected
    with_token = state | tensors(decoder_class_position=(3,))
    assert names.pretraining_sizes(with_token) == expected | {"class_token_loss": True}
    for places in ("layers__{}__mlp__fc1__weight", "encoder__layer__{}__intermediate__dense__weight"):
        frozen = tensors(**{places.format(number): (9, 4) for number in range(3)})
        assert names.teacher_sizes(frozen) == {"hidden_size": 4, "intermediate_size": 9, "num_hidden_layers": 3}
    with pytest.raises(ValueError, match="lacks tensors: the MLP of the first layer of the teacher"):
        names.teacher_sizes(tensors(layers__0__norm__weight=(3,)))
    own = names.below({"a.b": torch.ones(1), "a.c.d": torch.ones(2), "ab": torch.ones(3)}, "a.")
    assert {name: len(tensor) for name, tensor in own.items()} == {"b": 1, "c.d": 2}

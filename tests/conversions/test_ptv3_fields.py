"""Arguments of Point Transformer V3's constructors as fields of our config, and what files of its models show."""

import re

import pytest
import torch

from hf_any3d.conversions.point_transformer_v3.benchmarks import BENCHMARKS, CONDITION_CLASSES, TEXTS
from hf_any3d.conversions.point_transformer_v3.names import convert_ptv3_state_dict, ptv3_fields, supervised_fields
from hf_any3d.conversions.point_transformer_v3.supervised import (
    TRAINED_WITH,
    VARIANTS,
    arguments_of,
    benchmark_of,
    check_head,
    fields_of,
    is_supervised,
    rules_of,
    sizes_of,
)
from tests.errors import raises

GIVEN = {
    "in_channels": 9,
    "order": ["hilbert"],
    "stride": (2, 4),
    "enc_depths": (1, 2, 3),
    "enc_channels": (8, 16, 24),
    "enc_num_head": (1, 2, 3),
    "enc_patch_size": (64, 32, 16),
    "dec_depths": (1, 2),
    "dec_channels": (8, 12),
    "dec_num_head": (1, 2),
    "dec_patch_size": (64, 32),
    "mlp_ratio": 2,
    "qkv_bias": False,
    "qk_scale": 0.5,
    "attn_drop": 0,
    "proj_drop": 1,
    "drop_path": 0,
    "layer_scale": 0.25,
    "pre_norm": False,
    "enable_rpe": True,
    "mask_token": True,
    "freeze_encoder": True,
    "rope_base": 10,
    "shift_coords": 0.125,
    "jitter_coords": 1.5,
    "rescale_coords": 2.5,
    "enable_flash": False,
    "upcast_softmax": True,
    "shuffle_orders": True,
    "traceable": True,
}
FIELDS = {
    "in_channels": 9,
    "curves": ["hilbert"],
    "pooling_strides": [2, 4],
    "depths": [1, 2, 3],
    "hidden_sizes": [8, 16, 24],
    "num_attention_heads": [1, 2, 3],
    "patch_sizes": [64, 32, 16],
    "decoder_depths": [1, 2],
    "decoder_hidden_sizes": [8, 12],
    "decoder_num_attention_heads": [1, 2],
    "mlp_ratio": 2.0,
    "qkv_bias": False,
    "attention_scale": 0.5,
    "attention_dropout": 0.0,
    "hidden_dropout": 1.0,
    "drop_path_rate": 0.0,
    "layer_scale_init_value": 0.25,
    "pre_norm": False,
    "relative_position_bias": True,
    "use_mask_token": True,
    "freeze_encoder": True,
    "rope_theta": 10.0,
    "rope_shift": 0.125,
    "rope_jitter": 1.5,
    "rope_rescale": 2.5,
    "use_decoder": True,
    "upcast_attention": True,
}


def test_every_argument_has_its_field():
    found = ptv3_fields(GIVEN)
    assert found == FIELDS
    assert {type(found[name]) for name in ("mlp_ratio", "attention_dropout", "rope_theta")} == {float}
    encoder = {name: value for name, value in FIELDS.items() if not name.startswith("decoder_")}
    assert ptv3_fields(GIVEN | {"enc_mode": True}) == encoder | {"use_decoder": False}
    for upcast, expected in (
        ({"upcast_softmax": False, "upcast_attention": True}, True),
        ({"upcast_softmax": 0}, False),
    ):
        assert ptv3_fields(GIVEN | upcast)["upcast_attention"] is expected
    assert ptv3_fields({"dec_patch_size": (1024,) * 4})["patch_sizes"] == [1024] * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dec_patch_size": (64, 64)},
            "config has dec_patch_size=(64, 64); expected that of the encoder's stages, whose",
        ),
        (
            {"zeta": 1, "beta": 2},
            "config has 'beta'; expected some of attn_drop, dec_channels, dec_depths, dec_num_head,",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        ptv3_fields(GIVEN | changes)


def test_arguments_of_the_supervised_layout():
    rules = {"block_rule": "branch", "depth_rule": "max"}
    found = supervised_fields(GIVEN, **rules)
    own = {
        "stem": "convolution",
        "stage_norm": "batch",
        "pooling": "serialized",
        "decoder_convolution": "skip",
        "lovasz_weight": 1.0,
    }
    assert found == FIELDS | own | rules
    assert not supervised_fields(GIVEN | {"cls_mode": True}, **rules)["use_decoder"]
    several = {"pdnorm_bn": True, "pdnorm_ln": False, "pdnorm_adaptive": True, "pdnorm_affine": False}
    more = supervised_fields(GIVEN | several | {"pdnorm_conditions": ("a", "b"), "pdnorm_decouple": True}, **rules)
    fields = {
        "condition_batch_norms": True,
        "condition_layer_norms": False,
        "adaptive_norms": True,
        "norm_affine": False,
    }
    assert more == found | fields | {"norm_conditions": ["a", "b"]}
    assert "norm_conditions" not in supervised_fields(GIVEN | {"pdnorm_conditions": ("a",)}, **rules)
    assert supervised_fields(GIVEN | {"pdnorm_ln": True}, **rules)["norm_conditions"] == [
        "ScanNet",
        "S3DIS",
        "Structured3D",
    ]
    base = supervised_fields({}, **rules)
    assert base["depths"] == [2, 2, 2, 6, 2] and base["decoder_hidden_sizes"] == [64, 64, 128, 256]


def supervised(heads: dict[str, tuple[int, ...]], channels: int = 6, **changes) -> dict[str, torch.Tensor]:
    """The tensors by which a file of a published variant is known."""
    given = VARIANTS["base"] | changes
    shapes = {"backbone.embedding.stem.conv.weight": (32, 5, 5, 5, channels), **heads}
    for part in ("enc", "dec"):
        for stage, (depth, width) in enumerate(zip(given[f"{part}_depths"], given[f"{part}_channels"], strict=True)):
            for block in range(depth):
                shapes[f"backbone.{part}.{part}{stage}.block{block}.cpe.1.weight"] = (width, width)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_files_show_sizes_variant_and_benchmark():
    file = supervised({"seg_head.weight": (20, 64)})
    assert is_supervised(file) and not is_supervised({"embedding.stem.linear.weight": 1})
    switches = {"enable_rpe": False, "pdnorm_bn": False, "pdnorm_ln": False}
    sizes = ("enc_depths", "enc_channels", "dec_depths", "dec_channels")
    assert sizes_of(file) == {name: VARIANTS["base"][name] for name in sizes} | switches
    assert arguments_of(file) == ("base", VARIANTS["base"])
    more = {
        "backbone.enc.enc0.block0.attn.rpe.rpe_table": (3,),
        "backbone.embedding.stem.norm.norm.0.weight": (3,),
        "backbone.enc.enc0.block0.norm1.0.norm.0.weight": (3,),
    }
    for number, switch in enumerate(switches):
        name, shape = list(more.items())[number]
        found = sizes_of(file | {name: torch.empty(shape, device="meta")})
        assert {key: found[key] for key in switches} == switches | {switch: True}
    for name, one in BENCHMARKS.items():
        own = supervised({"seg_head.weight": (len(one.classes), 64)}, one.channels)
        assert benchmark_of(own, None) is benchmark_of(own, name) is one
    for changes, message in (
        ({"seg_head.weight": (21, 64)}, "21 classes and 6 channels"),
        ({"seg_heads.0.weight": (20, 64)}, "several data sets"),
    ):
        with pytest.raises(ValueError, match=f"a model of {message}; give --dataset"):
            benchmark_of(supervised(changes), None)
    several = supervised({"seg_heads.0.weight": (20, 64)})
    assert benchmark_of(several, "s3dis") is BENCHMARKS["s3dis"]
    with raises(ValueError, naming="dataset='nuscenes' has 0 classes and"):
        benchmark_of(several, "nuscenes")
    with raises(ValueError, naming="dataset='waymo' has 22 classes and"):
        benchmark_of(file, "waymo")


def test_heads_of_a_file_decide_the_fields():
    rules = rules_of("pointcept-1.6")
    assert (rules.block_rule, rules.depth_rule, rules.color_range) == ("full", "max_plus_one", "unit")
    arguments = VARIANTS["base"]
    one = fields_of(supervised({"seg_head.weight": (20, 64)}), arguments, rules, BENCHMARKS["scannet"])
    assert one["in_channels"] == 9 and not one["reads_coordinates"] and "segmentation_head" not in one
    assert one["id2label"][1] == "floor" and one["label2id"]["floor"] == 1 and one["label_colors"][1] == "#98df8a"
    laser = fields_of(supervised({"seg_head.weight": (16, 64)}, 4), arguments, rules, BENCHMARKS["nuscenes"])
    assert laser["in_channels"] == 4 and laser["reads_coordinates"] and (laser["depth_rule"]) == "max_plus_one"
    heads = fields_of(supervised({"seg_heads.0.weight": (20, 64)}), arguments, rules, BENCHMARKS["scannet"])
    assert (heads["segmentation_head"], heads["condition"], heads["text_embedding_size"]) == (
        "conditions",
        "ScanNet",
        512,
    )
    assert heads["condition_classes"] is CONDITION_CLASSES and "condition_size" not in heads
    tensors = {"proj_head.weight": (7, 64), "class_embedding": (36, 7), "embedding_table.weight": (3, 11)}
    texts = fields_of(supervised(tensors), arguments, rules, BENCHMARKS["s3dis"])
    assert (texts["segmentation_head"], texts["text_embedding_size"], texts["condition_size"]) == ("texts", 7, 11)
    given = fields_of(supervised(tensors), {**arguments, "in_channels": 5}, rules, BENCHMARKS["s3dis"])
    assert given["in_channels"] == 8
    for names, message in (({"cls_head.0.weight"}, "a classifier of objects"), (set(), "an encoder without a head")):
        with pytest.raises(
            ValueError, match=f"^the supervised layout of Point Transformer V3: {message}; expected a segm"
        ):
            check_head(dict.fromkeys(names))
    for name in ("seg_head.weight", "proj_head.weight", "seg_heads.1.bias"):
        check_head({name: 1})


def test_tables_of_benchmarks_fit_each_other():
    counts = {name: len(one.classes) for name, one in BENCHMARKS.items()}
    assert counts == {"scannet": 20, "scannet200": 200, "s3dis": 13, "nuscenes": 16, "waymo": 22}
    assert {name: len(one.hex_colors or ()) for name, one in BENCHMARKS.items()} == counts | {"waymo": 0}
    assert BENCHMARKS["waymo"].hex_colors is None and len(TEXTS) == 36
    # Texts of the heads are names of the classes, in their order, but for S3DIS, whose order is that of the texts.
    assert [TEXTS[number] for number in CONDITION_CLASSES["ScanNet"]] == [
        {"refridgerator": "refrigerator"}.get(name, name)
        for name in BENCHMARKS["scannet"].classes
        if name in TEXTS or name == "refridgerator"
    ]
    assert sorted(TEXTS[number] for number in CONDITION_CLASSES["S3DIS"]) == sorted(BENCHMARKS["s3dis"].classes)
    assert [one.title for one in TRAINED_WITH.values()][0].startswith("Pointcept 1.5.0 or 1.5.1")


def test_blocks_are_numbered_through_all_stages():
    fields = {"depths": [1, 2, 3], "decoder_depths": [1, 2], "rope_theta": 4.0}
    original = {
        "enc.enc0.block0.norm1.0.weight": "blocks.0.norm1.weight",
        "enc.enc1.block1.mlp.0.fc2.bias": "blocks.2.mlp.fc2.bias",
        "enc.enc2.block2.ls2.0.gamma": "blocks.5.scale2.gamma",
        "enc.enc2.down.proj.weight": "poolings.1.projection.weight",
        "enc.enc1.down.norm.0.bias": "poolings.0.norm.bias",
        # The decoder begins with the coarsest stage.
        "dec.dec1.block0.cpe.1.weight": "decoder_blocks.0.positions.linear.weight",
        "dec.dec1.block1.attn.proj.weight": "decoder_blocks.1.attention.proj.weight",
        "dec.dec0.block0.attn.rpe.rpe_table": "decoder_blocks.2.attention.relative_bias.table",
        "dec.dec1.up.proj.0.weight": "unpoolings.0.projection.weight",
        "dec.dec0.up.proj_skip.1.bias": "unpoolings.1.skip_norm.bias",
        "embedding.mask_token": "embeddings.mask_token",
    }
    tensors = {name: torch.full((1, 3), float(number)) for number, name in enumerate(original)}
    rotary = {"enc.enc0.block0.attn.rope.inv_freq": torch.tensor([1.0, 0.5])}
    found = convert_ptv3_state_dict(tensors | rotary, fields)
    assert list(found) == list(original.values())
    assert all(torch.equal(found[ours].flatten(), tensors[name].flatten()) for name, ours in original.items())
    assert found["embeddings.mask_token"].shape == (3,)
    for wrong, message in (
        (
            {"enc.enc3.block0.norm1.0.weight": torch.ones(1)},
            "a block 0 of stage 3; expected those of depths [1, 2, 3]",
        ),
        ({"dec.dec0.block1.norm1.0.weight": torch.ones(1)}, "a block 1 of stage 0; expected those of depths [1, 2]"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            convert_ptv3_state_dict(wrong, fields)
    with raises(ValueError, naming="inv_freq"):
        convert_ptv3_state_dict(rotary, fields | {"rope_theta": 9.0})
    with raises(ValueError, naming="rope_base"):
        convert_ptv3_state_dict(rotary, {"depths": [1]})

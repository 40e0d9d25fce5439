"""Arguments of Point Transformer V3's constructors as fields of our config, and what files of its models show."""

import re

import pytest
import torch

from hf_any3d.conversions.point_transformer_v3.benchmarks import BENCHMARKS, CONDITION_CLASSES, TEXTS
from hf_any3d.conversions.point_transformer_v3.names import convert_ptv3_state_dict
from hf_any3d.conversions.point_transformer_v3.supervised import (
    TRAINED_WITH,
)
from tests.errors import raises


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

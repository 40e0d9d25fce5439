"""Arguments of the released constructors as fields of our config, and the layouts of sparse convolutions."""

import re

import pytest
import torch

from hf_any3d.conversions.point_transformer_v3.names import (
    convert_supervised_state_dict,
    ptv3_fields,
    supervised_fields,
)
from tests.errors import raises

ARGUMENTS = {
    "in_channels": 7,
    "order": ("hilbert", "z"),
    "stride": (2, 4),
    "enc_depths": (1, 2, 3),
    "enc_channels": (12, 24, 36),
    "enc_num_head": (1, 2, 3),
    "enc_patch_size": (16, 32, 64),
    "dec_depths": (4, 5),
    "dec_channels": (18, 30),
    "dec_num_head": (3, 5),
    "dec_patch_size": (16, 32),
    "mlp_ratio": 3,
    "qkv_bias": False,
    "qk_scale": 0.4,
    "attn_drop": 0,
    "proj_drop": 1,
    "drop_path": 0.2,
    "layer_scale": 0.1,
    "pre_norm": False,
    "enable_rpe": True,
    "mask_token": True,
    "freeze_encoder": True,
    "rope_base": 10,
    "shift_coords": 0.3,
    "jitter_coords": 1.4,
    "rescale_coords": 1.5,
    "shuffle_orders": True,
}
FIELDS = {
    "in_channels": 7,
    "curves": ["hilbert", "z"],
    "pooling_strides": [2, 4],
    "depths": [1, 2, 3],
    "hidden_sizes": [12, 24, 36],
    "num_attention_heads": [1, 2, 3],
    "patch_sizes": [16, 32, 64],
    "decoder_depths": [4, 5],
    "decoder_hidden_sizes": [18, 30],
    "decoder_num_attention_heads": [3, 5],
    "mlp_ratio": 3.0,
    "qkv_bias": False,
    "attention_scale": 0.4,
    "attention_dropout": 0.0,
    "hidden_dropout": 1.0,
    "drop_path_rate": 0.2,
    "layer_scale_init_value": 0.1,
    "pre_norm": False,
    "relative_position_bias": True,
    "use_mask_token": True,
    "freeze_encoder": True,
    "rope_theta": 10.0,
    "rope_shift": 0.3,
    "rope_jitter": 1.4,
    "rope_rescale": 1.5,
    "use_decoder": True,
    "upcast_attention": False,
}


def test_every_argument_has_its_field():
    fields = ptv3_fields(ARGUMENTS)
    assert fields == FIELDS
    for name in ("mlp_ratio", "attention_dropout", "hidden_dropout", "rope_theta"):
        assert type(fields[name]) is float
    alone = {name: value for name, value in FIELDS.items() if not name.startswith("decoder_")}
    # Without a decoder its patches do not matter.
    given = ARGUMENTS | {"enc_mode": True, "dec_patch_size": (5, 5)}
    assert ptv3_fields(given) == alone | {"use_decoder": False}
    for name in ("upcast_attention", "upcast_softmax"):
        assert ptv3_fields(ARGUMENTS | {name: True})["upcast_attention"] is True
    for given, message in (
        ({"dec_patch_size": (16, 64)}, "config has dec_patch_size=(16, 64); expected that of the encoder's stages"),
        ({"order_of": 1}, "config has 'order_of'; expected some of attn_drop, "),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            ptv3_fields(ARGUMENTS | given)


def test_the_supervised_layout_has_further_arguments():
    rules = {"block_rule": "branch", "depth_rule": "max"}
    layout = {"stem": "convolution", "stage_norm": "batch", "pooling": "serialized", "decoder_convolution": "skip"}
    layout |= rules | {"lovasz_weight": 1.0}
    assert supervised_fields(ARGUMENTS, **rules) == FIELDS | layout
    # The older name of a switch.
    assert supervised_fields(ARGUMENTS | {"cls_mode": True}, **rules)["use_decoder"] is False
    assert supervised_fields(ARGUMENTS | {"enc_mode": True}, **rules)["use_decoder"] is False
    norms = {"pdnorm_bn": True, "pdnorm_ln": False, "pdnorm_adaptive": True, "pdnorm_affine": False}
    own = {"condition_batch_norms": True, "condition_layer_norms": False, "adaptive_norms": True, "norm_affine": False}
    given = ARGUMENTS | norms | {"pdnorm_conditions": ("a", "b"), "pdnorm_decouple": True}
    assert supervised_fields(given, **rules) == FIELDS | layout | own | {"norm_conditions": ["a", "b"]}
    plain = given | {"pdnorm_bn": False}
    assert "norm_conditions" not in supervised_fields(plain, **rules)
    assert supervised_fields(plain | {"pdnorm_ln": True}, **rules)["norm_conditions"] == ["a", "b"]
    with raises(ValueError, naming="pdnorm_decouple"):
        supervised_fields(given | {"pdnorm_decouple": False}, **rules)


@pytest.mark.parametrize(
    ("shape", "is_old"),
    [
        ((3, 3, 3, 6, 9), True),
        ((5, 5, 5, 6, 9), True),
        ((9, 3, 3, 3, 6), False),
        ((9, 5, 5, 5, 6), False),
        ((3, 3, 3, 3, 9), False),
        ((3, 3, 4, 6, 9), False),
        ((9, 9, 3, 3, 6), False),
    ],
)
def test_kernels_of_an_older_layout_are_turned(shape, is_old):
    weight = torch.arange(float(torch.Size(shape).numel())).view(shape)
    state = convert_supervised_state_dict({"backbone.embedding.stem.conv.weight": weight}, FIELDS)
    found = state["point_transformer_v3.embeddings.convolution.weight"]
    assert found.is_contiguous()
    if is_old:
        x, y, z, inner, outer = 0, 1, 2, 4, 7
        assert found.shape == (9, *shape[:3], 6) and found[outer, x, y, z, inner] == weight[x, y, z, inner, outer]
        assert torch.equal(found[outer], weight[..., outer])
    else:
        assert torch.equal(found, weight)

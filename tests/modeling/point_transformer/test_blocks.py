"""Transformer blocks against torch's own layer; positions and drop path."""

import pytest
import torch
from transformers import PreTrainedConfig

from hf_any3d.modeling.point_encoders.point_transformer import PointBlock, PointBlocks


def config(**changes) -> PreTrainedConfig:
    made = PreTrainedConfig(attn_implementation=changes.pop("attn_implementation", "sdpa"))
    values = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "mlp_ratio": 2.0, "qkv_bias": False}
    for name, value in (values | {"layer_norm_eps": 1e-5, "drop_path_rate": 0.0} | changes).items():
        setattr(made, name, value)
    return made


def blocks(**changes) -> PointBlocks:
    torch.manual_seed(0)
    return PointBlocks(config(**changes)).eval()


def test_drop_path_keeps_the_mean_and_acts_on_whole_clouds_in_training_only():
    layer = PointBlock(config(), 4, drop_path_rate=0.25).drop_path
    branch = torch.ones(4000, 2, 3)
    assert layer.eval()(branch) is branch
    torch.manual_seed(0)
    dropped = layer.train()(branch)
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0, 4 / 3])
    assert (dropped == dropped[:, :1, :1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)

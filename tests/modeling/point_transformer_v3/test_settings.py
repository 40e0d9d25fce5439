"""Every setting of Point Transformer V3 has its effect on layers, rates, attention and features."""

import importlib
import math

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from hf_any3d.modeling.point_transformer_v3 import (
    PointTransformerV3Model,
)
from hf_any3d.modeling.point_transformer_v3.modeling_point_transformer_v3 import RelativePositionBias
from tests.common.case import spread_weights, varied_clouds
from tests.tiny_ptv3 import tiny_ptv3

MODULE = importlib.import_module("hf_any3d.modeling.point_transformer_v3.modeling_point_transformer_v3")
DECODER = {"use_decoder": True, "decoder_depths": (1,), "decoder_hidden_sizes": (18,)}
DECODER |= {"decoder_num_attention_heads": (3,)}
STAGES = {"depths": (1, 1, 1), "hidden_sizes": (8, 12, 16), "num_attention_heads": (2, 2, 4)}
STAGES |= {"patch_sizes": (16, 8, 4), "pooling_strides": (2, 2)}


def tiny(model_class=PointTransformerV3Model, **settings):
    model = tiny_ptv3(model_class, **settings)
    spread_weights(model)
    return model


def block(name: str, width: int, hidden: int, bias: bool = True) -> dict[str, tuple[int, int, bool]]:
    own = {"positions.convolution": (27 * width, width, True), "positions.linear": (width, width, True)}
    own |= {"attention.qkv": (width, 3 * width, bias), "attention.proj": (width, width, True)}
    own |= {"mlp.fc1": (width, hidden, True), "mlp.fc2": (hidden, width, True)}
    return {f"{name}.{layer}": size for layer, size in own.items()}


@torch.no_grad()
def test_the_norm_of_the_condition_is_used_and_may_be_modulated():
    settings = {"norm_conditions": ["a", "b"], "condition": "b", "condition_layer_norms": True, "condition_size": 4}
    for adaptive in (False, True):
        model = tiny(**settings, adaptive_norms=adaptive)
        assert model.conditions.weight.shape == (2, 4)
        norm = model.blocks[0].norm1
        rows, context = torch.randn(5, 16), torch.randn(1, 4)
        plain = norm.norms[1](rows)
        assert torch.equal(norm(rows), plain)
        if adaptive:
            shift, scale = norm.modulation(context * context.sigmoid()).split(16, dim=1)
            torch.testing.assert_close(norm(rows, context), plain * (1 + scale) + shift)
        else:
            assert norm.modulation is None and torch.equal(norm(rows, context), plain)
        points = varied_clouds(1, channels=6)
        found = model(points).pooler_output
        model.conditions.weight[0] += 1
        assert torch.equal(model(points).pooler_output, found)
        model.conditions.weight[1] += 1
        assert torch.equal(model(points).pooler_output, found) is not adaptive


@pytest.fixture
def attended():
    """What attention is called with, by the name "recording"."""
    seen = []

    def attend(module, query, key, value, attention_mask, **settings):
        seen.append((query.dtype, settings))
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, attention_mask, scale=settings["scaling"]
        )
        return mixed.transpose(1, 2), None

    AttentionInterface.register("recording", attend)
    return seen


@torch.no_grad()
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("upcast", [False, True])
def test_attention_has_the_scale_dropout_and_precision_of_the_config(scale, upcast, attended):
    model = tiny(attention_scale=scale, attention_dropout=0.2, upcast_attention=upcast, depths=(1, 1))
    model.config._attn_implementation = "recording"
    for training, dropout in ((True, 0.2), (False, 0.0)):
        attended.clear()
        model.bfloat16().train(training)(varied_clouds(1, channels=6))
        scales = [8**-0.5, 12**-0.5] if scale is None else [0.3, 0.3]
        expected = [{"scaling": own, "dropout": dropout, "is_causal": False} for own in scales]
        assert [settings for _, settings in attended] == expected
        assert {dtype for dtype, _ in attended} == {torch.float32 if upcast else torch.bfloat16}


@torch.no_grad()
@pytest.mark.parametrize("names", [("shift",), ("jitter",), ("rescale",), ("shift", "jitter", "rescale")])
def test_places_are_moved_and_scaled_at_random_for_each_block_in_training(names, monkeypatch):
    given = {"shift": 0.3, "jitter": 1.5, "rescale": 2.0}
    settings = {f"rope_{name}": given[name] for name in names} | {"rope_theta": 10.0, "hidden_sizes": (12, 24)}
    model = tiny(**settings, depths=(2, 1), drop_path_rate=0.0, shuffle_curves="never")
    seen, rotation_of = [], MODULE.rotation_of
    monkeypatch.setattr(MODULE, "rotation_of", lambda coord, *rest: (seen.append(coord), rotation_of(coord, *rest))[1])
    points = varied_clouds(1, channels=6)
    stages = model.encode(points).stages
    assert not seen, "places are exact in evaluation"
    torch.manual_seed(5)
    model.train().encode(points)
    torch.manual_seed(5)
    for coord, stage in zip(seen, (0, 0, 1), strict=True):
        expected = stages[stage].coord
        if "shift" in names:
            expected = expected + torch.empty(3).uniform_(-0.3, 0.3)
        if "jitter" in names:
            expected = expected * torch.empty(3).uniform_(-math.log(1.5), math.log(1.5)).exp()
        if "rescale" in names:
            expected = expected * torch.empty(1).uniform_(-math.log(2.0), math.log(2.0)).exp()
        torch.testing.assert_close(coord, expected)


@torch.no_grad()
def test_features_of_points_are_those_of_their_voxels_in_the_deepest_stages():
    model, points = tiny(**STAGES), varied_clouds(2, channels=6)
    encoded = model.encode(points)
    place, own = encoded.inverse, []
    for features, voxels in zip(encoded.features, encoded.stages, strict=True):
        place = place if voxels.inverse is None else voxels.inverse[place]
        own.append(features[place].view(2, 48, -1))
    assert [features.shape[2] for features in own] == [8, 12, 16] and model.config.point_feature_size == 36
    for asked, first in ((True, 0), (1, 2), (2, 1), (3, 0), (9, 0)):
        assert torch.equal(model(points, output_point_features=asked).point_features, torch.cat(own[first:], dim=2))
    assert torch.equal(encoded.carry_up(encoded.voxel_features()), torch.cat(own, dim=2))
    for asked in (False, 0):
        assert model(points, output_point_features=asked).point_features is None
    output = model(points)
    assert output.point_features is output.hidden_states is output.attentions is None
    counts = encoded.stages[-1].counts
    assert output.offsets.tolist() == [counts[0], sum(counts)]
    means = torch.stack([rows.mean(dim=0) for rows in output.last_hidden_state.split(counts)])
    torch.testing.assert_close(output.pooler_output, means)
    decoder = tiny(**DECODER)
    encoded = decoder.encode(points)
    found = decoder(points, output_point_features=1).point_features
    assert torch.equal(found, encoded.decoded[encoded.inverse].view(2, 48, 18))
    assert torch.equal(encoded.voxel_features(), encoded.decoded) and encoded.last[1] is encoded.stages[0]


@torch.no_grad()
def test_points_are_sampled_on_the_grid_of_the_config():
    points = varied_clouds(2, channels=6)
    for size in (0.05, 0.4):
        stage = tiny(grid_size=size).encode(points).stages[0]
        cells = (points[..., :3].double() / size).floor()
        assert list(stage.counts) == [len(cloud.unique(dim=0)) for cloud in cells]
        pooled = tiny(grid_size=size, pooling_strides=(4,)).encode(points).stages[1]
        low = cells - cells.amin(dim=1, keepdim=True)
        assert list(pooled.counts) == [len((cloud // 4).unique(dim=0)) for cloud in low]


@torch.no_grad()
def test_biases_of_places_are_sums_over_axes_of_clamped_differences():
    bias = RelativePositionBias(3, 2)
    assert bias.largest == int(12 ** (1 / 3) * 2) == 4 and bias.table.shape == (27, 2)
    bias.table.normal_()
    queries, keys = torch.randint(0, 12, (2, 3, 3)), torch.randint(0, 12, (2, 5, 3))
    found = bias(queries, keys)
    assert found.shape == (2, 2, 3, 5)
    for patch, query, key in ((p, q, k) for p in range(2) for q in range(3) for k in range(5)):
        difference = (queries[patch, query] - keys[patch, key]).clamp(-4, 4) + 4
        expected = sum(bias.table[axis * 9 + int(difference[axis])] for axis in range(3))
        torch.testing.assert_close(found[patch, :, query, key], expected)


@torch.no_grad()
def test_rows_of_the_embedding_are_numbered_as_the_heads_are():
    settings = {"norm_conditions": ["a", "b", "c"], "condition": "b", "condition_batch_norms": True}
    settings |= {"adaptive_norms": True, "condition_size": 4, "condition_classes": {"b": [0], "a": [1]}}
    model, points = tiny(**settings, stage_norm="batch"), varied_clouds(2, channels=6)
    assert model.conditions.weight.shape == (2, 4)
    expected = model(points).pooler_output
    model.conditions.weight[1] += 1
    assert torch.equal(model(points).pooler_output, expected)
    model.conditions.weight[0] += 1
    assert not torch.allclose(model(points).pooler_output, expected)
    # Without a size there is no embedding.
    assert not hasattr(tiny(norm_conditions=["a"], condition="a", condition_layer_norms=True), "conditions")


@torch.no_grad()
@pytest.mark.parametrize(("far", "pooled"), [(1, [0, 1]), (3, [0]), (4, [0, 1]), (15, [0, 3])])
def test_a_cloud_of_as_many_bits_as_a_pooling_drops_becomes_one_voxel(far, pooled):
    model = tiny(pooling="serialized", pooling_strides=(4,), depth_rule="max")
    cells = torch.tensor([[[0, 0, 0], [far, 0, 0]]])
    stages = model.encode(varied_clouds(1, 2, 6), grid_coord=cells).stages
    assert sorted(stages[1].grid_coord[:, 0].tolist()) == pooled and stages[1].stage == 1
    # As many voxels as are in the cells of the grid, which is not drawn by bits.
    stages = tiny(pooling_strides=(4,)).encode(varied_clouds(1, 2, 6), grid_coord=cells).stages
    assert sorted(stages[1].grid_coord[:, 0].tolist()) == sorted({0, far // 4})

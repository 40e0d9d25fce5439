"""Every setting of Point Transformer V3 has its effect on layers, rates, attention and features."""

import importlib
import math

import pytest
import torch

from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3Model
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

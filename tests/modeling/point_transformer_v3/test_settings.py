"""Every setting of Point Transformer V3 has its effect on layers, rates, attention and features."""

import importlib
import math
import re

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from hf_any3d.modeling.point_ops.geometry import GRIDS
from hf_any3d.modeling.point_transformer_v3 import (
    PointTransformerV3Config,
    PointTransformerV3ForPointCloudClassification,
    PointTransformerV3ForPointCloudSegmentation,
    PointTransformerV3Model,
)
from hf_any3d.modeling.point_transformer_v3.modeling_point_transformer_v3 import LayerScale, RelativePositionBias
from hf_any3d.modeling.point_transformer_v3.voxel_layers import ConditionNorm, SubmanifoldConvolution
from tests.common.case import spread_weights, varied_clouds
from tests.tiny_ptv3 import SMALL, tiny_ptv3

MODULE = importlib.import_module("hf_any3d.modeling.point_transformer_v3.modeling_point_transformer_v3")
DECODER = {"use_decoder": True, "decoder_depths": (1,), "decoder_hidden_sizes": (18,)}
DECODER |= {"decoder_num_attention_heads": (3,)}
STAGES = {"depths": (1, 1, 1), "hidden_sizes": (8, 12, 16), "num_attention_heads": (2, 2, 4)}
STAGES |= {"patch_sizes": (16, 8, 4), "pooling_strides": (2, 2)}


def tiny(model_class=PointTransformerV3Model, **settings):
    model = tiny_ptv3(model_class, **settings)
    spread_weights(model)
    return model


def layers(model: nn.Module) -> dict[str, tuple[int, int, bool]]:
    sizes = {
        name: (layer.in_features, layer.out_features, layer.bias is not None)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    }
    for name, layer in model.named_modules():
        if isinstance(layer, SubmanifoldConvolution):
            out, edge, _, _, inputs = layer.weight.shape
            sizes[name] = (inputs * edge**3, out, layer.bias is not None)
    return sizes


def block(name: str, width: int, hidden: int, bias: bool = True) -> dict[str, tuple[int, int, bool]]:
    own = {"positions.convolution": (27 * width, width, True), "positions.linear": (width, width, True)}
    own |= {"attention.qkv": (width, 3 * width, bias), "attention.proj": (width, width, True)}
    own |= {"mlp.fc1": (width, hidden, True), "mlp.fc2": (hidden, width, True)}
    return {f"{name}.{layer}": size for layer, size in own.items()}


def test_layers_have_the_sizes_of_the_config():
    plain = layers(tiny(mlp_ratio=2.5))
    expected = {"embeddings.projection": (6, 16, True), "poolings.0.projection": (16, 24, True)}
    expected |= block("blocks.0", 16, 40) | block("blocks.1", 24, 60) | block("blocks.2", 24, 60)
    assert plain == expected
    other = layers(tiny(stem="convolution", reads_coordinates=False, qkv_bias=False, depths=(1, 1), **DECODER))
    expected = {"embeddings.convolution": (125 * 3, 16, False), "poolings.0.projection": (16, 24, True)}
    expected |= block("blocks.0", 16, 32, False) | block("blocks.1", 24, 48, False)
    expected |= block("decoder_blocks.0", 18, 36, False)
    expected |= {"unpoolings.0.projection": (24, 18, True), "unpoolings.0.skip_projection": (16, 18, True)}
    assert other == expected
    model = tiny(**DECODER)
    heads = [layer.attention.num_heads for layer in (*model.blocks, *model.decoder_blocks)]
    assert heads == [2, 2, 2, 3] and [layer.attention.head_dim for layer in model.blocks] == [8, 12, 12]


def test_norms_have_the_kind_and_the_numbers_of_the_config():
    settings = {"stage_norm": "batch", "batch_norm_eps": 0.25, "batch_norm_momentum": 0.125, "layer_norm_eps": 0.5}
    model = tiny(**settings, **DECODER)
    stages = {name: part for name, part in model.named_modules() if isinstance(part, nn.BatchNorm1d)}
    assert sorted(stages) == ["embeddings.norm", "poolings.0.norm", "unpoolings.0.norm", "unpoolings.0.skip_norm"]
    assert {(part.eps, part.momentum, part.affine) for part in stages.values()} == {(0.25, 0.125, True)}
    assert {part.eps for part in model.modules() if isinstance(part, nn.LayerNorm)} == {0.5}
    conditions = {"norm_conditions": ["a", "b", "c"], "condition": "b", "norm_affine": False}
    for kind in ("batch", "layer"):
        own = tiny(stage_norm="batch", **conditions, **{f"condition_{kind}_norms": True})
        found = [part for part in own.modules() if isinstance(part, ConditionNorm)]
        assert len(found) == (2 if kind == "batch" else 9) and {len(part.norms) for part in found} == {3}
        affine = {
            len(part._parameters) and part.weight is not None
            for part in own.modules()
            if "Norm" in type(part).__name__ and hasattr(part, "eps")
        }
        # Without a norm of its own for each data set, one in a block is affine.
        assert affine == ({False} if kind == "layer" else {False, True})


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


def test_rates_grow_through_the_encoder_and_fall_within_stages_of_the_decoder():
    settings = STAGES | {"depths": (2, 1, 2), "drop_path_rate": 0.4, "use_decoder": True, "decoder_depths": (2, 3)}
    settings |= {"decoder_hidden_sizes": (8, 12), "decoder_num_attention_heads": (2, 2)}
    model = tiny(**settings)
    assert [layer.drop_path.rate for layer in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [layer.drop_path.rate for layer in model.decoder_blocks] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0])
    assert [layer.number for layer in model.blocks] == [0, 1, 0, 0, 1]
    assert [layer.number for layer in model.decoder_blocks] == [0, 1, 2, 0, 1]
    assert [layer.in_decoder for layer in (*model.blocks, *model.decoder_blocks)] == [False] * 5 + [True] * 5
    assert model.config.num_hidden_layers == 10 and model.config.hidden_size == 8
    states = model(varied_clouds(1, channels=6), output_hidden_states=True).hidden_states
    assert [state.shape[1] for state in states] == [8, 8, 8, 12, 16, 16, 12, 12, 12, 8, 8]


def test_dropout_and_scales_are_those_of_the_config():
    model = tiny(hidden_dropout=0.3, layer_scale_init_value=0.25)
    for layer in model.blocks:
        assert (layer.dropout.p, layer.attention.dropout.p) == (0.3, 0.3)
    fresh = tiny_ptv3(PointTransformerV3Model, layer_scale_init_value=0.25)
    scales = [part.gamma for part in fresh.modules() if isinstance(part, LayerScale)]
    assert len(scales) == 6 and all((scale == 0.25).all() for scale in scales)
    assert torch.equal(LayerScale(2, 3.0)(torch.ones(1, 2)), torch.full((1, 2), 3.0))
    plain = tiny(hidden_dropout=0.0)
    assert isinstance(plain.blocks[0].scale1, nn.Identity) and isinstance(plain.blocks[0].scale2, nn.Identity)


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
        found = model(points, output_point_features=asked).point_features
        assert torch.equal(found, torch.cat(own[first:], dim=2))
        levels = None if asked is True else asked
        assert torch.equal(encoded.carry_up(encoded.voxel_features(levels)), found)
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
    assert torch.equal(encoded.voxel_features(1), encoded.decoded) and encoded.last[1] is encoded.stages[0]


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
def test_heads_read_means_of_clouds_or_features_of_voxels():
    points = varied_clouds(2, channels=6)
    settings = {"head_widths": (10, 6), "head_dropout": 0.2, "num_labels": 4}
    model = tiny(PointTransformerV3ForPointCloudClassification, **settings)
    assert layers(model.classifier) == {"hidden.0": (24, 10, True), "hidden.1": (10, 6, True), "out": (6, 4, True)}
    assert [part.p for part in model.classifier.dropouts] == [0.2, 0.2]
    pooled = model.point_transformer_v3(points).pooler_output
    torch.testing.assert_close(model(points).logits, model.classifier(pooled))
    settings = {"segmentation_head_widths": (10,), "segmentation_head_dropout": 0.3}
    model = tiny(PointTransformerV3ForPointCloudSegmentation, **settings, lovasz_weight=0.5)
    assert layers(model.segmenter) == {"hidden.0": (40, 10, True), "out": (10, 3, True)}
    assert [part.p for part in model.segmenter.dropouts] == [0.3]
    of_points = model.point_transformer_v3(points, output_point_features=True).point_features
    expected = model.segmenter(of_points.flatten(0, 1)).view(2, 48, 3)
    labels = torch.arange(96).view(2, 48) % 3
    output = model(points, labels=labels)
    torch.testing.assert_close(output.logits, expected)
    losses = [
        tiny(PointTransformerV3ForPointCloudSegmentation, lovasz_weight=weight)(points, labels=labels).loss
        for weight in (0.0, 0.5, 1.0)
    ]
    torch.testing.assert_close(losses[1] - losses[0], losses[2] - losses[1])
    assert losses[1] > losses[0] and tiny(PointTransformerV3ForPointCloudClassification)(points).loss is None


def test_what_adapters_need_to_know_of_the_stages():
    model = tiny(**DECODER)
    stack = model.layer_stack
    assert stack.layers is model.blocks and (stack.path, stack.branch, stack.hidden_size) == ("blocks", "mlp", 24)
    assert stack.views == GRIDS and stack.attention_axis == "patches" and stack.stages == ((1, 16), (2, 24))
    assert set(stack.pretrained) == {name for name, _ in model.named_children()}
    assert model.reads_stages and tiny(PointTransformerV3ForPointCloudSegmentation).reads_stages
    for has_decoder in (True, False):
        head = tiny(PointTransformerV3ForPointCloudClassification, **(DECODER if has_decoder else {}))
        assert head.reads_stages is has_decoder
    config = PointTransformerV3Config(**SMALL, depth_of_batch=True, equal_patches=True)
    assert config.batch_dependent_flags == ["depth_of_batch", "equal_patches"] and config.min_points == 1
    assert config.flat_tokens is True and PointTransformerV3Config().batch_dependent_flags == []


def test_first_weights_have_the_deviation_of_the_config():
    settings = {"initializer_range": 0.05, "use_mask_token": True, "relative_position_bias": True, "in_channels": 9}
    model = tiny_ptv3(PointTransformerV3Model, **settings)
    for name, weight in model.named_parameters():
        if name.endswith(("weight", "table")) and weight.ndim > 1:
            assert weight.std().item() == pytest.approx(0.05, rel=0.25), name
        elif name.endswith(("bias", "mask_token")):
            assert not weight.any(), name
    classes = {"segmentation_head": "texts", "condition": "b", "condition_classes": {"a": [0], "b": [3, 1]}}
    head = tiny_ptv3(PointTransformerV3ForPointCloudSegmentation, **classes, text_embedding_size=7).segmenter
    assert head.class_embeddings.shape == (4, 7) and not head.class_embeddings.any()
    assert head.logit_scale.item() == 0 and not head.logit_scale.requires_grad
    heads = tiny_ptv3(PointTransformerV3ForPointCloudSegmentation, **classes | {"segmentation_head": "conditions"})
    assert layers(heads.segmenter) == {"heads.0": (40, 1, True), "heads.1": (40, 2, True)}
    rows = torch.randn(5, 40)
    assert torch.equal(heads.segmenter(rows), heads.segmenter.heads[1](rows))
    with torch.no_grad():
        head.class_embeddings.normal_()
        head.logit_scale.fill_(1.5)
        projected = nn.functional.normalize(head.projection(rows), dim=1)
        torch.testing.assert_close(head(rows), math.exp(1.5) * projected @ head.class_embeddings[[3, 1]].T)


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": ()}, "hidden_sizes=(16, 24); expected 0 entries, as depths=() has 0"),
        ({"pooling_strides": (2, 2)}, "pooling_strides=(2, 2); expected 1 entries, as depths=(1, 2) has 2"),
        (DECODER | {"decoder_depths": (1, 1)}, "decoder_depths=(1, 1); expected 1 entries"),
        (
            DECODER | {"rope_theta": 10.0, "hidden_sizes": (12, 24), "decoder_num_attention_heads": (2,)},
            "decoder_hidden_sizes=(18,) with decoder_num_attention_heads=(2,): a head has 9 channels; expected a mul",
        ),
        ({"hypothesis_templates": ["part"]}, "hypothesis_templates has 'part'; expected a text with {} for the part"),
        ({"category_templates": []}, "category_templates=[]; expected a list with at least one template"),
        ({"condition_classes": {"a": [0], "b": [1, -1]}}, "condition_classes has [1, -1] for 'b'; expected numbers"),
        ({"condition_layer_norms": True}, "condition=None with norm_conditions=None; expected one of these names"),
        (
            {"adaptive_norms": True, "norm_conditions": ["a"], "condition": "b"},
            "condition='b' with norm_conditions=['a']; expected one of these names",
        ),
        ({"segmentation_head": "conditions"}, "condition=None with condition_classes=None; expected one of these"),
        ({"parts": {"encoder": {}}}, "parts has 'encoder'; expected some of 'text_tower', 'base'"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PointTransformerV3Config(**SMALL | settings)


def test_settings_that_fit_are_kept():
    own = {"condition_layer_norms": True, "norm_conditions": ["a"], "condition": "a", "pre_norm": False}
    assert PointTransformerV3Config(**SMALL, **own).block_rule == "full"
    assert PointTransformerV3Config(**SMALL, **own | {"pre_norm": True, "block_rule": "branch"}).pre_norm is True
    assert PointTransformerV3Config(**SMALL, label_colors=["#1f77b4"]).label_colors == ["#1f77b4"]
    assert PointTransformerV3Config(**SMALL | {"pooling_strides": (4,)}, pooling="serialized").pooling == "serialized"
    # A decoder that is not used need not fit.
    assert PointTransformerV3Config(**SMALL, decoder_depths=(1, 1, 1)).num_hidden_layers == 3
    single = {"depths": (2,), "hidden_sizes": (16,), "num_attention_heads": (2,), "patch_sizes": (8,)}
    assert PointTransformerV3Config(**SMALL | single | {"pooling_strides": ()}).hidden_size == 16


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
def test_masked_and_unread_channels_do_not_matter():
    points = varied_clouds(1, channels=6)
    cells = {"grid_coord": torch.arange(48)[None, :, None] * torch.tensor([1, 0, 2])}
    moved = torch.cat([points[..., :3] + 5, points[..., 3:]], dim=-1)
    for reads in (True, False):
        model = tiny(reads_coordinates=reads)
        found, other = (model(given, **cells).pooler_output for given in (points, moved))
        assert torch.equal(found, other) is not reads
    model = tiny(use_mask_token=True)
    hidden = model.embeddings(points[0], model.encode(points, **cells).stages[0])
    mask = torch.arange(48) % 5 == 0
    masked = model.embeddings(points[0], model.encode(points, **cells).stages[0], mask)
    assert torch.equal(masked[~mask], hidden[~mask]) and (masked[mask] == model.embeddings.mask_token).all()


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


def test_a_convolution_starts_as_a_linear_layer_of_all_its_cells():
    torch.manual_seed(0)
    for size, has_bias in ((3, True), (5, False)):
        layer = SubmanifoldConvolution(4, 60, size, has_bias)
        bound = (4 * size**3) ** -0.5
        for weight in (layer.weight, *([layer.bias] if has_bias else [])):
            assert 0.9 * bound < weight.max() <= bound and -bound <= weight.min() < -0.9 * bound
        assert (layer.bias is not None) is has_bias and layer.weight.shape == (60, size, size, size, 4)
    assert (
        SubmanifoldConvolution(4, 6).weight.shape == (6, 3, 3, 3, 4) and SubmanifoldConvolution(4, 6).bias is not None
    )

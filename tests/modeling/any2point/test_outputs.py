"""What Any2Point models return, compared with their parts run by hand."""

import math
import re

import pytest
import torch
from torch import nn

from hf_any3d.modeling.any2point import (
    Any2PointConfig,
    Any2PointForSemanticSegmentation,
    Any2PointForZeroShotPointCloudClassification,
    Any2PointModel,
    PointIndexer,
    PointTokenizerConfig,
    PointTokenizerForPointCloudClassification,
)
from hf_any3d.modeling.any2point.modeling_any2point import PointTextAlignment
from hf_any3d.modeling.any2point.point_tokenizer import normalize_offsets
from hf_any3d.modeling.any2point.virtual_projection import line_positions, plane_positions, project
from hf_any3d.modeling.point_ops import farthest_point_sample, gather_points, three_nearest_interpolate
from tests.errors import raises
from tests.tiny_encoders import (
    HIDDEN,
    SMALL,
    clouds,
    saved_encoder,
    tiny_config,
    tiny_model,
    tiny_part_model,
    tiny_scene_model,
)
from tests.tiny_text_towers import tiny_zero_shot_model

ASKED = {"output_hidden_states": True, "output_attentions": True}


def same(ours, theirs) -> bool:
    if isinstance(ours, torch.Tensor):
        ours, theirs = (ours,), (theirs,)
    return len(ours) == len(theirs) > 0 and all(map(torch.equal, ours, theirs))


def eager(model):
    """Return a model with attention weights, in eval mode."""
    (model.any2point if hasattr(model, "any2point") else model).encoder.set_attn_implementation("eager")
    return model.eval()


@torch.no_grad()
def test_a_body_returns_its_tokens_levels_states_and_weights():
    core = eager(tiny_model(pooling=["cls", "mean"])).any2point
    points = clouds()
    output = core(points, output_levels=True, **ASKED)
    tokens = core.point_tokenizer(points, with_levels=True)
    assert set(output) == {
        *("last_hidden_state", "pooler_output", "centers", "center_index", "levels", "hidden_states", "attentions"),
    }
    assert torch.equal(output.centers, tokens.centers) and torch.equal(output.center_index, tokens.index)
    assert len(output.levels) == 3 and output.levels[0][1] is None
    for (features, places), level in zip(output.levels, tokens.levels, strict=True):
        assert torch.equal(features, level.features)
        assert places is level.centers is None or torch.equal(places, level.centers)
    hidden = output.last_hidden_state
    assert torch.equal(hidden, core.output_norm(output.hidden_states[-1]))
    expected = torch.cat([hidden[:, 0], hidden[:, 1:].mean(dim=1)], dim=1)
    torch.testing.assert_close(output.pooler_output, expected)
    assert [weights.shape for weights in output.attentions] == [(3, 4, 9, 9)] * 2
    torch.testing.assert_close(output.attentions[1].sum(dim=-1), torch.ones(3, 4, 9))
    plain = core(points)
    assert set(plain) == {"last_hidden_state", "pooler_output", "centers", "center_index"}
    assert torch.equal(plain.last_hidden_state, hidden)


@torch.no_grad()
@pytest.mark.parametrize("normalize", [True, False])
def test_positions_are_those_of_centers_in_the_unit_sphere_or_of_the_centers_themselves(normalize):
    core = tiny_model("vit", normalize_centers=normalize).any2point.eval()
    added = []
    core.class_token.register_forward_pre_hook(lambda module, args: added.append(args[1]))
    centers = [core(points).centers for points in (clouds(), 5 * clouds() + 2)]
    table = core.family.positions_of(core.encoder)
    for found, own in zip(added, centers, strict=True):
        if normalize:
            own = own - own.mean(dim=1, keepdim=True)
            own = own / own.norm(dim=-1).amax(dim=1)[:, None, None]
        torch.testing.assert_close(found, project(own, table, core.config).embedding, rtol=1e-4, atol=1e-4)
    assert torch.allclose(*added, atol=1e-3) == normalize


@torch.no_grad()
def test_a_classifier_returns_its_head_on_the_pooled_tokens():
    model = eager(tiny_model(large_logits=True))
    points, labels = clouds(), torch.tensor([2, -100, 1])
    output = model(points, labels=labels, **ASKED)
    core = model.any2point(points, **ASKED)
    assert set(output) == {"loss", "logits", "hidden_states", "attentions"}
    assert torch.equal(output.logits, model.classifier(core.pooler_output))
    assert same(output.hidden_states, core.hidden_states) and same(output.attentions, core.attentions)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, labels))
    assert set(model(points)) == {"logits"}


@torch.no_grad()
@pytest.mark.parametrize("levels", [False, True])
def test_segmenters_add_up_what_points_tokens_cloud_and_levels_say(levels):
    model = eager(tiny_part_model(propagate_levels=levels, in_channels=4, restrict_to_category_parts=True))
    for norm in (model.propagation.norm, *model.segmenter.norms):
        norm.running_mean.normal_(std=0.2)
        norm.running_var.uniform_(0.5, 2)
    points, category = clouds(channels=4), torch.tensor([1, 0, 1])
    labels = torch.tensor([[2, 3, 4], [0, 1, -100], [4, 4, 2]]).repeat(1, 16)
    output = model(points, category=category, labels=labels, **ASKED)
    core = model.any2point(points, output_levels=levels, **ASKED)
    head, tokens = model.propagation, model.propagation.from_tokens(core.last_hidden_state[:, 1:])
    near = three_nearest_interpolate(points, core.centers, core.centers)
    rows = head.from_point(torch.cat([points, points[..., :3] - near], dim=-1))
    rows = rows + three_nearest_interpolate(points, core.centers, tokens)
    whole = head.from_cloud(core.pooler_output) + model.category_embedding(category)
    rows = rows + whole.unsqueeze(1)
    assert len(head.from_levels) == (3 if levels else 0)
    for linear, (features, places) in zip(head.from_levels, core.levels or (), strict=True):
        own = linear(features)
        rows = rows + (own if places is None else three_nearest_interpolate(points, places, own))
    logits = model.segmenter(head.norm(rows.flatten(0, 1)).relu()).view(3, 48, 5)
    parts = {0: [2, 3, 4], 1: [0, 1]}  # those of the other category
    for row, kind in enumerate(category.tolist()):
        logits[row][:, parts[kind]] = torch.finfo(torch.float32).min
    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    assert same(output.hidden_states, core.hidden_states) and same(output.attentions, core.attentions)
    assert set(model(points, category=category)) == {"logits"}


@torch.no_grad()
def test_a_segmenter_of_scenes_returns_what_its_body_returns():
    model = eager(tiny_scene_model())
    labels = torch.arange(48).expand(3, -1) % 3
    output = model(clouds(), labels=labels, **ASKED)
    logits, core = model.point_logits(clouds(), **ASKED)
    assert torch.equal(output.logits, logits) and output.logits.shape == (3, 48, 3)
    assert same(output.hidden_states, core.hidden_states) and same(output.attentions, core.attentions)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    assert set(model(clouds())) == {"logits"} and core.levels is None
    with raises(ValueError, naming="problem_type"):
        tiny_scene_model(problem_type="regression")


@torch.no_grad()
def test_a_zero_shot_model_returns_states_loss_and_vectors():
    model = eager(tiny_zero_shot_model())
    texts = torch.randn(3, model.config.text_width, generator=torch.Generator().manual_seed(0))
    output = model(clouds(), text_embeds=texts, labels=torch.arange(3), **ASKED)
    core = model.any2point(clouds(), **ASKED)
    point_embeds, scale = model.alignment(core.pooler_output)
    unit = nn.functional.normalize(texts, dim=-1)
    assert set(output) == {
        *("loss", "logits_per_point_cloud", "logits_per_text", "point_embeds", "text_embeds"),
        *("hidden_states", "attentions"),
    }
    logits = scale * point_embeds @ unit.T
    torch.testing.assert_close(output.logits_per_point_cloud, logits)
    torch.testing.assert_close(output.text_embeds, unit)
    assert same(output.hidden_states, core.hidden_states) and same(output.attentions, core.attentions)
    pairs = [nn.functional.cross_entropy(each, torch.arange(3)) for each in (logits, logits.T)]
    torch.testing.assert_close(output.loss, sum(pairs) / 2)
    for given, has_loss in (({"return_loss": True}, True), ({}, False), ({"labels": torch.arange(3)}, True)):
        assert ("loss" in model(clouds(), text_embeds=texts, **given)) == has_loss
    assert "loss" not in model(clouds(), text_embeds=texts, labels=torch.arange(3), return_loss=False)
    assert set(model(clouds())) == {"point_embeds"}
    assert model.text_tower is model.text_tower
    other = torch.tensor([1, 2, 0])
    shuffled = model(clouds(), text_embeds=texts[other], labels=torch.arange(3), text_labels=other).loss
    torch.testing.assert_close(shuffled, output.loss)


@torch.no_grad()
def test_the_alignment_starts_as_the_mean_of_the_poolings():
    encoder = tiny_config("bert")
    config = Any2PointConfig(encoder_config=encoder, text_width=5, pooling=("max", "cls", "mean"), temperature=0.2)
    alignment = PointTextAlignment(config)
    assert alignment.projection.weight.shape == (5, 3 * HIDDEN)
    assert float(alignment.logit_scale) == pytest.approx(math.log(5))
    weight = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0))
    alignment.start_from(weight)
    pooled = torch.randn(2, 3 * HIDDEN, generator=torch.Generator().manual_seed(1))
    vectors, scale = alignment(pooled)
    expected = nn.functional.normalize(pooled.view(2, 3, HIDDEN).mean(dim=1) @ weight.T, dim=-1)
    torch.testing.assert_close(vectors, expected)
    assert float(scale) == pytest.approx(5) and not alignment.projection.bias.any()


def test_zero_shot_models_need_a_text_width_and_a_pretrained_encoder():
    with raises(ValueError, naming="text_width"):
        Any2PointForZeroShotPointCloudClassification(Any2PointConfig(encoder_config=tiny_config("bert")))
    with raises(ValueError, naming="encoder_weights"):
        Any2PointForZeroShotPointCloudClassification.from_encoder_pretrained("bert", encoder_weights="random")


@torch.no_grad()
def test_a_tokenizer_alone_returns_its_tokens_as_the_only_state():
    sizes = {name: value for name, value in SMALL.items() if name in PointTokenizerConfig.__dataclass_fields__}
    sizes |= {"hidden_size": 24, "tokenizer_width": 24, "pooling": ("mean", "max")}
    config = PointTokenizerConfig(num_labels=4, **sizes)
    torch.manual_seed(0)
    model = PointTokenizerForPointCloudClassification(config).eval()
    labels = torch.tensor([3, 1, 0])
    output = model(clouds(), labels=labels, output_hidden_states=True)
    core = model.point_tokenizer_model(clouds(), output_hidden_states=True)
    tokens = model.point_tokenizer_model.point_tokenizer(clouds())
    assert set(core) == {"last_hidden_state", "pooler_output", "centers", "hidden_states"}
    assert torch.equal(core.last_hidden_state, tokens.tokens) and torch.equal(core.centers, tokens.centers)
    assert same(core.hidden_states, (tokens.tokens,)) and same(output.hidden_states, core.hidden_states)
    pooled = torch.cat([tokens.tokens.mean(dim=1), tokens.tokens.amax(dim=1)], dim=1)
    torch.testing.assert_close(core.pooler_output, pooled)
    assert set(output) == {"loss", "logits", "hidden_states"} and output.logits.shape == (3, 4)
    torch.testing.assert_close(output.logits, model.classifier(core.pooler_output))
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, labels))
    index = PointIndexer(config)(clouds())
    assert torch.equal(model(clouds(), point_index=index).logits, output.logits)
    with raises(ValueError, naming="elsewhere in points"):
        model(clouds() + 1, point_index=index)
    assert model.point_tokenizer_model.config.num_hidden_layers == 0


def test_a_control_without_encoder_keeps_all_settings_of_tokenizer_and_head():
    given = {
        "in_channels": 5,
        "num_tokens": 9,
        "tokenizer": "patch",
        "tokenizer_width": 30,
        "tokenizer_neighbors": 7,
        "tokenizer_blocks": [1, 3],
        "tokenizer_bottlenecks": [4, None],
        "tokenizer_alpha": 500.0,
        "tokenizer_beta": 50.0,
        "offset_normalization": "cloud_std",
        "offset_eps": 0.25,
        "token_scale": 0.75,
        "sampling_min_squared_norm": 0.125,
        "sampling_tie_rule": "cuda",
        "head_widths": [11],
        "head_bias": True,
        "head_dropout": 0.375,
        "initializer_range": 0.0625,
    }
    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": "multi_label_classification"}
    config = Any2PointConfig(encoder_config=tiny_config("bert"), pooling=["cls", "mean", "max"], **given, **labels)
    made = PointTokenizerConfig.without_encoder(config)
    assert {name: getattr(made, name) for name in given} == given
    assert {name: getattr(made, name) for name in labels} == labels
    assert made.pooling == ("mean", "max") and made.hidden_size == HIDDEN
    assert (made.num_stages, made.min_points) == (1, 9)
    staged = PointTokenizerConfig(num_tokens=9, tokenizer_blocks=[1, 1], tokenizer_bottlenecks=[2, 2])
    assert (staged.num_stages, staged.min_points) == (2, 32)
    assert PointTokenizerConfig(num_tokens=40, tokenizer_neighbors=3).min_points == 160
    with raises(ValueError, naming="pooling=(); expected some of 'max'"):
        PointTokenizerConfig.without_encoder(Any2PointConfig(encoder_config=tiny_config("bert"), pooling=["cls"]))
    for wrong in ([0, 0, 0], [1.0, 0.0]):
        message = f"line_direction={wrong}; expected three numbers, not all 0"
        with pytest.raises(ValueError, match=re.escape(message)):
            Any2PointConfig(line_direction=wrong)


@pytest.mark.parametrize("tokenizer", ["point_pn", "patch"])
def test_an_index_has_centers_and_neighbors_of_every_stage(tokenizer):
    config = Any2PointConfig(**(SMALL | {"tokenizer": tokenizer, "sampling_min_squared_norm": 0.2, "in_channels": 4}))
    points = clouds(2, channels=4)
    points[:, 5, :3] = 0.01  # near the origin
    index = PointIndexer(config)(points)
    stages = 3 if tokenizer == "point_pn" else 1
    count = 8 * 2 ** (stages - 1)
    xyz = points[..., :3].contiguous()
    centers = farthest_point_sample(xyz, count, min_squared_norm=0.2)
    assert list(index) == ["centers", "center_positions", "neighbors"]
    assert torch.equal(index["centers"].long(), centers) and index["centers"].dtype == torch.int32
    assert torch.equal(index["center_positions"], gather_points(xyz, centers)) and 5 not in centers
    assert isinstance(index["neighbors"], tuple) and len(index["neighbors"]) == stages
    places = xyz
    for neighbors in index["neighbors"]:
        here = index["center_positions"][:, :count]
        nearest = torch.cdist(here, places).argsort(dim=-1)[..., :4]
        assert torch.equal(neighbors.long().sort(dim=-1).values, nearest.sort(dim=-1).values)
        assert neighbors.dtype == torch.int32 and neighbors.shape == (2, count, 4)
        places, count = here, count // 2
    half = PointIndexer(config)(points.half())
    assert half["center_positions"].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"centers": torch.zeros(2, 31, dtype=torch.int32)}, "centers has shape (2, 31); expected (2, 32)"),
        ({"center_positions": torch.zeros(2, 32, 2)}, "center_positions has shape (2, 32, 2); expected (2, 32, 3)"),
        ({1: torch.zeros(2, 16, 5, dtype=torch.int32)}, "neighbors[1] has shape (2, 16, 5); expected (2, 16, 4)"),
        ({2: torch.zeros(2, 16, 4, dtype=torch.int32)}, "neighbors[2] has shape (2, 16, 4); expected (2, 8, 4)"),
    ],
)
def test_an_index_of_another_form_is_named(change, message):
    config = Any2PointConfig(**SMALL)
    index = PointIndexer(config)(clouds(2))
    stages = list(index["neighbors"])
    for key, value in change.items():
        if isinstance(key, int):
            stages[key] = value
    index |= {"neighbors": tuple(stages)} | {key: value for key, value in change.items() if isinstance(key, str)}
    model = Any2PointModel.from_encoder_pretrained(saved_encoder("bert"), **SMALL)
    with pytest.raises(ValueError, match=f"^{re.escape('point_index: ' + message)}"):
        model(clouds(2), point_index=index)


def test_offsets_are_divided_by_their_scale():
    offsets = torch.randn(2, 3, 4, 3, generator=torch.Generator().manual_seed(0))
    for how in ("group_max", "cloud_std", "batch_std"):
        found = normalize_offsets(offsets, how, 0.5)
        for cloud in range(2):
            for center in range(3):
                own = offsets[cloud, center]
                scale = {
                    "group_max": own.abs().amax(dim=0),
                    "cloud_std": offsets[cloud].std(),
                    "batch_std": offsets.std(),
                }
                torch.testing.assert_close(found[cloud, center], own / (scale[how] + 0.5))


def test_released_places_wrap_around():
    rotated = torch.tensor([[[[0.0, 0, 0], [1.0, 0.5, 0], [4.0, -1, 0]]]])
    line = line_positions(rotated, (2.0, 0.0, 0.0), 10, "wrap").flatten()
    # A quarter of the way, and half a pixel less.
    assert line.tolist() == pytest.approx([9.5, 2.0, 9.5])
    stretched = line_positions(rotated, (2.0, 0.0, 0.0), 10, "stretch").flatten()
    assert stretched.tolist() == pytest.approx([0, 2.25, 9])
    x, y = plane_positions(torch.tensor([[[[0.5, -0.25, 0.6]]]]), 1.4, (80.0, 48.0), "wrap").flatten().tolist()
    assert x == pytest.approx((0.5 / 2 + 1) * 40 - 0.5) and y == pytest.approx((-0.25 / 2 * 0.6 + 1) * 24 - 0.5)
    beyond = plane_positions(torch.tensor([[[[-3.0, 9.0, 0.6]]]]), 1.4, (80.0, 48.0), "wrap").flatten().tolist()
    assert beyond == pytest.approx([(-0.5 * 40 - 0.5) % 80, ((4.5 * 0.6 + 1) * 24 - 0.5) % 48], abs=1e-4)
    near = plane_positions(torch.tensor([[[[1.0, -1.0, -2.0]]]]), 1.4, (80.0, 48.0), "clamp").flatten().tolist()
    assert near == [79, 0]  # behind the camera


def test_segmenters_have_the_widths_of_their_config():
    model = tiny_scene_model(propagation_width=10, head_widths=(6,), head_bias=True, head_dropout=0.25, num_labels=7)
    layer = model.segmenter.hidden[0]
    assert (layer.in_features, layer.out_features, layer.bias is not None) == (10, 6, True)
    assert model.segmenter.dropouts[0].p == 0.25 and model.segmenter.out.out_features == 7
    sizes = [model.propagation.from_tokens, model.propagation.from_cloud, *model.propagation.from_point[::2]]
    shapes = [(each.in_features, each.out_features, each.bias is not None) for each in sizes]
    assert shapes == [(HIDDEN, 10, False), (2 * HIDDEN, 10, False), (6, 10, True), (10, 10, False)]
    assert Any2PointForSemanticSegmentation.small_data_defaults["head_widths"] == [128]

"""What settings of a 3DETR build, and what a detector returns of its parts."""

import math
import re

import pytest
import torch
from torch import nn

from hf_any3d import ActModel
from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection, Detr3DModel
from hf_any3d.modeling.detr3d.modeling_detr3d import (
    Detr3DAttention,
    FeedForward,
    FourierPositions,
    _padded,
    additive_mask,
    cloud_extent,
    token_width,
)
from hf_any3d.modeling.layers.heads import ClassificationHead
from hf_any3d.modeling.point_encoders.set_abstraction import SetAbstraction
from tests.common.case import spread_weights, varied_clouds
from tests.errors import raises
from tests.tiny_detr3d import SIZES, objects, tiny_detr3d

OTHERS = {
    "in_channels": 5,
    "neighbor_order": "first",
    "sampling_min_squared_norm": 0.01,
    "group_radius": 0.45,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "encoder_dropout": 0.11,
    "encoder_activation": "leaky_relu",
    "downsampling_widths": (20, 28),
    "hidden_size": 40,
    "decoder_layers": 3,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 56,
    "dropout": 0.13,
    "layer_norm_eps": 3e-4,
    "head_dropout": 0.17,
}


def of_kind(module: nn.Module, kind: type) -> list:
    return [each for each in module.modules() if isinstance(each, kind)]


def widths_of(layers: nn.ModuleList) -> list[int]:
    return [layers[0].linear.in_features, *(layer.linear.out_features for layer in layers)]


def test_every_setting_is_built_where_it_belongs():
    model = tiny_detr3d(Detr3DForPointCloudObjectDetection, **OTHERS)
    core, encoder, layers = model.detr3d, model.detr3d.encoder, model.detr3d.layers
    assert {norm.eps for norm in of_kind(model, nn.LayerNorm)} == {3e-4}
    heads = [child for child in model.children() if isinstance(child, ClassificationHead)]
    rates = {name: {drop.p for drop in of_kind(part, nn.Dropout)} for name, part in model.detr3d.named_children()}
    assert {name for name, found in rates.items() if found} == {"encoder", "layers"}
    assert rates["encoder"] == {0.11} and rates["layers"] == {0.13}
    assert [[drop.p for drop in of_kind(head, nn.Dropout)] for head in heads] == [[0.17, 0.17]] * 5
    for part, width, number, rate in ((encoder, 32, 2, 0.11), (layers, 40, 8, 0.13)):
        found = of_kind(part, Detr3DAttention)
        assert {(each.num_heads, each.dropout, each.scaling) for each in found} == {
            (number, rate, (width // number) ** -0.5)
        }
    shapes = {
        (each.fc1.in_features, each.fc1.out_features, type(each.activation)) for each in of_kind(core, FeedForward)
    }
    assert shapes == {(32, 48, nn.LeakyReLU), (40, 56, nn.ReLU)}
    assert (len(encoder.layers), len(layers)) == (2, 3)
    groups = [
        (each.num_centers, each.radius, each.num_neighbors, widths_of(each.layers), each.scale_offsets)
        for each in of_kind(core, SetAbstraction)
    ]
    assert groups == [(24, 0.45, 8, [5, 16, 24, 32], True), (12, 0.8, 6, [35, 20, 28, 32], True)]
    more = {(each.neighbor_order, each.min_squared_norm) for each in of_kind(core, SetAbstraction)}
    assert more == {("first", 0.01)}
    assert widths_of(core.memory_projection) == [32, 32, 40] and core.positions.frequencies.shape == (3, 20)
    outputs = [(len(head.hidden), head.hidden[0].bias, head.out.out_features) for head in heads]
    assert outputs == [(2, None, 4), (2, None, 3), (2, None, 3), (2, None, 4), (2, None, 4)]
    vanilla = tiny_detr3d(Detr3DModel, attention_radii=None)
    assert widths_of(vanilla.memory_projection) == [32, 32, 32, 32] and vanilla.encoder.downsampling is None


# None of these changes the shape of a weight.
CHANGES = {
    "num_tokens": 28,
    "group_radius": 0.3,
    "num_neighbors": 5,
    "neighbor_order": "first",
    "sampling_min_squared_norm": 0.3,
    "encoder_attention_heads": 2,
    "encoder_activation": "gelu",
    "attention_radii": (0.5, 1.2),
    "downsampling_radius": 0.5,
    "downsampling_neighbors": 4,
    "decoder_attention_heads": 2,
    "layer_norm_eps": 0.1,
    "min_extent": 1.9,
    "max_center_offset": 0.8,
}


@pytest.fixture(scope="module")
def state():
    model = tiny_detr3d(Detr3DForPointCloudObjectDetection)
    spread_weights(model)
    return model.state_dict()


@torch.no_grad()
def answers(state, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    model = Detr3DForPointCloudObjectDetection(Detr3DConfig(**(SIZES | settings))).eval()
    model.load_state_dict(state)
    output = model(varied_clouds(2, 120))
    return output.logits, output.pred_boxes


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_without_weights_changes_the_answer(name, state):
    logits, boxes = answers(state)
    other_logits, other_boxes = answers(state, **{name: CHANGES[name]})
    if name == "max_center_offset":
        assert torch.equal(logits, other_logits) and torch.equal(boxes[..., 3:], other_boxes[..., 3:])
    else:
        assert (logits - other_logits).abs().max() > 1e-3
    assert (boxes - other_boxes).abs().max() > 1e-3


@torch.no_grad()
def test_a_detector_returns_all_of_its_core_and_the_boxes_of_every_layer():
    model = tiny_detr3d(Detr3DForPointCloudObjectDetection)
    model.set_attn_implementation("eager")
    spread_weights(model)
    clouds, labels = varied_clouds(2, 30), objects(2)
    mask = torch.arange(30) < torch.tensor([[30], [20]])
    asked = {"points_mask": mask, "output_hidden_states": True, "output_attentions": True}
    core = model.detr3d(clouds, **asked)
    found = model(clouds, labels=labels, **asked)
    low, extent = cloud_extent(clouds, mask, 0.1)
    every = model.predict(core.intermediate_hidden_states, core.centers, low, extent)
    shared = {
        *("last_hidden_state", "centers", "encoder_last_hidden_state", "encoder_centers", "encoder_mask"),
        *("hidden_states", "attentions", "cross_attentions"),
    }
    own = {"loss", "loss_dict", "logits", "pred_boxes", "heading_logits", "heading_residuals", "auxiliary_outputs"}
    assert set(found) == shared | own
    for name in shared:
        ours, theirs = found[name], core[name]
        if isinstance(ours, torch.Tensor):
            ours, theirs = (ours,), (theirs,)
        assert len(ours) == len(theirs) and all(map(torch.equal, ours, theirs)), name
    last, first = every.outputs_of(-1), every.outputs_of(0)
    assert all(torch.equal(found[name], value) for name, value in last.items())
    (auxiliary,) = found.auxiliary_outputs
    assert auxiliary.keys() == first.keys()
    assert all(torch.equal(auxiliary[name], value) for name, value in first.items())
    assert found.encoder_mask.shape == (2, 12) and not torch.equal(found.logits, auxiliary["logits"])
    assert len(found.hidden_states) == 5 and len(found.attentions) == 4 and len(found.cross_attentions) == 2
    bare = model(clouds, points_mask=mask)
    assert set(bare) == shared - {"hidden_states", "attentions", "cross_attentions"} | own - {
        *("loss", "loss_dict", "auxiliary_outputs"),
    }
    torch.testing.assert_close(bare.pred_boxes, found.pred_boxes)


@torch.no_grad()
def test_a_box_is_computed_from_the_heads_by_hand():
    model = tiny_detr3d(Detr3DForPointCloudObjectDetection, max_center_offset=0.4)
    for head, values in (
        (model.center_head, [2.0, -1.0, 0.5]),
        (model.size_head, [1.0, 0.0, -2.0]),
        (model.heading_class_head, [0.0, 0.5, 3.0, 1.0]),
        (model.heading_residual_head, [9.0, 9.0, 0.75, 9.0]),
    ):
        head.out.weight.zero_()
        head.out.bias.copy_(torch.tensor(values))
    low, extent = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[2.0, 4.0, 5.0]]])
    centers = torch.tensor([[[1.5, 3.0, 4.0]]])
    found = model.predict(torch.ones(1, 1, 1, 32), centers, low, extent)

    def share(value):
        return 1 / (1 + math.exp(-value))

    middle = [place + 0.4 * (2 * share(value) - 1) for place, value in zip((1.5, 3, 4), (2, -1, 0.5), strict=True)]
    sizes = [share(value) for value in (1, 0, -2)]
    # Bin 2 of 4 is half a turn; the rest is counted in halves of a bin, and the heading goes from -π to π.
    heading = math.pi + 0.75 * math.pi / 4 - 2 * math.pi
    expected = [*middle, *(size * length for size, length in zip(sizes, (2, 4, 5), strict=True)), heading]
    assert found.boxes.flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert found.sizes.flatten().tolist() == pytest.approx(sizes, rel=1e-5)
    places = [(x - at) / length for x, at, length in zip(middle, (1, 2, 3), (2, 4, 5), strict=True)]
    assert found.centers.flatten().tolist() == pytest.approx(places, rel=1e-5)
    assert found.heading_logits.flatten().tolist() == [0.0, 0.5, 3.0, 1.0]
    assert found.heading_residuals.flatten().tolist() == [9.0, 9.0, 0.75, 9.0]


def test_the_extent_of_a_cloud_leaves_out_padding():
    points = torch.tensor(
        [[[1.0, 5, 2, 9], [3, 4, 2, -9], [-7, 99, 8, 0]], [[0.0, 0, 0, 0], [1, 2, 3, 0], [4, 1, 1, 0]]]
    )
    mask = torch.tensor([[True, True, False], [True, True, True]])
    low, extent = cloud_extent(points, mask, 0.25)
    assert low.tolist() == [[[1, 4, 2]], [[0, 0, 0]]] and extent.tolist() == [[[2, 1, 0.25]], [[4, 2, 3]]]
    low, extent = cloud_extent(points.half(), None, 0.25)
    assert low.dtype == extent.dtype == torch.float32
    assert low.tolist() == [[[-7, 4, 2]], [[0, 0, 0]]] and extent.tolist() == [[[10, 95, 6]], [[4, 2, 3]]]
    assert cloud_extent(points.double(), None, 0.25)[1].dtype == torch.float64


def test_masks_are_added_to_products():
    assert additive_mask(None, torch.float32) is None
    visible = torch.tensor([[[True, False]], [[False, True]]])
    for dtype in (torch.float32, torch.float16):
        lowest = torch.finfo(dtype).min
        mask = additive_mask(visible, dtype)
        assert mask.dtype == dtype and mask.tolist() == [[[[0, lowest]]], [[[lowest, 0]]]]


def test_flat_tokens_become_a_batch():
    tokens, centers = torch.arange(10.0).view(5, 2), torch.arange(15.0).view(5, 3)
    padded, places, mask = _padded(tokens, centers, torch.tensor([3, 5]))
    assert padded.tolist() == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [0, 0]]]
    assert places[1].tolist() == [[9, 10, 11], [12, 13, 14], [0, 0, 0]]
    assert mask.tolist() == [[True] * 3, [True, True, False]]
    padded, places, mask = _padded(tokens[:4], centers[:4], torch.tensor([2, 4]))
    assert mask is None and padded.shape == (2, 2, 2) and places.shape == (2, 2, 3)


def test_positions_are_sines_and_cosines_of_full_turns():
    positions = FourierPositions(4)
    positions.frequencies.copy_(torch.tensor([[0.5, 1.0], [2.0, 0.25], [1.0, 3.0]]))
    found = positions(torch.tensor([[[0.1, 0.2, 0.3]]]))
    turns = [0.1 * 0.5 + 0.2 * 2 + 0.3, 0.1 + 0.2 * 0.25 + 0.3 * 3]
    expected = [wave(2 * math.pi * turn) for wave in (math.sin, math.cos) for turn in turns]
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_activations_are_those_of_their_names():
    values = torch.tensor([-2.0, -0.5, 0.0, 1.5])
    expected = {
        "relu": values.clamp(min=0),
        "gelu": nn.functional.gelu(values),
        "leaky_relu": torch.where(values > 0, values, 0.1 * values),
    }
    for name, activated in expected.items():
        torch.testing.assert_close(FeedForward(4, 8, name, 0.0).activation(values), activated)


def test_properties_of_a_config_are_read_from_its_settings():
    own = Detr3DConfig(num_tokens=101, num_queries=50, encoder_layers=3, decoder_layers=5, decoder_attention_heads=8)
    assert (own.num_encoder_tokens, own.num_hidden_layers, own.num_attention_heads) == (50, 8, 8)
    assert (own.described_tokens, own.batch_dependent_flags, own.min_points) == ("groups of points", [], 1)
    assert Detr3DConfig(num_tokens=101, num_queries=101, attention_radii=None).num_encoder_tokens == 101
    for freeze, word in ((True, "frozen"), (False, "trained")):
        # Another encoder has as many tokens as it has.
        other = Detr3DConfig(
            point_encoder_config={"model_type": "act3d"},
            freeze_point_encoder=freeze,
            num_queries=5000,
            decoder_layers=5,
        )
        assert other.described_tokens == f"tokens of a {word} act3d encoder" and other.num_hidden_layers == 5
    assert other.point_encoder_name_or_path is None and token_width(other.point_encoder_config) == 384
    wrapped = Detr3DConfig(
        point_encoder_config={"model_type": "any2point", "encoder_config": {"model_type": "bert", "hidden_size": 72}}
    )
    assert token_width(wrapped.point_encoder_config) == 72
    assert sorted(Detr3DConfig.keys_to_ignore_at_inference) == sorted(
        "auxiliary_outputs centers encoder_centers encoder_last_hidden_state encoder_mask heading_logits "
        "heading_residuals last_hidden_state loss_dict".split()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"point_encoder_scale": "room"}, "point_encoder_scale='room'; expected one of 'unit_sphere', None"),
        ({"point_encoder_up_axis": "x"}, "point_encoder_up_axis='x'; expected one of 'y', 'z'"),
        ({"parts": {"encoder": {}}}, "parts has 'encoder'; expected some of 'point_encoder'"),
        ({"group_radius": 0}, "group_radius=0; expected 1e-06 to"),
        ({"in_channels": 2}, "in_channels=2; expected 3 to 4,096"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Detr3DConfig(**(SIZES | settings))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    from tests.common.models import case_of

    folder = str(tmp_path_factory.mktemp("encoder"))
    case_of(ActModel).tiny().save_pretrained(folder)
    return folder


ON_ENCODER = {"hidden_size": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "num_queries": 8, "num_labels": 3}


def test_a_model_on_another_encoder_returns_its_tokens_as_the_only_state_before_the_decoder(encoder):
    model = Detr3DModel.from_point_encoder_pretrained(encoder, freeze=False, **ON_ENCODER)
    assert not model.training and not model.config.freeze_point_encoder
    assert model.config.part("point_encoder").name_or_path == encoder and model.config.num_queries == 8
    with torch.no_grad():
        output = model(varied_clouds(2), output_hidden_states=True)
        inner = model.point_encoder.model(varied_clouds(2))
    count = inner.centers.shape[1]
    assert torch.equal(output.encoder_last_hidden_state, inner.last_hidden_state[:, -count:])
    assert torch.equal(output.hidden_states[0], output.encoder_last_hidden_state)
    assert len(output.hidden_states) == 3 and torch.equal(output.encoder_centers, inner.centers)
    assert output.encoder_index.dtype == torch.int64 and output.encoder_index.shape == (2, count)
    assert output.encoder_mask is None and not output.encoder_index.any()
    stack = model.layer_stack
    assert stack.pretrained == ("point_encoder",) and stack.path.startswith("point_encoder.model.")
    assert stack.trained == ("detr3d.memory_projection.0", "detr3d.memory_projection.1") + (
        *("detr3d.positions", "detr3d.layers.0", "detr3d.layers.1", "detr3d.layer_norm"),
    )
    assert tiny_detr3d(Detr3DModel).layer_stack is None


def test_a_detector_on_an_encoder_is_opened_by_a_name_or_a_config(encoder):
    config = Detr3DModel.from_point_encoder_pretrained(encoder, **ON_ENCODER).config
    for given in ({}, {"name": encoder, "config": config}):
        with pytest.raises(ValueError, match="^give either name or a config that names a point encoder$"):
            Detr3DModel.from_point_encoder_pretrained(**given)
    opened = Detr3DModel.from_point_encoder_pretrained(config=config)
    assert not opened.training and opened.config.freeze_point_encoder
    config.set_part("point_encoder", config.part("point_encoder").__class__())
    with pytest.raises(
        ValueError, match="the config names no point encoder, which is stored with the model; load tha"
    ):
        Detr3DModel.from_point_encoder_pretrained(config=config)
    with raises(TypeError, naming="from_point_encoder_pretrained"):
        Detr3DModel.from_point_encoder_pretrained(encoder, sizes=3)


def test_a_part_is_opened_as_it_is_asked_for(encoder):
    config = Detr3DModel.from_point_encoder_pretrained(encoder, **ON_ENCODER).config
    # These two say where the model is, not its encoder.
    hub = {"revision": "v2", "subfolder": "inside", "local_files_only": True}
    opened = Detr3DModel.open_part(config, hub, attn_implementation="eager", quantization_config=None)
    assert isinstance(opened, ActModel) and opened.config._attn_implementation == "eager"
    stored = Detr3DModel.open_stored_part(encoder, config, {}, attn_implementation="sdpa")
    assert isinstance(stored, ActModel) and stored.config._attn_implementation == "sdpa"
    for door in (
        lambda **loading: Detr3DModel.open_part(config, {}, **loading),
        lambda **loading: Detr3DModel.open_stored_part(encoder, config, {}, **loading),
    ):
        with raises(ValueError, naming="quantization_config"):
            door(quantization_config=object())


def test_norms_beside_an_adapter_measure_nothing(encoder):
    from peft import LoraConfig, get_peft_model

    from hf_any3d import encoder_linear_pattern

    base = Detr3DForPointCloudObjectDetection.from_point_encoder_pretrained(encoder, **ON_ENCODER)
    norms = [module for name, module in base.named_modules() if isinstance(module, nn.BatchNorm1d)]
    assert all(norm.training for norm in norms if norm in of_kind(base.train().class_head, nn.BatchNorm1d))
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=encoder_linear_pattern(base))).train()
    assert not any(norm.training for norm in norms)
    assert all(drop.training for drop in of_kind(adapted, nn.Dropout) if drop.p == 0.3)
    copies = adapted.base_model.model.class_head.modules_to_save["default"]
    assert [norm.training for norm in of_kind(copies, nn.BatchNorm1d)] == [True, True]

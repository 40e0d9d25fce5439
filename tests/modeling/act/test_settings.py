"""Every setting of the point transformer and its heads has its effect; requested outputs; masked pretraining."""

import re

import pytest
import torch
from torch import nn

from hf_any3d import OpenShapeModel, PatchAlign3DModel, PointTransformerV3Model, Uni3DModel
from hf_any3d.modeling.act import (
    ActAutoencoder,
    ActConfig,
    ActForPartSegmentation,
    ActForPointCloudClassification,
    ActForPreTraining,
    ActForSemanticSegmentation,
    ActModel,
)
from hf_any3d.modeling.act.codebook import gumbel_noise
from hf_any3d.modeling.point_encoders.point_transformer import GRIDS, group_patches
from tests.errors import raises
from tests.modeling.act.test_pretraining import GROUPS, STUDENT, masks, tiny_pretraining
from tests.tiny_act import SMALL, clouds, tiny_act
from tests.tiny_aligned import tiny_aligned
from tests.tiny_autoencoders import tiny_autoencoder
from tests.tiny_encoders import clouds as pretraining_clouds
from tests.tiny_ptv3 import tiny_ptv3


def linear(model: nn.Module) -> dict[str, tuple[int, int, bool]]:
    return {
        name: (layer.in_features, layer.out_features, layer.bias is not None)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    }


def test_sizes_of_the_transformer_are_those_of_the_config():
    changes = {"in_channels": 5, "patch_widths": (4, 6, 10), "patch_pooled_width": 14, "qkv_bias": True}
    changes |= {"mlp_ratio": 3.0, "num_hidden_layers": 2, "drop_path_rate": 0.3, "layer_norm_eps": 1e-3}
    model = ActModel(ActConfig(**SMALL | changes))
    block = {"attention.qkv": (24, 72, True), "attention.proj": (24, 24, True)}
    block |= {"mlp.fc1": (24, 72, True), "mlp.fc2": (72, 24, True)}
    expected = {"lift": (5, 4, True), "widen": (4, 6, True), "join": (12, 10, True), "out": (10, 14, True)}
    expected = {f"patch_encoder.{name}": size for name, size in (expected | {"project": (14, 24, True)}).items()}
    expected |= {"position_embed.0": (3, 128, True), "position_embed.2": (128, 24, True)}
    expected |= {f"blocks.layers.{number}.{name}": size for number in range(2) for name, size in block.items()}
    assert linear(model) == expected
    assert [layer.drop_path.rate for layer in model.blocks.layers] == pytest.approx([0, 0.3])
    assert {layer.attention.num_heads for layer in model.blocks.layers} == {4}
    without = linear(ActModel(ActConfig(**SMALL)))
    assert without["blocks.layers.0.attention.qkv"] == (24, 72, False) and "patch_encoder.project" not in without
    side = ActModel(ActConfig(**SMALL | {"side_network": True, "patch_pooled_width": 14}))
    assert linear(side)["side.out"] == (512, 24, True) and linear(side)["side_projection"] == (24, 24, False)
    assert side.side_alpha.tolist() == [0.0]


def test_heads_have_the_widths_rates_and_poolings_of_the_config():
    changes = {"head_widths": (10, 6), "head_bias": False, "head_dropout": 0.2, "head_activation": "gelu"}
    changes |= {"pooling": ("mean", "max", "cls"), "num_labels": 4, "unknown_rows": 3, "unknown_bank_rows": 2}
    head = tiny_act(ActForPointCloudClassification, **changes)
    assert linear(head.classifier) == {
        "hidden.0": (72, 10, False),
        "hidden.1": (10, 6, False),
        "out": (6, 4, True),
    }
    assert head.classifier.activation == "gelu" and [layer.p for layer in head.classifier.dropouts] == [0.2, 0.2]
    assert head.unknown_score.features.shape == (3, 72) and head.unknown_score.bank.shape == (2, 72)
    output = head.act(clouds())
    states = output.last_hidden_state
    pooled = [states[:, 1:].mean(dim=1), states[:, 1:].amax(dim=1), states[:, 0]]
    torch.testing.assert_close(output.pooler_output, torch.cat(pooled, dim=1))
    rates = {"segmentation_head_dropout": (0.3, 0.1)}
    parts = tiny_act(ActForPartSegmentation, **rates)
    assert linear(parts.propagation) == {
        "from_points": (3, 32, True),
        "from_tokens": (48, 32, False),
        "out": (32, 20, True),
    }
    expected = {"from_points": (20, 16, True), "from_cloud": (2 * 48 + 6, 16, False)}
    expected |= {"head.hidden.0": (16, 12, True), "head.out": (12, 5, True)}
    assert linear(parts.segmenter) == expected
    assert parts.segmenter.dropout.p == 0.3 and [layer.p for layer in parts.segmenter.head.dropouts] == [0.1]
    assert parts.category_embedding.weight.shape == (2, 6)
    scenes = tiny_act(ActForSemanticSegmentation, **rates)
    assert linear(scenes.segmenter) == expected | {"from_cloud": (96, 16, False), "head.out": (12, 3, True)}


@torch.no_grad()
def test_outputs_of_chosen_blocks_come_in_their_order_beside_all_states():
    for model_class in (ActModel, OpenShapeModel, PatchAlign3DModel, Uni3DModel):
        model = tiny_act(model_class) if model_class is ActModel else tiny_aligned(model_class)
        points = clouds(channels=model.config.in_channels)
        output = model(points, output_layers=(2, 0), output_hidden_states=True)
        assert len(output.hidden_states) == 4 and len(output.layer_outputs) == 2
        assert torch.equal(output.layer_outputs[0], output.hidden_states[3])
        assert torch.equal(output.layer_outputs[1], output.hidden_states[1])
        assert torch.equal(model.norm(output.hidden_states[3]), output.last_hidden_state)
        alone = model(points, output_layers=[1])
        assert alone.hidden_states is None and len(alone.layer_outputs) == 1
        assert torch.equal(alone.layer_outputs[0], output.hidden_states[2])
        assert model(points, output_hidden_states=True).layer_outputs is None
        assert alone.attentions is None and alone.get("added_tokens") is None


class Guided(nn.Module):
    """Stands for an adapter around a block that reads where the tokens are."""

    takes_geometry = True

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, hidden_states, positions=None, geometry=None):
        self.geometry = geometry
        return self.block(hidden_states, positions)


@torch.no_grad()
def test_adapters_around_blocks_get_the_places_of_tokens():
    students = ((ActModel, {}, 1), (ActModel, {"use_class_token": False}, 0))
    for model_class, settings, special in (*students, (Uni3DModel, {}, 1), (PatchAlign3DModel, {}, 1)):
        model = (tiny_act if model_class is ActModel else tiny_aligned)(model_class, **settings)
        points = clouds(channels=model.config.in_channels)
        plain = model(points)
        model.blocks.layers[1] = guided = Guided(model.blocks.layers[1])
        output = model(points)
        assert torch.equal(output.last_hidden_state, plain.last_hidden_state)
        geometry = guided.geometry
        assert geometry.cell_size == pytest.approx(4 / 12**0.5) and geometry.special_tokens == special
        assert torch.equal(geometry.given_centers, output.centers)
        stack = model.layer_stack
        assert stack.layers is model.blocks.layers and (stack.path, stack.branch) == ("blocks.layers", "mlp")
        assert (stack.hidden_size, stack.views, stack.is_open, stack.final_norm) == (24, GRIDS, True, "norm")
        assert {name for name, _ in model.named_children()} <= set(stack.pretrained)
        if model_class is ActModel:
            tokens, places = geometry.embed_patches(5, 4)
            patches = group_patches(points, 5, 4)
            torch.testing.assert_close(tokens, model.patch_encoder(patches.neighborhoods))
            torch.testing.assert_close(places, model.position_embed(patches.centers))


def test_points_near_the_origin_are_no_centers_if_the_config_says_so():
    points = clouds()
    points[:, 10:, :3] *= 1e-3
    for norm, expected in ((None, False), (1e-3, True)):
        index = tiny_act(ActModel, sampling_min_squared_norm=norm, num_groups=11)(points).center_index
        assert bool((index < 10).all()) is expected
        _, places = tiny_act(ActModel, sampling_min_squared_norm=norm).embed_patches(points, 11, 4)
        assert (len(places[0].unique(dim=0)) < 11) is expected


def test_poolings_of_prompts_need_an_adapter():
    model = tiny_act(ActModel, pooling=("cls", "prompt_max"))
    message = "pooling=['cls', 'prompt_max']: there are no prompts, as no adapter leaves tokens behind the last block"
    with pytest.raises(ValueError, match=re.escape(message)):
        model(clouds())
    message = "segmentation_pooling='prompts': the adapters do not leave one prompt, before and after the block, at "
    with pytest.raises(ValueError, match=re.escape(message + "each of the blocks [0, 2]; expected IDPTConfig(")):
        tiny_act(ActForSemanticSegmentation, segmentation_pooling="prompts")(clouds())
    # Models without a class token pool what is left, or the maximum.
    for pooling, expected in ((("cls",), "amax"), (("cls", "mean"), "mean"), (("prompt_max", "max"), "amax")):
        output = tiny_act(ActModel, pooling=pooling, use_class_token=False)(clouds())
        torch.testing.assert_close(output.pooler_output, getattr(output.last_hidden_state, expected)(dim=1))


def test_first_weights_have_the_deviation_of_the_config():
    torch.manual_seed(0)
    config = {"hidden_size": 96, "initializer_range": 0.05, "category_width": 80}
    model = ActForPartSegmentation(ActConfig(**SMALL | config, category_parts=[[0]] * 20, num_labels=2))
    assert model.category_embedding.weight.std().item() == pytest.approx(0.05, rel=0.1)
    assert model.act.position_embed[2].weight.std().item() == pytest.approx(0.05, rel=0.1)
    torch.manual_seed(0)
    model = tiny_pretraining(
        hidden_size=96, initializer_range=0.05, class_token_loss=True, class_token_layer=1, side_network=True
    )
    for vector in (model.mask_token, model.decoder_class_position, model.act.class_token.token):
        assert vector.std().item() == pytest.approx(0.05, rel=0.25)
    assert model.act.class_token.position.std().item() == pytest.approx(0.05, rel=0.25)
    assert model.act.side_alpha.item() == 0
    for name, weight in linear(model.decoder).items():
        bound = (6 / (weight[0] + weight[1])) ** 0.5
        found = model.decoder.get_submodule(name).weight.detach()
        assert 0.99 * bound < found.abs().max() <= bound and found.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    with torch.no_grad():
        classifier = tiny_classifier_head()
    for layer in (classifier.hidden[0], classifier.out):
        bound = layer.in_features**-0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound and 0.5 * bound < layer.bias.abs().max() <= bound


def tiny_classifier_head() -> nn.Module:
    torch.manual_seed(0)
    return ActForPointCloudClassification(ActConfig(**SMALL | {"num_labels": 30, "head_widths": (40,)})).classifier


def test_the_decoder_of_the_pretraining_has_its_own_depth_heads_and_rates():
    settings = {"decoder_num_hidden_layers": 3, "decoder_num_attention_heads": 2, "decoder_drop_path_rate": 0.4}
    decoder = tiny_pretraining(**settings, drop_path_rate=0.0).decoder
    assert [layer.drop_path.rate for layer in decoder.layers] == pytest.approx([0, 0.2, 0.4])
    assert {layer.attention.num_heads for layer in decoder.layers} == {2}
    usual = tiny_pretraining(decoder_num_attention_heads=None, decoder_drop_path_rate=0.0, drop_path_rate=0.2)
    assert [layer.attention.num_heads for layer in usual.decoder.layers] == [4]
    assert [layer.drop_path.rate for layer in usual.act.blocks.layers] == pytest.approx([0, 0.1, 0.2])
    probed = tiny_pretraining(feature_head_width=5)
    assert linear(probed.feature_head) == {"0": (24, 5, True), "2": (5, 5, True)}
    assert linear(probed)["prediction_head"] == (24, 16, True)


@torch.no_grad()
def test_targets_are_those_of_given_or_drawn_noise():
    points, mask = pretraining_clouds(), masks()
    noise = torch.randn(3, GROUPS, 12, generator=torch.Generator().manual_seed(0)) * 9

    def chosen(model, given):
        return model.autoencoder.teacher_features(points, noise=given)[mask].view(3, 6, 16)

    model = tiny_pretraining()
    found = model(points, mask, noise=noise)
    torch.testing.assert_close(found.targets, chosen(model, noise))
    assert not torch.allclose(found.targets, chosen(model, torch.zeros(1)), atol=1e-3)
    assert found.loss > 0 and model(points, mask, return_loss=False).loss is None
    assert torch.equal(found.mask, mask) and found.class_token_predictions is None
    noisy = tiny_pretraining(noisy_targets=True)
    torch.manual_seed(4)
    targets = noisy(points, mask).targets
    torch.manual_seed(4)
    torch.testing.assert_close(targets, chosen(noisy, gumbel_noise(torch.zeros(3, GROUPS, 12))))
    # An autoencoder that draws noise by itself is kept from it.
    model.autoencoder.config.noise_in_eval = True
    torch.testing.assert_close(model(points, mask).targets, chosen(model, torch.zeros(1)))


@torch.no_grad()
def test_a_mask_of_the_config_is_drawn_for_each_cloud_with_the_seed():
    model = tiny_pretraining(mask_ratio=0.5, mask_type="block")
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model(pretraining_clouds()).mask)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].sum(dim=1).tolist() == [4, 4, 4]


def test_a_student_takes_the_patches_of_its_teacher():
    teacher = {"num_groups": 5, "group_size": 8, "in_channels": 4, "sampling_min_squared_norm": 1e-4}
    autoencoder = tiny_autoencoder(None, **teacher)
    made = ActForPreTraining.from_autoencoder_pretrained(autoencoder, **STUDENT)
    assert {name: getattr(made.config, name) for name in teacher} == teacher
    assert (
        not made.training and made.autoencoder is autoencoder and made.config.autoencoder_config is autoencoder.config
    )
    changed = ActForPreTraining.from_autoencoder_pretrained(autoencoder, sampling_min_squared_norm=None, **STUDENT)
    assert changed.config.sampling_min_squared_norm is None
    for name in ("num_groups", "group_size", "in_channels"):
        value = teacher[name]
        message = f"{name}={value + 4}; expected {value}, the autoencoder's value: both use the same patches"
        with pytest.raises(ValueError, match=re.escape(message)):
            ActForPreTraining.from_autoencoder_pretrained(autoencoder, **{name: value + 4}, **STUDENT)


def test_students_of_other_kinds_have_what_they_need(tmp_path):
    def build(autoencoder: ActAutoencoder, student: nn.Module, **settings):
        return ActForPreTraining.from_autoencoder_pretrained(autoencoder, student, **settings)

    plain, colored = (tiny_autoencoder(None, num_groups=6, in_channels=channels) for channels in (3, 6))
    narrow = tiny_aligned(PatchAlign3DModel, num_groups=6)
    with raises(ValueError, naming="in_channels"):
        build(colored, narrow)
    with raises(ValueError, naming="encode_visible_only"):
        build(plain, narrow, encode_visible_only=False)
    wide = tiny_aligned(Uni3DModel, num_groups=6)
    assert build(colored, wide).config.in_channels == 6
    voxels = tiny_ptv3(PointTransformerV3Model)
    message = "feature_head_width=5; expected the default, as point_transformer_v3 has no class token"
    with pytest.raises(ValueError, match=message):
        build(plain, voxels, feature_head_width=5)
    # The sizes of a student with a decoder are those of its last stage.
    decoder = {"use_decoder": True, "decoder_depths": (1,), "decoder_hidden_sizes": (18,)}
    model = build(plain, tiny_ptv3(PointTransformerV3Model, **decoder, decoder_num_attention_heads=(3,)))
    sizes = (model.config.hidden_size, model.config.num_attention_heads, model.config.num_hidden_layers)
    assert sizes == (18, 3, 4) and model.config.in_channels == 6 and model.config.group_size == 8
    model.save_pretrained(tmp_path)
    with raises(ValueError, naming="quantization_config"):
        ActForPreTraining.from_pretrained(tmp_path, quantization_config={"load_in_8bit": True})


@torch.no_grad()
def test_students_of_every_kind_return_states_and_weights_and_ignore_return_dict_inside():
    autoencoder, mask = tiny_autoencoder(None), torch.tensor([[1, 0, 1, 0, 1, 0], [0, 0, 0, 1, 1, 1]]).bool()
    voxels = tiny_ptv3(PointTransformerV3Model, shuffle_curves="never")
    for source in (None, tiny_aligned(Uni3DModel, num_groups=6), voxels):
        own = STUDENT if source is None else {"decoder_num_hidden_layers": 1}
        model = ActForPreTraining.from_autoencoder_pretrained(autoencoder, source, **own)
        (model if source is None else model.act).set_attn_implementation("eager")
        if source is not None:
            # A choice that was made after nesting the config is kept.
            model = ActForPreTraining(model.config, autoencoder, source).eval()
        assert model.act.config._attn_implementation == "eager"
        points = clouds(channels=model.config.in_channels)
        expected = model(points, mask, output_attentions=True, output_hidden_states=True)
        assert len(expected.attentions) == 3 and len(expected.hidden_states) == 4
        features = model.probe_features(points)
        model.act.config.return_dict = False
        found = model(points, mask, return_dict=True)
        assert torch.equal(found.loss, expected.loss) and found.attentions is found.hidden_states is None
        assert torch.equal(model.probe_features(points), features)


def test_every_norm_of_the_pretraining_has_the_epsilon_of_the_config():
    model = tiny_pretraining(layer_norm_eps=0.25)
    own = {name: part.eps for name, part in model.named_modules() if isinstance(part, nn.LayerNorm)}
    own = {name: eps for name, eps in own.items() if not name.startswith("autoencoder.")}
    assert set(own.values()) == {0.25} and {"decoder_norm", "act.norm", "decoder.layers.0.norm1"} <= own.keys()

import json

import pytest
import torch
from transformers import BertConfig

from hf_any3d.modeling.any2point import Any2PointConfig, Any2PointForPointCloudClassification, Any2PointModel
from tests.errors import raises
from tests.tiny_encoders import HIDDEN, SMALL, clouds, saved_encoder, tiny_config, tiny_model


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("offset_normalization", "max"),
        ("attention_axis", "token"),
        ("line_mapping", None),
        ("plane_mapping", "stretch"),
        ("position_injection", "first"),
    ],
)
def test_unknown_choice_is_refused_with_the_known_ones(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value!r}; expected one of '"):
        Any2PointConfig(**{name: value})


@pytest.mark.parametrize("name", ["encoder_layers", "num_token"])
def test_setting_without_effect_is_refused(name):
    message = f"Any2PointModel.from_encoder_pretrained has no argument '{name}'; expected its own or one of Any2Poi"
    with pytest.raises(TypeError, match=message):
        Any2PointModel.from_encoder_pretrained(saved_encoder("bert"), **{name: 1})


@pytest.mark.parametrize("views", [0, 7])
def test_invalid_number_of_views_is_refused(views):
    with pytest.raises(ValueError, match=f"num_views={views}; expected 1 to 6"):
        Any2PointConfig(num_views=views)


@pytest.mark.parametrize("pooling", [[], ["max", "sum"]])
def test_unknown_pooling_is_refused(pooling):
    with raises(ValueError, naming="pooling="):
        Any2PointConfig(pooling=pooling)


def test_config_reloads_equal_from_json(tmp_path):
    config = Any2PointConfig(
        encoder_config=tiny_config("vit", image_size=(32, 48)),
        encoder_tower="vision",
        num_tokens=16,
        tokenizer_blocks=[1, 2],
        tokenizer_bottlenecks=[None, 8],
        line_direction=[1.0, 0.0, 1.0],
        plane_size=[64, 32],
        pooling=["cls"],
        attention_axis="batch",
        id2label={0: "chair", 1: "lamp"},
    )
    config.save_pretrained(tmp_path)
    loaded = Any2PointConfig.from_pretrained(tmp_path)
    assert type(loaded.encoder_config) is type(config.encoder_config)
    ours, theirs = (json.loads(json.dumps(c.to_dict())) for c in (config, loaded))
    assert ours == theirs
    assert loaded.id2label == {0: "chair", 1: "lamp"} and loaded.num_labels == 2
    assert loaded.batch_dependent_flags == ["attention_axis='batch'"]


def test_defaults_do_not_depend_on_the_batch():
    assert Any2PointConfig().batch_dependent_flags == []
    flags = Any2PointConfig(offset_normalization="batch_std", line_mapping="wrap").batch_dependent_flags
    assert flags == ["line_mapping='wrap'", "offset_normalization='batch_std'"]


def test_encoder_config_may_be_given_as_a_dict():
    config = Any2PointConfig(encoder_config=tiny_config("bert").to_dict())
    assert isinstance(config.encoder_config, BertConfig) and config.encoder_config.hidden_size == 48


def test_error_without_an_encoder_names_from_encoder_pretrained():
    with raises(ValueError, naming="encoder_config"):
        Any2PointModel(Any2PointConfig())


def test_random_encoder_of_a_config_is_stored_with_the_model(tmp_path):
    config = Any2PointConfig(encoder_config=tiny_config("bert"), num_labels=3, **SMALL)
    model = Any2PointForPointCloudClassification(config).eval()
    assert not any(parameter.requires_grad for parameter in model.any2point.encoder.parameters())
    model.save_pretrained(tmp_path)
    loaded = Any2PointForPointCloudClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(clouds()).logits, model(clouds()).logits)


def test_pooling_uses_the_named_tokens():
    model = tiny_model(pooling=["mean", "cls", "max"]).any2point
    with torch.no_grad():
        output = model(clouds())
    hidden = output.last_hidden_state
    expected = torch.cat([hidden[:, 1:].mean(dim=1), hidden[:, 0], hidden[:, 1:].amax(dim=1)], dim=-1)
    torch.testing.assert_close(output.pooler_output, expected)


@pytest.mark.parametrize("where", ["input", "every_layer", "input_and_every_layer"])
def test_positions_are_added_as_configured(where):
    model = tiny_model(position_injection=where, use_input_norm=False).any2point
    seen = []
    for layer in model.family.layers_of(model.encoder):
        layer.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        tokens = model.point_tokenizer(clouds()).tokens
        model(clouds())
    (first, out), (second, _) = seen
    assert torch.allclose(second, out) == (where == "input")
    added = {"input": 1, "every_layer": 1, "input_and_every_layer": 2}[where]
    once = tiny_model(use_input_norm=False).any2point
    once.family.layers_of(once.encoder)[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        once(clouds())
    positions = seen[-1][:, 1:] - tokens
    torch.testing.assert_close(first[:, 1:] - tokens, added * positions, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "vit", "llama", "gemma3_text"])
@torch.no_grad()
def test_the_final_norm_has_the_epsilon_of_the_config(family):
    small = 1e-3 * torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0))
    found = []
    for epsilon in (1e-10, 1.0):  # beside which rows so small are next to nothing
        norm = tiny_model(family, final_norm_eps=epsilon).any2point.output_norm
        found.append(float((norm(small) - norm(0 * small)).std()))
    assert 0.5 < found[0] < 2 and found[1] < 2e-3


def test_batch_axis_attention_warns_once_and_depends_on_the_batch():
    model = tiny_model("clip_text_model", attention_axis="batch")
    with torch.no_grad(), pytest.warns(UserWarning, match="depend on the other clouds") as caught:
        together = model(clouds()).logits
        alone = model(clouds()[:1]).logits
    assert len([w for w in caught if "other clouds" in str(w.message)]) == 1
    assert not torch.allclose(together[:1], alone, atol=1e-4)


def test_path_of_the_encoder_is_recorded_with_its_checksum():
    config = tiny_model().config
    assert config.encoder_name_or_path == saved_encoder("bert")
    assert config.encoder_checksum.startswith("tensors-sha256:") and config.encoder_revision is None

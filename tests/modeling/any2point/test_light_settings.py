"""Settings that a new model has where none are given."""

import pytest

from hf_any3d.modeling.any2point import (
    Any2PointConfig,
    Any2PointForPointCloudClassification,
    Any2PointForSemanticSegmentation,
)
from hf_any3d.modeling.any2point.small_data_defaults import LIGHT, LIGHT_SEGMENTATION
from tests.errors import raises
from tests.tiny_encoders import saved_encoder, tiny_config


@pytest.mark.slow
def test_a_new_model_has_them_unless_others_are_given():
    for model_class, light in (
        (Any2PointForPointCloudClassification, LIGHT),
        (Any2PointForSemanticSegmentation, LIGHT_SEGMENTATION),
    ):
        config = model_class.from_encoder_pretrained(saved_encoder("bert"), num_tokens=8, token_scale=None).config
        found = {name: getattr(config, name) for name in light}
        assert found == light | {"num_tokens": 8, "token_scale": None, "tokenizer_weights": "random"}


def test_a_complete_config_stays_as_it_is():
    saved = Any2PointForPointCloudClassification.from_encoder_pretrained(saved_encoder("bert"), num_tokens=8).config
    config = Any2PointConfig(encoder_config=saved.encoder_config, parts=saved.parts, num_tokens=8)
    model = Any2PointForPointCloudClassification.from_encoder_pretrained(config=config)
    plain = Any2PointConfig(num_tokens=8)
    assert {name: getattr(model.config, name) for name in LIGHT} == {name: getattr(plain, name) for name in LIGHT}


@pytest.mark.parametrize("encoder", ["llama", "vit", "wav2vec2"])
def test_tokens_are_scaled_only_to_learned_positions(encoder):
    settings = Any2PointForPointCloudClassification.complete_settings(tiny_config(encoder), {}, "small_data")
    # The weights of the package do not fit such a narrow encoder.
    expected = LIGHT | {"tokenizer_weights": "random"}
    if encoder != "vit":
        del expected["token_scale"]
    assert settings == expected


def test_the_width_is_that_of_the_patch_tokenizer():
    complete = Any2PointForPointCloudClassification.complete_settings
    plain = {"tokenizer": "point_pn"}
    assert "tokenizer_width" not in complete(tiny_config("bert"), plain, "small_data")
    assert complete(tiny_config("bert"), plain | {"tokenizer_width": 48}, "small_data")["tokenizer_width"] == 48


def test_without_a_preset_the_settings_are_those_of_the_config():
    build = Any2PointForPointCloudClassification.from_encoder_pretrained
    config = build(saved_encoder("bert"), preset=None).config
    usual = Any2PointConfig()
    assert {name: getattr(config, name) for name in LIGHT} == {name: getattr(usual, name) for name in LIGHT}
    with raises(ValueError, naming="'small_data'"):
        build(saved_encoder("bert"), preset="light")

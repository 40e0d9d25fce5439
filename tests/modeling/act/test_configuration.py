"""Checks and derived values of the configuration."""

import pytest

from hf_any3d.modeling.act import ActAutoencoderConfig, ActConfig
from tests.errors import raises


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 2}, "in_channels=2; expected 3 to 4,096"),
        ({"pooling": ("sum",)}, r"pooling=\('sum',\); expected some of"),
        ({"pooling": ()}, r"pooling=\(\); expected some of"),
        ({"category_parts": [[0], [1]], "category_names": ["mug"]}, "expected 2 names"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ActConfig(**settings)


def test_a_saved_config_is_equal(tmp_path):
    config = ActConfig(num_groups=16, sampling_min_squared_norm=1e-3, head_widths=(), category_parts=[[0, 1], [2]])
    config.save_pretrained(tmp_path)
    again = ActConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.num_categories == 2 and again.min_points == 32


def test_defaults_have_no_quirks_of_released_programs():
    assert ActConfig().sampling_min_squared_norm is None


def test_settings_are_allowed_up_to_their_border():
    for settings in (
        {"mask_ratio": 0.0},
        {"class_token_loss": True, "class_token_layer": 1},
        {"class_token_layer": 0},
    ):
        config = ActConfig(**settings)
        assert all(getattr(config, name) == value for name, value in settings.items())
    assert ActConfig(class_token_loss=True, class_token_layer=11).class_token_layer == 11
    with raises(ValueError, naming="class_token_loss"):
        ActConfig(class_token_loss=True, use_class_token=False)
    assert ActConfig(use_class_token=False).class_token_loss is False


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("head_activation", "'relu', 'gelu'"),
        ("segmentation_pooling", "'tokens', 'prompts'"),
        ("mask_type", "'random', 'block'"),
        ("distillation_loss", "'cosine', 'l2', 'smooth_l1', 'contrastive', 'barlow'"),
        ("target_layer", "'graph_decoder', 'teacher'"),
        ("teacher_dtype", "None, 'float32', 'bfloat16', 'float16'"),
    ],
)
def test_choices_are_listed(name, known):
    with pytest.raises(ValueError, match=f"^{name}='other'; expected one of {known}$"):
        ActConfig(**{name: "other"})


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("code_scores", "'projection', 'distance', 'cosine'"),
        ("quantizer", "'gumbel', 'nearest'"),
        ("prompt_depth", "'shallow', 'deep'"),
        ("position_injection", "'input', 'every_layer'"),
        ("attention_axis", "'tokens', 'batch'"),
    ],
)
def test_choices_of_the_autoencoder_are_listed(name, known):
    with pytest.raises(ValueError, match=f"^{name}='other'; expected one of {known}$"):
        ActAutoencoderConfig(**{name: "other"})


def test_sizes_of_clouds_and_checksums():
    assert ActConfig(num_groups=70, group_size=9).min_points == 70
    assert ActConfig(num_groups=7, group_size=90).min_points == 90
    config = ActConfig(base_name_or_path="me/model", base_checksum="tensors-sha256:12", base_revision="main")
    assert config.parts == {
        "base": {"name_or_path": "me/model", "revision": "main", "checksum": "tensors-sha256:12"},
    }
    config.base_checksum = "tensors-sha256:34"
    assert config.base_checksum == "tensors-sha256:34"
    config.base_checksum = None
    assert config.base_checksum is None and config.batch_dependent_flags == []
    with raises(ValueError, naming="'encoder'; expected some of 'base'"):
        ActConfig(parts={"encoder": {}})
    with raises(ValueError, naming="'base'; expected some of 'encoder'"):
        ActAutoencoderConfig(parts={"base": {}})

"""Checks and derived values of the configuration."""

import pytest

from hf_any3d.modeling.act import ActConfig


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

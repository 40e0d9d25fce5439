"""Implausible numbers in a configuration are rejected before a model is built."""

import dataclasses
import json
import math

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedConfig

from hf_any3d.integration.registration import ENCODERS, LANGUAGE_MODELS, MODELS
from hf_any3d.modeling.act import ActConfig
from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.modeling.minigpt3d import NormedPhiConfig
from hf_any3d.tuners import BitFitConfig, GuidedAdapterConfig, PromptTokensConfig, SideTuningConfig

CONFIGS = [*MODELS, *ENCODERS, *(config for config, *_ in LANGUAGE_MODELS)]
TUNERS = [GuidedAdapterConfig, PromptTokensConfig, SideTuningConfig, BitFitConfig]


def number_fields(config_class):
    """Fields of our own that are annotated as numbers or lists of them, with their annotations."""
    own = {name for base in config_class.__mro__ if "hf_any3d" in base.__module__ for name in base.__annotations__}
    for field in dataclasses.fields(config_class):
        # Texts where annotations are not evaluated.
        kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
        if field.name in own and kind.startswith(("int", "float", "list[int", "list[float")):
            yield field.name, kind


@pytest.mark.parametrize("config_class", CONFIGS + TUNERS)
def test_no_number_of_a_config_is_nan_infinite_huge_or_a_text(config_class):
    fields = dict(number_fields(config_class))
    assert fields or config_class is BitFitConfig
    for name, kind in fields.items():
        for wrong in (math.nan, math.inf, -math.inf, 10**12, 10**5000, "384", {"a": 1}):
            value = [wrong] if kind.startswith("list") else wrong
            # Classes of transformers check types themselves.
            with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=name) as caught:
                config_class(**{name: value})
            assert len(str(caught.value)) < 500 or config_class is NormedPhiConfig


@pytest.mark.parametrize("config_class", CONFIGS)
def test_defaults_are_valid_also_when_saved(config_class, tmp_path):
    config_class().save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path).to_dict() == config_class().to_dict()


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (Any2PointConfig, {"in_channels": 2}, "in_channels=2; expected 3 to 4,096"),
        (Any2PointConfig, {"final_norm_eps": math.nan}, "final_norm_eps=nan; expected 0 to 1"),
        (ActConfig, {"hidden_size": 384.0}, "hidden_size=384.0; expected a whole number"),
        (ActConfig, {"hidden_size": True}, "hidden_size=True; expected a whole number"),
        (ActConfig, {"hidden_size": None}, "hidden_size=None; expected a whole number"),
        (ActConfig, {"drop_path_rate": 1.5}, "drop_path_rate=1.5; expected 0 to 1"),
        (ActConfig, {"head_widths": 256}, "head_widths=256; expected a list of numbers"),
    ],
)
def test_the_field_its_value_and_the_range_are_named(config_class, settings, message):
    with pytest.raises(ValueError, match=message):
        config_class(**settings)


def test_a_saved_config_with_an_invalid_number_is_refused(tmp_path):
    Any2PointConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for name, value in (
        ("final_norm_eps", math.nan),
        ("num_views", 7),
        ("line_direction", [1, math.inf, 0]),
        ("line_direction", [1, -1, []]),
    ):
        (tmp_path / "config.json").write_text(json.dumps(saved | {name: value}))
        with pytest.raises(ValueError, match=name):
            PreTrainedConfig.from_pretrained(tmp_path) and Any2PointConfig.from_pretrained(tmp_path)

"""Implausible numbers in a configuration are rejected before a model is built."""

import inspect
import json
import math
import os
import re
from dataclasses import fields

import pytest
from peft import PeftConfig
from transformers import PhiConfig, PreTrainedConfig

import hf_any3d.tuners
from hf_any3d.integration.registration import ENCODERS, LANGUAGE_MODELS, MODELS
from hf_any3d.modeling.act import ActConfig
from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.file_stamps import file_stamp, sha256_of
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from hf_any3d.tuners.tuners_utils import EncoderTunerConfig
from tests.errors import raises

CONFIGS = [*MODELS, *ENCODERS, *(config for config, *_ in LANGUAGE_MODELS)]
METHODS = [
    kind for kind in vars(hf_any3d.tuners).values() if inspect.isclass(kind) and issubclass(kind, EncoderTunerConfig)
]


@pytest.mark.parametrize("config_class", [*CONFIGS, *METHODS], ids=lambda config: config.__name__)
def test_help_names_every_field(config_class):
    # Those of transformers and PEFT are described there.
    inherited = {field.name for base in (PreTrainedConfig, PhiConfig, PeftConfig) for field in fields(base)}
    own = {field.name for field in fields(config_class) if not field.name.startswith("_")}
    shown = set(re.findall(r"^    (\w+): \S", inspect.getdoc(config_class) or "", flags=re.MULTILINE))
    assert own - inherited - shown == set()


@pytest.mark.parametrize("config_class", CONFIGS)
def test_defaults_are_valid_also_when_saved(config_class, tmp_path):
    config_class().save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path).to_dict() == config_class().to_dict()


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (Any2PointConfig, {"in_channels": 2}, "in_channels=2; expected 3 to 4,096"),
        (Any2PointConfig, {"released": {"final_norm_eps": math.nan}}, "final_norm_eps=nan; expected 0 to 1"),
        (ActConfig, {"drop_path_rate": 1.5}, "drop_path_rate=1.5; expected 0 to 1"),
    ],
)
def test_the_field_its_value_and_the_range_are_named(config_class, settings, message):
    with pytest.raises(ValueError, match=message):
        config_class(**settings)


def test_a_saved_config_with_an_invalid_number_is_refused(tmp_path):
    Any2PointConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for name, changes in (("final_norm_eps", {"released": {"final_norm_eps": math.nan}}), ("num_views", {"num_views": 7})):
        (tmp_path / "config.json").write_text(json.dumps(saved | changes))
        with pytest.raises(ValueError, match=name):
            PreTrainedConfig.from_pretrained(tmp_path) and Any2PointConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("error", "kind", "named"),
    [
        (ValueError("wrong"), ValueError, "here: wrong"),
        (EncoderMismatchError("own"), EncoderMismatchError, "own"),
        (KeyError("a"), ValueError, "here"),
        (OSError("left"), OSError, "left"),
    ],
)
def test_errors_of_stored_settings_name_their_place(error, kind, named):
    with raises(kind, naming=named), stored_settings("here"):
        raise error


def test_a_stamp_changes_with_the_file(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    before = file_stamp(file)
    assert sha256_of(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    file.write_bytes(b"abd")
    os.utime(file, ns=(before[1], before[1]))
    assert file_stamp(file) != before

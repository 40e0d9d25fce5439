"""Implausible numbers in a configuration are rejected before a model is built."""

import copy
import importlib
import inspect
import json
import math
import os
import re
from dataclasses import fields

import pytest
import torch
from peft import PeftConfig
from transformers import PhiConfig, PreTrainedConfig

import hf_any3d.tuners
from hf_any3d import registry
from hf_any3d.integration.registration import ENCODERS, LANGUAGE_MODELS, MODELS
from hf_any3d.modeling.act import ActConfig
from hf_any3d.modeling.any2point import Any2PointConfig, Any2PointModel
from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.file_stamps import file_stamp, sha256_of
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from hf_any3d.modeling.setting_groups import SettingGroupsMixin
from hf_any3d.tuners.tuners_utils import EncoderTunerConfig
from tests.errors import raises
from tests.turns import ALL_PAIRS

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


# What no default can give: labels of the parts of things, a teacher, and the space of a text tower.
_NEEDED = {
    **dict.fromkeys((name for kind in registry.MODEL_TYPES.values() for name in kind.part_heads), "category_parts"),
    "ActForPreTraining": "autoencoder_config",
    "ReconForZeroShotPointCloudClassification": "image_width",
    "PointBERTForPreTraining": "autoencoder_config",
    "Any2PointForZeroShotPointCloudClassification": "text_width",
}


@pytest.mark.parametrize("name", list(registry.MODEL_TYPES)[:: 1 if ALL_PAIRS else 2])
def test_models_are_built_by_the_defaults_of_their_config(name):
    kind = registry.MODEL_TYPES[name]
    package = importlib.import_module(kind.package)
    # In full size, with shapes but no numbers
    with torch.device("meta"):
        for model in kind.models():
            config = getattr(package, kind.config)()
            if model in _NEEDED:
                with raises(ValueError, naming=_NEEDED[model]):
                    getattr(package, model)(config)
            else:
                assert getattr(package, model)(config).config.model_type == name


@torch.no_grad()
def test_the_default_model_reads_clouds():
    model = Any2PointModel(Any2PointConfig()).eval()
    assert model(torch.rand(2, 1024, 3)).last_hidden_state.shape == (2, 129, 384)


def test_a_default_config_shows_the_method_and_empty_groups():
    config = Any2PointConfig()
    own = config.to_dict().keys() - PreTrainedConfig().to_dict().keys()
    groups = config.setting_groups()
    assert groups.keys() == {"released", "unknown", "controls"} and len(own) <= 39
    assert all(config.to_dict()[group] == {} for group in groups)


GROUPED = [
    (config_class, group, name)
    for config_class in CONFIGS
    if issubclass(config_class, SettingGroupsMixin)
    for group, kind in config_class.setting_groups().items()
    for name in kind.names()
]


def another_value(kind, name):
    """Return a value of a setting that is not its default."""
    usual = getattr(kind(), name)
    if name in kind.choices:
        return next(choice for choice in kind.choices[name] if choice != usual)
    if isinstance(usual, bool):
        return not usual
    if isinstance(usual, int):
        return usual + 1
    return [0.25, 0.5] if isinstance(usual, tuple) else 0.25


@pytest.mark.parametrize(
    ("config_class", "group", "name"), GROUPED, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_setting_of_a_group_is_stored_there_and_refused_beside_it(config_class, group, name, tmp_path):
    kind = config_class.setting_groups()[group]
    usual = getattr(kind(), name)
    value = another_value(kind, name)
    # Without a gradient through the teacher, prompts before its layers would get none.
    beside = {"num_prompts": 0} if name == "detach_teacher" else {}
    config = config_class(**{group: {name: value}}, **beside)
    assert getattr(getattr(config, group), name) == value and config.to_dict()[group] == {name: value}
    config.save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert getattr(getattr(copy.deepcopy(config), group), name) == value
    # One of its own: the next config has the defaults.
    assert getattr(getattr(config_class(), group), name) == usual
    with raises(ValueError, naming=group):
        config_class(**{name: value})
    with raises(ValueError, naming=name):
        config_class(**{group: {name + "s": value}})


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
    damaged = {"final_norm_eps": {"released": {"final_norm_eps": math.nan}}, "num_views": {"num_views": 7}}
    for name, changes in damaged.items():
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

"""Defaults of models, adapters and training: values of the papers, the released programs, or our measurements."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
from peft import PeftConfig
from transformers import PreTrainedConfig

import hf_any3d
from hf_any3d.modeling import minigpt3d
from hf_any3d.modeling.setting_groups import SettingGroup
from hf_any3d.training import arguments, minigpt3d_stages, models, pretraining

# Intended changes of defaults are made here too; values come from the paper or the released program.
STORED = json.loads(Path(__file__).with_name("defaults.json").read_text(encoding="utf-8"))


def _classes() -> dict[str, type]:
    """Return public configurations and arguments by name."""
    found = {}
    modules = (hf_any3d, minigpt3d, arguments, minigpt3d_stages, models, pretraining)
    for module in modules:
        for name in dir(module):
            value = getattr(module, name)
            if inspect.isclass(value) and dataclasses.is_dataclass(value) and value.__module__.startswith("hf_any3d"):
                if issubclass(value, (PreTrainedConfig, PeftConfig)) or name.endswith("Arguments"):
                    found[name] = value
    return found


def _defaults(cls: type) -> dict[str, object]:
    """Return the defaults of the fields that this package defines."""
    own = set()
    for base in cls.__mro__:
        if base.__module__.startswith("hf_any3d"):
            own |= set(base.__dict__.get("__annotations__", ()))
    defaults = {}
    for field in dataclasses.fields(cls):
        if field.name in own:
            made = field.default_factory is not dataclasses.MISSING
            value = field.default_factory() if made else field.default
            defaults[field.name] = "required" if value is dataclasses.MISSING else value
    return json.loads(json.dumps(defaults, default=_as_json))


def _as_json(value: object) -> object:
    return vars(value) if isinstance(value, SettingGroup) else str(value)


@pytest.mark.parametrize("name", sorted(_classes()))
def test_defaults_are_the_stored_ones(name):
    assert _defaults(_classes()[name]) == STORED[name]


def test_every_stored_class_is_still_there():
    assert sorted(STORED) == sorted(_classes())

"""Configurations of this package's PEFT methods: their members of PEFT's enum, and settings that are refused."""

import copy
import json
import pickle

import pytest
from peft import PeftConfig, PeftType

from hf_any3d.tuners import BitFitConfig, GuidedAdapterConfig, PromptTokensConfig
from tests.errors import raises


def test_a_method_is_a_member_of_pefts_enum(tmp_path):
    member = PeftType.GUIDED_ADAPTER
    assert member is PeftType["GUIDED_ADAPTER"] is PeftType("GUIDED_ADAPTER") and member in list(PeftType)
    assert (member.name, member.value, json.dumps(member)) == ("GUIDED_ADAPTER", member, '"GUIDED_ADAPTER"')
    assert copy.deepcopy(member) is member is pickle.loads(pickle.dumps(member))
    assert PeftType.LORA is PeftType("LORA") and len(set(PeftType)) == len(PeftType.__members__)
    GuidedAdapterConfig(r=5, gate=0.5).save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert (type(loaded), loaded.r, loaded.gate, loaded.peft_type) == (GuidedAdapterConfig, 5, 0.5, member)


@pytest.mark.parametrize(
    ("config", "settings", "naming"),
    [
        (GuidedAdapterConfig, {"r": 0}, "r=0"),
        (GuidedAdapterConfig, {"pooling": "sum"}, "pooling='sum'"),
        (GuidedAdapterConfig, {"voxel_size": 0.0}, "voxel_size=0.0"),
        (GuidedAdapterConfig, {"cell_size": -1.0}, "cell_size=-1.0"),
        (PromptTokensConfig, {"num_prompts": 0}, "num_prompts=0"),
        (PromptTokensConfig, {"target_modules": ["a"], "layers_to_transform": 0}, "layers_to_transform"),
    ],
)
def test_settings_that_would_be_ignored_or_without_effect_are_refused(config, settings, naming):
    with raises(ValueError, naming=naming):
        config(**settings)


def test_names_of_targets_are_a_set_and_patterns_stay():
    assert BitFitConfig(target_modules=["a", "a", "b"]).target_modules == {"a", "b"}
    assert BitFitConfig(target_modules="a.*").target_modules == "a.*"

"""Configurations of this package's PEFT methods: their members of PEFT's enum, and checks of untrusted patterns."""

import copy
import enum
import json
import pickle

import pytest
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from hf_any3d.tuners import GuidedAdapterConfig
from hf_any3d.tuners.guided_adapter import GuidedAdapterModel
from hf_any3d.tuners.guided_adapter.config import GUIDED_ADAPTER
from hf_any3d.tuners.tuners_utils import extend_peft_type
from tests.errors import raises


def test_member_behaves_like_a_member_of_peft():
    assert PeftType.GUIDED_ADAPTER is PeftType["GUIDED_ADAPTER"] is PeftType("GUIDED_ADAPTER") is GUIDED_ADAPTER
    assert GUIDED_ADAPTER in PeftType and GUIDED_ADAPTER in list(PeftType)
    assert PeftType.__members__["GUIDED_ADAPTER"] is GUIDED_ADAPTER
    assert vars(PeftType)["GUIDED_ADAPTER"] is GUIDED_ADAPTER  # where later releases of Python look
    assert isinstance(GUIDED_ADAPTER, PeftType) and isinstance(GUIDED_ADAPTER, enum.Enum)
    assert (GUIDED_ADAPTER.name, GUIDED_ADAPTER.value) == ("GUIDED_ADAPTER", "GUIDED_ADAPTER")
    assert GUIDED_ADAPTER == "GUIDED_ADAPTER" and hash(GUIDED_ADAPTER) == hash(PeftType("GUIDED_ADAPTER"))
    assert json.dumps(GUIDED_ADAPTER) == '"GUIDED_ADAPTER"'


def test_members_of_peft_are_unchanged():
    assert PeftType.LORA is PeftType("LORA") and PeftType.LORA != GUIDED_ADAPTER
    assert len(set(PeftType)) == len(list(PeftType)) == len(PeftType.__members__)
    with raises(ValueError, naming="'NO_SUCH'"):
        PeftType("NO_SUCH")


def test_copies_are_the_same_member():
    assert copy.deepcopy(GUIDED_ADAPTER) is GUIDED_ADAPTER
    assert pickle.loads(pickle.dumps(GUIDED_ADAPTER)) is GUIDED_ADAPTER


def test_extending_again_changes_nothing():
    before = list(PeftType)
    assert extend_peft_type("GUIDED_ADAPTER") is GUIDED_ADAPTER
    assert extend_peft_type("LORA") is PeftType.LORA
    for found in (PeftType.GUIDED_ADAPTER, PeftType["GUIDED_ADAPTER"], PeftType("GUIDED_ADAPTER")):
        assert found is GUIDED_ADAPTER
    assert list(PeftType) == before


def test_method_is_registered_with_peft(tmp_path):
    assert PEFT_TYPE_TO_CONFIG_MAPPING[GUIDED_ADAPTER] is GuidedAdapterConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[GUIDED_ADAPTER] is GuidedAdapterModel
    GuidedAdapterConfig(r=5, gate=0.5).save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert type(loaded) is GuidedAdapterConfig
    assert (loaded.r, loaded.gate, loaded.peft_type) == (5, 0.5, GUIDED_ADAPTER)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"r": 0}, "r=0; expected 1 to 16,384"),
        ({"attention_width": 10}, "attention_width=10 is not a multiple of attention_heads=6"),
        ({"target_modules": ["a"], "layers_to_transform": 0}, "give target_modules or layers_to_transform, not both"),
    ],
)
def test_invalid_settings_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        GuidedAdapterConfig(**settings)

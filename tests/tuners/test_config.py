"""Configurations of this package's PEFT methods: their members of PEFT's enum, and checks of untrusted patterns."""

import copy
import enum
import json
import pickle

import pytest
from peft import IA3Config, LoraConfig, PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from hf_any3d.modeling.pretrained_parts.stored_adapters import check_patterns
from hf_any3d.tuners import BitFitConfig, GuidedAdapterConfig, PromptTokensConfig
from hf_any3d.tuners.guided_adapter import GuidedAdapterModel
from hf_any3d.tuners.guided_adapter.config import GUIDED_ADAPTER
from hf_any3d.tuners.tuners_utils import extend_peft_type


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
    with pytest.raises(ValueError, match="'NO_SUCH' is not a valid PeftType"):
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


PLAIN = [
    r".*encoder\.layer\.\d+",
    r"any2point\.encoder\.(encoder\.)?layers?\.(0|1|11)\.self_attn\.[qkv]_proj",
    r".*\.(q_proj|v_proj)",
    r"(?:.*?(?:text|language).*?(?:attention|mlp).*?(?:q_proj|fc1))|(?:\bmodel\.layers\.[\d]{1,}\.self_attn)",
    "all-linear",
    r"act\.blocks\.layers\.[0-9]+\.mlp\.fc[12]",
]
SLOW = [
    (r"(a+)+$", "repeats a group"),
    (r"(.*)*x", "repeats a group"),
    (r"((a|a)*b)*c", "repeats a group"),
    (r"([a-z]+)*\d", "repeats a group"),
    (r"(?:(?:x+x+)+y){1,}", "repeats"),
    (r"(?P<name>\w+\.)*z", "repeats a group"),
    (r"(a?){50}a{50}", "repeats a group"),
    (r".*.*.*.*.*.*x", "repeats more than 4 times"),
    (r"(.+)\1", "refers back to a group"),
    ("(" * 500, "not a regular expression"),
    ("a" * 10_001, "10,001 characters"),
]


@pytest.mark.parametrize("pattern", PLAIN)
def test_plain_patterns_are_accepted(pattern):
    check_patterns(LoraConfig(target_modules=pattern))
    assert GuidedAdapterConfig(target_modules=pattern).target_modules == pattern


@pytest.mark.parametrize(("pattern", "message"), SLOW)
def test_patterns_that_could_take_hours_are_refused(pattern, message):
    for config in (GuidedAdapterConfig, PromptTokensConfig, BitFitConfig):
        for field in ("target_modules", "exclude_modules"):
            with pytest.raises(ValueError, match=message):
                config(**{field: pattern})
    with pytest.raises(ValueError, match=message):
        check_patterns(IA3Config(target_modules=pattern, feedforward_modules=[]))
    with pytest.raises(ValueError, match=message):
        check_patterns(LoraConfig(target_modules=["query"], rank_pattern={pattern: 4}))


@pytest.mark.parametrize("field", ["modules_to_save", "layers_pattern"])
def test_names_that_peft_matches_as_patterns_are_checked(field):
    check_patterns(
        LoraConfig(target_modules=["query"], layers_to_transform=[0], **{field: ["classifier", "head.out"]})
    )
    config = LoraConfig(
        target_modules=["query"], layers_to_transform=[0], **{field: ["classifier", "([a-z0-9_.]+)*!"]}
    )
    with pytest.raises(ValueError, match="repeats a group"):
        check_patterns(config)


@pytest.mark.parametrize(("length", "shown"), [(100, "a" * 99 + "("), (101, "a" * 97 + "...")])
def test_a_refused_pattern_is_shown_in_part_if_it_is_long(length, shown):
    with pytest.raises(ValueError) as error:
        GuidedAdapterConfig(target_modules="a" * (length - 1) + "(")
    assert str(error.value).startswith(f"pattern {shown!r}: not a regular expression")

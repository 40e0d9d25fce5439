"""Regular expressions in the configurations of adapters, which come from strangers."""

import pytest
from peft import IA3Config, LoraConfig

from hf_any3d.modeling.pretrained_parts.stored_adapters import check_patterns
from hf_any3d.tuners import BitFitConfig, GuidedAdapterConfig, PromptTokensConfig

PLAIN = [
    r".*encoder\.layer\.\d+",
    r"any2point\.encoder\.(encoder\.)?layers?\.(0|1|11)\.self_attn\.[qkv]_proj",
    r".*\.(q_proj|v_proj)",
    r"(?:.*?(?:text|language).*?(?:attention|mlp).*?(?:q_proj|fc1))|(?:\bmodel\.layers\.[\d]{1,}\.self_attn)",
    "all-linear",
    r"act\.blocks\.layers\.[0-9]+\.mlp\.fc[12]",
]
BOMBS = [
    (r"(a+)+$", "repeats a group"),
    (r"(.*)*x", "repeats a group"),
    (r"((a|a)*b)*c", "repeats a group"),
    (r"([a-z]+)*\d", "repeats a group"),
    (r"(?:(?:x+x+)+y){1,}", "repeats"),
    (r"(?P<name>\w+\.)*z", "repeats a group"),
    (r"(a?){50}a{50}", "repeats a group"),
    (r".*.*.*.*.*.*x", "repeats more than 4 times"),
    (r"(.+)\1", "refers back to a group"),
    ("(" * 500, "no regular expression"),
    ("a" * 10_001, "10,001 characters"),
]


@pytest.mark.parametrize("pattern", PLAIN)
def test_plain_expressions_are_taken(pattern):
    check_patterns(LoraConfig(target_modules=pattern))
    assert GuidedAdapterConfig(target_modules=pattern).target_modules == pattern


@pytest.mark.parametrize(("pattern", "told"), BOMBS)
def test_expressions_that_could_take_for_ever_are_refused(pattern, told):
    for config in (GuidedAdapterConfig, PromptTokensConfig, BitFitConfig):
        for field in ("target_modules", "exclude_modules"):
            with pytest.raises(ValueError, match=told):
                config(**{field: pattern})
    with pytest.raises(ValueError, match=told):
        check_patterns(IA3Config(target_modules=pattern, feedforward_modules=[]))
    with pytest.raises(ValueError, match=told):
        check_patterns(LoraConfig(target_modules=["query"], rank_pattern={pattern: 4}))


@pytest.mark.parametrize("field", ["modules_to_save", "layers_pattern"])
def test_names_that_are_matched_as_expressions_are_looked_at_too(field):
    check_patterns(
        LoraConfig(target_modules=["query"], layers_to_transform=[0], **{field: ["classifier", "head.out"]})
    )
    config = LoraConfig(
        target_modules=["query"], layers_to_transform=[0], **{field: ["classifier", "([a-z0-9_.]+)*!"]}
    )
    with pytest.raises(ValueError, match="repeats a group"):
        check_patterns(config)

"""The benchmark of PEFT methods: every method of this package is in it, and its figures are those of one step."""

import pytest
import torch

from studies.speed.adapters import METHODS, build, measure, table
from tests.common.tuners import OWN

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_groups": 32, "group_size": 8}


@pytest.mark.slow
def test_every_method_is_measured():
    named = [build(name, **TINY) for name in METHODS]
    types = {str(model.peft_config["default"].peft_type.value) for model in named if hasattr(model, "peft_config")}
    assert types == {*OWN, "LORA"}


@pytest.mark.slow
def test_figures_of_a_step():
    names = ["none: head and class token", "full fine-tuning", "`SideTuningConfig()`"]
    threads = torch.get_num_threads()
    found = measure(names, batch=2, points=128, rounds=1, **TINY)
    none, full, side = (found["rows"][name] for name in names)
    assert found["threads"] == threads
    assert none["trained"] < side["trained"] < full["trained"]
    assert 0 < none["saved bytes"] < full["saved bytes"]
    # Weights of four bytes each.
    assert full["stored bytes"] == 4 * full["trained"]
    assert side["stored bytes"] > 4 * side["trained"]
    assert all(row["CPU s a step"] > 0 for row in found["rows"].values())
    lines = table(found["rows"]).splitlines()
    assert len(lines) == 2 + 3 and f"| {full['trained']:,} |" in lines[3]

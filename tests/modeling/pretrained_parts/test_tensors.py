"""Tensors of a pretrained part, alone and under adapters: their names, and whether they are the same."""

import torch
from torch import nn

from hf_any3d.modeling.pretrained_parts.tensors import changed_since_loading, remember_weights, tensors_checksum


def test_a_checksum_depends_on_names_types_shapes_and_values_alone():
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}
    checksum = tensors_checksum(tensors)
    assert checksum == tensors_checksum({"b": torch.ones(2), "a": tensors["a"].T.contiguous().T})
    others = [
        {"a": tensors["a"], "c": tensors["b"]},
        {"a": tensors["a"].view(3, 2), "b": tensors["b"]},
        {"a": tensors["a"], "b": torch.tensor([1.0, 1.5])},
        {"a": tensors["a"].half(), "b": tensors["b"]},
    ]
    assert len({checksum, *map(tensors_checksum, others)}) == 5


def test_changes_since_loading_are_named():
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    part = nn.Module()
    assert changed_since_loading(part, state) is None, "nothing is remembered"
    remember_weights(part, state | {"away": torch.ones(2, device="meta")})
    assert changed_since_loading(part, state | {"away": torch.ones(2, device="meta")}) == []
    changed = {"b": state["b"] * 2, "a": state["a"].view(3, 2), "new": torch.ones(1)}
    assert changed_since_loading(part, changed) == ["a", "b", "new"]
    assert changed_since_loading(part, state | {"b": state["b"].float()}) is None, "of another precision"

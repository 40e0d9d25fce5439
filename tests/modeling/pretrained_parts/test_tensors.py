"""Tensors of a pretrained part, alone and under adapters: their names, and whether they are the same."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from hf_any3d.modeling.pretrained_parts.tensors import (
    changed_since_loading,
    differing,
    is_local,
    own_modules,
    own_state,
    own_tensors,
    remember_weights,
    tensors_checksum,
)


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)
        self.own = nn.Parameter(torch.ones(2))
        self.register_buffer("passing", torch.ones(1), persistent=False)


def adapted():
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["body.0"], modules_to_save=["head"], init_lora_weights=False)
    return inject_adapter_in_model(config, Part())


def test_a_part_has_the_same_names_and_values_under_adapters():
    torch.manual_seed(0)
    plain = Part()
    bare, under = own_state(plain), own_state(adapted())
    assert bare.keys() == under.keys() == plain.state_dict().keys()
    assert all(torch.equal(bare[name], tensor) for name, tensor in under.items())
    paths = {each.name: each.path for each in own_tensors(adapted())}
    assert paths["body.0.weight"] == "body.0.base_layer.weight"
    assert paths["own"] == "own" and paths["body.1.running_mean"] == "body.1.running_mean"
    assert not any(each.tensor.requires_grad for each in own_tensors(adapted()))
    assert [own.name for own in own_modules(adapted())] == ["", "body", "body.0", "body.1", "head"]


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


def test_differences_are_compared_in_the_precision_of_the_first():
    theirs = {"a": torch.tensor([0.1, 0.2]), "b": torch.ones(2)}
    ours = {"a": theirs["a"].bfloat16(), "b": torch.zeros(2), "c": torch.ones(1)}
    assert differing(ours, theirs) == ["b", "c"]
    assert differing({"b": torch.ones(2, device="meta")}, theirs) == []
    assert differing({}, theirs) == []


def test_weights_elsewhere_are_not_local():
    shard, zero = torch.ones(1), torch.ones(1)
    shard.full_tensor, zero.ds_id = None, 3
    assert [is_local(each) for each in (torch.ones(1), torch.ones(1, device="meta"), shard, zero)] == [True] + 3 * [
        False
    ]

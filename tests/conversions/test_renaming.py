"""Tables of names."""

import pytest
import torch

from hf_any3d.conversions.renaming import count_of, fits, numbers_in, rename_tensors, under
from tests.errors import raises

NAMES = {
    r"layers\.(?P<layer>\d+)\.qkv\.": ("blocks.{layer}.query.", "blocks.{layer}.key."),
    r"layers\.(?P<layer>\d+)\.": "blocks.{layer}.",
    r"old\.": "blocks.0.",
    r"optimizer": None,
}


def test_the_first_pattern_counts_and_the_rest_of_a_name_is_kept():
    original = {
        "layers.3.norm.bias": torch.ones(2),
        "layers.12.qkv.weight": torch.arange(8.0).view(4, 2),
        "optimizer.step": torch.tensor(torch.nan),  # what is left out may hold anything
    }
    renamed = rename_tensors(original, NAMES)
    assert renamed.keys() == {"blocks.3.norm.bias", "blocks.12.query.weight", "blocks.12.key.weight"}
    assert renamed["blocks.12.query.weight"].tolist() == [[0, 1], [2, 3]]
    assert renamed["blocks.12.key.weight"].tolist() == [[4, 5], [6, 7]]
    assert fits(original, NAMES) and not fits(original | {"head.weight": torch.ones(1)}, NAMES)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["w.a", "head.b", "head.a"], "holds tensors that belong to no known part: head.a, head.b, w.a"),
        (["old.norm"], "holds tensors that mean the same part: layers.0.norm and old.norm"),
    ],
)
def test_tensors_without_a_place_of_their_own_are_named(more, message):
    original = {name: torch.ones(2) for name in ["layers.0.norm", *more]}
    with pytest.raises(ValueError, match=message):
        rename_tensors(original, NAMES)


def test_kept_tensors_are_finite():
    with raises(ValueError, naming="old.norm"):
        rename_tensors({"old.norm": torch.tensor([torch.inf])}, NAMES)


def test_a_table_is_placed_below_a_prefix():
    placed = under("module.", "inner.", NAMES | {r"a\.|b\.": "c."})
    names = ["module.layers.1.qkv.weight", "module.b.bias", "module.optimizer"]
    renamed = rename_tensors({name: torch.ones(2) for name in names}, placed)
    assert renamed.keys() == {"inner.blocks.1.query.weight", "inner.blocks.1.key.weight", "inner.c.bias"}
    assert not fits({"moduleXold.": torch.ones(1)}, placed) and not fits({"b.bias": torch.ones(1)}, placed)


@pytest.mark.parametrize("numbers", [(), (0,), (0, 1, 2)])
def test_layers_are_counted(numbers):
    state = {f"layers.{number}.weight": torch.zeros(1) for number in numbers} | {"other.7.weight": torch.zeros(1)}
    assert count_of(state, r"layers\.(\d+)\.") == len(numbers)
    assert numbers_in(state, r"layers\.(\d+)\.") == set(numbers)

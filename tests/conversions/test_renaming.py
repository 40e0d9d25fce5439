"""Sizes that are read from the names of tensors."""

import pytest
import torch

from hf_any3d.conversions.renaming import count_of


@pytest.mark.parametrize("numbers", [(), (0,), (0, 1, 2)])
def test_layers_are_counted(numbers):
    state = {f"layers.{number}.weight": torch.zeros(1) for number in numbers} | {"other.7.weight": torch.zeros(1)}
    assert count_of(state, r"layers\.(\d+)\.") == len(numbers)


def test_a_gap_is_named():
    state = {f"layers.{number}.weight": torch.zeros(1) for number in (0, 2)}
    with pytest.raises(ValueError, match=r"lacks tensors: those of number 1 of 3 where names are layers"):
        count_of(state, r"layers\.(\d+)\.")

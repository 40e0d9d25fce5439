"""Reductions of rows by an index, also in the form of exported programs."""

import pytest
import torch

from hf_any3d.modeling.kernels.pooling import segment_maximum


@pytest.mark.parametrize("exporting", [False, True])
def test_the_largest_row_of_each_index_and_zero_where_there_is_none(exporting, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    rows = torch.tensor([[-3.0, 1.0], [2.0, -5.0], [-1.0, -2.0], [-4.0, -1.0]])
    found = segment_maximum(rows, torch.tensor([2, 0, 2, 2]), 4)
    assert found.tolist() == [[2.0, -5.0], [0.0, 0.0], [-1.0, 1.0], [0.0, 0.0]]

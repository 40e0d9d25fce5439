"""Sizes read from names, and tensors of a checkpoint reshaped to ours."""

import re

import pytest
import torch

from hf_any3d.conversions.renaming import as_linear, as_vector, join_rows, split_rows, stack

_PAIR = [torch.zeros(2, 3), torch.zeros(2, 4)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stack(["a", "b"], _PAIR), "a has shape (2, 3), b has shape (2, 4); expected one shape"),
        (lambda: join_rows(["a", "b"], _PAIR), "a has shape (2, 3), b has shape (2, 4); expected rows of one shape"),
        (lambda: split_rows("a", torch.zeros(7, 2), 3), "a has shape (7, 2); expected rows in 3 equal parts"),
        (lambda: join_rows(["a"], [torch.tensor(1.0)]), "a has shape (); expected rows of one shape"),
        (lambda: split_rows("a", torch.tensor(1.0), 2), "a has shape (); expected rows in 2 equal parts"),
        (lambda: as_vector("a", torch.tensor(1.0)), "a has shape (); expected (1, …, 1, channels)"),
        (lambda: as_vector("a", torch.zeros(2, 3)), "a has shape (2, 3); expected (1, …, 1, channels)"),
        (lambda: as_linear("a", torch.zeros(4, 3, 2)), "a has shape (4, 3, 2); expected (out, in, 1)"),
    ],
)
def test_tensors_of_other_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_tensors_keep_their_numbers_and_order():
    rows = torch.arange(12.0).view(6, 2)
    parts = split_rows("a", rows, 3)
    assert [len(part) for part in parts] == [2, 2, 2]
    assert torch.equal(join_rows(["a", "b", "c"], parts), rows)
    assert torch.equal(stack(["a", "b"], parts[:2])[1], parts[1])
    assert torch.equal(as_vector("a", rows[:1].view(1, 1, 2)), rows[0])
    for shape in ((6, 2), (6, 2, 1), (6, 2, 1, 1)):
        assert torch.equal(as_linear("a", rows.view(shape)), rows)
    (whole,) = split_rows("a", torch.tensor(3.0), 1)  # of any shape
    assert whole == 3

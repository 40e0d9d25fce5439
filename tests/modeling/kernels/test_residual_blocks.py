"""Weights of residual blocks and what is saved of them, as lists of tensors."""

import pytest
import torch

from hf_any3d.modeling.kernels.residual_blocks import Block, Saved, add_product, multiply


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block(width: int = 4, hidden: int = 3) -> Block:
    shapes = [(hidden, width), (hidden,), (hidden,), (hidden,), (width, hidden), (width,), (width,), (width,)]
    return Block(*(randn(*shape, seed=number) for number, shape in enumerate(shapes)), 0.2, 0.3)


def saved(parts: int = 2, hidden: int = 3, width: int = 4) -> Saved:
    """Statistics and rows of parts of five rows, the last one of two."""
    shapes = [(hidden,), (hidden,), (hidden,), (hidden, hidden), (width,), (width,)]
    statistics = [randn(*shape, seed=number).square() for number, shape in enumerate(shapes)]
    sizes = [5] * (parts - 1) + [2]
    rows = [
        [randn(size, channels, seed=size + place) for place, size in enumerate(sizes)] for channels in (hidden, width)
    ]
    return Saved(*statistics, *rows)


def test_lists_of_weights_hold_eight_tensors_and_two_numbers_of_each_block():
    weights, eps = [torch.tensor(number) for number in range(16)], [0.1, 0.2, 0.3, 0.4]
    first, second = Block.unpack(weights, eps)
    assert list(vars(first).values()) == [*weights[:8], 0.1, 0.2]
    assert list(vars(second).values()) == [*weights[8:], 0.3, 0.4]


@pytest.mark.parametrize("parts", [1, 3])
def test_saved_tensors_are_those_that_the_backward_pass_does_not_compute_again(parts):
    blocks = [saved(parts) for _ in range(4)]
    packed = [one.pack(number) for number, one in enumerate(blocks)]
    # Statistics of all, hidden rows from the second block on, inputs from the third.
    assert [len(tensors) for tensors in packed] == [6, 6 + parts, 6 + 2 * parts, 6 + 2 * parts]
    found = Saved.unpack([tensor for tensors in packed for tensor in tensors], 4, parts)
    for number, (one, own) in enumerate(zip(found, blocks, strict=True)):
        wanted = list(vars(own).values())
        wanted[6:] = [wanted[6] if number > 0 else [], wanted[7] if number > 1 else []]
        for value, expected in zip(vars(one).values(), wanted, strict=True):
            assert value is expected or list(map(id, value)) == list(map(id, expected))


@pytest.mark.parametrize("parts", [1, 2])
def test_hidden_rows_are_normalized_and_in_order(parts):
    own, kept = block(), saved(parts)
    hidden = [rows.clone() for rows in kept.hidden(own)]
    for rows, reduced in zip(hidden, kept.reduced, strict=True):
        normed = (reduced - kept.reduce_mean) / (kept.reduce_variance + 0.2).sqrt()
        torch.testing.assert_close(rows, (normed * own.reduce_gain + own.reduce_shift).relu())
    assert [len(rows) for rows in hidden] == [5, 2][-parts:]


def test_the_second_norm_is_part_of_the_weight():
    own, kept = block(), saved()
    rows = randn(6, 3, seed=20)
    weight, shift = kept.expansion(own)
    normed = (rows @ own.expand.T - kept.expand_mean) / (kept.expand_variance + 0.3).sqrt()
    torch.testing.assert_close(rows @ weight + shift, normed * own.expand_gain + own.expand_shift)


def test_products_are_rounded_on_demand():
    rows, weight, out = randn(5, 3).float(), randn(3, 4, seed=1).float(), randn(5, 4, seed=2).float()
    half = (rows.bfloat16() @ weight.bfloat16()).float()
    assert torch.equal(multiply(rows, weight, False), rows @ weight)
    assert torch.equal(multiply(rows, weight, True), half) and multiply(rows, weight, True).dtype == torch.float32
    for rounded, expected in ((False, rows @ weight), (True, half)):
        place = out.clone()
        assert add_product(place, rows, weight, rounded) is place
        torch.testing.assert_close(place, out + expected)
    assert not torch.equal(half, rows @ weight)

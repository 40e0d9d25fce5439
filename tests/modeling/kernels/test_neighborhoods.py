"""Sines and cosines interpolated in a table, against computed ones."""

import pytest
import torch

from hf_any3d.modeling.kernels.neighborhoods import WaveTable, offset_frequencies

FREQUENCIES = offset_frequencies(24, 1000.0, 100.0)


def waves(numbers):
    phase = numbers.double().unsqueeze(-1) * FREQUENCIES
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


@pytest.mark.parametrize("reach", [1e-4, 1.0, 5.0])
def test_table_is_as_exact_as_float32(reach):
    numbers = (torch.rand(6000, generator=torch.Generator().manual_seed(1)) * 2 - 1) * reach
    numbers[:3] = torch.tensor([-reach, 0.0, reach])
    table = WaveTable(numbers, FREQUENCIES, torch.float32)
    assert len(table.waves) < len(numbers)
    found = table.places(numbers).taps(torch.float32).read(table.waves)
    assert (found - waves(numbers)).abs().max() < 5e-7


def test_few_numbers_are_the_nodes():
    numbers = torch.tensor([0.5, -0.25, 0.1, 7.0])
    table = WaveTable(numbers, FREQUENCIES, torch.float64)
    assert len(table.waves) == 4
    torch.testing.assert_close(table.places(numbers)[1:3].taps(torch.float64).read(table.waves), waves(numbers[1:3]))


def test_nan_stays_nan_and_does_not_affect_other_numbers():
    numbers = torch.linspace(-1, 1, 5000)
    numbers[7] = float("nan")
    table = WaveTable(numbers, FREQUENCIES, torch.float32)
    found = table.places(numbers).taps(torch.float32).read(table.waves)
    assert found[7].isnan().all() and found[torch.arange(5000) != 7].isfinite().all()


@pytest.mark.parametrize("count", [60, 6000], ids=["nodes", "table"])
def test_adding_to_tables_is_the_transpose_of_reading_them(count):
    generator = torch.Generator().manual_seed(2)
    numbers = torch.rand(count, generator=generator) * 2 - 1
    table = WaveTable(numbers, FREQUENCIES, torch.float64)
    places = table.places(numbers)
    axes = torch.randn(3, len(table.waves), 4, generator=generator, dtype=torch.float64).requires_grad_()
    gradient = torch.randn(count // 3, 4, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(places.taps(torch.float64).read_axes(axes), axes, gradient)
    found = torch.zeros_like(axes)
    places.add_to_axes(found, gradient)
    torch.testing.assert_close(found, expected)

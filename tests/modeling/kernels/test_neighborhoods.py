"""Sines and cosines interpolated in a table, against computed ones, and rows of neighborhoods made with them."""

from dataclasses import replace

import pytest
import torch

from hf_any3d.modeling.kernels import neighborhoods as module
from hf_any3d.modeling.kernels.neighborhoods import Neighborhoods, offset_frequencies
from hf_any3d.modeling.kernels.wave_table import WaveTable

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
    found = table.read(slice(None))
    assert (found - waves(numbers)).abs().max() < 5e-7


def test_nan_stays_nan_and_does_not_affect_other_numbers():
    numbers = torch.linspace(-1, 1, 5000)
    numbers[7] = float("nan")
    table = WaveTable(numbers, FREQUENCIES, torch.float32)
    found = table.read(slice(None))
    assert found[7].isnan().all() and found[torch.arange(5000) != 7].isfinite().all()


POINTS, CENTERS, K, WIDTH, HIDDEN = 9, 7, 4, 12, 5


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def neighborhoods(slow: bool = False) -> Neighborhoods:
    """Neighborhoods of random points; a table of slow waves is shorter than the list of offsets."""
    generator = torch.Generator().manual_seed(4)
    return Neighborhoods(
        randn(POINTS, WIDTH // 2),
        torch.randint(POINTS, (CENTERS, K), generator=generator),
        torch.randint(POINTS, (CENTERS,), generator=generator),
        torch.rand(CENTERS, K, 3, generator=generator, dtype=torch.float64) - 0.5,
        offset_frequencies(WIDTH, 1000.0, 3.0 if slow else 100.0).double(),
    )


@pytest.mark.parametrize("kind", ["nodes", "table"])
@pytest.mark.parametrize("added", [1, 2 * 2 * HIDDEN * K, 1 << 22], ids=["a part", "two parts", "all"])
def test_rows_products_and_gradients_are_those_of_all_rows(kind, added, monkeypatch):
    monkeypatch.setattr(module, "_PART", 2 * K * WIDTH)
    monkeypatch.setattr(module, "_ADDED", added)
    own = neighborhoods(slow=kind == "table")
    own.features.requires_grad_()
    weight = randn(HIDDEN, WIDTH, seed=1).requires_grad_()
    expected = own.all_rows()
    products, gradient = expected @ weight.T, randn(CENTERS * K, HIDDEN, seed=2)
    gradients = torch.autograd.grad((products * gradient).sum(), [own.features, weight])
    with torch.no_grad():
        given = replace(own, features=own.features.detach())
        parts = given.parts()
        assert len(parts) == 4
        assert (len(given.table.waves) == given.offsets.numel()) is (kind == "nodes")
        found = torch.cat([given.rows(part) for part in parts])
        reduced = torch.cat(list(given.reduced_rows(weight)))
        asked, together = [], []

        def grad_rows(numbers: slice) -> torch.Tensor:
            some = parts[numbers]
            asked.extend(some)
            together.append(len(some))
            return gradient[some[0].start * K : some[-1].stop * K]

        back = given.reduced_gradient(weight, grad_rows)
    assert asked == parts
    assert together == ([1] * 4 if added == 1 else [2, 2] if added < 1 << 22 else [4])
    for one, other in zip((found, reduced, *back), (expected, products, *gradients), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)

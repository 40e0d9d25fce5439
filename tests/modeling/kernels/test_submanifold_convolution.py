"""Convolution of occupied cells: tables of their neighbors, and gradients of whatever needs one."""

from itertools import product

import pytest
import torch

from hf_any3d.modeling import kernels
from hf_any3d.modeling.kernels.submanifold_convolution import NeighborTable
from hf_any3d.modeling.point_ops import neighbor_table
from tests.modeling.accelerator import on_accelerator

SIDE, CLOUDS, VOXELS = 5, 2, 40


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cells() -> tuple[torch.Tensor, torch.Tensor]:
    """Cells of two cubes, in any order; the axes of the second one are of different extents."""
    generator = torch.Generator().manual_seed(1)
    number = torch.randperm(SIDE**3, generator=generator)[: VOXELS - 6]
    grid = torch.stack([number // SIDE**2, number // SIDE % SIDE, number % SIDE], dim=1)
    more = torch.tensor([[0, 1, 3], [0, 0, 0], [0, 0, 1], [1, 0, 1], [2, 2, 3], [2, 1, 3]])
    return torch.cat([grid, more]), (torch.arange(VOXELS) >= VOXELS - 6).long()


def loops(grid: torch.Tensor, cloud: torch.Tensor, reach: int) -> list[list[int]]:
    """The neighbor of each voxel at each position, x slowest; -1 for none."""
    place = {
        (number, *cell): row for row, (number, cell) in enumerate(zip(cloud.tolist(), grid.tolist(), strict=True))
    }
    steps = list(product(range(-reach, reach + 1), repeat=3))
    return [
        [
            place.get((number, x + a, y + b, z + c), -1)
            for number, (x, y, z) in zip(cloud.tolist(), grid.tolist(), strict=True)
        ]
        for a, b, c in steps
    ]


@pytest.mark.parametrize("reach", [1, 2])
@pytest.mark.parametrize("accelerator", [False, True])
def test_neighbors_are_those_of_loops(reach, accelerator):
    grid, cloud = cells()
    given = (on_accelerator(grid), on_accelerator(cloud)) if accelerator else (grid, cloud)
    table = neighbor_table(*given, CLOUDS, reach)
    expected, size = loops(grid, cloud, reach), (2 * reach + 1) ** 3
    assert table.center == size // 2 and len(expected) == size
    dense = table.dense(VOXELS)
    assert dense.tolist() == expected and dense.dtype == torch.int32
    assert table.dense(VOXELS) is dense and table.pairs is table.pairs and len(table.pairs) == size // 2
    for made in (table, NeighborTable(table=dense), NeighborTable(table.pairs)):
        assert made.center == size // 2
        for position in set(range(size)) - {size // 2}:
            voxels, neighbors = made.at(position)
            found = dict(zip(voxels.tolist(), neighbors.tolist(), strict=True))
            assert found == {voxel: other for voxel, other in enumerate(expected[position]) if other >= 0}
    assert NeighborTable(table.pairs).dense(VOXELS).tolist() == expected


def dense_convolution(grid, cloud, values, weight, bias) -> torch.Tensor:
    dense = values.new_zeros(CLOUDS, values.shape[1], SIDE, SIDE, SIDE)
    place = (cloud, slice(None), *grid.T)
    dense = dense.index_put((cloud[:, None], torch.arange(values.shape[1]), *grid.T[:, :, None]), values)
    return torch.nn.functional.conv3d(dense, weight.permute(0, 4, 1, 2, 3), bias, padding=weight.shape[1] // 2)[place]


@pytest.mark.parametrize("needed", list(product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("reach", [1, 2])
def test_whatever_needs_a_gradient_gets_it(needed, reach):
    grid, cloud = cells()
    size = 2 * reach + 1
    tensors = [randn(VOXELS, 3), randn(4, size, size, size, 3, seed=1), randn(4, seed=2)]
    leaves = [tensor.requires_grad_(needs) for tensor, needs in zip(tensors, needed, strict=True)]
    gradient = randn(VOXELS, 4, seed=3)
    expected, wanted = dense_convolution(grid, cloud, *leaves), [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad(expected, wanted, gradient) if wanted else ()
    table = neighbor_table(grid, cloud, CLOUDS, reach)
    for how in (kernels.submanifold_convolution.plain, kernels.submanifold_convolution.fused):
        found = how(*leaves, table)
        torch.testing.assert_close(found, expected)
        assert found.requires_grad is any(needed)
        if wanted:
            torch.testing.assert_close(torch.autograd.grad(found, wanted, gradient), gradients)
        with torch.no_grad():
            assert not how(*leaves, table).requires_grad

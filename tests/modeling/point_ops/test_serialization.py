"""Curves, patches and cells of a grid, against plain loops over voxels and bits."""

import pytest
import torch

from hf_any3d.modeling.point_ops import CURVES, has_duplicates, neighbor_table
from hf_any3d.modeling.point_ops.serialization import curve_codes


def interleaved(place: list[int]) -> int:
    """Put the bits of x, y and z next to each other, x highest."""
    return sum((x >> bit & 1) << 3 * bit + 2 - axis for axis, x in enumerate(place) for bit in range(21))


def hilbert(place: list[int], depth: int) -> int:
    """Skilling's algorithm, bit by bit."""
    place = list(place)
    for bit in range(depth - 1, 0, -1):
        below = (1 << bit) - 1
        for axis in range(3):
            if place[axis] >> bit & 1:
                place[0] ^= below
            else:
                exchanged = (place[0] ^ place[axis]) & below
                place[0] ^= exchanged
                place[axis] ^= exchanged
    code, parity = interleaved(place), 0
    for bit in range(62, -1, -1):
        parity ^= code >> bit & 1
        code = code & ~(1 << bit) | parity << bit
    return code


def code_in_loops(place: list[int], curve: str, depth: int) -> int:
    x, y, z = place
    place = [y, x, z] if curve.endswith("-trans") else [x, y, z]
    return interleaved(place) if curve.startswith("z") else hilbert(place, depth)


def random_cells(high: int, count: int = 40) -> torch.Tensor:
    return torch.randint(0, high, (count, 3), generator=torch.Generator().manual_seed(high))


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("depth", [1, 4, 16, 20])
def test_codes_are_those_of_loops_over_bits(curve, depth):
    grid = random_cells(2**depth)
    expected = [code_in_loops(place, curve, depth) for place in grid.tolist()]
    assert curve_codes(grid, curve, depth).tolist() == expected
    # A tensor of depths is one for each voxel.
    depths = torch.arange(len(grid)) % 3 + depth
    expected = [code_in_loops(place, curve, own) for place, own in zip(grid.tolist(), depths.tolist(), strict=True)]
    before = grid.clone()
    assert curve_codes(grid, curve, depths).tolist() == expected and torch.equal(grid, before)
    assert curve_codes(grid[:0], curve, depths[:0]).tolist() == []


def test_cells_that_cannot_be_numbered_are_refused():
    grid, cloud = torch.tensor([[2**20 - 1] * 3, [0, 0, 0]]), torch.tensor([0, 3])
    assert not has_duplicates(grid, cloud, 4)
    message = r"grid_coord: 5 clouds of \[1048576, 1048576, 1048576\] cells; expected fewer than 2\*\*62 cells in all"
    with pytest.raises(ValueError, match=message):
        has_duplicates(grid, cloud, 5)
    with pytest.raises(ValueError, match=r"4 clouds of \[1048580, 1048580, 1048580\] cells"):
        neighbor_table(grid, cloud, 4, reach=2)

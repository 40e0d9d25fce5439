"""Curves, patches and cells of a grid, against plain loops over voxels and bits."""

import pytest
import torch

from hf_any3d.modeling.point_ops import (
    CURVES,
    grid_sample,
    has_duplicates,
    neighbor_table,
    patch_table,
    serialize,
)
from hf_any3d.modeling.point_ops.serialization import curve_codes, curve_depths
from tests.errors import raises


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


@pytest.mark.parametrize("curve", ["hilbert", "hilbert-trans"])
def test_hilbert_curves_visit_all_cells_in_single_steps(curve):
    grid = torch.cartesian_prod(*[torch.arange(8)] * 3)
    order = curve_codes(grid, curve, 3).argsort()
    assert curve_codes(grid, curve, 3)[order].tolist() == list(range(512))
    assert grid[order].diff(dim=0).abs().sum(dim=1).eq(1).all() and grid[order][0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("largest", [(0, 1, 6), (7, 8, 2), (65534, 3, 0)])
def test_depths_are_bit_lengths(largest):
    grid = torch.tensor([[0, 0, 0], *([number // (axis + 2), *[number] * 2] for axis, number in enumerate(largest))])
    cloud = torch.tensor([3, 0, 1, 2])
    for plus_one in (True, False):
        lengths = [(number + plus_one).bit_length() for number in (*largest, 0)]
        assert curve_depths(grid, cloud, 4, plus_one=plus_one).tolist() == lengths
        assert curve_depths(grid, cloud, 4, of_batch=True, plus_one=plus_one).tolist() == [max(lengths)] * 4
    assert (
        curve_depths(grid, cloud, 4).tolist() == curve_depths(grid, cloud, 4, of_batch=False, plus_one=True).tolist()
    )
    assert curve_depths(grid[:0], cloud[:0], 2).tolist() == [1, 1]


@pytest.mark.parametrize("of_batch", [False, True])
def test_voxels_are_sorted_cloud_by_cloud(of_batch):
    grid = torch.cat([random_cells(30, 12), random_cells(5, 9), random_cells(9, 1)])
    grid = torch.unique(torch.cat([torch.tensor([0] * 12 + [1] * 9 + [3])[:, None], grid], dim=1), dim=0)
    grid = grid[torch.randperm(len(grid), generator=torch.Generator().manual_seed(0))]
    cloud, grid = grid[:, 0], grid[:, 1:]
    depths = curve_depths(grid, cloud, 4, of_batch)
    found = serialize(grid, cloud, 4, ["hilbert", "z-trans"], depth_of_batch=of_batch)
    for number, curve in enumerate(["hilbert", "z-trans"]):
        own = [
            code_in_loops(place, curve, int(depths[c])) for place, c in zip(grid.tolist(), cloud.tolist(), strict=True)
        ]
        codes = [code + (c << 3 * int(depths.max())) for code, c in zip(own, cloud.tolist(), strict=True)]
        assert found.code[number].tolist() == codes
        order = sorted(range(len(codes)), key=codes.__getitem__)
        assert found.order[number].tolist() == order
        assert [order[place] for place in found.inverse[number].tolist()] == list(range(len(codes)))
    # Given depths replace those of the coordinates.
    deeper = serialize(grid, cloud, 4, ["hilbert"], depths=torch.tensor([8, 6, 7, 9]))
    own = [
        code_in_loops(p, "hilbert", [8, 6, 7, 9][c]) + (c << 27)
        for p, c in zip(grid.tolist(), cloud.tolist(), strict=True)
    ]
    assert deeper.code[0].tolist() == own


def test_the_last_patch_of_a_cloud_borrows_from_the_one_before():
    pad, unpad, starts = patch_table([7, 0, 3, 10, 5], 5)
    first = [0, 1, 2, 3, 4, 5, 6, 2, 3, 4]
    assert pad.tolist() == [*first, 7, 8, 9, *range(10, 25)]
    assert unpad.tolist() == [*range(7), 10, 11, 12, *range(13, 28)]
    assert starts.tolist() == [0, 5, 10, 13, 18, 23, 28] and starts.dtype == torch.int32
    assert patch_table([0], 5)[2].tolist() == [0]


def test_a_cloud_spans_fewer_than_a_million_cells():
    coord = torch.tensor([[0.0, 0, 0], [2.0**20 - 1, 0, 0]])
    assert grid_sample(coord, 1.0).grid_coord.tolist() == [[0, 0, 0], [2**20 - 1, 0, 0]]
    for size in (0.5, 0.0, float("nan")):
        with raises(ValueError, naming=f"grid_size={size}"):
            grid_sample(coord, size)


def test_a_cell_may_occur_once_in_each_cloud():
    grid = torch.tensor([[1, 2, 3], [0, 0, 0], [1, 2, 3]])
    assert has_duplicates(grid, torch.tensor([0, 0, 1]), 2) is False
    assert has_duplicates(grid, torch.tensor([0, 1, 0]), 2) is True
    assert has_duplicates(grid[:0], torch.tensor([], dtype=torch.long), 2) is False


def test_cells_that_cannot_be_numbered_are_refused():
    grid, cloud = torch.tensor([[2**20 - 1] * 3, [0, 0, 0]]), torch.tensor([0, 3])
    assert not has_duplicates(grid, cloud, 4)
    message = r"grid_coord: 5 clouds of \[1048576, 1048576, 1048576\] cells; expected fewer than 2\*\*62 cells in all"
    with pytest.raises(ValueError, match=message):
        has_duplicates(grid, cloud, 5)
    with pytest.raises(ValueError, match=r"4 clouds of \[1048580, 1048580, 1048580\] cells"):
        neighbor_table(grid, cloud, 4, reach=2)

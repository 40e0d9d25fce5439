"""Cells of the tokens of all clouds in one list, against plain loops, and what geometries keep."""

import math

import pytest
import torch

from hf_any3d.modeling.point_ops import LARGEST_COORDINATE, in_full_precision, voxel_cells
from hf_any3d.modeling.point_ops.geometry import FlatGeometry, normalize_centers
from tests.errors import raises

COUNTS = (14, 1, 9)


def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Grid coordinates, positions and clouds of tokens, in no order; the second cloud has a single one."""
    generator = torch.Generator().manual_seed(3)
    cloud = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
    grid = torch.randint(0, 12, (len(cloud), 3), generator=generator) * torch.tensor([1, 2, 1])
    coord = grid * 0.02 + torch.rand(len(cloud), 3, generator=generator) * 0.02 + cloud[:, None]
    order = torch.randperm(len(cloud), generator=generator)
    return grid[order], coord[order], cloud[order]


def grouped(labels: list) -> set[frozenset[int]]:
    """The sets of places of equal labels."""
    places: dict = {}
    for place, label in enumerate(labels):
        places.setdefault(label, set()).add(place)
    return set(map(frozenset, places.values()))


def check(found: torch.Tensor, labels: list) -> None:
    """Check that numbers are equal where labels are, and have no gaps."""
    assert grouped(found.tolist()) == grouped(labels)
    assert sorted(set(found.tolist())) == list(range(len(set(labels))))


@pytest.mark.parametrize("size", [None, 3, 2.5, 1, 0.25])
def test_four_grids_are_shifted_by_a_quarter_of_a_cell(size):
    grid, coord, cloud = tokens()
    geometry = FlatGeometry(grid, coord, cloud, 3, cell_size=5)
    cells, edge = geometry.view_cells(size), max(size or 5, 1)
    assert cells.row.shape == (4, len(cloud)) and cells.cells == len(cloud)
    for number, row in enumerate(cells.row):
        check(
            row,
            [
                (int(own), *(math.floor(x / edge + number / 4) for x in place))
                for own, place in zip(cloud, grid.tolist(), strict=True)
            ],
        )
    assert geometry.view_cells(size) is cells and geometry.view_cells(7) is not cells


@pytest.mark.parametrize("edge", [0.3, 1.1, 5.0])
def test_voxels_are_counted_in_radii_from_the_corner_of_each_cloud(edge):
    grid, coord, cloud = tokens()
    geometry = FlatGeometry(grid, coord.double().requires_grad_(), cloud, 3)
    assert geometry.coord.dtype == torch.float32 and not geometry.coord.requires_grad
    labels = [()] * len(cloud)
    for number in range(3):
        own = coord[cloud == number]
        radius = (own - own.mean(dim=0)).norm(dim=1).max().clamp_min(1e-30)
        steps = ((own - own.amin(dim=0)) / (radius * edge)).long().tolist()
        for place, step in zip((cloud == number).nonzero().flatten().tolist(), steps, strict=True):
            labels[place] = (number, *step)
    voxels = geometry.voxels(edge)
    assert voxels.row.shape == (1, len(cloud))
    check(voxels.row[0], labels)
    assert geometry.voxels(edge) is voxels and geometry.voxels(edge + 1) is not voxels


def test_tokens_beyond_the_last_cell_share_it():
    coord = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.5, 0, 0], [1.0, 0, 0], [0, 0.6, 0], [0, 0.9, 0]])
    geometry = FlatGeometry(coord.long(), coord, torch.zeros(6, dtype=torch.long), 1)
    assert grouped(geometry.voxels(1e-7).row[0].tolist()) == grouped([0, 1, 2, 2, 3, 3])


def test_centers_are_moved_into_the_unit_sphere():
    centers = torch.tensor([[[1.0, 2, 3], [3, 2, 3], [1, 6, 3], [3, 6, 3]], [[5.0, 5, 5]] * 4])
    found = normalize_centers(centers)
    assert found[1].tolist() == [[0, 0, 0]] * 4
    expected = torch.tensor([[-1.0, -2, 0], [1, -2, 0], [-1, 2, 0], [1, 2, 0]]) / math.sqrt(5)
    torch.testing.assert_close(found[0], expected)


CLOUD = torch.tensor([[[0.0, 0, 0], [0.9, 0, 0], [1.1, 0, 0], [0.4, 0.7, 0], [0, 0, 1.9], [0.4, 0.6, 0.2]]])


@pytest.mark.parametrize("exporting", [False, True])
@pytest.mark.parametrize(
    ("edge", "shift", "expected"),
    [
        (1.0, 0.0, [0, 0, 2, 0, 4, 0]),
        (1.0, 0.25, [0, 1, 1, 0, 4, 0]),
        (1.0, 0.35, [0, 1, 1, 3, 4, 0]),
        (0.5, 0.0, [0, 1, 2, 3, 4, 3]),
    ],
)
def test_grids_of_voxels_may_be_shifted(edge, shift, expected, exporting, monkeypatch):
    monkeypatch.setattr(torch.compiler, "_is_exporting_flag", exporting)
    assert voxel_cells(CLOUD + 3, edge, shift).tolist() == [expected]
    assert voxel_cells(CLOUD, edge, shift).dtype == torch.long


def test_points_beyond_the_last_voxel_share_it():
    far = torch.tensor([[[0.0, 0, 0], [2.0**21 - 1, 0, 0], [2.0**21 + 9, 0, 0], [0, 2.0**21 - 1, 0], [0, 0, 2.0**22]]])
    assert voxel_cells(far, 1.0).tolist() == [[0, 1, 1, 3, 4]]


@pytest.mark.parametrize(
    ("points", "model", "expected"),
    [
        (torch.float16, torch.float16, torch.float32),
        (torch.float64, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.int64, torch.float32, torch.float32),
    ],
)
def test_clouds_are_cast_to_full_precision(points, model, expected):
    found = in_full_precision(torch.ones(1, 2, 3, dtype=points), model)
    assert found.dtype == expected and found.tolist() == [[[1, 1, 1]] * 2]


def test_clouds_that_a_precision_cannot_square_are_refused():
    assert in_full_precision(torch.full((1, 2, 3), LARGEST_COORDINATE), torch.float32) is not None
    half = torch.full((1, 2, 3), 257.0)
    with raises(ValueError, naming="257"):
        in_full_precision(half, torch.float16)
    with pytest.raises(ValueError, match=r"points has shape \(0, 2, 3\); expected at least one cloud"):
        in_full_precision(half[:0], torch.float32)

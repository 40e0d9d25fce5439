"""Cells of the tokens of all clouds in one list, against plain loops, and what geometries keep."""

import pytest
import torch

from hf_any3d.modeling.point_ops import LARGEST_COORDINATE, in_full_precision
from hf_any3d.modeling.point_ops.geometry import FlatGeometry
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


def test_clouds_that_a_precision_cannot_square_are_refused():
    assert in_full_precision(torch.full((1, 2, 3), LARGEST_COORDINATE), torch.float32) is not None
    half = torch.full((1, 2, 3), 257.0)
    with raises(ValueError, naming="257"):
        in_full_precision(half, torch.float16)
    with pytest.raises(ValueError, match=r"points has shape \(0, 2, 3\); expected at least one cloud"):
        in_full_precision(half[:0], torch.float32)

import math

import pytest
import torch

from hf_any3d.modeling.point_ops.geometry import Geometry
from tests.tiny_encoders import clouds


def geometry(kind="line", tokens=12, batch=2, cell_size=4.0, **kwargs):
    generator = torch.Generator().manual_seed(5)
    if kind == "line":
        extent = (30.0,)
        place = torch.rand(batch, 6, tokens, 1, generator=generator) * 29
    else:
        extent = (20.0, 11.0)
        place = torch.rand(batch, 6, tokens, 2, generator=generator) * torch.tensor([19.0, 10.0])
    return Geometry(clouds(batch, tokens), place, extent, cell_size, **kwargs)


def cells_by_hand(place, size):
    """Return the tokens of every occupied cell of one view, `{cell: [tokens]}`."""
    cells = {}
    for token, position in enumerate(place.tolist()):
        cells.setdefault(tuple(math.floor(value / size) for value in position), []).append(token)
    return cells


def check(members, batch, view, groups):
    """Check one view of a membership against groups of tokens."""
    row = members.row[batch, view].tolist()
    assert sorted(map(sorted, groups)) == sorted(
        sorted(t for t in range(len(row)) if row[t] == r) for r in sorted(set(row))
    )
    for tokens in groups:
        pool = torch.zeros(len(row))
        pool[tokens] = 1 / len(tokens)
        torch.testing.assert_close(members.pool[batch, view, row[tokens[0]]], pool)
    empty = [r for r in range(members.pool.shape[2]) if r not in row]
    assert members.pool[batch, view, empty].abs().sum() == 0
    assert members.occupied[batch, view].tolist() == [r in row for r in range(members.pool.shape[2])]
    same = torch.tensor([[row[a] == row[b] for a in range(len(row))] for b in range(len(row))])
    assert torch.equal(members.apart[batch, view, 0] == 0, same)


@pytest.mark.parametrize("size", [None, 1.5, 4.0, 100.0])
@pytest.mark.parametrize("kind", ["line", "plane"])
def test_tokens_share_the_cells_of_a_plain_loop(kind, size):
    places = geometry(kind)
    members = places.view_cells(size)
    edge = size or places.cell_size
    assert members.cells == math.prod(math.ceil(side / edge) for side in places.extent)
    for batch in range(2):
        for view in range(6):
            check(members, batch, view, list(cells_by_hand(places.view_positions[batch, view], edge).values()))


@pytest.mark.parametrize("edge", [0.2, 0.7, 3.0])
def test_tokens_share_the_voxels_of_a_plain_loop(edge):
    places = geometry()
    voxels = places.voxels(edge)
    for batch, centers in enumerate(places.centers):
        groups = cells_by_hand(centers - centers.amin(dim=0), edge)
        check(voxels, batch, 0, list(groups.values()))
    assert voxels.row.shape == (2, 1, 12)


def test_many_cells_take_no_more_rows_than_there_are_tokens():
    few, many = geometry().view_cells(10.0), geometry().view_cells(0.01)
    assert (few.cells, few.pool.shape[2]) == (3, 3)
    assert (many.cells, many.pool.shape[2]) == (3000, 12)
    assert torch.equal(many.row, torch.arange(12).expand(2, 6, 12)), "a token alone in its cell keeps its own row"


def test_tokens_at_the_far_border_belong_to_the_last_cell():
    place = torch.tensor([29.0, 30.0]).view(1, 1, 2, 1)
    members = Geometry(clouds(1, 2), place, (30.0,), 15.0).view_cells()
    assert members.row.flatten().tolist() == [1, 1]

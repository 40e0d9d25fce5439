"""Four shifted grids of cells in space."""

import torch

from hf_any3d.modeling.point_encoders.point_transformer import GRIDS, TokenGrids
from hf_any3d.modeling.point_ops.geometry import normalize_centers, table_of_places


def centers(batch: int = 3, tokens: int = 40) -> torch.Tensor:
    return torch.randn(batch, tokens, 3, generator=torch.Generator().manual_seed(0))


def shared(places: torch.Tensor, edge: float) -> torch.Tensor:
    return TokenGrids.around(places, edge, 1).view_cells().apart.squeeze(2) == 0  # (batch, grids, tokens, tokens)


def test_tokens_share_a_cell_according_to_their_coordinates():
    edge = 0.5
    places = normalize_centers(centers())
    steps = (places - places.amin(dim=1, keepdim=True)) / edge
    for number in range(GRIDS):
        cell = (steps + number / GRIDS).floor()
        expected = (cell.unsqueeze(1) == cell.unsqueeze(2)).all(dim=-1)
        assert torch.equal(shared(centers(), edge)[:, number], expected)


def test_tokens_nearer_than_an_eighth_of_an_edge_share_a_cell_in_some_grid():
    edge = 0.4
    together = shared(centers(8, 200), edge).any(dim=1)
    places = normalize_centers(centers(8, 200))
    apart = (places.unsqueeze(1) - places.unsqueeze(2)).abs().amax(dim=-1)
    near = apart < edge / 8
    assert near.sum() > 8 * 200 and together[near].all()
    assert not together[apart > edge].any()
    assert not shared(centers(8, 200), edge)[:, 0][near].all(), "one grid alone would have walls between neighbors"


def test_cells_do_not_depend_on_the_position_and_size_of_a_cloud():
    assert torch.equal(shared(centers() * 7 + 30, 0.5), shared(centers(), 0.5))


def test_compiled_code_makes_the_same_table():
    settings = {"cell_size": 0.4, "voxel_size": 0.2, "heads": 2, "count_empty": False, "dtype": torch.float32}
    tables = [TokenGrids.around(centers(), 0.4, 1).table(**settings, compiled=way) for way in (None, table_of_places)]
    for expected, found in zip(*(vars(table).values() for table in tables), strict=True):
        assert torch.equal(expected, found) if isinstance(expected, torch.Tensor) else expected == found

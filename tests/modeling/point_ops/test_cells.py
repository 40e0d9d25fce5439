"""Cells on a line, a plane and in space."""

import pytest
import torch

from hf_any3d.modeling.point_ops.geometry import line_cell_count, line_cells, plane_cells, voxel_cells


def test_positions_beyond_the_line_are_in_its_outer_cells():
    assert line_cells(torch.tensor([-0.5, 77.0, 1000.0]), 1, 77).tolist() == [0, 76, 76]


def test_plane_cells_are_counted_row_by_row():
    # 12 columns and 19 rows.
    position = torch.tensor([[0.0, 0.0], [15.9, 0.0], [16.0, 0.0], [0.0, 16.0], [191.9, 303.9], [192.0, 304.0]])
    assert plane_cells(position, 16, 192, 304).tolist() == [0, 0, 1, 12, 227, 227]


def test_a_narrower_last_column_counts():
    assert line_cell_count(26, 518) == 20
    assert plane_cells(torch.tensor([[517.0, 517.0]]), 26, 518, 518).tolist() == [399]


@pytest.mark.parametrize("edge", [0.1, 0.5, 3.0])
def test_voxel_labels_are_the_first_point_of_the_voxel(make_clouds, edge):
    clouds = torch.from_numpy(make_clouds(3, 80))
    labels = voxel_cells(clouds, edge)
    for cloud, cloud_labels in zip(clouds, labels.tolist(), strict=True):
        first = {}
        voxels = [tuple(voxel) for voxel in ((cloud - cloud.min(0).values) / edge).int().tolist()]
        assert cloud_labels == [first.setdefault(voxel, place) for place, voxel in enumerate(voxels)]


def test_tiny_voxels_separate_points():
    cloud = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]])
    assert voxel_cells(cloud, 1e-6).tolist() == [[0, 1, 2, 3, 1]]

"""Graphs of points, their eigenvectors and the curve that cuts them, against loops in numpy."""

import numpy as np
import pytest
import torch

from hf_any3d.modeling.point_ops.spectral import (
    GraphSettings,
    curve_keys,
    graph_laplacian,
    graph_spectrum,
    pair_distances,
    smallest_distance,
)


@pytest.fixture
def centers():
    return torch.randn(3, 10, 3, generator=torch.Generator().manual_seed(0))


def laplacian_in_loops(points, scale):
    """Return the normalized Laplacian of a complete graph with loops, edge by edge."""
    count = len(points)
    weight = np.ones((count, count))
    for a in range(count):
        for b in range(count):
            if a != b:
                weight[a, b] = 1 / max(np.linalg.norm(points[a] - points[b]) / scale, 1)
    root = (weight.sum(axis=1) + 1e-6) ** -0.5
    return np.eye(count) - root[:, None] * weight * root


@pytest.mark.parametrize("cell", [None, 0.02])
def test_the_curve_of_a_cloud_depends_on_no_other(centers, cell):
    alone = [curve_keys(cloud[None], cell)[0] for cloud in centers]
    assert torch.equal(curve_keys(centers, cell), torch.stack(alone))


def test_cells_of_a_hundredth_of_the_radius_count_from_the_lowest_corner():
    line = torch.tensor([[[0.0, 0, 0], [0.5, 0, 0], [1, 0, 0]]]) * 7 + 3
    # Steps of 0, 100 and 200 along x, whose bits are every third one from the second.
    expected = [sum(1 << (3 * bit + 1) for bit in range(8) if step >> bit & 1) for step in (0, 100, 200)]
    assert curve_keys(line).tolist() == [expected]


def test_cells_of_a_given_size_count_from_the_origin_and_negative_ones_come_last():
    along_z = torch.tensor([[[0.0, 0, -0.03], [0, 0, 0.0], [0, 0, 0.03], [0, 0, 0.01]]])
    keys = curve_keys(along_z, 0.02)[0]
    assert keys.argsort(stable=True).tolist() == [1, 3, 2, 0]
    assert keys[1:].tolist() == [0, 1, 0]  # one step along z is the lowest bit
    assert keys[0] == sum(1 << 3 * bit for bit in range(16))  # -1 in sixteen bits


def test_the_unit_is_the_smallest_positive_distance_of_the_cloud_or_of_the_batch():
    clouds = torch.tensor([[[0.0, 0, 0], [0, 0, 0], [0, 3, 4]], [[0, 0, 0], [0, 0, 2], [9, 0, 0]], [[1.0, 1, 1]] * 3])
    distance = pair_distances(clouds)
    assert smallest_distance(distance).flatten().tolist() == [5, 2, 1]
    assert smallest_distance(distance, "batch").flatten().tolist() == [2]


@pytest.mark.parametrize("local_size", [1, 5, 10, 64])
def test_pieces_may_be_of_any_size(centers, local_size):
    local = graph_spectrum(centers, GraphSettings(local_size)).local
    for first in range(0, 10, min(local_size, 10)):
        block = local[:, first : first + local_size, first : first + local_size]
        torch.testing.assert_close(block @ block.mT, torch.eye(block.shape[-1]).expand_as(block), atol=1e-5, rtol=0)
    assert (local != 0).sum() <= 3 * sum(min(local_size, 10 - first) ** 2 for first in range(0, 10, local_size))


def test_points_at_the_same_place_have_an_edge_of_weight_one():
    points = np.array([[0.0, 0, 0], [0, 0, 0], [0, 0, 2], [5, 0, 0]])
    distance = pair_distances(torch.from_numpy(points))
    found = graph_laplacian(distance, torch.tensor(2.0, dtype=torch.float64))
    np.testing.assert_allclose(found, laplacian_in_loops(points, 2.0), atol=1e-12)


def test_distances_are_exact_unless_expanded():
    points = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(1)) + 50
    exact = (points.double()[:, :, None] - points.double()[:, None]).square().sum(dim=-1).sqrt()
    torch.testing.assert_close(pair_distances(points), exact, rtol=1e-12, atol=1e-12)
    expanded = pair_distances(points, "expanded")
    assert torch.equal(expanded, torch.cdist(points, points).double()) and not torch.equal(expanded, exact)
    torch.testing.assert_close(expanded, exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("distances", ["exact", "expanded"])
@pytest.mark.parametrize("scale_over", ["cloud", "batch"])
def test_settings_reach_all_graphs(centers, distances, scale_over):
    settings = GraphSettings(4, distances, scale_over, curve_cell=0.4)
    found = graph_spectrum(centers, settings)
    assert found.whole.dtype == found.local.dtype == torch.float32
    order = curve_keys(centers, 0.4).argsort(dim=1, stable=True)
    assert torch.equal(order.gather(1, found.inverse), torch.arange(10).expand(3, -1))
    along = torch.stack([cloud[rows] for cloud, rows in zip(centers, order, strict=True)])
    parts = [slice(0, 4), slice(4, 8), slice(8, 10)]
    pieces = [[cloud[part].double().numpy() for part in parts] for cloud in along]

    def least(clouds):
        """The smallest positive distance inside the pieces of each cloud, or of all."""
        each = [
            min(np.linalg.norm(a - b) for one in own for a in one for b in one if (a != b).any()) for own in clouds
        ]
        return each if scale_over == "cloud" else [min(each)] * 3

    wholes = [[cloud.double().numpy()] for cloud in centers]
    for number, (local, whole) in enumerate(zip(least(pieces), least(wholes), strict=True)):
        graphs = [(found.whole[number], wholes[number][0], whole)]
        graphs += [
            (found.local[number][part, part], one, local) for part, one in zip(parts, pieces[number], strict=True)
        ]
        for vectors, points, scale in graphs:
            laplacian = torch.from_numpy(laplacian_in_loops(points, scale))
            values = (vectors.double().T @ laplacian @ vectors.double()).diagonal()
            torch.testing.assert_close(laplacian @ vectors.double(), vectors.double() * values, atol=1e-4, rtol=0)

"""The first points in a ball, against a plain loop."""

import torch

from hf_any3d.modeling.point_ops import ball_query


def loop(query: torch.Tensor, points: torch.Tensor, radius: float, k: int) -> tuple[list, list]:
    index, counts = [], []
    for place in query:
        distance = ((points - place) ** 2).sum(dim=1)
        inside = [number for number, value in enumerate(distance.tolist()) if value <= radius**2]
        counts.append(len(inside))
        first = (inside or [0])[:k]
        index.append(first + [first[0]] * (k - len(first)))
    return index, counts


def test_balls_are_those_of_a_loop():
    points = torch.rand(2, 90, 5, generator=torch.Generator().manual_seed(0))
    query = torch.cat([points[:, :7, :3], torch.full((2, 1, 3), 9.0)], dim=1)
    index, counts = ball_query(query, points, 0.3, 4, return_counts=True)
    for cloud in range(2):
        expected = loop(query[cloud], points[cloud, :, :3], 0.3, 4)
        assert index[cloud].tolist() == expected[0] and counts[cloud].tolist() == expected[1]
    assert counts.min() == 0 and (counts > 4).any() and ((counts > 0) & (counts < 4)).any()
    assert torch.equal(ball_query(query, points, 0.3, 4), index)


def test_the_radius_is_inside_and_the_order_of_the_cloud_counts():
    points = torch.tensor([[[0.5, 0, 0], [0.25, 0, 0], [0.75, 0, 0], [0, 0, 0]]])
    query = torch.zeros(1, 1, 3)
    assert ball_query(query, points, 0.5, 2).tolist() == [[[0, 1]]]
    assert ball_query(query, points.flip(1), 0.5, 2).tolist() == [[[0, 2]]]

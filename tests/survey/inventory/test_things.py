"""Trees by the numbers of their points: places, heights and scores."""

import numpy as np
import pytest

from hf_any3d_survey.inventory.things import trees_of


def test_a_tree_is_at_its_highest_point_and_stands_on_the_ground_below():
    rng = np.random.default_rng(0)
    numbers = rng.permutation(np.repeat([7, 3, 0], [700, 300, 500]))
    xy = rng.uniform(0, 30, (len(numbers), 2)) + [652_000, 6_862_000]
    heights = rng.uniform(2, 12, len(numbers)).astype(np.float32)
    # The ground rises by a tenth to the east.
    points = np.column_stack([xy, 100 + 0.1 * (xy[:, 0] - 652_000) + heights])
    trees = trees_of(points, heights, numbers, np.where(numbers == 7, 0.75, 0.5))
    assert [(tree.number, tree.label, tree.code, tree.points, tree.score) for tree in trees] == [
        (3, "tree", 5, 300, 0.5),
        (7, "tree", 5, 700, 0.75),
    ]
    for tree in trees:
        own = np.flatnonzero(numbers == tree.number)
        top = own[np.argmax(heights[own])]
        assert [tree.x, tree.y] == points[top, :2].tolist() and tree.height == heights[top]
        assert tree.ground == pytest.approx(100 + 0.1 * (tree.x - 652_000), abs=1e-3)
    assert trees_of(points, heights, np.zeros_like(numbers), heights) == []

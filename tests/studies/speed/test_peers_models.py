"""Beside torch-pointcloud: ratios are those of pairs, products are counted wherever they are added."""

from types import SimpleNamespace

import torch

from studies.speed.peers_models import Pair, allowed, floor, page, stand_in


def test_a_row_has_the_median_and_range_of_the_ratios_of_pairs():
    pair = Pair("step", [1.0, 2.0, 4.0], [0.5, 1.6, 1.0], (10.0, 4.0), 2e-6)
    assert pair.cells() == ["step", "2,000", "1,000", "**0.50** (0.25 to 0.80)", "10 / 4", "0.40", "2.0e-06"]
    text = page([pair], [], [], compiled=False)
    assert "| step | 2,000 | 1,000 | **0.50** (0.25 to 0.80) | 10 / 4 | 0.40 | 2.0e-06 |" in text
    assert "both sides use ours" in text and "torch " in text


def test_all_products_are_counted():
    first, second = torch.rand(30, 20), torch.rand(20, 50)
    total = torch.zeros(30, 50)
    one = 2 * 30 * 20 * 50 / 1e9
    assert floor(lambda: first @ second) == one
    assert floor(lambda: total.addmm_(first, second)) == one
    assert floor(lambda: torch.mm(first, second, out=total)) == one
    cells = allowed(
        Pair("step", [2.0], [1.0], None, 0.0), (lambda: (first @ second, first @ second), lambda: first @ second)
    )
    assert cells[0] == "step" and cells[2] == "0.50" and cells[-1] == "0.50"


def test_without_a_compiled_library_ours_samples_for_both():
    pool = SimpleNamespace()
    stand_in(pool, None)
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [5, 0, 0], [0, 0, 0], [7, 0, 0], [1, 0, 0]])
    batch = torch.tensor([0, 0, 0, 1, 1, 1])
    assert pool.fps(points, batch, 2 / 3).tolist() == [0, 2, 3, 4]
    pairs = pool.knn(points, points[[2, 4]], 2, batch, batch[[2, 4]])
    assert pairs.tolist() == [[0, 0, 1, 1], [2, 1, 4, 5]]

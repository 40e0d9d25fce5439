"""Losses of heads against plain loops, masks of parts, and what labels and settings are refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_any3d.modeling.layers.losses import classification_loss, lovasz_softmax, mean_cross_entropy, point_loss
from hf_any3d.modeling.layers.tasks import check_categories, checked_category, part_mask, restrict_to_parts
from tests.errors import raises

PARTS = [[0, 2], [1], [2, 3]]


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lovasz_by_loops(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Add to the union and the intersection one row after the other, in the order of errors (Alg. 1)."""
    losses = []
    kept = [(row.softmax(dim=0), int(label)) for row, label in zip(logits, labels, strict=True) if label != -100]
    for number in sorted({label for _, label in kept}):
        errors = sorted(
            ((1 - float(row[number])) if label == number else float(row[number]), label == number)
            for row, label in kept
        )[::-1]
        total = sum(own for _, own in errors)
        before = value = 0.0
        for rank, (error, _) in enumerate(errors, start=1):
            found = sum(own for _, own in errors[:rank])
            jaccard = 1 - (total - found) / (total + rank - found)
            value += error * (jaccard - before)
            before = jaccard
        losses.append(value)
    return sum(losses) / len(losses)


def test_the_lovasz_loss_is_that_of_plain_loops():
    logits, labels = rows(14, 5), torch.tensor([0, 1, 1, -100, 3, 3, 3, 0, 1, -100, 0, 3, 1, 1])
    assert lovasz_softmax(logits, labels).item() == pytest.approx(lovasz_by_loops(logits, labels), rel=1e-5)
    one = torch.full((14,), 2)
    assert lovasz_softmax(logits, one).item() == pytest.approx(lovasz_by_loops(logits, one), rel=1e-5)
    assert lovasz_softmax(logits.half(), labels).dtype == torch.float32


def test_the_loss_of_points_is_a_mean_over_all_labeled_ones_and_a_weighted_lovasz_loss():
    logits, labels = rows(2, 7, 3), torch.tensor([[0, 1, 2, -100, 1, 1, 0], [2] + 5 * [-100] + [0]])
    kept = labels != -100
    plain = nn.functional.cross_entropy(logits[kept], labels[kept])
    torch.testing.assert_close(point_loss(logits, labels), plain)
    torch.testing.assert_close(mean_cross_entropy(logits.flatten(0, 1), labels.flatten()), plain)
    both = plain + 0.3 * lovasz_by_loops(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(point_loss(logits, labels, 0.3), both)
    assert point_loss(logits, None, 0.3) is None
    with pytest.raises(ValueError, match=r"labels have shape \(2, 6\); expected \(2, 7\), one per point"):
        point_loss(logits, labels[:, :6])


@pytest.mark.parametrize(
    ("problem", "count", "labels", "expected"),
    [
        (None, 3, torch.tensor([2, -100]), lambda logits, labels: nn.functional.cross_entropy(logits[:1], labels[:1])),
        (None, 3, torch.tensor([[0.2, 0.8, 0.0], [0.5, 0.25, 0.25]]), nn.functional.cross_entropy),
        (
            "multi_label_classification",
            3,
            torch.tensor([[1, 0, 1], [0, 0, 1]]),
            lambda logits, labels: nn.functional.binary_cross_entropy_with_logits(logits, labels.float()),
        ),
        ("regression", 3, torch.tensor([[1, 0, 4], [0, 7, 1]]), lambda a, b: ((a - b) ** 2).mean()),
        ("regression", 1, torch.tensor([3, -2]), lambda a, b: ((a[:, 0] - b) ** 2).mean()),
        (None, 1, torch.tensor([[3.0], [0.5]]), lambda a, b: ((a - b) ** 2).mean()),
        ("single_label_classification", 1, torch.tensor([0, 0]), lambda logits, labels: torch.tensor(0.0)),
    ],
)
def test_the_loss_of_a_classifier_is_that_of_its_problem(problem, count, labels, expected):
    logits, config = rows(2, count), SimpleNamespace(problem_type=problem)
    torch.testing.assert_close(classification_loss(logits, labels, config), expected(logits, labels))
    # Kept in the config for a single label alone.
    assert config.problem_type == ("regression" if problem is None and count == 1 else problem)
    assert classification_loss(logits.half(), labels, config).dtype == torch.float32
    assert classification_loss(logits, None, SimpleNamespace(problem_type=None)) is None


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        (None, torch.zeros(2)),
        (None, torch.zeros(3, dtype=torch.long)),
        ("multi_label_classification", torch.zeros(2)),
        ("regression", torch.zeros(2)),
    ],
)
def test_labels_of_another_shape_or_type_are_refused(problem, labels):
    with raises(ValueError, naming=f"problem_type is '{problem or 'single_label_classification'}'"):
        classification_loss(rows(2, 3), labels, SimpleNamespace(problem_type=problem))


def test_parts_of_other_categories_get_the_lowest_score():
    category = torch.tensor([2, 0, 1])
    assert part_mask(PARTS, 5, category).tolist() == [
        [False, False, True, True, False],
        [True, False, True, False, False],
        [False, True, False, False, False],
    ]
    for dtype in (torch.float32, torch.bfloat16):
        logits = rows(3, 2, 5).to(dtype)
        found = restrict_to_parts(logits, PARTS, category)
        for cloud, number in enumerate(category.tolist()):
            own = torch.tensor([part in PARTS[number] for part in range(5)])
            assert torch.equal(found[cloud][:, own], logits[cloud][:, own])
            assert (found[cloud][:, ~own] == torch.finfo(dtype).min).all()


def test_a_category_may_be_left_out_only_if_there_is_one():
    points, given = torch.zeros(2, 4, 3), torch.tensor([1, 0])
    assert torch.equal(checked_category(None, points, 1), torch.tensor([0, 0]))
    assert checked_category(given, points, 2) is given and checked_category(given, points, 1) is given
    for wrong in (None, given[:1]):
        with raises(ValueError, naming="category"):
            checked_category(wrong, points, 2)


def test_parts_of_categories_are_labels():
    def check(parts):
        check_categories(SimpleNamespace(category_parts=parts, category_names=None, num_labels=4))

    check(PARTS)
    for wrong in (None, [], [[0], []], [*PARTS, [4]], [[-1, 2]]):
        with raises(ValueError, naming="category_parts"):
            check(wrong)

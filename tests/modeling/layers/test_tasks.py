"""Losses of heads against plain loops, masks of parts, and what labels and settings are refused."""

from types import SimpleNamespace

import pytest
import torch

from hf_any3d.modeling.layers.losses import classification_loss, lovasz_softmax
from hf_any3d.modeling.layers.tasks import check_categories
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


def test_parts_of_categories_are_labels():
    def check(parts):
        check_categories(SimpleNamespace(category_parts=parts, category_names=None, num_labels=4))

    check(PARTS)
    for wrong in (None, [], [[0], []], [*PARTS, [4]], [[-1, 2]]):
        with raises(ValueError, naming="category_parts"):
            check(wrong)

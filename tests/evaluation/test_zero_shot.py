import numpy as np
import pytest
import torch

from hf_any3d.evaluation.zero_shot import evaluate_class_names, p_value, zero_shot_scores
from tests.errors import raises

# Four classes, of which 1 and 3 are unseen.
LABELS = np.array([0, 0, 2, 1, 1, 3, 3])
ANSWERS = [
    [9, 1, 2, 0],  # seen, right
    [1, 9, 2, 0],  # seen; wrong among all, wrong among seen (2 before 0)
    [0, 1, 9, 2],  # right
    [9, 2, 0, 1],  # unseen; right among unseen alone
    [0, 9, 1, 2],  # right
    [9, 2, 0, 1],  # wrong among unseen
    [0, 1, 2, 9],  # right
]


def test_scores_agree_with_a_case_by_hand():
    found = zero_shot_scores(np.array(ANSWERS), LABELS, [3, 1])
    assert found["unseen_accuracy"] == pytest.approx(3 / 4)
    assert found["unseen_mean_class_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["unseen_chance"] == 1 / 2
    assert found["unseen_among_all"] == pytest.approx(2 / 4)
    assert found["seen_accuracy"] == pytest.approx(2 / 3)
    assert found["seen_among_all"] == pytest.approx(2 / 3)
    seen, unseen = (1 / 2 + 1) / 2, (1 / 2 + 1 / 2) / 2
    assert found["harmonic_mean"] == pytest.approx(2 * seen * unseen / (seen + unseen))


def test_classes_that_no_row_shows_have_no_scores():
    logits, seen = np.array(ANSWERS), LABELS % 2 == 0
    assert set(zero_shot_scores(logits[seen], LABELS[seen], [1, 3])) == {"seen_accuracy", "seen_among_all"}
    assert not any(name.startswith("seen") for name in zero_shot_scores(logits[~seen], LABELS[~seen], [1, 3]))
    assert set(zero_shot_scores(logits, LABELS, [])) == {"seen_accuracy", "seen_among_all"}


def test_never_naming_an_unseen_class_has_a_harmonic_mean_of_zero():
    logits = np.array(ANSWERS) * [1, 0, 1, 0] - [0, 1, 0, 1]
    found = zero_shot_scores(logits, LABELS, [1, 3])
    assert found["unseen_among_all"] == 0 and found["harmonic_mean"] == 0


def test_p_value_counts_permutations_of_names_that_score_as_well():
    assert p_value(np.diag([5, 5, 5])) == pytest.approx(1 / 6)
    # Two classes separated perfectly but with swapped names.
    assert p_value(np.array([[0, 5], [5, 0]])) == 1
    assert p_value(np.full((4, 4), 2)) == 1
    assert p_value(np.diag([5] * 9)) == pytest.approx(1 / 10_000, abs=2e-4)
    assert p_value(np.diag([5] * 8)) == 1 / 10_000 and p_value(np.diag([5] * 7)) == pytest.approx(1 / 5040)


class Rows(list):
    """Rows that tell which batches were read."""

    batches: list[int]

    def __getitems__(self, numbers):
        self.batches.append(len(numbers))
        return [self[number] for number in numbers]


class Corners(torch.nn.Module):
    """Embeds a cloud as its first point, and the names as axes."""

    device = torch.device("cpu")

    def encode_labels(self, names, templates):
        self.asked = list(names), templates
        return torch.eye(3, dtype=torch.float64)[: len(names)]

    def get_point_features(self, points):
        return points[:, 0].double()


def test_a_model_is_evaluated_on_the_names_of_classes():
    points = np.array([[9, 1, 2], [0, 3, 1], [3, 2, 0], [0, 9, 1], [5, 1, 1]], np.float32)
    rows = Rows({"points": cloud[None], "label": label} for cloud, label in zip(points, [0, 0, 0, 1, 1], strict=True))
    rows.batches, model = [], Corners()
    found, by_class = evaluate_class_names(model, rows, ["cup", "lamp", "sofa"], ["a {}."], batch_size=2)
    assert found == {"accuracy": 3 / 5, "mean_class_accuracy": pytest.approx((2 / 3 + 1 / 2) / 2)}
    assert by_class == {"cup": pytest.approx(2 / 3), "lamp": 0.5}  # no row is a sofa
    assert model.asked == (["cup", "lamp", "sofa"], ["a {}."]) and rows.batches == [2, 2, 1]
    rows[3]["points"] = np.full((1, 3), np.nan, np.float32)
    with raises(ValueError, naming="scores have NaN"):
        evaluate_class_names(model, rows, ["cup", "lamp", "sofa"])

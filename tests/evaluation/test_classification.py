import evaluate
import numpy as np
import pytest
from scipy.stats import binomtest
from transformers import EvalPrediction

from hf_any3d.evaluation.classification import compute_classification_metrics
from hf_any3d.evaluation.confusion import class_accuracies, confusion_matrix, mean_class_accuracy, overall_accuracy
from hf_any3d.evaluation.metrics import ConfusionMatrix, MeanClassAccuracy, OverallAccuracy
from hf_any3d.evaluation.statistics import share_at_most


@pytest.fixture
def pairs():
    generator = np.random.default_rng(0)
    references = generator.choice(5, 200, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    predictions = np.where(generator.random(200) < 0.6, references, generator.integers(0, 5, 200))
    return predictions, references


def test_scores_agree_with_counting_by_hand(pairs):
    predictions, references = (values.tolist() for values in pairs)
    matrix = confusion_matrix(*pairs)
    for true in range(5):
        for predicted in range(5):
            counted = sum(p == predicted and r == true for p, r in zip(predictions, references, strict=True))
            assert matrix[true, predicted] == counted
    right = [p == r for p, r in zip(predictions, references, strict=True)]
    by_class = [[ok for ok, r in zip(right, references, strict=True) if r == true] for true in range(5)]
    assert overall_accuracy(matrix) == pytest.approx(sum(right) / 200)
    assert mean_class_accuracy(matrix) == pytest.approx(sum(sum(oks) / len(oks) for oks in by_class) / 5)
    assert overall_accuracy(matrix) != pytest.approx(mean_class_accuracy(matrix), abs=1e-3)


def test_metrics_combine_into_one(pairs, tmp_path):
    both = evaluate.combine([OverallAccuracy(cache_dir=str(tmp_path)), MeanClassAccuracy(cache_dir=str(tmp_path))])
    matrix = confusion_matrix(*pairs)
    assert both.compute(predictions=pairs[0], references=pairs[1]) == {
        "accuracy": overall_accuracy(matrix),
        "mean_class_accuracy": mean_class_accuracy(matrix),
    }


def test_classes_without_references_are_left_out_of_the_mean():
    # Class 0: 3 of 4 correct; class 1: 1 of 2; class 2 is predicted once but never true; class 3 never occurs.
    matrix = confusion_matrix([0, 0, 0, 2, 1, 0], [0, 0, 0, 0, 1, 1], num_classes=4)
    np.testing.assert_array_equal(class_accuracies(matrix), [0.75, 0.5, np.nan, np.nan])
    assert mean_class_accuracy(matrix) == pytest.approx(0.625)
    assert overall_accuracy(matrix) == pytest.approx(4 / 6)


def test_the_number_of_classes_fixes_the_size_of_the_matrix(tmp_path):
    metric = ConfusionMatrix(cache_dir=str(tmp_path))
    matrix = metric.compute(predictions=[0, 1], references=[0, 0], num_classes=4)["confusion_matrix"]
    expected = np.zeros((4, 4), int)
    expected[0, :2] = 1
    np.testing.assert_array_equal(matrix, expected)


def test_trainer_metrics_are_computed_from_logits():
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.3, 0.1, 0.2], [0.0, 0.0, 3.0]])
    labels = np.array([0, 1, 1, 2])
    expected = {"accuracy": 0.75, "mean_class_accuracy": pytest.approx(2.5 / 3)}
    assert compute_classification_metrics(EvalPrediction(logits, labels)) == expected
    assert compute_classification_metrics(EvalPrediction((logits, logits[:, :1]), labels)) == expected


def test_trainer_metrics_follow_the_kind_of_the_labels():
    compute = compute_classification_metrics
    for labels in (np.array([1.0, 3.0]), np.array([[1.0], [3.0]], np.float32)):
        assert compute(EvalPrediction(np.array([[1.5], [1.0]]), labels)) == {"mse": 2.125, "mae": 1.25}
    assert compute(EvalPrediction(np.array([[0.0, 2.0]]), np.array([[0.5, 4.0]]))) == {"mse": 2.125, "mae": 1.25}
    # The first label is right twice, the second missed once and the third predicted once too often.
    logits = np.array([[1.0, -1.0, 2.0], [3.0, -2.0, -1.0]])
    found = compute(EvalPrediction(logits, np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], np.float32)))
    assert found == {"exact_match": 0.5, "micro_f1": pytest.approx(4 / 6), "macro_f1": pytest.approx(1 / 3)}
    with pytest.raises(ValueError, match=r"labels have shape \(2, 2\); expected \(2, 3\)"):
        compute(EvalPrediction(logits, np.ones((2, 2), np.float32)))


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([0, 1], [0], r"int64 \(2,\), references int64 \(1,\)"),
        ([0, 4], [0, 1], "predictions are 0 to 4; expected 0 to 3"),
        ([0, 1], [0, -100], "references are -100 to 0"),
        ([0.5, 1.0], [0, 1], "float64 .*; expected one integer a sample"),
    ],
)
def test_wrong_pairs_are_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(predictions, references, num_classes=4)


@pytest.mark.parametrize("logits", [np.zeros(4), np.zeros((2, 3, 3)), np.full((2, 3), np.nan)])
def test_meaningless_logits_are_refused(logits):
    with pytest.raises(ValueError):
        compute_classification_metrics(EvalPrediction(logits, np.zeros(2, int)))


def test_the_largest_share_that_few_samples_allow_is_that_of_clopper_and_pearson():
    # scipy 1.17 as the reference, whose one-sided test has the limit.
    for count, total in ((0, 24), (1, 24), (3, 60), (7, 7)):
        limit = binomtest(count, total, alternative="less").proportion_ci(0.95, method="exact").high
        assert share_at_most(count, total) == pytest.approx(limit)

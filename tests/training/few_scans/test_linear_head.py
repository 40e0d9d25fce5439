"""The linear head, its folds and predictions for scans that it has not seen."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hf_any3d.training.few_scans.cross_validation import draw_folds, held_out_logits
from hf_any3d.training.few_scans.linear_head import fit_head, fit_temperature


def blobs(each: int, classes: int = 3, width: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(classes, width))
    labels = np.arange(classes).repeat(each)
    return centers[labels] + generator.normal(size=(len(labels), width)) * [1, *[2] * (width - 1)] + 5, labels


@pytest.mark.parametrize("width", (4, 40))
def test_it_is_logistic_regression_on_standardized_features(width):
    features, labels = blobs(8, width=width)
    head = fit_head(features, labels, 3, strength=0.3)
    plain = LogisticRegression(C=0.3, tol=1e-8, max_iter=2000).fit((features - head.mean) / head.scale, labels)
    expected = plain.predict_proba((features - head.mean) / head.scale)
    logits = head.logits(features)
    found = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    # scikit-learn does not penalize the bias, which here is as good as free.
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_constant_features_and_a_class_without_scans_are_no_problem():
    features, labels = blobs(4)
    features[:, 3] = 7.0
    head = fit_head(features, labels, 4, strength=1.0)
    assert np.isfinite(head.weight).all() and np.abs(head.weight[:, 3]).max() < 1e-9 and head.scale[3] == 1
    assert (head.logits(features).argmax(axis=1) == labels).all()


def test_classes_count_the_same_whatever_their_scans():
    generator = np.random.default_rng(0)
    features = np.concatenate([generator.normal(-0.3, 1, (60, 1)), generator.normal(0.3, 1, (6, 1))])
    labels = np.repeat([0, 1], [60, 6])
    predicted = fit_head(features, labels, 2, 1.0).logits(features).argmax(axis=1)
    assert (predicted == 1).mean() > 0.25  # a plain fit would nearly never say so


def test_folds_hold_out_each_class_evenly_and_groups_together():
    labels, groups = np.repeat([0, 1, 2], [10, 6, 1]), np.arange(17)
    groups[[1, 2]] = 0
    folds = draw_folds(labels, groups, 4)
    assert len(set(folds[:3])) == 1 and folds[16] == -1 and set(folds.tolist()) == {-1, 0, 1, 2, 3}
    for label, groups_of_class in ((0, 8), (1, 6)):
        sizes = [len({*groups[(labels == label) & (folds == fold)].tolist()}) for fold in range(4)]
        assert sum(sizes) == groups_of_class and max(sizes) - min(sizes) <= 1
    assert draw_folds(labels, groups, 4, seed=1).tolist() != folds.tolist()
    assert draw_folds(np.array([0, 0, 1, 1]), np.arange(4), 10).max() == 1  # no more folds than scans of a class


def test_predictions_are_of_heads_that_have_not_seen_the_scan():
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(40, 100)), np.tile([0, 1], 20)
    folds = draw_folds(labels, np.arange(40), 10)
    held = held_out_logits(features, labels, folds, 2, 1.0)
    seen = fit_head(features, labels, 2, 1.0).logits(features)
    # Noise is learned by heart, and not recognized.
    assert (seen.argmax(1) == labels).all() and 0.2 < (held.argmax(1) == labels).mean() < 0.8
    folds[0] = -1
    assert np.isnan(held_out_logits(features, labels, folds, 2, 1.0)[0]).all()


def test_a_temperature_makes_scores_as_right_as_they_say_and_few_rows_change_little():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4000, 4)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (shares.cumsum(axis=1) < generator.random((4000, 1))).sum(axis=1)
    # Labels are as frequent as these logits say; others say too much or too little.
    for factor in (0.5, 1.0, 3.0):
        assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.08)
    assert 1.05 < fit_temperature(3 * logits[:20], labels[:20]) < 2
    features, known = blobs(8)
    head = fit_head(features, known, 3, strength=0.3)
    np.testing.assert_allclose(head.cooled(2.0).logits(features), head.logits(features) / 2, atol=1e-12)

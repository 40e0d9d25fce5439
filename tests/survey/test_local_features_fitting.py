"""A model of local features that learns once more: from what it has stored, on its own or opened again."""

import numpy as np
import pytest
import torch

from hf_any3d_survey.local_features import LocalFeaturesConfig, LocalFeaturesForPointCloudSegmentation
from hf_any3d_survey.local_features.fitting import LEARNED_ROWS, Rows, adapted, fit_network, keep_rows, logits_of

LABELS, WIDTH = 3, 20


def drawn(count, shift=0.0, seed=0):
    """Features of points of three classes, and the classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, LABELS, count)
    features = generator.normal(0, 1, (count, WIDTH)) + (6 * labels[:, None] + shift) / np.sqrt(WIDTH)
    return features.astype(np.float32), labels


@pytest.fixture(scope="module")
def model():
    features, labels = drawn(LEARNED_ROWS + 1000)
    places = np.arange(len(labels)) % 4
    rows = Rows(features, labels, places, places, np.zeros(len(labels), int))
    config = LocalFeaturesConfig(in_channels=3 + WIDTH, num_labels=LABELS, members=2)
    found = fit_network(rows, config, steps=200)
    keep_rows(found, rows, seed=0)
    return found


def right(model, features, labels):
    """Share of right labels."""
    return (logits_of(model, features)[0].argmax(axis=1) == labels).mean()


def test_a_saved_model_learns_the_same_once_more(model, tmp_path):
    assert model.config.learned_rows == len(model.learned.labels) == LEARNED_ROWS
    model.save_pretrained(tmp_path)
    features, _ = drawn(2000, seed=1)
    found = adapted(model, features)
    again = adapted(LocalFeaturesForPointCloudSegmentation.from_pretrained(tmp_path), features)
    assert all(torch.equal(*pair) for pair in zip(found.parameters(), again.parameters(), strict=True))
    assert found.learned is None and found.config.id2label == model.config.id2label
    half = LocalFeaturesForPointCloudSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    features, labels = drawn(2000, seed=2)
    assert abs(right(adapted(half, features), features, labels) - right(found, features, labels)) < 0.03


def test_a_place_unlike_the_learned_ones_is_labeled_better(model):
    features, labels = drawn(4000, shift=2.2, seed=3)
    before = right(model, features, labels)
    assert right(adapted(model, features), features, labels) > before + 0.01


def test_a_model_sure_of_one_class_alone_stays_as_it_is(model):
    features, labels = drawn(500, seed=4)
    assert adapted(model, features[labels == 0] - 5) is model

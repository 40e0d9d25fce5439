"""Features of scans and of their views: which are computed, which are reused, and in which order they are kept."""

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features

from hf_any3d import PointCloudProcessor
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.training.few_scans import features
from hf_any3d.training.few_scans.features import compute_examples
from hf_any3d.training.few_scans.one_side import one_side
from hf_any3d.training.few_scans.scans import Examples, Scans, digest_of, joined

CLOUDS = np.random.default_rng(0).normal(size=(5, 40, 3)).astype(np.float32)


def rows_of(numbers: list[int]) -> Dataset:
    kinds = Features({"points": Array2D((40, 3), "float32"), "label": ClassLabel(names=["a", "b"])})
    return Dataset.from_dict({"points": CLOUDS[numbers], "label": [number % 2 for number in numbers]}, features=kinds)


def scans_of(numbers: list[int]) -> Scans:
    digests = [digest_of(CLOUDS[number]) for number in numbers]
    labels = np.array([number % 2 for number in numbers])
    return Scans(["a", "b"], labels, np.arange(len(numbers)), digests, [f"{number}.ply" for number in numbers])


@pytest.fixture
def computed(monkeypatch):
    """Rows whose features were computed: a feature is the first coordinate of the first point."""
    asked = []

    def compute(model, rows, processor):
        points = np.asarray(rows.with_format("numpy")["points"][:])
        asked.append(points)
        return points[:, 0, :2]

    monkeypatch.setattr(features, "compute_features", compute)
    return asked


@pytest.fixture(scope="module")
def model():
    return PointFeaturesForPointCloudClassification(PointFeaturesConfig(features=["descriptors"], up_axis="z")).eval()


PLAIN = PointCloudProcessor(num_points=16)


def views_of(numbers: list[int]) -> np.ndarray:
    """A view of each row from one side, drawn by its number among the rows."""
    return np.stack(
        [one_side(CLOUDS[number], 16, "z", np.random.default_rng(place)) for place, number in enumerate(numbers)]
    )


@pytest.mark.parametrize(
    ("processor", "one_sided", "has_views"),
    [
        (PLAIN, True, True),
        (PLAIN, False, False),
        (PointCloudProcessor(num_points=16, features=["xyz", "normals"]), True, False),
    ],
)
def test_scans_have_features_and_views_if_only_their_points_are_read(processor, one_sided, has_views, computed, model):
    scans = scans_of([0, 1, 2])
    found = compute_examples(model, rows_of([0, 1, 2]), processor, scans, None, one_sided)
    assert found.scans is scans and found.processor is processor and np.array_equal(found.features, CLOUDS[:3, 0, :2])
    if not has_views:
        assert found.views is None and len(computed) == 1
        return
    np.testing.assert_allclose(computed[1], views_of([0, 1, 2]), rtol=1e-6)
    np.testing.assert_allclose(found.views, views_of([0, 1, 2])[:, 0, :2], rtol=1e-6)


@pytest.mark.parametrize("has_views", [True, False])
def test_scans_that_an_earlier_model_has_learned_keep_their_features(has_views, computed, model):
    before = np.arange(8, dtype=np.float32).reshape(4, 2) + 100
    earlier = Examples(scans_of([0, 1, 2, 3]), before, PLAIN, before * 2 if has_views else None)
    numbers = [4, 2, 0]
    found = compute_examples(model, rows_of(numbers), PLAIN, scans_of(numbers), earlier, True)
    together, kept = joined(earlier.scans, scans_of(numbers))
    assert kept.tolist() == [False, True, False, True]
    assert found.scans.names == together.names == ["1.ply", "3.ply", "4.ply", "2.ply", "0.ply"]
    expected = np.stack([before[1], before[3], CLOUDS[4, 0, :2], before[2], before[0]])
    np.testing.assert_array_equal(found.features, expected)
    np.testing.assert_array_equal(computed[0], CLOUDS[[4]])
    if has_views:
        expected = np.stack([before[1] * 2, before[3] * 2, views_of([4])[0, 0, :2], before[2] * 2, before[0] * 2])
        np.testing.assert_allclose(found.views, expected, rtol=1e-6)
    else:
        assert found.views is None and len(computed) == 1


def test_without_new_scans_nothing_is_computed(computed, model):
    before = np.arange(4, dtype=np.float32).reshape(2, 2)
    earlier = Examples(scans_of([0, 1]), before, PLAIN, None)
    found = compute_examples(model, rows_of([1]), PLAIN, scans_of([1]), earlier, False)
    assert not computed and found.features.tolist() == before.tolist() and found.views is None

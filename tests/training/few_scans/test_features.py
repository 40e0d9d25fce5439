"""Features of scans and of their views: which are computed, which are reused, and in which order they are kept."""

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features

from hf_any3d import PointCloudProcessor
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.training.few_scans.one_side import one_side
from hf_any3d.training.few_scans.scans import Examples, Scans, compute_examples, compute_features, joined

CLOUDS = np.random.default_rng(0).normal(size=(5, 40, 3)).astype(np.float32)


def rows_of(numbers: list[int]) -> Dataset:
    kinds = Features({"points": Array2D((40, 3), "float32"), "label": ClassLabel(names=["a", "b"])})
    return Dataset.from_dict({"points": CLOUDS[numbers], "label": [number % 2 for number in numbers]}, features=kinds)


def scans_of(numbers: list[int]) -> Scans:
    digests = [str(number) for number in numbers]
    labels = np.array([number % 2 for number in numbers])
    return Scans(["a", "b"], labels, np.arange(len(numbers)), digests, [f"{number}.ply" for number in numbers])


@pytest.fixture(scope="module")
def model():
    return PointFeaturesForPointCloudClassification(PointFeaturesConfig(features=["descriptors"], up_axis="z")).eval()


PLAIN = PointCloudProcessor(num_points=16)


def views_of(model, numbers: list[int]) -> np.ndarray:
    """Features of a view of each row from one side, drawn by its number among the rows."""
    views = [one_side(CLOUDS[number], 16, "z", np.random.default_rng(place)) for place, number in enumerate(numbers)]
    kinds = Features({"points": Array2D((16, 3), "float32")})
    return compute_features(model, Dataset.from_dict({"points": np.float32(views)}, features=kinds), PLAIN)


@pytest.mark.parametrize(
    ("processor", "one_sided", "has_views"),
    [
        (PLAIN, True, True),
        (PLAIN, False, False),
    ],
)
@pytest.mark.filterwarnings("ignore:.*normals")
def test_scans_have_features_and_views_if_only_their_points_are_read(processor, one_sided, has_views, model):
    scans, rows = scans_of([0, 1, 2]), rows_of([0, 1, 2])
    found = compute_examples(model, rows, processor, scans, None, one_sided)
    assert found.scans is scans and found.processor is processor
    np.testing.assert_array_equal(found.features, compute_features(model, rows, processor))
    if has_views:
        np.testing.assert_allclose(found.views, views_of(model, [0, 1, 2]), rtol=1e-5, atol=1e-6)
    else:
        assert found.views is None


@pytest.mark.parametrize("has_views", [True, False])
def test_scans_that_an_earlier_model_has_learned_keep_their_features(has_views, model):
    before = np.arange(4, dtype=np.float32)[:, None] + np.full((1, model.config.hidden_size), 100, np.float32)
    earlier = Examples(scans_of([0, 1, 2, 3]), before, PLAIN, before * 2 if has_views else None)
    numbers = [4, 2, 0]
    found = compute_examples(model, rows_of(numbers), PLAIN, scans_of(numbers), earlier, True)
    together, kept = joined(earlier.scans, scans_of(numbers))
    assert kept.tolist() == [False, True, False, True]
    assert found.scans.names == together.names == ["1.ply", "3.ply", "4.ply", "2.ply", "0.ply"]
    new = compute_features(model, rows_of([4]), PLAIN)[0]
    np.testing.assert_array_equal(found.features, np.stack([before[1], before[3], new, before[2], before[0]]))
    if has_views:
        view = views_of(model, [4])[0]
        expected = np.stack([before[1] * 2, before[3] * 2, view, before[2] * 2, before[0] * 2])
        np.testing.assert_allclose(found.views, expected, rtol=1e-5, atol=1e-6)
    else:
        assert found.views is None

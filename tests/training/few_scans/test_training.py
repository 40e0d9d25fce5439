"""What learning few scans makes of its options, and how it judges and describes what it has learned."""

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features

from hf_any3d import PointCloudProcessor
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.training.few_scans.features import compute_things
from hf_any3d.training.few_scans.request import FewScansArguments
from hf_any3d.training.few_scans.training import learn_few_scans
from tests.errors import raises


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"heading": "north"}, "heading='north'; expected one of 'known'"),
        ({"wrap_weight": 0.5}, "--wrap_weight 0.5 with --wrap None; give a weight from 0 to 1"),
        ({"wrap_weight": 0, "wrap": "x"}, "--wrap_weight 0 with --wrap x"),
        ({"wrap_weight": 1, "wrap": "x"}, "--wrap_weight 1 with --wrap x"),
        ({"folds": 1}, "--folds is 1"),
    ],
)
def test_wrong_options_are_refused(given, text):
    with pytest.raises(ValueError, match=text):
        FewScansArguments(**given)
    FewScansArguments(heading="unknown", wrap_weight=0.5, wrap="x", unlike=0, folds=2, strength=0.1)


@pytest.fixture
def model():
    config = PointFeaturesConfig(features=["descriptors"], copies=3, id2label={0: "ball", 1: "stick"})
    return PointFeaturesForPointCloudClassification(config).eval()


KINDS = {"ball": (1, 1, 1), "stick": (0.1, 1, 0.1), "cone": (1, 0.1, 1)}


def clouds_of(counts: dict[str, int], seed: int) -> Dataset:
    """Clouds of some kinds, each class by its extent."""
    generator = np.random.default_rng(seed)
    kinds = [name for name, count in counts.items() for _ in range(count)]
    points = [generator.uniform(-1, 1, (64, 3)) * KINDS[name] * generator.uniform(0.8, 1.2) for name in kinds]
    features = Features({"points": Array2D((64, 3), "float32"), "label": ClassLabel(names=list(KINDS))})
    labels = [list(KINDS).index(name) for name in kinds]
    return Dataset.from_dict({"points": np.float32(points), "label": labels}, features=features)


@pytest.mark.filterwarnings("ignore:.*no scan of")
def test_scans_of_classes_that_were_not_learned_count_as_wrong(tmp_path):
    words = ["--feature_sets", "descriptors", "--num_points", "48", "--output_dir", str(tmp_path), "--unlike", "7"]
    splits = DatasetDict(train=clouds_of({"ball": 4, "stick": 6}, 0), test=clouds_of({"ball": 2, "cone": 3}, 1))
    learned = learn_few_scans(words, splits)
    assert learned.report.metrics["test"]["clouds"] == 5 and learned.report.metrics["test"]["accuracy"] <= 0.4
    assert learned.report.class_accuracy["test"]["cone"] == 0 and np.isfinite(learned.report.metrics["test"]["loss"])
    seen, way, sure, test, confused, unknown = learned.lines
    assert "10 scans of 2 classes, 4 (ball) to 6 (stick); 0 near-duplicates; up axis y" in seen
    assert "frozen descriptors features, mean of 8 copies" in way and "the saved model is trained on all 10" in sure
    assert test.startswith("test: ") and confused.startswith("confused: ") and unknown.startswith("none of these: ")
    with raises(ValueError, naming="--encoder"):
        learn_few_scans([*words, "--encoder", "some"], splits)


def test_things_of_no_class_are_drawn_for_plain_points(model):
    processor = PointCloudProcessor(num_points=32)
    things = compute_things(model, processor, 7)
    assert things.shape == (7, model.config.hidden_size) and things.dtype == np.float32 and model.config.copies == 3
    colored = PointCloudProcessor(num_points=32, features=["xyz", "rgb"])
    for none in (compute_things(model, colored, 7), compute_things(model, processor, 0)):
        assert none.shape == (0, model.config.hidden_size) and none.dtype == np.float32

"""Features that are computed once: what they are, when they are computed again, and the head that reads them."""

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_any3d import PointCloudProcessor, Uni3DForPointCloudClassification
from hf_any3d.modeling.layers.losses import classification_loss
from hf_any3d.training.frozen_features import HeadOnFeatures, frozen_features
from tests.errors import raises
from tests.tiny_aligned import FEATURES, tiny_aligned

COLORED = PointCloudProcessor(num_points=24, features=("xyz", "rgb"), default_rgb=(0.4, 0.4, 0.4))


@pytest.fixture
def rows():
    """Five clouds of two classes."""
    clouds = np.random.default_rng(0).normal(size=(5, 32, 3)).astype("float32")
    features = Features({"points": Array2D((None, 3), "float32"), "label": ClassLabel(names=["ball", "box"])})
    return Dataset.from_dict({"points": list(clouds), "label": [0, 1, 0, 1, 0]}, features=features)


@pytest.fixture
def model():
    return tiny_aligned(Uni3DForPointCloudClassification, num_labels=2, head_widths=())


def test_they_are_the_features_that_the_head_reads(model, rows, tmp_path):
    found = frozen_features(model.train(), rows, COLORED, batch_size=2, cache_dir=tmp_path)
    assert model.training and found.features["label"] == rows.features["label"]
    assert found.column_names == ["label", "features"]
    features = torch.tensor(np.asarray(found["features"]))
    with torch.no_grad():
        clouds = COLORED([{"points": np.asarray(row["points"])} for row in rows])["points"]
        output = model.eval()(clouds, labels=torch.tensor(rows["label"]))
        again = HeadOnFeatures(model)(features, torch.tensor(rows["label"]))
    assert features.shape == (5, FEATURES)
    torch.testing.assert_close(again.logits, output.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.loss, output.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_the_loss_of_the_head_is_that_of_the_model_whatever_its_config_says(model, problem):
    head, features = HeadOnFeatures(model), torch.randn(5, FEATURES)
    model.config.problem_type = problem
    labels = torch.rand(5, 2)
    model.base_model.forward = lambda points, **settings: BaseModelOutputWithPooling(pooler_output=points)
    torch.testing.assert_close(head(features, labels).loss, model(features, labels=labels).loss)
    logits, configs = head(features).logits, [PreTrainedConfig(problem_type=name) for name in (problem, None)]
    losses = {classification_loss(logits, labels, config).item() for config in configs}
    assert len(losses) == (1 if problem == "single_label_classification" else 2)


def test_they_are_computed_again_only_if_weights_clouds_or_processor_changed(model, rows, tmp_path):
    runs = []
    model.base_model.register_forward_hook(lambda *_: runs.append(1))

    def computed(rows=rows, processor=COLORED):
        runs.clear()
        frozen_features(model, rows, processor, cache_dir=tmp_path)
        return bool(runs)

    assert computed() and not computed()
    with torch.no_grad():
        model.classifier.out.weight.add_(1)
        model.config.id2label = {0: "a", 1: "b"}
        assert not computed(), "the head does not count"
        next(model.base_model.parameters()).add_(1e-3)
    assert computed() and not computed()
    assert computed(rows.select([1, 0, 2])) and not computed(rows.select([1, 0, 2]))
    assert computed(processor=PointCloudProcessor(num_points=20, features=("xyz", "rgb"), default_rgb=(0.4, 0.4, 0.4)))
    with raises(ValueError, naming="processor has seed=None"):
        computed(processor=PointCloudProcessor(seed=None))

"""A linear probe of frozen features."""

import sys

import pytest
import torch
from datasets import DatasetDict, Value
from torch import nn

from hf_any3d import PointCloudProcessor
from hf_any3d.training.pretraining import LinearProbe, ProbeCallback
from tests.examples.conftest import tiny_shapes


class Extent(nn.Module):
    """Features from which the classes of `tiny_shapes` can be separated: the extent of the points."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def probe_features(self, points: torch.Tensor) -> torch.Tensor:
        torch.rand(1)  # as a model with random masks would
        return self.norm(points.abs().mean(dim=1))


@pytest.fixture
def splits() -> DatasetDict:
    rows = tiny_shapes(rows=24)["train"]
    return DatasetDict(train=rows.select(range(12)), validation=rows.select(range(12, 24)))


@pytest.fixture
def processor() -> PointCloudProcessor:
    return PointCloudProcessor(num_points=64, scale=None)


def test_separable_classes_are_learned(splits, processor):
    assert LinearProbe(splits, processor, batch_size=5).accuracies(Extent()) == {"validation": 1.0}
    # Scaled to the unit sphere they cannot be separated.
    processor.scale = "unit_sphere"
    assert LinearProbe(splits, processor).accuracies(Extent())["validation"] < 1


def test_probing_does_not_change_model_and_random_state(splits, processor):
    model, before = Extent().train(), torch.random.get_rng_state()
    LinearProbe(splits, processor).accuracies(model)
    assert model.training and int(model.norm.num_batches_tracked) == 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_clouds_without_classes_are_refused(splits, processor):
    splits["validation"] = splits["validation"].cast_column("label", Value("int64"))
    with pytest.raises(ValueError, match="split 'validation' has label .*expected a ClassLabel"):
        LinearProbe(splits, processor)
    with pytest.raises(ValueError, match="every is 0"):
        ProbeCallback(None, None, 0)


def test_error_names_missing_scikit_learn(splits, processor, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        LinearProbe(splits, processor)

"""A linear probe of frozen features."""

import pytest
import torch
from datasets import DatasetDict
from torch import nn

from hf_any3d import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.pretraining import LinearProbe, PretrainingDataArguments, ProbeArguments, build_probe
from hf_any3d.training.splits import load_splits
from tests.errors import raises
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


def test_a_probe_is_built_of_the_named_dataset_and_split_as_the_pretraining_data(processor):
    data = PretrainingDataArguments(validation_fraction=0.4, validation_seed=3)
    assert build_probe(ProbeArguments(), data, DatasetDict(), processor, 4) is None
    named = ProbeArguments(probe_every=2, probe_dataset="shapes")
    probe = build_probe(named, data, DatasetDict(), processor, 4)
    expected, _ = load_splits(DataArguments("shapes", validation_fraction=0.4, validation_seed=3))
    assert len(probe.splits["validation"]) == len(expected["validation"])
    whole = PretrainingDataArguments(validation_fraction=0.0)  # of pretraining, which needs no split
    assert "validation" in build_probe(named, whole, DatasetDict(), processor, 4).splits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda splits: splits.pop("validation"), "--probe_every needs a validation split; add --validation"),
        (lambda splits: splits.update(train=splits["train"].remove_columns("label")), "'train': label is None"),
    ],
)
def test_data_that_cannot_be_probed_are_refused(splits, processor, change, message):
    change(splits)
    with raises(ValueError, naming=message):
        build_probe(ProbeArguments(probe_every=1), PretrainingDataArguments(), splits, processor, 4)

"""The numbers of the unknown score, against plain loops over rows."""

import math
import re
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hf_any3d.modeling.act import ActConfig
from hf_any3d.modeling.layers.unknown_score import UnknownScoreConfigMixin, UnknownScoreMixin
from tests.errors import raises


class Classifier(UnknownScoreMixin, nn.Module):
    """Has nothing but a score."""

    dtype = torch.float32

    def __init__(self, width: int, **settings):
        super().__init__()
        defaults = {setting.name: setting.default for setting in fields(UnknownScoreConfigMixin)}
        self.config = SimpleNamespace(**(defaults | {"problem_type": None, "num_labels": 3} | settings))
        self.unknown_score = self.build_unknown_score(width)


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def nearest(row: torch.Tensor, others: list[torch.Tensor]) -> float:
    return max(min(float((row - other).norm()) for other in others), 1e-12)


def surprise_of(logits: torch.Tensor) -> float:
    return -math.log(max(math.exp(float(one)) for one in logits) / sum(math.exp(float(one)) for one in logits))


@pytest.mark.parametrize("bank", [None, rows(4, 5, seed=3) + 1])
@pytest.mark.parametrize("groups", [None, [7, 3, 3, 7, 1, 1, 1, 0, 4, 4, 2]])
def test_a_fit_stores_what_plain_loops_find(groups, bank):
    features, logits = rows(11, 5, seed=1), 2 * rows(11, 3, seed=2)
    numbers = groups or list(range(11))
    near = [
        math.log(nearest(row, [o for o, own in zip(features, numbers, strict=True) if own != number]))
        for row, number in zip(features, numbers, strict=True)
    ]
    signs = {"unknown_distance": near, "unknown_surprise": [surprise_of(row) for row in logits]}
    if bank is not None:
        signs["unknown_side"] = [
            own - math.log(nearest(row, list(bank))) for own, row in zip(near, features, strict=True)
        ]
    expected = {name: [np.mean(values), np.std(values, ddof=1)] for name, values in signs.items()}
    expected["unknown_surprise"][1] = max(expected["unknown_surprise"])
    sums = sum((np.array(values) - expected[name][0]) / expected[name][1] for name, values in signs.items())

    model = Classifier(5)
    model.fit_unknown_score(features, logits, groups, bank)
    config = model.config
    assert (config.unknown_rows, config.unknown_bank_rows) == (11, 0 if bank is None else 4)
    assert torch.equal(model.unknown_score.features, features)
    for name in ("unknown_distance", "unknown_side", "unknown_surprise"):
        assert list(getattr(config, name)) == pytest.approx(expected.get(name, [0.0, 1.0]), rel=1e-4)
    assert config.unknown_threshold == pytest.approx(max(sums), rel=1e-4)

    # New clouds are compared with all rows, those of every group.
    fresh, fresh_logits = rows(6, 5, seed=5), rows(6, 3, seed=6)
    for row, own, found in zip(fresh, fresh_logits, model.score_unknown(fresh, fresh_logits), strict=True):
        near = math.log(nearest(row, list(features)))
        values = {"unknown_distance": near, "unknown_surprise": surprise_of(own)}
        if bank is not None:
            values["unknown_side"] = near - math.log(nearest(row, list(bank)))
        total = sum((value - expected[name][0]) / expected[name][1] for name, value in values.items())
        assert found.item() == pytest.approx(1 / (1 + math.exp(config.unknown_threshold - total)), rel=1e-3)


def test_equal_rows_have_the_smallest_distance_and_deviation():
    model = Classifier(2)
    model.fit_unknown_score(torch.zeros(3, 2), torch.tensor([[1.0, 0, 0]]).expand(3, -1))
    assert model.config.unknown_distance == pytest.approx([math.log(1e-12), 1e-3])
    sure = Classifier(2)
    sure.fit_unknown_score(rows(3, 2, seed=0), torch.tensor([[90.0, 0, 0]]).expand(3, -1))
    assert sure.config.unknown_surprise == pytest.approx([0, 1e-3])


def test_a_score_has_room_for_the_rows_of_the_config_and_can_be_removed():
    model = Classifier(4, unknown_rows=6, unknown_bank_rows=2)
    assert model.unknown_score.features.shape == (6, 4) and model.unknown_score.bank.shape == (2, 4)
    assert Classifier(4, unknown_rows=6).unknown_score.bank is None
    kept = model.unknown_score
    model.fit_unknown_score(rows(6, 4, seed=0), rows(6, 3, seed=1), bank=rows(2, 4, seed=2))
    assert model.unknown_score is kept, "rows fit in"
    for given in ({"features": rows(7, 4, seed=0), "bank": rows(2, 4, seed=2)}, {"features": rows(6, 4, seed=0)}):
        before = model.unknown_score
        model.fit_unknown_score(logits=rows(len(given["features"]), 3, seed=1), **given)
        assert model.unknown_score is not before
        assert model.unknown_score.features.shape == given["features"].shape
    model.drop_unknown_score()
    assert model.unknown_score is None and model.score_unknown(rows(1, 4, seed=0), rows(1, 3, seed=0)) is None
    for setting in fields(UnknownScoreConfigMixin):
        assert getattr(model.config, setting.name) == setting.default, setting.name


def test_classifiers_of_one_class_or_other_problems_are_refused():
    for settings in ({"num_labels": 1}, {"problem_type": "multi_label_classification"}):
        with pytest.raises(ValueError, match="expected a classifier that chooses one of two or more classes"):
            Classifier(2, **settings).fit_unknown_score(rows(3, 2, seed=0), rows(3, 3, seed=0))
    two = Classifier(2, num_labels=2, problem_type="single_label_classification")
    two.fit_unknown_score(rows(2, 2, seed=0), rows(2, 2, seed=0))
    assert two.config.unknown_rows == 2


@pytest.mark.parametrize("marker", [{"_hf_peft_config_loaded": True}, {"peft_config": {}}])
def test_an_adapter_needs_room_for_exactly_its_rows(marker):
    model = Classifier(2, unknown_rows=3)
    for name, value in marker.items():
        setattr(model, name, value)
    model.fit_unknown_score(rows(3, 2, seed=0), rows(3, 3, seed=0))
    message = "unknown_rows=3 and unknown_bank_rows=0 with an adapter, which stores what there was when it was added; "
    for given, expected in (
        ({"features": rows(4, 2, seed=0)}, "unknown_rows=4 and unknown_bank_rows=0"),
        ({"features": rows(3, 2, seed=0), "bank": rows(5, 2, seed=0)}, "unknown_rows=3 and unknown_bank_rows=5"),
    ):
        wanted = f"{message}expected a model that was built with {expected}"
        with pytest.raises(ValueError, match=re.escape(wanted)):
            model.fit_unknown_score(logits=rows(len(given["features"]), 3, seed=0), **given)


@pytest.mark.parametrize("name", ["unknown_distance", "unknown_side", "unknown_surprise"])
def test_stored_pairs_are_a_mean_and_a_positive_deviation(name):
    assert getattr(ActConfig(**{name: [-3.0, 1e-6]}), name) == [-3.0, 1e-6]
    for wrong in ([0.0, 0.0], [0.0, -1.0], [1.0], [0.0, 1.0, 2.0]):
        with pytest.raises(ValueError, match=re.escape(f"{name}={wrong}; expected a mean and a standard deviation")):
            ActConfig(**{name: wrong})


def test_a_bank_needs_a_score():
    assert ActConfig(unknown_bank_rows=2, unknown_rows=1).unknown_bank_rows == 2
    with raises(ValueError, naming="unknown_bank_rows"):
        ActConfig(unknown_bank_rows=2)

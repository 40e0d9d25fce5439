"""The numbers of the unknown score, against plain loops over rows."""

import math
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hf_any3d.modeling.layers.unknown_score import UnknownScore, UnknownScoreConfigMixin, UnknownScoreMixin
from tests.errors import raises


class Classifier(UnknownScoreMixin, nn.Module):
    """Has nothing but a score."""

    dtype = torch.float32

    def __init__(self, width: int, **settings):
        super().__init__()
        defaults = {setting.name: setting.default for setting in fields(UnknownScoreConfigMixin)}
        self.config = SimpleNamespace(**(defaults | {"problem_type": None, "num_labels": 3} | settings))
        rows, bank_rows = self.config.unknown_rows, self.config.unknown_bank_rows
        self.unknown_score = UnknownScore(rows, width, bank_rows) if rows else None


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
    terms = {"unknown_distance": near, "unknown_surprise": [surprise_of(row) for row in logits]}
    if bank is not None:
        terms["unknown_side"] = [
            own - math.log(nearest(row, list(bank))) for own, row in zip(near, features, strict=True)
        ]
    expected = {name: [np.mean(values), np.std(values, ddof=1)] for name, values in terms.items()}
    expected["unknown_surprise"][1] = max(expected["unknown_surprise"])
    sums = sum((np.array(values) - expected[name][0]) / expected[name][1] for name, values in terms.items())

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


def test_a_projection_adds_the_angle_between_projected_rows():
    features, matrix, bank = rows(11, 5, seed=1), rows(5, 2, seed=2), rows(4, 5, seed=3)
    terms = {f"unknown_{name}": rows(1, 30, seed=9)[0] for name in ("distance", "angle", "side", "surprise")}
    model = Classifier(5)
    with raises(ValueError, naming="projection without held_out"):
        model.fit_unknown_score(features, rows(11, 3, seed=4), projection=matrix)
    model.fit_unknown_score(features, rows(11, 3, seed=4), None, bank, terms, matrix)
    assert model.config.unknown_width == 2 and model.config.unknown_share == 1 / 31
    known, things = features @ matrix, bank @ matrix
    torch.testing.assert_close((model.unknown_score.features, model.unknown_score.bank), (known, things))
    center = known.mean(dim=0)
    found = model.unknown_score.terms(rows(6, 5, seed=5), torch.zeros(6))
    for number, row in enumerate(rows(6, 5, seed=5) @ matrix):
        seen = [(row - center) @ (one - center) / ((row - center).norm() * (one - center).norm()) for one in known]
        assert found["unknown_angle"][number].item() == pytest.approx(1 - float(max(seen)), abs=1e-5)
        assert found["unknown_distance"][number].item() == pytest.approx(math.log(nearest(row, list(known))), abs=1e-4)


def test_equal_rows_have_the_smallest_distance_and_deviation():
    model = Classifier(2)
    model.fit_unknown_score(torch.zeros(3, 2), torch.tensor([[1.0, 0, 0]]).expand(3, -1))
    assert model.config.unknown_distance == pytest.approx([math.log(1e-12), 1e-3])
    sure = Classifier(2)
    sure.fit_unknown_score(rows(3, 2, seed=0), torch.tensor([[90.0, 0, 0]]).expand(3, -1))
    assert sure.config.unknown_surprise == pytest.approx([0, 1e-3])

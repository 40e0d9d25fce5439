"""Indices of the original kernel on clouds near the origin."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_any3d.modeling.point_ops import farthest_point_sample
from tests.reference.fill import points

REFERENCE = Path(__file__).parents[2] / "reference"


@pytest.mark.parametrize("tie_rule", ["first", "cuda"])
@pytest.mark.parametrize(("output", "min_squared_norm"), [("index", 1e-3), ("index_every_point", None)])
def test_samples_are_those_of_the_original_program(output, min_squared_norm, tie_rule):
    case = json.loads((REFERENCE / "any2point_fps.json").read_text())
    expected = load_file(REFERENCE / "any2point_fps.safetensors")[output]
    cloud = torch.from_numpy(points(**case["input"])) * 0.1
    index = farthest_point_sample(cloud, case["count"], min_squared_norm=min_squared_norm, tie_rule=tie_rule)
    assert torch.equal(index, expected.long())

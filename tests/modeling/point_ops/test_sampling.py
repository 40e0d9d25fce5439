"""Farthest point sampling against the plain loop and against the original kernel, thread by thread."""

import numpy as np
import pytest
import torch

from hf_any3d.modeling.point_ops import farthest_point_sample
from tests.errors import raises
from tests.modeling.point_ops.loops import sample_like_the_kernel, sample_plainly

SIZES = [1, 2, 3, 7, 64, 100, 333]


@pytest.mark.slow
@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("min_squared_norm", [None, 1.0])
def test_indices_are_those_of_the_plain_loop(make_clouds, count, min_squared_norm):
    clouds = make_clouds(3, count, seed=count)
    start = torch.tensor([0, count // 2, count - 1])
    index = farthest_point_sample(
        torch.from_numpy(clouds), count, start_index=start, min_squared_norm=min_squared_norm
    )
    expected = [
        sample_plainly(cloud, count, first, min_squared_norm)
        for cloud, first in zip(clouds, start.tolist(), strict=True)
    ]
    assert index.tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize("count", [*SIZES, 1200])
@pytest.mark.parametrize("min_squared_norm", [None, 1e-3, 4.0])
def test_cuda_rule_keeps_what_the_kernel_keeps(make_clouds, count, min_squared_norm):
    clouds = make_clouds(2, count, seed=count)
    num_samples = min(count, 40)
    index = farthest_point_sample(
        torch.from_numpy(clouds), num_samples, min_squared_norm=min_squared_norm, tie_rule="cuda"
    )
    assert index.tolist() == [sample_like_the_kernel(cloud, num_samples, min_squared_norm) for cloud in clouds]


def test_a_cloud_without_candidates_repeats_index_zero():
    cloud = torch.full((1, 5, 3), 0.001)
    for tie_rule in ("first", "cuda"):
        index = farthest_point_sample(cloud, 4, start_index=3, min_squared_norm=1e-3, tie_rule=tie_rule)
        assert index.tolist() == [[3, 0, 0, 0]]


def test_skip_limit_is_compared_in_double_precision():
    cloud = torch.tensor([[[0.0, 0, 0], [0.1, 0, 0]]])
    squared_norm = cloud[0, 1].square().sum().item()
    just_below = squared_norm * (1 - 1e-10)
    assert np.float32(just_below) == np.float32(squared_norm)
    assert farthest_point_sample(cloud, 2, min_squared_norm=just_below).tolist() == [[0, 1]]
    assert farthest_point_sample(cloud, 2, min_squared_norm=squared_norm).tolist() == [[0, 0]]


def test_further_channels_do_not_count():
    xyz = torch.randn(2, 50, 3)
    colors = torch.rand(2, 50, 3) * 100
    assert torch.equal(farthest_point_sample(torch.cat([xyz, colors], 2), 20), farthest_point_sample(xyz, 20))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_read_as_float32(dtype):
    cloud = torch.randn(2, 64, 3).to(dtype)
    assert torch.equal(farthest_point_sample(cloud, 16), farthest_point_sample(cloud.float(), 16))


def test_the_input_stays_as_it_was_and_no_gradient_is_recorded():
    cloud = torch.randn(1, 32, 3, requires_grad=True)
    before = cloud.detach().clone()
    index = farthest_point_sample(cloud, 8, min_squared_norm=0.5)
    assert torch.equal(cloud, before) and not index.requires_grad and index.dtype == torch.long


def test_an_empty_batch_gives_an_empty_index():
    assert farthest_point_sample(torch.zeros(0, 8, 3), 4).shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"points": torch.zeros(1, 4, 2)}, "points: shape (1, 4, 2)"),
        ({"points": torch.zeros(1, 4, 3, dtype=torch.long)}, "points: dtype torch.int64"),
        ({"points": torch.tensor([[[0.0, 0, float("nan")]] * 4])}, "points: found NaN or infinite"),
        ({"num_samples": 5}, "num_samples: 5"),
        ({"num_samples": 0}, "num_samples: 0"),
        ({"start_index": 4}, "start_index: 4"),
        ({"start_index": torch.tensor([-1])}, "start_index: [-1]"),
        ({"start_index": torch.tensor([0, 1])}, "start_index: shape (2,)"),
        ({"tie_rule": "last"}, "tie_rule: 'last'"),
    ],
)
def test_errors_name_the_argument_and_the_value(change, culprit):
    arguments = {"points": torch.zeros(1, 4, 3), "num_samples": 2, **change}
    with raises(ValueError, naming=culprit):
        farthest_point_sample(**arguments)

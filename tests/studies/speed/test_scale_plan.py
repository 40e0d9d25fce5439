"""Tests of the traffic of a training step on several GPUs."""

from torch import nn

from studies.speed.scale_plan import Plan, plan_of


def test_a_plan_counts_what_is_trained_and_the_statistics_of_its_norms():
    frozen = nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1)).requires_grad_(False)
    assert plan_of(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), frozen)) == Plan(15, 6, norms=3, exchanges=1)


def test_bytes_follow_from_the_plan():
    plan = Plan(trained=100, frozen=50, norms=3, exchanges=2)
    assert plan.norm_bytes() == 4 * (4 * 3 + 2)
    # Of two GPUs, each sends half of the sum and half of the result.
    assert plan.ddp_bytes(2) == 4 * 100 + 56 and plan.ddp_bytes(1) == 0
    # Weights in two bytes, gathered in both passes; gradients once.
    assert plan.fsdp_bytes(2) == (2 * (2 * 150 + 100) + 2 * 56) / 2
    assert plan.ddp_exchanges() == 1 + 4 * 2

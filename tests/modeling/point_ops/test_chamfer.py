"""Chamfer distance and F-score: against the plain definition, with gradients, ties, masks and wrong input."""

import pytest
import torch

from hf_any3d.modeling.point_ops import chamfer_distance

NORMS = ["l1", "l2"]


def plainly(x, y, norm):
    """Values of each cloud by the definition, in double precision."""
    squared = (x.double()[:, :, None, :3] - y.double()[:, None, :, :3]).square().sum(-1)
    nearest = squared.amin(2), squared.amin(1)
    if norm == "l1":
        return sum(side.sqrt().mean(1) for side in nearest) / 2
    return sum(side.mean(1) for side in nearest)


def clouds(*shapes, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, **kwargs) for shape in shapes]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("batch", "rows", "columns"), [(1, 1, 1), (1, 1, 7), (5, 32, 32), (300, 8, 32), (2, 700, 900), (1, 40, 9000)]
)
def test_values_are_those_of_the_definition(norm, batch, rows, columns):
    x, y = clouds((batch, rows, 3), (batch, columns, 3))
    expected = plainly(x, y, norm)
    each = chamfer_distance(x, y, norm, reduction="none")
    torch.testing.assert_close(each, expected.float(), rtol=2e-6, atol=0)
    torch.testing.assert_close(chamfer_distance(x, y, norm), expected.mean().float(), rtol=2e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (9, 6)])
def test_gradients_of_first_and_second_order_are_right(norm, rows, columns):
    x, y = clouds((2, rows, 3), (2, columns, 3), dtype=torch.float64)
    inputs = (x.requires_grad_(), y.requires_grad_())

    def distance(x, y):
        return chamfer_distance(x, y, norm, reduction="none")

    assert torch.autograd.gradcheck(distance, inputs)
    assert torch.autograd.gradgradcheck(distance, inputs, fast_mode=True)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("count", [32, 3000])
def test_identical_clouds_have_distance_and_gradient_zero(norm, count):
    (x,) = clouds((3, count, 3))
    x.requires_grad_()
    distance = chamfer_distance(x, x.detach().flip(1), norm)
    distance.backward()
    assert distance == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("count", [32, 700])
def test_small_distances_far_from_the_origin_keep_their_digits(norm, count):
    (x,) = clouds((2, count, 3))
    x = x + 1000
    y = x + torch.tensor([2.0**-10, 0, 0])  # exact in float32
    torch.testing.assert_close(chamfer_distance(x, y, norm), plainly(x, y, norm).mean().float(), rtol=2e-6, atol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("padding", [0.0, float("nan")])
@pytest.mark.parametrize("count", [40, 3000])
def test_masked_points_are_ignored(norm, padding, count):
    x, y = clouds((2, count, 3), (2, count + 20, 3))
    x_mask, y_mask = torch.rand(2, count) < 0.6, torch.rand(2, count + 20) < 0.6
    padded = x.masked_fill(~x_mask[..., None], padding).requires_grad_()
    found = chamfer_distance(
        padded, y.masked_fill(~y_mask[..., None], padding), norm, reduction="none", x_mask=x_mask, y_mask=y_mask
    )
    kept = [(x[i, x_mask[i]][None], y[i, y_mask[i]][None]) for i in range(2)]
    torch.testing.assert_close(found, torch.cat([chamfer_distance(*pair, norm, reduction="none") for pair in kept]))
    found.sum().backward()
    assert padded.grad.isfinite().all() and (padded.grad[~x_mask] == 0).all() and (padded.grad[x_mask] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x, y = (cloud.to(dtype) for cloud in clouds((4, 32, 3), (4, 32, 3)))
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = chamfer_distance(x, y)
    assert distance.dtype == torch.float32
    assert torch.equal(distance, chamfer_distance(x.float(), y.float()))
    distance.backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()


@pytest.mark.parametrize("count", [32, 3000])
def test_nan_reaches_the_result(count):
    x, y = clouds((2, count, 3), (2, count, 3))
    y[1, 3, 0] = float("nan")
    distance = chamfer_distance(x, y, reduction="none")
    assert distance.isnan().tolist() == [False, True]

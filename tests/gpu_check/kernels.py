"""Sections on operations: what runs on the device against plain twins in results, gradients, time and memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_any3d.modeling import kernels
from hf_any3d.modeling.kernels import Kernel
from hf_any3d.modeling.point_encoders.patches import PatchEncoder
from hf_any3d.modeling.point_ops import neighbor_table
from tests.gpu_check.run import Row, Run, relative_error

# Relative to the largest value; sums of thousands of products in another order. Plain gradients of a convolution are
# sums of up to 27 products that are rounded to half precision one by one.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 8e-3}


@dataclass
class Call:
    """A call of an operation.

    Args:
        kernel: The operation.
        arguments: Its arguments; floats that require gradients are differentiated.
        is_exact: Whether nothing is rounded, so that equal distances are equal on every device.
    """

    kernel: Kernel
    arguments: tuple[Any, ...]
    is_exact: bool = False

    @property
    def leaves(self) -> list[Tensor]:
        """Arguments that require gradients."""
        return [value for value in self.arguments if isinstance(value, Tensor) and value.requires_grad]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the call."""
        dtype = self.arguments[0].dtype
        return dtype if dtype in TOLERANCES else torch.float32

    def outputs(self, function: Callable[..., Any]) -> list[Tensor]:
        """Run one of the implementations."""
        made = function(*self.arguments)
        return list(made) if isinstance(made, tuple) else [made]

    def gradients(self, function: Callable[..., Any]) -> list[Tensor]:
        """Run it forward and backward; returns gradients of the leaves."""
        out = self.outputs(function)[0]
        weight = torch.arange(out.numel(), device=out.device).sin().view_as(out)
        return list(torch.autograd.grad((out.float() * weight).sum(), self.leaves))


def calls(run: Run, clouds: int) -> dict[str, Call]:
    """Make calls of operations that run on points, voxels and patches of some clouds, by name."""
    made: dict[str, Call] = {}
    device, generator = run.device, torch.Generator().manual_seed(0)

    def randn(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_(grad)

    def coarse(*shape: int) -> Tensor:  # many equal distances
        return (torch.randint(-4, 5, shape, generator=generator) / 8).to(device)

    clouds, points, samples = (2, 200, 12) if run.small else (clouds, 8192, 512)
    for name, cloud in (("", randn(clouds, points, 3)), (", ties", coarse(clouds, points, 3))):
        for rule in ("first", "cuda"):
            arguments = cloud, samples, 0, 1e-3, rule
            made[f"farthest_point_sample {rule}{name}"] = Call(kernels.farthest_point_sample, arguments)
        for k in (1, 8) if run.small else (1, 3, 32, 64):
            query = cloud[:, :samples].contiguous()
            made[f"knn {k}{name}"] = Call(kernels.knn, (query, cloud, k, "auto"), is_exact=bool(name))
    if not run.small:
        cloud = randn(2, 50_000, 3)
        made["farthest_point_sample 50,000"] = Call(kernels.farthest_point_sample, (cloud, 512, 0, None, "first"))

    side = 6 if run.small else 64
    shell = torch.cartesian_prod(*[torch.arange(side)] * 3)
    radius = (shell - side / 2 + 0.5).square().sum(dim=1).sqrt()
    shell = shell[(radius - side / 2.5).abs() < 1.5]
    grid = torch.cat([shell] * (1 if run.small else clouds // 4)).to(device)
    number = torch.arange(len(grid), device=device) // len(shell)
    table = neighbor_table(grid, number, int(number.max()) + 1)
    sizes = ((6, 5),) if run.small else ((6, 32), (64, 64), (256, 256))
    for size, dtype in [(size, dtype) for size in sizes for dtype in TOLERANCES]:
        values = randn(len(grid), size[0], dtype=dtype, grad=True)
        weight = (randn(size[1], 3, 3, 3, size[0]) / (27 * size[0]) ** 0.5).to(dtype).requires_grad_()
        arguments = values, weight, randn(size[1], dtype=dtype, grad=True), table
        name = f"submanifold_convolution {size[0]}-{size[1]} {str(dtype)[6:]}"
        made[name] = Call(kernels.submanifold_convolution, arguments)

    for groups, k, channels, width in ((4, 6, 3, 12),) if run.small else ((128, 32, 3, 384), (512, 64, 6, 512)):
        torch.manual_seed(0)
        layers = PatchEncoder(channels, width, (8, 12, 16) if run.small else (128, 256, 512))
        for norm in (layers.lift_norm, layers.join_norm):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2)
        layers = layers.eval().requires_grad_(False).to(device)
        patches = randn(clouds, groups, k, channels)
        made[f"pooled_patches {groups}x{k}"] = Call(kernels.pooled_patches, (patches, layers))
    return made


def twin(call: Call) -> Callable[..., Any]:
    """Return what is compared with the operation: the plain twin or, where models call that one, the CPU's results."""
    if call.kernel.uses_fused(*call.arguments):
        return call.kernel.plain

    def on_cpu(*arguments: Any) -> tuple[Tensor, ...]:
        device = arguments[0].device
        own = (copy.deepcopy(value) if isinstance(value, nn.Module) else value for value in arguments)
        results = call.kernel(*(value.cpu() if isinstance(value, Tensor | nn.Module) else value for value in own))
        return tuple(value.to(device) for value in (results if isinstance(results, tuple) else (results,)))

    return on_cpu


def parity(run: Run) -> None:
    """Compare results and gradients with those of `twin`, neighbors with those that the CPU finds."""
    for name, call in calls(run, 8).items():

        def compare(call: Call = call) -> Row:
            if call.kernel is kernels.knn:
                return _neighbors(call)
            row: Row = {"ok": True}
            ways = {"outputs": call.outputs} | ({"gradients": call.gradients} if call.leaves else {})
            for what, way in ways.items():
                found, expected = way(call.kernel), way(twin(call))
                pairs = list(zip(found, expected, strict=True))
                exact = all(torch.equal(one, two) for one, two in pairs if not one.is_floating_point())
                error = max([relative_error(*pair) for pair in pairs if pair[0].is_floating_point()], default=0.0)
                row[f"{what} error"] = error
                if not exact:
                    row["note"] = "other indices"
                row["ok"] &= exact and error <= TOLERANCES[call.dtype]
            return row

        run.check(name, compare)


def _neighbors(call: Call) -> Row:
    """Compare distances, and the indices of neighbors that no rounding can exchange.

    A device that rounds squares and their sums in another way may exchange two neighbors, also the last one and the
    next, if their distances differ by no more than that; both answers are right. Equal distances of coordinates that
    are not rounded go to the lower index everywhere.
    """
    query, points, k, method = call.arguments
    index, distance = (values.cpu() for values in call.kernel(*call.arguments))  # (batch, queries, k)
    others, expected = call.kernel.plain(query.cpu(), points.cpu(), k + 1, method)
    is_close = (expected.diff() <= 8 * torch.finfo(torch.float32).eps * expected[..., 1:]) & (not call.is_exact)
    # With the next one, or with the one before.
    may_differ = is_close | torch.nn.functional.pad(is_close[..., :-1], (1, 0))
    wrong = int(((index != others[..., :-1]) & ~may_differ).sum())
    row: Row = {"outputs error": relative_error(distance, expected[..., :-1])}
    row["ok"] = not wrong and row["outputs error"] <= 1e-6
    return row | ({"note": f"{wrong} other indices"} if wrong else {})


def speed(run: Run) -> None:
    """Time both implementations, forward and with a backward pass, and measure their memory."""
    for name, call in calls(run, 32).items():

        def measure(call: Call = call) -> Row:
            row: Row = {}
            for column, function in (("ours", call.kernel), ("plain", call.kernel.plain)):
                forward = torch.no_grad()(lambda function=function: call.outputs(function))
                row[f"ms {column}"] = run.milliseconds(forward)
                row[f"MB {column}"] = _megabytes(run.peak_bytes(forward))
                if call.leaves:
                    step = lambda function=function: call.gradients(function)  # noqa: E731
                    row[f"step ms {column}"] = run.milliseconds(step)
                    row[f"step MB {column}"] = _megabytes(run.peak_bytes(step))
            row["times faster"] = row["ms plain"] / row["ms ours"]
            return row

        run.check(name, measure)


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e6

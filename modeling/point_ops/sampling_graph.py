"""Farthest point sampling as one loop of an exported graph, for any number of clouds and points."""

import math

import torch
from torch import Tensor

# The CUDA kernel's threads, and their numbers read backwards; see `cuda_priority`.
_THREAD_BITS = 9
_REVERSED = [int(f"{thread:0{_THREAD_BITS}b}"[::-1], 2) for thread in range(1 << _THREAD_BITS)]


def sample_in_graph(
    points: Tensor, num_samples: int, start: Tensor, largest_skipped: float | None, tie_rule: str
) -> Tensor:
    """Sample as `farthest_point_sample` does, in operators that exporters know.

    An unrolled loop would be thousands of nodes, and indices found while tracing would be constants of the file. Here
    the graph holds one step and how often to take it.

    Args:
        points: (batch, points, channels), channels >= 3.
        num_samples: samples of each cloud.
        start: (batch,) LongTensor, the first samples.
        largest_skipped: points with a squared norm up to this float32 value are never candidates.
        tie_rule: "first" or "cuda".

    Returns:
        (batch, num_samples) LongTensor.
    """
    axes = points[..., :3].detach().float().permute(2, 0, 1)  # (3, batch, points)
    order = None
    if tie_rule == "cuda":
        order = _cuda_order(axes.shape[2], axes.device)
        axes = axes.index_select(2, order)
        start = order.sort().indices.index_select(0, start)
    axes = axes.contiguous()
    nearest = torch.full_like(axes[0], math.inf)
    if largest_skipped is not None:
        x, y, z = axes.square().unbind()
        nearest = nearest.masked_fill(x + y + z <= largest_skipped, -1.0)
    index = start.unsqueeze(0)  # (samples, batch)
    if num_samples > 1:
        # Here, since torch has no public name for it yet: should it move, nothing but exporting would suffer.
        from torch._higher_order_ops.scan import scan_op

        steps = torch.arange(1, num_samples, device=points.device)
        *_, rest = scan_op(_step, [nearest, _pick(axes, start)], [steps], additional_inputs=(axes,))
        index = torch.cat([index, rest])
    index = index.T.contiguous()
    return index if order is None else order.index_select(0, index.flatten()).view_as(index)


def _step(nearest: Tensor, last: Tensor, step: Tensor, axes: Tensor) -> list[Tensor]:
    # The order of the sum is that of `farthest_point_sample`: another one breaks ties differently.
    x, y, z = (axes - last).square().unbind()
    nearest = torch.minimum(nearest, x + y + z)
    index = nearest.argmax(dim=1)
    return [nearest, _pick(axes, index), index]


def _pick(axes: Tensor, index: Tensor) -> Tensor:
    return axes.gather(2, index.view(1, -1, 1).expand(3, -1, 1))  # (3, batch, 1)


def _cuda_order(count: int, device: torch.device) -> Tensor:
    """`cuda_priority` where the number of points is known when the graph runs."""
    index = torch.arange(count, device=device)
    powers = 2 ** torch.arange(_THREAD_BITS + 1, device=device)
    thread = index % powers.masked_fill(powers > count, 0).amax(dim=0)
    # Numbers are read backwards over all bits: with fewer threads they are larger, in the same order.
    reversed_thread = torch.tensor(_REVERSED, device=device).index_select(0, thread)
    return (reversed_thread * count + index).sort().indices

"""Farthest point sampling."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hf_any3d.modeling.kernels.coordinates import coordinates, refuse_out_of_range
from hf_any3d.modeling.kernels.dispatch import is_exporting, operator

TIE_RULES = ("first", "cuda")
# Seven arrays of this many float32 fit into a second-level cache of 1 MiB.
_CACHED_POINTS = 1 << 15
# Bits of a thread number of the CUDA kernel, and all such numbers with their bits reversed; see `_cuda_order`.
_THREAD_BITS = 9
_REVERSED = [int(f"{thread:0{_THREAD_BITS}b}"[::-1], 2) for thread in range(1 << _THREAD_BITS)]


def farthest_point_sample_plain(
    points: Tensor, num_samples: int, start_index: int | Tensor, min_squared_norm: float | None, tie_rule: str
) -> Tensor:
    """Sample a fixed number of points of every cloud, each the farthest from those before.

    Args:
        points: `(batch, points, channels)`, channels >= 3.
        num_samples: Number of samples, 1 to points.
        start_index: The first sample, one for all clouds or `(batch,)`.
        min_squared_norm: See `hf_any3d.modeling.point_ops.farthest_point_sample`, as the next.
        tie_rule: "first" or "cuda".

    Returns:
        Indices `(batch, num_samples)`.

    Raises:
        ValueError: If an argument has the wrong shape or range, or a coordinate is out of range.
    """
    return sample_with(_loop_in_torch, points, num_samples, start_index, min_squared_norm, tie_rule)


def farthest_point_sample_fused(
    points: Tensor, num_samples: int, start_index: int | Tensor, min_squared_norm: float | None, tie_rule: str
) -> Tensor:
    """Compute `farthest_point_sample_plain` in numpy, whose calls take a third of the time of torch's."""
    return sample_with(_loop_in_numpy, points, num_samples, start_index, min_squared_norm, tie_rule)


def farthest_point_sample_traced(
    points: Tensor, num_samples: int, start_index: int | Tensor, min_squared_norm: float | None, tie_rule: str
) -> Tensor:
    """Run the loop as one operator for compilers, and as a loop of the graph for exporters."""
    if not isinstance(start_index, Tensor):
        start_index = torch.full((points.shape[0],), start_index, device=points.device)
    if is_exporting():
        skipped = None if min_squared_norm is None else _largest_float32(min_squared_norm)
        return sample_in_graph(points, num_samples, start_index, skipped, tie_rule)
    return _sample_untraced(points, num_samples, start_index, min_squared_norm, tie_rule)


@operator("farthest_point_sample")
def _sample_untraced(
    points: Tensor, num_samples: int, start_index: Tensor, min_squared_norm: float | None, tie_rule: str
) -> Tensor:
    from hf_any3d.modeling import kernels  # the table, which imports this module

    return kernels.farthest_point_sample(points, num_samples, start_index, min_squared_norm, tie_rule)


@torch.library.impl("hf_any3d::farthest_point_sample", "Meta")
def _result_shape(
    points: Tensor, num_samples: int, start_index: Tensor, min_squared_norm: float | None, tie_rule: str
) -> Tensor:
    return points.new_empty(points.shape[0], num_samples, dtype=torch.long)


@torch.no_grad()
def sample_with(
    loop: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    points: Tensor,
    num_samples: int,
    start_index: int | Tensor,
    min_squared_norm: float | None,
    tie_rule: str,
) -> Tensor:
    """Check the arguments of `farthest_point_sample_plain` and sample with one of its loops."""
    axes = coordinates("points", points).detach().float().permute(2, 0, 1)  # (3, batch, points)
    batch, count = points.shape[:2]
    if not 1 <= num_samples <= count:
        raise ValueError(f"num_samples: {num_samples}; expected 1 to {count}, the number of points")
    if tie_rule not in TIE_RULES:
        raise ValueError(f"tie_rule: {tie_rule!r}; expected one of {TIE_RULES}")
    start = _start(start_index, batch, count, points.device)
    refuse_out_of_range("points", axes.transpose(0, 1))
    order = None
    if tie_rule == "cuda":
        # Points in the order of preference: the first of equal maxima is then the one that the kernel prefers.
        order = _cuda_order(count, points.device)  # (points,)
        axes = axes[..., order]
        start = torch.empty_like(order).scatter_(0, order, torch.arange(count, device=order.device))[start]
    axes = axes.contiguous()
    nearest = torch.full((batch, count), math.inf, device=points.device)
    if min_squared_norm is not None:
        x, y, z = axes
        # A distance of -1 is below every minimum, so that such a point loses to all candidates.
        nearest.masked_fill_(x * x + y * y + z * z <= _largest_float32(min_squared_norm), -1.0)
    index = loop(axes, nearest, start, num_samples)
    return index if order is None else order[index]


def _start(start_index: int | Tensor, batch: int, count: int, device: torch.device) -> Tensor:
    if isinstance(start_index, Tensor):
        if start_index.shape != (batch,) or start_index.dtype != torch.long:
            raise ValueError(
                f"start_index: shape {tuple(start_index.shape)}, dtype {start_index.dtype}; "
                f"expected an int or a LongTensor of shape ({batch},)"
            )
        start = start_index.to(device)
        # On an accelerator the check would wait for the values; there an index out of range fails in the operation.
        if start.device.type == "cpu" and batch and (start.min() < 0 or start.max() >= count):
            raise ValueError(f"start_index: {start.tolist()}; expected 0 to {count - 1}")
        return start
    if batch and not 0 <= start_index < count:
        raise ValueError(f"start_index: {start_index}; expected 0 to {count - 1}")
    return torch.full((batch,), int(start_index), device=device)


def _loop_in_torch(axes: Tensor, nearest: Tensor, start: Tensor, num_samples: int) -> Tensor:
    index = torch.empty(num_samples, *start.shape, 1, dtype=torch.long, device=axes.device)  # (samples, batch, 1)
    index[0] = start[:, None]
    square = torch.empty_like(axes)  # (3, batch, points)
    for step in range(1, num_samples):
        last = axes.gather(2, index[step - 1].expand(3, -1, -1))  # (3, batch, 1)
        torch.sub(axes, last, out=square).square_()
        # The order of the CUDA kernel's sum: another one rounds differently and breaks ties differently.
        distance = square[0].add_(square[1]).add_(square[2])
        torch.minimum(nearest, distance, out=nearest)
        torch.argmax(nearest, dim=1, keepdim=True, out=index[step])
    return index[..., 0].T.contiguous()


def _loop_in_numpy(axes: Tensor, nearest: Tensor, start: Tensor, num_samples: int) -> Tensor:
    # Calls cost more than sums here, so clouds are processed together, but only as many as fit into the core's cache.
    at_once = max(1, _CACHED_POINTS // nearest.shape[1])
    chosen = []
    for three in zip(axes.split(at_once, dim=1), nearest.split(at_once), start.split(at_once), strict=True):
        places, least, last = (part.numpy() for part in three)
        places = np.ascontiguousarray(places)
        clouds, count = least.shape
        index = np.empty((num_samples, clouds), dtype=np.int64)
        index[0] = last
        flat = places.reshape(3, -1)
        offset = np.arange(clouds) * count
        square = np.empty_like(places)  # (3, clouds, points)
        distance, square_y, square_z = square
        for row in index[1:]:
            np.subtract(places, flat[:, last + offset, None], out=square)
            np.multiply(square, square, out=square)
            np.add(distance, square_y, out=distance)
            np.add(distance, square_z, out=distance)
            np.minimum(least, distance, out=least)
            last = least.argmax(axis=1, out=row)
        chosen.append(torch.from_numpy(index.T.copy()))
    return torch.cat(chosen)


def _largest_float32(limit: float) -> float:
    # The kernel compares its float sum with a double constant. Rounding the constant up would skip points above it.
    rounded = np.float32(limit)
    return float(np.nextafter(rounded, np.float32(-np.inf)) if float(rounded) > limit else rounded)


def sample_in_graph(
    points: Tensor, num_samples: int, start: Tensor, largest_skipped: float | None, tie_rule: str
) -> Tensor:
    """Sample with operators that exporters support.

    An unrolled loop would be thousands of nodes, and indices computed while tracing would be constants of the file.
    Here the graph contains one step and the number of repetitions.

    Args:
        points: `(batch, points, channels)`, channels >= 3.
        num_samples: Samples of each cloud.
        start: `(batch,)`, the first samples.
        largest_skipped: Points with a squared norm up to this float32 value are never candidates.
        tie_rule: "first" or "cuda".

    Returns:
        Indices `(batch, num_samples)`.
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
        # Imported here because torch has no public name for it yet: if it moves, only exporting breaks.
        from torch._higher_order_ops.scan import scan_op

        steps = torch.arange(1, num_samples, device=points.device)
        *_, rest = scan_op(_step, [nearest, _pick(axes, start)], [steps], additional_inputs=(axes,))
        index = torch.cat([index, rest])
    index = index.T.contiguous()
    return index if order is None else order.index_select(0, index.flatten()).view_as(index)


def _step(nearest: Tensor, last: Tensor, step: Tensor, axes: Tensor) -> list[Tensor]:
    # The same order of the sum as in `_loop_in_torch`: another one breaks ties differently.
    x, y, z = (axes - last).square().unbind()
    nearest = torch.minimum(nearest, x + y + z)
    index = nearest.argmax(dim=1)
    return [nearest, _pick(axes, index), index]


def _pick(axes: Tensor, index: Tensor) -> Tensor:
    return axes.gather(2, index.view(1, -1, 1).expand(3, -1, 1))  # (3, batch, 1)


def _cuda_order(count: int, device: torch.device) -> Tensor:
    """Return the order in which the CUDA kernel prefers equally far points, for a number known when a graph runs.

    Its thread t takes points t, t + T, … and keeps the first maximum; threads are then compared in pairs, the last
    step odd with even ones. The smallest bit-reversed t wins, then the smallest index.
    """
    index = torch.arange(count, device=device)
    powers = 2 ** torch.arange(_THREAD_BITS + 1, device=device)
    # The number of threads: the largest power of two up to the count, at most 512.
    thread = index % powers.masked_fill(powers > count, 0).amax(dim=0)
    if device.type != "cpu" and not is_exporting():
        # Computed there: a table would be sent from the host, which would wait.
        bits = torch.arange(_THREAD_BITS, device=device)
        reversed_thread = (((thread[:, None] >> bits) & 1) << (_THREAD_BITS - 1 - bits)).sum(dim=1)
        return (reversed_thread * count + index).sort().indices
    # All nine bits are reversed: with fewer threads the numbers are larger, but in the same order.
    reversed_thread = torch.tensor(_REVERSED, device=device).index_select(0, thread)
    return (reversed_thread * count + index).sort().indices

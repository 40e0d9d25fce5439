"""How far two clouds lie apart: Chamfer distance and F-score."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

NORMS = ("l1", "l2")
REDUCTIONS = ("mean", "none")
# Distances held at a time: on CPU as many as the core's cache keeps, elsewhere 64 MiB of them.
_BLOCK_CPU, _BLOCK = 1 << 17, 1 << 24


def chamfer_distance(
    x: Tensor,
    y: Tensor,
    norm: str = "l1",
    *,
    reduction: str = "mean",
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    drop_zero_sums: bool = False,
    max_pairs: int | None = None,
) -> Tensor:
    """Measure how far every point of each of two clouds is from the other cloud.

    With d the squared distances to the nearest point of the other cloud, "l2" is mean(d of x) + mean(d of y) and "l1"
    is (mean(√d of x) + mean(√d of y)) / 2. Only the pair of nearest points counts, and its distance is taken from the
    difference of their coordinates, so that small distances keep their digits. The gradient at distance 0 is 0. For
    the backward pass the nearest points' indices are kept beside the two clouds, nothing of the size of
    points × points. NaN coordinates make the result NaN, as in other losses.

    Args:
        x: (batch, points of x, channels), channels >= 3; only x, y, z count. Half precision is computed in float32.
        y: (batch, points of y, channels), channels >= 3.
        norm: "l1" or "l2".
        reduction: "mean" over the batch, or "none" for one value a cloud.
        x_mask: (batch, points of x) True for points that count; all by default. At least one in each cloud.
        y_mask: (batch, points of y), likewise.
        drop_zero_sums: also leave out points whose coordinates sum to exactly 0, as the metrics of Point-BERT and ACT
            do to get rid of padding.
        max_pairs: bounds the distances held at a time, and with them the memory; by default 64 MiB of them, on CPU
            what its cache holds.

    Returns:
        The distance, a number, or (batch,) with reduction "none"; in float32, for double precision in float64.

    Raises:
        ValueError: if an argument has the wrong shape, type or value, or a cloud has no point that counts.

    Source: ACT, Sec. 4 (reconstruction of the discrete autoencoder); PCN, Sec. 3.2.
    """
    if norm not in NORMS:
        raise ValueError(f"norm: {norm!r}; expected one of {NORMS}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: {reduction!r}; expected one of {REDUCTIONS}")
    x, y, x_mask, y_mask = _prepare(x, y, x_mask, y_mask, drop_zero_sums)
    with torch.no_grad():
        x_nearest, y_nearest = _nearest(x, y, x_mask, y_mask, max_pairs)
    there = _mean_distance(x, y, x_nearest, x_mask, norm)
    back = _mean_distance(y, x, y_nearest, y_mask, norm)
    total = there + back if norm == "l2" else (there + back) / 2  # (batch,)
    return total.mean() if reduction == "mean" else total


@torch.no_grad()
def f_score(
    x: Tensor,
    y: Tensor,
    threshold: float = 0.01,
    *,
    reduction: str = "mean",
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    max_pairs: int | None = None,
) -> Tensor:
    """Measure which share of the points of two clouds has a point of the other cloud close by.

    Precision is the share of x's points nearer than `threshold` to y, recall that of y's points to x, and the score
    their harmonic mean: 1 for clouds that agree, 0 if nothing lies close.

    Args:
        x: (batch, points of x, channels), channels >= 3: what was predicted.
        y: (batch, points of y, channels): the truth.
        threshold: a distance in the clouds' unit; a point at exactly that distance does not count as close.
        reduction: "mean" over the batch, or "none" for one value a cloud.
        x_mask: (batch, points of x) True for points that count.
        y_mask: (batch, points of y), likewise.
        max_pairs: as for `chamfer_distance`.

    Returns:
        The score in [0, 1], a number, or (batch,) with reduction "none".

    Raises:
        ValueError: as `chamfer_distance`, and if a coordinate is NaN.

    Source: Tatarchenko et al., What Do Single-view 3D Reconstruction Networks Learn?, Sec. 5.
    """
    if not threshold > 0:
        raise ValueError(f"threshold: {threshold}; expected a positive distance")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: {reduction!r}; expected one of {REDUCTIONS}")
    x, y, x_mask, y_mask = _prepare(x, y, x_mask, y_mask, False)
    for name, value in (("x", x), ("y", y)):
        if value.isnan().any():
            raise ValueError(f"{name}: found NaN coordinates; expected numbers")
    x_nearest, y_nearest = _nearest(x, y, x_mask, y_mask, max_pairs)
    shares = []
    for points, others, index, mask in ((x, y, x_nearest, x_mask), (y, x, y_nearest, y_mask)):
        close = _squared_distance(points, others, index).sqrt() < threshold
        shares.append(_mean(close.to(points.dtype), mask))
    precision, recall = shares
    score = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(x.dtype).tiny)
    return score.mean() if reduction == "mean" else score


class _NearestDistance(torch.autograd.Function):
    """Distances of points to given points of another cloud, keeping only the clouds and small indices."""

    @staticmethod
    def forward(ctx: FunctionCtx, points: Tensor, others: Tensor, index: Tensor, norm: str) -> Tensor:
        ctx.save_for_backward(points, others, _narrow(index, others.shape[1]))
        ctx.norm = norm
        squared = _squared_distance(points, others, index)
        return squared.sqrt() if norm == "l1" else squared

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        points, others, index = ctx.saved_tensors
        index = index.long()
        difference = points - _pick(others, index)  # (batch, points, 3)
        if ctx.norm == "l2":
            slope = 2 * difference
        else:
            length = difference.square().sum(dim=-1, keepdim=True)
            # The root has no slope at 0; a point that lies upon its neighbour stays there.
            slope = difference * torch.where(length > 0, length, 1).rsqrt()
        slope = slope * gradient[..., None]
        back = None
        if ctx.needs_input_grad[1]:
            back = torch.zeros_like(others).scatter_add(1, index[..., None].expand_as(slope), -slope)
        return slope, back, None, None


def _mean_distance(points: Tensor, others: Tensor, index: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    return _mean(_NearestDistance.apply(points, others, index, norm), mask)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean(dim=1)
    return values.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1)


def _squared_distance(points: Tensor, others: Tensor, index: Tensor) -> Tensor:
    return (points - _pick(others, index)).square().sum(dim=-1)  # (batch, points)


def _pick(others: Tensor, index: Tensor) -> Tensor:
    return others.gather(1, index[..., None].expand(*index.shape, others.shape[2]))


def _narrow(index: Tensor, count: int) -> Tensor:
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if count <= torch.iinfo(dtype).max + 1:
            return index.to(dtype)
    return index


def _nearest(
    x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None, max_pairs: int | None
) -> tuple[Tensor, Tensor]:
    """Indices of the nearest points: of y for x, (batch, points of x), and of x for y; of equals the first."""
    batch, rows, columns = x.shape[0], x.shape[1], y.shape[1]
    if max_pairs is None:
        max_pairs = _BLOCK_CPU if x.device.type == "cpu" else _BLOCK
    elif max_pairs < 1:
        raise ValueError(f"max_pairs: {max_pairs}; expected at least 1")
    height = max(1, min(rows, max_pairs // columns))
    clouds = max(1, max_pairs // (height * columns))
    x_nearest = torch.empty(batch, rows, dtype=torch.long, device=x.device)
    y_nearest = torch.zeros(batch, columns, dtype=torch.long, device=x.device)
    for cloud in range(0, batch, clouds):
        some = slice(cloud, cloud + clouds)
        least = x.new_full((len(x[some]), columns), torch.inf)
        for row in range(0, rows, height):
            part = slice(row, row + height)
            distance = _all_distances(x[some, part], y[some])
            if x_mask is not None:
                distance.masked_fill_(~x_mask[some, part, None], torch.inf)
            if y_mask is not None:
                distance.masked_fill_(~y_mask[some, None], torch.inf)
            x_nearest[some, part] = distance.argmin(dim=2)
            low, index = distance.min(dim=1)
            nearer = low < least
            least = torch.where(nearer, low, least)
            y_nearest[some] = torch.where(nearer, index + row, y_nearest[some])
    return x_nearest, y_nearest


def _all_distances(x: Tensor, y: Tensor) -> Tensor:
    distance = (x[:, :, None, 0] - y[:, None, :, 0]).square_()  # (batch, points of x, points of y)
    for axis in (1, 2):
        distance += (x[:, :, None, axis] - y[:, None, :, axis]).square_()
    return distance


def _prepare(
    x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None, drop_zero_sums: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    x, y = _coordinates("x", x), _coordinates("y", y)
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"y: batch of {y.shape[0]}; expected {x.shape[0]}, the batch of x")
    if x.device != y.device:
        raise ValueError(f"y: on device {y.device}; expected {x.device}, the device of x")
    wide = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(wide), y.to(wide)
    masks = []
    for name, points, mask in (("x", x, x_mask), ("y", y, y_mask)):
        if mask is not None and (mask.shape != points.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"{name}_mask: {mask.dtype} of shape {tuple(mask.shape)}; expected torch.bool of shape "
                f"{tuple(points.shape[:2])}"
            )
        if drop_zero_sums:
            kept = points.detach().sum(dim=2) != 0
            mask = kept if mask is None else mask & kept
        if mask is not None and not mask.any(dim=1).all():
            empty = int(mask.any(dim=1).logical_not().nonzero()[0])
            raise ValueError(f"{name}: no point of cloud {empty} counts; expected at least one")
        masks.append(mask)
    # What lies in points that do not count, were it NaN, must not reach the gradient.
    x, y = (
        points if mask is None else points.masked_fill(~mask[..., None], 0)
        for points, mask in zip((x, y), masks, strict=True)
    )
    return x, y, *masks


def _coordinates(name: str, value: Tensor) -> Tensor:
    if value.dim() != 3 or value.shape[2] < 3:
        raise ValueError(f"{name}: shape {tuple(value.shape)}; expected (batch, points, channels) with channels >= 3")
    if 0 in value.shape:
        raise ValueError(f"{name}: shape {tuple(value.shape)}; expected at least one cloud and one point")
    if not value.is_floating_point():
        raise ValueError(f"{name}: dtype {value.dtype}; expected a floating point dtype")
    return value[..., :3]

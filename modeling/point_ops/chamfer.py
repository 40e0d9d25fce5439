"""How far two clouds lie apart: Chamfer distance and F-score."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from hf_any3d.modeling.point_ops.grouping import flatten_index, group
from hf_any3d.modeling.point_ops.nearest_pairs import nearest_pairs

NORMS = ("l1", "l2")
REDUCTIONS = ("mean", "none")


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
    is (mean(√d of x) + mean(√d of y)) / 2. Distances are taken from differences of coordinates, so that small ones
    keep their digits wherever the clouds lie. The gradient at distance 0 is 0; of points equally near one gets the
    gradient, see `nearest_pairs`. For the backward pass only indices are kept beside the two clouds, nothing of the
    size of points × points. NaN coordinates make the result NaN, as in other losses.

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
    there, back = _PairDistances.apply(x, y, *nearest_pairs(x, y, x_mask, y_mask, max_pairs), norm)
    total = _mean(there, x_mask) + _mean(back, y_mask)  # (batch,)
    total = total / 2 if norm == "l1" else total
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
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: {reduction!r}; expected one of {REDUCTIONS}")
    scores = reconstruction_scores(x, y, threshold, x_mask=x_mask, y_mask=y_mask, max_pairs=max_pairs)["f_score"]
    return scores.mean() if reduction == "mean" else scores


@torch.no_grad()
def reconstruction_scores(
    x: Tensor,
    y: Tensor,
    threshold: float = 0.01,
    *,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    drop_zero_sums: bool = False,
    max_pairs: int | None = None,
) -> dict[str, Tensor]:
    """Judge clouds by both Chamfer distances and the F-score, with one search for the nearest points.

    Args:
        x: (batch, points of x, channels), channels >= 3: what was predicted.
        y: (batch, points of y, channels): the truth.
        threshold: of the F-score, in the clouds' unit.
        x_mask: (batch, points of x) True for points that count.
        y_mask: (batch, points of y), likewise.
        drop_zero_sums: as for `chamfer_distance`.
        max_pairs: as for `chamfer_distance`.

    Returns:
        "chamfer_l1", "chamfer_l2" and "f_score", each (batch,).

    Raises:
        ValueError: as `f_score`.
    """
    if not threshold > 0:
        raise ValueError(f"threshold: {threshold}; expected a positive distance")
    x, y, x_mask, y_mask = _prepare(x, y, x_mask, y_mask, drop_zero_sums)
    for name, value in (("x", x), ("y", y)):
        if value.isnan().any():
            raise ValueError(f"{name}: found NaN coordinates; expected numbers")
    squares = _PairDistances.apply(x, y, *nearest_pairs(x, y, x_mask, y_mask, max_pairs), "l2")
    there, back = (
        (_mean(d, mask), _mean(d.sqrt(), mask), _mean((d.sqrt() < threshold).to(d.dtype), mask))
        for d, mask in zip(squares, (x_mask, y_mask), strict=True)
    )
    precision, recall = there[2], back[2]
    f_score = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(x.dtype).tiny)
    return {"chamfer_l1": (there[1] + back[1]) / 2, "chamfer_l2": there[0] + back[0], "f_score": f_score}


class _PairDistances(torch.autograd.Function):
    """Distances of points to given points of the other cloud, keeping only the clouds and small indices."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, y: Tensor, x_nearest: Tensor, y_nearest: Tensor, norm: str
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, y, _narrow(x_nearest, y.shape[1]), _narrow(y_nearest, x.shape[1]))
        ctx.norm = norm
        pairs = _differences(x, y, x_nearest), _differences(y, x, y_nearest)
        there, back = (_squares(difference) for difference in pairs)
        return (there.sqrt_(), back.sqrt_()) if norm == "l1" else (there, back)

    @staticmethod
    def backward(ctx: FunctionCtx, there: Tensor, back: Tensor) -> tuple[Tensor | None, ...]:
        x, y, x_nearest, y_nearest = ctx.saved_tensors
        sides = []
        for points, others, index, gradient in ((x, y, x_nearest, there), (y, x, y_nearest, back)):
            difference = _differences(points, others, index)  # (batch, points, 3)
            if ctx.norm == "l2":
                slope = 2 * gradient
            else:
                length = _squares(difference)
                # The root has no slope at 0; a point that lies upon its neighbour stays there.
                slope = gradient * torch.where(length > 0, length, 1).rsqrt()
            sides.append(difference * slope[..., None])
        # Each difference pulls at both of its ends.
        wanted = ctx.needs_input_grad
        x_gradient = _pull(sides[0], sides[1], y_nearest) if wanted[0] else None
        y_gradient = _pull(sides[1], sides[0], x_nearest) if wanted[1] else None
        return x_gradient, y_gradient, None, None, None


def _differences(points: Tensor, others: Tensor, index: Tensor) -> Tensor:
    return points - group(others, index.long()[..., None]).squeeze(2)


def _squares(difference: Tensor) -> Tensor:
    # Several times faster than a sum over a last dimension of three.
    x, y, z = difference.square().unbind(dim=2)
    return x + y + z


def _pull(own: Tensor, others: Tensor, index: Tensor) -> Tensor:
    flat = flatten_index("index", index.long(), own.shape[1])
    # index_add takes ten times as long for rows of three.
    pulled = own.reshape(-1, 3).scatter_add(0, flat[:, None].expand(-1, 3), -others.reshape(-1, 3))
    return pulled.view(own.shape)


def _narrow(index: Tensor, count: int) -> Tensor:
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if count <= torch.iinfo(dtype).max + 1:
            return index.to(dtype)
    return index


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean(dim=1)
    return values.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1)


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

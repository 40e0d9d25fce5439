"""Chamfer distance and F-score of two clouds."""

import torch
from torch import Tensor

from hf_any3d.modeling import kernels
from hf_any3d.modeling.kernels.coordinates import coordinates

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
    """Compute the Chamfer distance of two clouds.

    With d the squared distances to the nearest point of the other cloud, "l2" is mean(d of x) + mean(d of y) and "l1"
    is (mean(√d of x) + mean(√d of y)) / 2. Distances are computed from differences of coordinates, so that small ones
    are exact wherever the clouds are. The gradient at distance 0 is 0; of equally near points, one gets the gradient.
    Only the clouds and indices are saved for the backward pass. NaN coordinates make the result NaN, as in other
    losses.

    Args:
        x: `(batch, points of x, channels)`, channels >= 3; only x, y, z are used. Half precision is computed in
            float32.
        y: `(batch, points of y, channels)`, channels >= 3.
        norm: "l1" or "l2".
        reduction: "mean" over the batch, or "none" for one value per cloud.
        x_mask: `(batch, points of x)`, True for points that count; all by default. At least one in each cloud.
        y_mask: `(batch, points of y)`.
        drop_zero_sums: Whether to also ignore points whose coordinates sum to exactly 0, as the metrics of Point-BERT
            and ACT do to ignore padding.
        max_pairs: Largest number of distances held at a time, which bounds the memory; by default 64 MiB, on the CPU
            as many as fit into its cache.

    Returns:
        The distance, a scalar, or `(batch,)` with reduction "none"; in float32, or float64 for double precision.

    Raises:
        ValueError: If an argument has the wrong shape, type or value, or a cloud has no point that counts.

    Source: ACT, Sec. 4 (reconstruction of the discrete autoencoder); PCN, Sec. 3.2.
    """
    if norm not in NORMS:
        raise ValueError(f"norm: {norm!r}; expected one of {NORMS}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: {reduction!r}; expected one of {REDUCTIONS}")
    x, y, x_mask, y_mask = _prepare(x, y, x_mask, y_mask, drop_zero_sums, max_pairs)
    there, back = kernels.chamfer(x, y, norm, x_mask, y_mask, max_pairs)
    total = _mean(there, x_mask) + _mean(back, y_mask)  # (batch,)
    # The two halves of "l1" are averaged, as in PCN; those of "l2" are added.
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
    """Compute the F-score of two clouds.

    Precision is the share of x's points nearer than `threshold` to y, recall that of y's points to x, and the score
    their harmonic mean: 1 for equal clouds, 0 if no point is near the other cloud.

    Args:
        x: `(batch, points of x, channels)`, channels >= 3, the prediction.
        y: `(batch, points of y, channels)`, the ground truth.
        threshold: Distance in the unit of the clouds, exclusive.
        reduction: "mean" over the batch, or "none" for one value per cloud.
        x_mask: `(batch, points of x)`, True for points that count.
        y_mask: `(batch, points of y)`.
        max_pairs: As for `chamfer_distance`.

    Returns:
        The score in [0, 1], a scalar, or `(batch,)` with reduction "none".

    Raises:
        ValueError: As `chamfer_distance`, and if a coordinate is NaN.

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
    """Compute both Chamfer distances and the F-score with a single search for nearest points.

    Args:
        x: `(batch, points of x, channels)`, channels >= 3, the prediction.
        y: `(batch, points of y, channels)`, the ground truth.
        threshold: Of the F-score, in the unit of the clouds.
        x_mask: `(batch, points of x)`, True for points that count.
        y_mask: `(batch, points of y)`.
        drop_zero_sums: As for `chamfer_distance`.
        max_pairs: As for `chamfer_distance`.

    Returns:
        "chamfer_l1", "chamfer_l2" and "f_score", each `(batch,)`.

    Raises:
        ValueError: As `f_score`.
    """
    if not threshold > 0:
        raise ValueError(f"threshold: {threshold}; expected a positive distance")
    x, y, x_mask, y_mask = _prepare(x, y, x_mask, y_mask, drop_zero_sums, max_pairs)
    for name, value in (("x", x), ("y", y)):
        if value.isnan().any():
            raise ValueError(f"{name}: found NaN coordinates; expected numbers")
    # One search answers all three: roots and thresholds are taken of the same squared distances.
    squares = kernels.chamfer(x, y, "l2", x_mask, y_mask, max_pairs)
    there, back = (
        (_mean(d, mask), _mean(d.sqrt(), mask), _mean((d.sqrt() < threshold).to(d.dtype), mask))
        for d, mask in zip(squares, (x_mask, y_mask), strict=True)
    )
    precision, recall = there[2], back[2]
    # The smallest positive number in place of 0: without any hit the score is 0, not NaN.
    f_score = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(x.dtype).tiny)
    return {"chamfer_l1": (there[1] + back[1]) / 2, "chamfer_l2": there[0] + back[0], "f_score": f_score}


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean(dim=1)
    return values.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1)


def _prepare(
    x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None, drop_zero_sums: bool, max_pairs: int | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"max_pairs: {max_pairs}; expected at least 1")
    for name, value in (("x", x), ("y", y)):
        if 0 in value.shape:
            raise ValueError(f"{name}: shape {tuple(value.shape)}; expected at least one cloud and one point")
    x, y = coordinates("x", x), coordinates("y", y)
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"y: batch of {y.shape[0]}; expected {x.shape[0]}, the batch of x")
    if x.device != y.device:
        raise ValueError(f"y: on device {y.device}; expected {x.device}, the device of x")
    # Squares of distances beyond 256 units would overflow float16.
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
            # As the released metrics do it: a point such as (1, -1, 0) is taken for padding, too.
            kept = points.detach().sum(dim=2) != 0
            mask = kept if mask is None else mask & kept
        if mask is not None and not mask.any(dim=1).all():
            empty = int(mask.any(dim=1).logical_not().nonzero()[0])
            raise ValueError(f"{name}: no point of cloud {empty} counts; expected at least one")
        masks.append(mask)
    # NaN in masked points must not reach the gradient.
    x, y = (
        points if mask is None else points.masked_fill(~mask[..., None], 0)
        for points, mask in zip((x, y), masks, strict=True)
    )
    return x, y, *masks

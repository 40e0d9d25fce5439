"""Chamfer distance and F-score of two clouds."""

from itertools import product

import torch
from torch import Tensor

from hf_any3d.modeling.config_checks import check_numbers
from hf_any3d.modeling.kernels.coordinates import coordinates

NORMS = ("l1", "l2")
REDUCTIONS = ("mean", "none")
# Distances held at a time: 64 MiB of them, on the CPU as many as fit into the core's cache.
_BLOCK_CPU, _BLOCK = 1 << 17, 1 << 24
# With more distances per point than this, trees are faster on the CPU (measured).
_TREE_FROM = 256


def chamfer_distance(
    x: Tensor,
    y: Tensor,
    norm: str = "l1",
    *,
    reduction: str = "mean",
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    drop_zero_sums: bool = False,
) -> Tensor:
    """Compute the Chamfer distance of two clouds.

    With d the squared distances to the nearest point of the other cloud, "l2" is mean(d of x) + mean(d of y) and "l1"
    is (mean(√d of x) + mean(√d of y)) / 2. The gradient at distance 0 is 0; of equally near points, one gets the
    gradient. NaN coordinates make the result NaN, as in other losses.

    Args:
        x: `(batch, points of x, 3 or more channels)`, xyz first.
        y: `(batch, points of y, 3 or more channels)`.
        norm: "l1" or "l2".
        reduction: "mean" over the batch, or "none" for one value per cloud.
        x_mask: `(batch, points of x)`, True for points that count, at least one in each cloud; all by default.
        y_mask: The same of y.
        drop_zero_sums: Whether to also ignore points whose coordinates sum to exactly 0, as the metrics of Point-BERT
            and ACT do to ignore padding.

    Returns:
        The distance, a scalar, or `(batch,)` with reduction "none"; in float32, or float64 for double precision.

    Source: ACT, Sec. 4 (reconstruction of the discrete autoencoder); PCN, Sec. 3.2.

    Example:
        >>> x = torch.zeros(1, 2, 3)
        >>> y = torch.tensor([[[0.0, 0, 0], [3, 0, 0]]])
        >>> chamfer_distance(x, y, norm="l2")  # 0 from x to y, and the mean of 0 and 9 back
        tensor(4.5000)
    """
    if norm not in NORMS or reduction not in REDUCTIONS:
        raise ValueError(f"norm={norm!r}, reduction={reduction!r}; expected some of {NORMS} and {REDUCTIONS}")
    x, y, x_mask, y_mask = _prepare(x, y, x_mask, y_mask, drop_zero_sums)
    there, back = _squared_distances(x, y, x_mask, y_mask)
    if norm == "l1":
        # The root has no gradient at 0, where it is replaced.
        there, back = (torch.where(d == 0, 1, d).sqrt() * (d != 0) for d in (there, back))
    total = _mean(there, x_mask) + _mean(back, y_mask)  # (batch,)
    # The two halves of "l1" are averaged, as in PCN; those of "l2" are added.
    total = total / 2 if norm == "l1" else total
    return total.mean() if reduction == "mean" else total


@torch.no_grad()
def reconstruction_scores(
    x: Tensor,
    y: Tensor,
    threshold: float = 0.01,
    *,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    drop_zero_sums: bool = False,
) -> dict[str, Tensor]:
    """Compute both Chamfer distances and the F-score of a prediction x and the truth y with one search.

    Precision is the share of x's points nearer than `threshold`, in the unit of the clouds, to y, recall that of y's
    points to x, and the F-score their harmonic mean: 1 for equal clouds, 0 if no point is near the other cloud. Other
    arguments are those of `chamfer_distance`.

    Returns:
        "chamfer_l1", "chamfer_l2" and "f_score", each `(batch,)`.

    Raises:
        ValueError: A cloud has NaN coordinates.

    Source: Tatarchenko et al., What Do Single-view 3D Reconstruction Networks Learn?, Sec. 5.

    Example:
        >>> x = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]])
        >>> y = torch.tensor([[[0.0, 0, 0], [2, 0, 0]]])
        >>> reconstruction_scores(x, y, threshold=0.1)["f_score"]
        tensor([0.5000])
    """
    check_numbers(0, above=True, threshold=threshold)
    x, y, x_mask, y_mask = _prepare(x, y, x_mask, y_mask, drop_zero_sums)
    for name, value in (("x", x), ("y", y)):
        if value.isnan().any():
            raise ValueError(f"{name}: found NaN coordinates; expected numbers")
    # One search answers all three: roots and thresholds are taken of the same squared distances.
    squares = _squared_distances(x, y, x_mask, y_mask)
    there, back = (
        (_mean(d, mask), _mean(d.sqrt(), mask), _mean((d.sqrt() < threshold).to(d.dtype), mask))
        for d, mask in zip(squares, (x_mask, y_mask), strict=True)
    )
    precision = there[2]
    recall = back[2]
    # The smallest positive number in place of 0: without any hit the score is 0, not NaN.
    f_score = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(x.dtype).tiny)
    return {"chamfer_l1": (there[1] + back[1]) / 2, "chamfer_l2": there[0] + back[0], "f_score": f_score}


def _squared_distances(x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return squared distances to the nearest point of the other cloud: `(batch, points of x)` and `(…, of y)`."""
    sides = ((x, y, y_mask), (y, x, x_mask))
    nearest = [_nearest(points.detach(), others.detach(), mask) for points, others, mask in sides]
    differences = (
        points - others.gather(1, index.unsqueeze(-1).expand(-1, -1, 3))
        for (points, others, _), index in zip(sides, nearest, strict=True)
    )
    there, back = (_sum_of_three(offset.square()) for offset in differences)
    return there, back


def _sum_of_three(values: Tensor) -> Tensor:
    """Sum `(batch, points, 3)` over its last dimension, several times faster than torch does for three."""
    dx, dy, dz = values.unbind(dim=2)
    return dx + dy + dz


def _nearest(query: Tensor, points: Tensor, mask: Tensor | None) -> Tensor:
    """Find the nearest point whose mask is True of every query: `(batch, queries)`; any index for a query with NaN.

    Of equally near points the first is taken; in large clouds on the CPU, which are searched with trees, any of them.
    """
    (batch, rows), columns, on_cpu = query.shape[:2], points.shape[1], query.device.type == "cpu"
    # Trees take no NaN, and compilers cannot trace them.
    if on_cpu and rows * columns > _TREE_FROM * (rows + columns) and not torch.compiler.is_compiling():
        if query.isfinite().all() and points.isfinite().all():
            from scipy.spatial import cKDTree  # here, since a model without this loss needs no scipy

            nearest = torch.empty(batch, rows, dtype=torch.long)
            for cloud in range(batch):
                kept = points[cloud] if mask is None else points[cloud, mask[cloud]]
                # Building a balanced tree would take half of the time.
                tree = cKDTree(kept.numpy(), balanced_tree=False, compact_nodes=False)
                index = torch.from_numpy(tree.query(query[cloud].numpy(), workers=torch.get_num_threads())[1])
                nearest[cloud] = index if mask is None else mask[cloud].nonzero().squeeze(1)[index]
            return nearest
    limit = _BLOCK_CPU if on_cpu else _BLOCK
    # Many whole clouds at a time, or a part of one.
    clouds = max(1, limit // (rows * columns))
    height = max(1, min(rows, limit // columns))
    nearest = torch.empty(batch, rows, dtype=torch.long, device=query.device)
    for cloud, row in product(range(0, batch, clouds), range(0, rows, height)):
        some = slice(cloud, cloud + clouds)
        high = slice(row, row + height)
        # Not from products, which lose the digits of small distances.
        distance = torch.cdist(query[some, high], points[some], compute_mode="donot_use_mm_for_euclid_dist")
        if mask is not None:
            distance.masked_fill_(~mask[some, None], torch.inf)
        nearest[some, high] = distance.argmin(dim=2)
    return nearest


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean(dim=1)
    return values.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1)


def _prepare(
    x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None, drop_zero_sums: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    x = coordinates("x", x)
    y = coordinates("y", y)
    if x.shape[0] != y.shape[0]:  # torch would compare one cloud with all
        raise ValueError(f"y: batch of {y.shape[0]}; expected {x.shape[0]}, the batch of x")
    # Squares of distances beyond 256 units would overflow float16.
    wide = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x = x.to(wide)
    y = y.to(wide)
    masks = []
    for points, mask in ((x, x_mask), (y, y_mask)):
        if drop_zero_sums:
            # As the released metrics do it: a point such as (1, -1, 0) is taken for padding, too.
            kept = points.detach().sum(dim=2) != 0
            mask = kept if mask is None else mask & kept
        masks.append(mask)
    # NaN in masked points must not reach the gradient.
    x, y = (
        points if mask is None else points.masked_fill(~mask[..., None], 0)
        for points, mask in zip((x, y), masks, strict=True)
    )
    return x, y, *masks

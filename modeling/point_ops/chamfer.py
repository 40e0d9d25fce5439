"""How far two clouds lie apart: Chamfer distance and F-score."""

from itertools import product

import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.autograd.function import FunctionCtx

from hf_any3d.modeling.point_ops.grouping import flatten_index, group

# Distances held at a time: on CPU as many as the core's cache keeps, elsewhere 64 MiB of them.
_BLOCK_CPU, _BLOCK = 1 << 17, 1 << 24
# With more distances for each point than this, trees are faster on CPU (measured).
_TREE_FROM = 256
# Up to this many points the number of a point fits into the last bits of its distance without many collisions.
_KEYED_POINTS = 128


@torch.no_grad()
def nearest_pairs(
    x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask: Tensor | None = None, max_pairs: int | None = None
) -> tuple[Tensor, Tensor]:
    """Find the nearest point of the other cloud for every point of two clouds.

    Distances are taken from differences, so that neighbours are right wherever the clouds lie. Of points equally near
    the first is taken; in large clouds on CPU, which trees search, any one of them. What is found for a point that
    does not count means nothing, but is in range.

    Args:
        x: (batch, points of x, 3) float32 or float64; of points with NaN nothing is known, but indices are in range.
        y: (batch, points of y, 3), likewise.
        x_mask: (batch, points of x) True for points that count.
        y_mask: (batch, points of y), likewise.
        max_pairs: distances held at a time; by default what a CPU's cache holds, elsewhere 64 MiB of them.

    Returns:
        For x the indices of the nearest points of y, (batch, points of x) LongTensor, and for y those of x.

    Raises:
        ValueError: if `max_pairs` is below 1.
    """
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"max_pairs: {max_pairs}; expected at least 1")
    rows, columns = x.shape[1], y.shape[1]
    on_cpu = x.device.type == "cpu"
    if on_cpu and rows * columns > _TREE_FROM * (rows + columns) and x.isfinite().all() and y.isfinite().all():
        return _search_trees(x, y, y_mask), _search_trees(y, x, x_mask)
    limit = max_pairs or (_BLOCK_CPU if on_cpu else _BLOCK)
    # Planes of one coordinate are read without gaps.
    x, y = (torch.stack(points.unbind(dim=2)) for points in (x, y))  # (3, batch, points)
    keyed = on_cpu and x.dtype == torch.float32 and max(rows, columns) <= _KEYED_POINTS and rows * columns <= limit
    search = _search_small if keyed else _search_blocks
    return search(x, y, x_mask, y_mask, limit)


def _search_small(
    x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None, limit: int
) -> tuple[Tensor, Tensor]:
    (_, batch, rows), columns = x.shape, y.shape[2]
    clouds = limit // (rows * columns)
    x_nearest = torch.empty(batch, rows, dtype=torch.long)
    y_nearest = torch.empty(batch, columns, dtype=torch.long)
    buffers = x.new_empty(2, min(clouds, batch) * rows * columns)
    for start in range(0, batch, clouds):
        some = slice(start, start + clouds)
        distance = _distances(x[:, some], y[:, some], buffers)
        _leave_out(distance, x_mask, y_mask, some)
        x_nearest[some] = _least_place(distance, 2)
        y_nearest[some] = _least_place(distance, 1)
    return x_nearest, y_nearest


def _search_blocks(
    x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None, limit: int
) -> tuple[Tensor, Tensor]:
    (_, batch, rows), columns = x.shape, y.shape[2]
    width = min(columns, limit)
    height = max(1, min(rows, limit // width))
    clouds = max(1, min(batch, limit // (height * width)))
    buffers = x.new_empty(2, clouds * height * width)
    nearest = [torch.zeros(batch, count, dtype=torch.long, device=x.device) for count in (rows, columns)]
    least = [x.new_full((batch, count), torch.inf) for count in (rows, columns)]
    for cloud, row, column in product(range(0, batch, clouds), range(0, rows, height), range(0, columns, width)):
        some, high, wide = slice(cloud, cloud + clouds), slice(row, row + height), slice(column, column + width)
        distance = _distances(x[:, some, high], y[:, some, wide], buffers)
        _leave_out(distance, x_mask, y_mask, some, high, wide)
        for side, dim, place, start in ((0, 2, (some, high), column), (1, 1, (some, wide), row)):
            found, index = distance.min(dim)
            # Strictly: of equals, the first block's stays.
            nearer = found < least[side][place]
            nearest[side][place] = torch.where(nearer, index + start, nearest[side][place])
            least[side][place] = torch.where(nearer, found, least[side][place])
    return nearest[0], nearest[1]


def _leave_out(
    distance: Tensor,
    x_mask: Tensor | None,
    y_mask: Tensor | None,
    clouds: slice,
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> None:
    if x_mask is not None:
        distance.masked_fill_(~x_mask[clouds, rows, None], torch.inf)
    if y_mask is not None:
        distance.masked_fill_(~y_mask[clouds, None, columns], torch.inf)


def _distances(x: Tensor, y: Tensor, buffers: Tensor) -> Tensor:
    shape = (x.shape[1], x.shape[2], y.shape[2])
    total, part = (buffer[: shape[0] * shape[1] * shape[2]].view(shape) for buffer in buffers)
    torch.sub(x[0][:, :, None], y[0][:, None], out=total).square_()  # (clouds, points of x, points of y)
    for axis in (1, 2):
        torch.sub(x[axis][:, :, None], y[axis][:, None], out=part)
        total.addcmul_(part, part)
    return total


def _least_place(distance: Tensor, dim: int) -> Tensor:
    """What `distance.argmin(dim)` gives, in a third of its time.

    On CPU, minima are fast as long as no index is asked for. The bits of floats that are not negative sort as integers
    do; with the index in place of their last bits, one minimum over integers tells it. Where distances agree in all
    bits but those, it may be the index of another of them, which the true minimum shows.
    """
    count = distance.shape[dim]
    bits = (1 << (count - 1).bit_length()) - 1
    number = torch.arange(count, dtype=torch.int32).view(-1, *[1] * (2 - dim))
    key = (distance.view(torch.int32) & ~bits).bitwise_or_(number)
    index = key.amin(dim, keepdim=True).bitwise_and_(bits).long()
    wrong = (distance.gather(dim, index) != distance.amin(dim, keepdim=True)).squeeze(dim)
    index = index.squeeze(dim)
    if wrong.any():
        index[wrong] = distance.movedim(dim, 2)[wrong].argmin(dim=1)
    return index


def _search_trees(query: Tensor, points: Tensor, mask: Tensor | None) -> Tensor:
    nearest = torch.empty(query.shape[:2], dtype=torch.long)
    for cloud in range(len(query)):
        rows = points[cloud] if mask is None else points[cloud, mask[cloud]]
        # Half of a search is the making of the tree, unless it may be a little out of balance.
        tree = cKDTree(rows.numpy(), balanced_tree=False, compact_nodes=False)
        index = torch.from_numpy(tree.query(query[cloud].numpy(), workers=torch.get_num_threads())[1])
        nearest[cloud] = index if mask is None else mask[cloud].nonzero().squeeze(1)[index]
    return nearest


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

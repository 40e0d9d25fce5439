"""Distances of the points of two clouds to the nearest point of the other one."""

from itertools import product

import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.autograd.function import FunctionCtx

from hf_any3d.modeling.kernels.dispatch import operator

# Distances held at a time: on the CPU as many as fit into the core's cache, elsewhere 64 MiB.
_BLOCK_CPU, _BLOCK = 1 << 17, 1 << 24
# With more distances per point than this, trees are faster on the CPU (measured).
_TREE_FROM = 256
# Up to this many points, the index of a point fits into the last bits of its distance without many collisions.
_KEYED_POINTS = 128


def chamfer_plain(
    x: Tensor,
    y: Tensor,
    norm: str,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    max_pairs: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the distance of every point to the nearest point of the other cloud.

    Args:
        x: `(batch, points of x, 3)`, float32 or float64.
        y: `(batch, points of y, 3)`, of the same dtype.
        norm: "l1" for distances, whose gradient at 0 is 0, "l2" for squared distances.
        x_mask: `(batch, points of x)`, True for points that count.
        y_mask: `(batch, points of y)`.
        max_pairs: Distances held at a time, if fused; see `nearest_pairs`.

    Returns:
        `(batch, points of x)` and `(batch, points of y)`, undefined for masked points.
    """
    with torch.no_grad():
        # The form with a matrix product loses the digits of small distances far from the origin.
        distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        _mask_out(distance, x_mask, y_mask, slice(None))
        x_nearest, y_nearest = distance.argmin(dim=2), distance.argmin(dim=1)
    squares = _squares(_differences(x, y, x_nearest)), _squares(_differences(y, x, y_nearest))
    if norm == "l2":
        return squares
    # The root has an infinite gradient at 0, which times 0 would be NaN: it is taken of 1 there.
    return tuple(torch.where(d == 0, 1, d).sqrt() * (d != 0) for d in squares)


def chamfer_fused(
    x: Tensor,
    y: Tensor,
    norm: str,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    max_pairs: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `chamfer_plain` without a matrix of all distances; saves only the clouds and small indices."""
    # Which search is fastest depends on the clouds: compilers get it as one operator.
    search = _nearest_pairs if torch.compiler.is_compiling() else nearest_pairs
    return _PairDistances.apply(x, y, *search(x, y, x_mask, y_mask, max_pairs), norm)


@torch.no_grad()
def nearest_pairs(
    x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask: Tensor | None = None, max_pairs: int | None = None
) -> tuple[Tensor, Tensor]:
    """Find the nearest point of the other cloud for every point of two clouds.

    Distances are computed from differences, so that they are exact wherever the clouds are. Of equally near points the
    first is taken; in large clouds on the CPU, which are searched with trees, any of them. The indices of masked
    points are undefined but in range, and so are those of points with NaN.

    Args:
        x: `(batch, points of x, 3)`, float32 or float64.
        y: `(batch, points of y, 3)`.
        x_mask: `(batch, points of x)`, True for points that count.
        y_mask: `(batch, points of y)`.
        max_pairs: Distances held at a time; by default as many as fit into a CPU's cache, elsewhere 64 MiB.

    Returns:
        For x the indices of the nearest points of y, `(batch, points of x)`, and for y those of x.
    """
    rows, columns = x.shape[1], y.shape[1]
    on_cpu = x.device.type == "cpu"
    if on_cpu and rows * columns > _TREE_FROM * (rows + columns) and x.isfinite().all() and y.isfinite().all():
        return _search_trees(x, y, y_mask), _search_trees(y, x, x_mask)
    limit = max_pairs or (_BLOCK_CPU if on_cpu else _BLOCK)
    # One contiguous plane per coordinate.
    x, y = (torch.stack(points.unbind(dim=2)) for points in (x, y))  # (3, batch, points)
    keyed = on_cpu and x.dtype == torch.float32 and max(rows, columns) <= _KEYED_POINTS and rows * columns <= limit
    search = _search_small if keyed else _search_blocks
    return search(x, y, x_mask, y_mask, limit)


@operator("nearest_pairs")
def _nearest_pairs(
    x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None, max_pairs: int | None
) -> tuple[Tensor, Tensor]:
    return nearest_pairs(x, y, x_mask, y_mask, max_pairs)


@torch.library.impl("hf_any3d::nearest_pairs", "Meta")
def _result_shapes(
    x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None, max_pairs: int | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[:2], dtype=torch.long), y.new_empty(y.shape[:2], dtype=torch.long)


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
        _mask_out(distance, x_mask, y_mask, some)
        x_nearest[some] = _argmin(distance, 2)
        y_nearest[some] = _argmin(distance, 1)
    return x_nearest, y_nearest


def _search_blocks(
    x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None, limit: int
) -> tuple[Tensor, Tensor]:
    (_, batch, rows), columns = x.shape, y.shape[2]
    width = min(columns, limit)
    height = max(1, min(rows, limit // width))
    clouds = max(1, min(batch, limit // (height * width)))
    buffers = x.new_empty(2, clouds * height * width)
    # 0 stays where no distance is below infinity, as for masked points: undefined, but in range.
    nearest = [torch.zeros(batch, count, dtype=torch.long, device=x.device) for count in (rows, columns)]
    least = [x.new_full((batch, count), torch.inf) for count in (rows, columns)]
    for cloud, row, column in product(range(0, batch, clouds), range(0, rows, height), range(0, columns, width)):
        some, high, wide = slice(cloud, cloud + clouds), slice(row, row + height), slice(column, column + width)
        distance = _distances(x[:, some, high], y[:, some, wide], buffers)
        _mask_out(distance, x_mask, y_mask, some, high, wide)
        for side, dim, place, start in ((0, 2, (some, high), column), (1, 1, (some, wide), row)):
            found, index = distance.min(dim)
            # Strictly less: of equal distances, the first block's index stays.
            nearer = found < least[side][place]
            nearest[side][place] = torch.where(nearer, index + start, nearest[side][place])
            least[side][place] = torch.where(nearer, found, least[side][place])
    return nearest[0], nearest[1]


def _mask_out(
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


def _argmin(distance: Tensor, dim: int) -> Tensor:
    """Compute `distance.argmin(dim)` in a third of its time.

    On the CPU, minima without indices are fast. The bits of non-negative floats sort like integers; with the index in
    place of their last bits, a minimum over integers returns it. If distances agree in all other bits, it may be the
    index of a larger one; a comparison with the true minimum finds these.
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
        # Building a balanced tree would take half of the time.
        tree = cKDTree(rows.numpy(), balanced_tree=False, compact_nodes=False)
        index = torch.from_numpy(tree.query(query[cloud].numpy(), workers=torch.get_num_threads())[1])
        # The tree numbers only the points that count.
        nearest[cloud] = index if mask is None else mask[cloud].nonzero().squeeze(1)[index]
    return nearest


class _PairDistances(torch.autograd.Function):
    """Distances of points to given points of the other cloud; saves only the clouds and small indices."""

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
                # The gradient of the root at 0 is defined as 0.
                slope = gradient * torch.where(length > 0, length, 1).rsqrt()
            sides.append(difference * slope[..., None])
        # Each difference depends on both of its ends.
        wanted = ctx.needs_input_grad
        x_gradient = _subtract_at(sides[0], sides[1], y_nearest) if wanted[0] else None
        y_gradient = _subtract_at(sides[1], sides[0], x_nearest) if wanted[1] else None
        return x_gradient, y_gradient, None, None, None


def _differences(points: Tensor, others: Tensor, index: Tensor) -> Tensor:
    return points - others.reshape(-1, 3).index_select(0, _flat(index, others.shape[1])).view_as(points)


def _flat(index: Tensor, count: int) -> Tensor:
    """Convert indices into each cloud of `count` points to indices into all clouds concatenated."""
    return (index.long() + torch.arange(len(index), device=index.device)[:, None] * count).flatten()


def _squares(difference: Tensor) -> Tensor:
    # Several times faster than a sum over a last dimension of three.
    x, y, z = difference.square().unbind(dim=2)
    return x + y + z


def _subtract_at(own: Tensor, others: Tensor, index: Tensor) -> Tensor:
    flat = _flat(index, own.shape[1])[:, None].expand(-1, 3)
    # index_add takes ten times as long for rows of three.
    return own.reshape(-1, 3).scatter_add(0, flat, -others.reshape(-1, 3)).view(own.shape)


def _narrow(index: Tensor, count: int) -> Tensor:
    # Indices are kept until the backward pass, in the smallest dtype that holds them.
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if count <= torch.iinfo(dtype).max + 1:
            return index.to(dtype)
    return index

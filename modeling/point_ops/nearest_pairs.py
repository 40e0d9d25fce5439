"""The nearest point of the other cloud, for every point of two clouds, without holding all distances."""

from itertools import product

import torch
from scipy.spatial import cKDTree
from torch import Tensor

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

"""Batch statistics, scaling and GELU of the occupied cells of each view."""

import torch
from torch import Tensor, nn


def cell_norm(
    rows: Tensor, occupied: Tensor, weight: Tensor, bias: Tensor, count: Tensor, total: Tensor, eps: float, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize the occupied rows of each view by their batch statistics.

    Args:
        rows: `(batch, views, rows, hidden)`, float32 or float64.
        occupied: `(batch, views, rows)`, 1 for rows that count, else 0.
        weight: `(views, hidden)`, the norm's gain.
        bias: `(views, hidden)`, the norm's shift.
        count: `(views, 1)`, number of occupied rows.
        total: `(views, 1)`, divisor of the statistics; larger than `count` if rows of zeros count too.
        eps: Added to the variance.
        gelu: Whether GELU follows.

    Returns:
        `(batch, views, rows, hidden)`, undefined in rows that are not occupied; then mean and variance
        `(views, hidden)` without gradients.
    """
    inside = occupied.unsqueeze(-1)
    mean = (rows * inside).sum(dim=(0, 2)) / total  # (views, hidden)
    centered = rows - mean.unsqueeze(1)
    # Empty cells that count in `total` are rows of zeros, at the distance of the mean from it.
    squares = (centered.square() * inside).sum(dim=(0, 2)) + (total - count) * mean.square()
    variance = squares / total
    normed = bias.unsqueeze(1) + centered * (weight * (variance + eps).rsqrt()).unsqueeze(1)
    return nn.functional.gelu(normed) if gelu else normed, mean.detach(), variance.detach()


def normalize(
    table: Tensor, inside: Tensor, weight: Tensor, bias: Tensor, count: Tensor, total: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normed rows of a table `(views, rows, hidden)`, and mean and variance `(views, hidden)`.

    `inside` is `(views, rows)`; the other arguments are those of `cell_norm`.
    """
    mean = _sum_rows(inside, table) / total  # (views, hidden)
    centered = table - mean.unsqueeze(1)
    # As above, for the rows of zeros.
    squares = _sum_rows(inside, centered.square()) + (total - count) * mean.square()
    variance = squares / total
    scale = weight * (variance + eps).rsqrt()
    # Into the memory of `centered`, which is not read again.
    return torch.addcmul(bias.unsqueeze(1), centered, scale.unsqueeze(1), out=centered), mean, variance


def normalize_again(
    table: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the centered and the normed rows of a table, given the inverse of the standard deviation."""
    centered = table - mean.unsqueeze(1)
    return centered, torch.addcmul(bias.unsqueeze(1), centered, (weight * deviation).unsqueeze(1))


def norm_gradients(
    grad_normed: Tensor, centered: Tensor, inside: Tensor, weight: Tensor, deviation: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a table, of gain and of shift; overwrites `centered`."""
    scale = weight * deviation
    grad_bias = _sum_rows(inside, grad_normed)
    grad_weight = _sum_rows(inside, grad_normed * centered) * deviation
    # In training, mean and variance depend on every occupied row.
    share = scale / -total
    grad_mean, grad_centered = (grad_bias * share).unsqueeze(1), (grad_weight * deviation * share).unsqueeze(1)
    grad_table = torch.addcmul(grad_mean, centered, grad_centered, out=centered)
    # Rows that are not occupied did not enter the statistics, so nothing of the above is theirs.
    grad_table.addcmul_(grad_normed, scale.unsqueeze(1)).mul_(inside.unsqueeze(-1))
    return grad_table, grad_weight, grad_bias


def by_view(rows: Tensor) -> Tensor:
    """Reshape `(batch, views, rows, ...)` to `(views, batch * rows, ...)`; a copy unless views are contiguous."""
    return rows.transpose(0, 1).flatten(1, 2)


def by_cloud(table: Tensor, like: Tensor) -> Tensor:
    """Invert `by_view` for tensors with the shape of `like`."""
    return table.unflatten(1, (len(like), -1)).transpose(0, 1)


def _sum_rows(occupied: Tensor, values: Tensor) -> Tensor:
    """Sum the occupied rows: `(views, rows, hidden)` to `(views, hidden)`."""
    # No matrix product: TF32 would round the statistics. On a CPU, embedding_bag reads memory once.
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return (occupied.unsqueeze(-1) * values).sum(dim=1)
    views, rows, hidden_size = values.shape
    index = torch.arange(views * rows).view(views, rows)
    return nn.functional.embedding_bag(
        index, values.reshape(-1, hidden_size), mode="sum", per_sample_weights=occupied.to(values.dtype)
    )

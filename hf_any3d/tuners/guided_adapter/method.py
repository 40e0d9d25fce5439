"""The guided adapter (Any2Point, arXiv 2404.07989, Sec. 3.3) as equations: what every faster form of it must equal.

    branch + s · up(gelu(down(branch)))                    bottleneck, beside the frozen feed-forward branch

After the layer each token x is in a cell of every view, and in a voxel of space:

    y_v = x + attention of x to the tokens of its cell     in view v
    r_v = gelu(norm_v(mean of y_v over the cell))          a row for each cell
    r   = gelu(norm(max of x + mean of x over the voxel))  a row for each voxel
    a_v = (1 + cos(r_v, r)) / 2                            likeness of cell and voxel, Eq. 8
    x + s · Σ_v a_v / (Σ_u a_u) · r_v                      ensemble of the views, Eq. 9

`set_kernels("reference")` runs this page. Otherwise `modeling/kernels/guided_aggregation` has the same in fewer bytes
or operations, around the same modules.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_any3d.modeling.kernels.cells import FlatCells, Membership
from hf_any3d.modeling.layers.direct_weights import has_no_hooks

Cells = Membership | FlatCells


@dataclass(frozen=True)
class Guidance:
    """Settings of the guided aggregation, as in `GuidedAdapterConfig`."""

    scale: float
    cell_size: float | None
    voxel_size: float
    pooling: str


def bottleneck(branch: Tensor, down: nn.Module, up: nn.Module, dropout: nn.Module, scale: float) -> Tensor:
    """Return what a bottleneck adds to the output `(..., hidden)` of the feed-forward branch."""
    hidden = down(branch)
    hidden = hidden * torch.sigmoid(1.702 * hidden)  # GELU as CLIP approximates it
    return scale * up(dropout(hidden))


class CellAttention(nn.Module):
    """Layer norm and self-attention among the tokens of a cell, with separate weights for each view."""

    def __init__(self, hidden_size: int, views: int, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm_weight = nn.Parameter(torch.ones(views, hidden_size))
        self.norm_bias = nn.Parameter(torch.zeros(views, hidden_size))
        self.qkv_weight = nn.Parameter(torch.empty(views, 3 * width, hidden_size))
        self.qkv_bias = nn.Parameter(torch.zeros(views, 3 * width))
        self.out_weight = nn.Parameter(torch.empty(views, hidden_size, width))
        self.out_bias = nn.Parameter(torch.zeros(views, hidden_size))

    def forward(self, tokens: Tensor, cells: Cells) -> Tensor:
        """Attend to the tokens of the same cell: `(batch, tokens, hidden)` to `(batch, views, tokens, hidden)`."""
        query, key, value = self.project(tokens)
        row = _rows(cells)
        same = (row.unsqueeze(-1) == row.unsqueeze(-2)).unsqueeze(2)  # (batch, views, 1, tokens, tokens)
        attended = F.scaled_dot_product_attention(query, key, value, same, self.drop_rate, scale=self.scale)
        attended = attended.transpose(2, 3).flatten(3)  # (batch, views, tokens, width)
        return attended @ self.out_weight.transpose(1, 2) + self.out_bias.unsqueeze(1)

    def project(self, tokens: Tensor) -> Tensor:
        """Return queries, keys and values, `(3, batch, views, heads, tokens, head width)`."""
        tokens = F.layer_norm(tokens, tokens.shape[-1:]).unsqueeze(1)
        tokens = tokens * self.norm_weight.unsqueeze(1) + self.norm_bias.unsqueeze(1)  # (batch, views, tokens, hidden)
        qkv = tokens @ self.qkv_weight.transpose(1, 2) + self.qkv_bias.unsqueeze(1)
        return qkv.unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)

    @property
    def scale(self) -> float:
        """Factor of the scores: the width of all heads, as in the paper, not that of one."""
        return (self.qkv_weight.shape[1] // 3) ** -0.5

    @property
    def drop_rate(self) -> float:
        """Dropout of the attention weights, 0 in evaluation."""
        return self.dropout if self.training else 0.0

    def can_be_fused(self) -> bool:
        """Return whether a faster form may read the weights instead of calling this module."""
        return type(self) is CellAttention and has_no_hooks(self)


class CellNorm(nn.Module):
    """Batch norm with GELU over the occupied cells of each view.

    Args:
        views: Number of views, each with separate statistics.
        hidden_size: Channels.
        count_empty: Whether empty cells count in training as rows of zeros, as in the released programs.
        eps: Added to the variance.
        momentum: Weight of a batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, views: int, hidden_size: int, count_empty: bool = False, eps: float = 1e-5, momentum: float = 0.1
    ):
        super().__init__()
        self.count_empty = count_empty
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(views, hidden_size))
        self.bias = nn.Parameter(torch.zeros(views, hidden_size))
        self.register_buffer("running_mean", torch.zeros(views, hidden_size))
        self.register_buffer("running_var", torch.ones(views, hidden_size))

    def forward(self, rows: Tensor, cells: Cells) -> Tensor:
        """Normalize `(batch, views, rows, hidden)`; rows of empty cells are undefined."""
        dtype = self.weight.dtype
        if not self.training:
            # The norm is one multiplication and one addition for each channel.
            scale = (self.weight * (self.running_var + self.eps).rsqrt()).unsqueeze(1)
            shift = self.bias.unsqueeze(1) - self.running_mean.unsqueeze(1) * scale
            return F.gelu(torch.addcmul(shift, rows.to(dtype), scale))
        # Half precision cannot represent counts and sums of many rows.
        rows = rows.to(torch.promote_types(dtype, torch.float32))
        occupied = cells.occupied.to(rows.dtype)  # (batch, views, rows)
        count = occupied.sum(dim=(0, 2)).unsqueeze(-1)  # (views, 1)
        total = torch.full_like(count, len(rows) * cells.cells) if self.count_empty else count
        normed, mean, variance, total = self.normalize(rows, occupied, count, total)
        self.update_statistics(mean, variance, total, cells)
        return F.gelu(normed).to(dtype)

    def normalize(
        self, rows: Tensor, occupied: Tensor, count: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the normalized rows, mean and variance of the batch, and the number of rows that they are of."""
        inside = occupied.unsqueeze(-1)
        mean = (rows * inside).sum(dim=(0, 2)) / total  # (views, hidden)
        centered = rows - mean.unsqueeze(1)
        # Empty cells that count in `total` are rows of zeros, at the distance of the mean from it.
        squares = (centered.square() * inside).sum(dim=(0, 2)) + (total - count) * mean.square()
        variance = squares / total
        gain = self.weight * (variance + self.eps).rsqrt()
        return self.bias.unsqueeze(1) + centered * gain.unsqueeze(1), mean.detach(), variance.detach(), total

    @torch.no_grad()
    def update_statistics(self, mean: Tensor, variance: Tensor, total: Tensor, cells: Cells) -> None:
        """Update the running statistics by mean and variance `(views, hidden)` of `total` rows, once for a batch."""
        # Checkpointing runs a layer twice for one batch.
        if not cells.first_visit(self):
            return
        # Running variances are unbiased, as those of `nn.BatchNorm1d`.
        unbiased = variance * (total / (total - 1).clamp_min(1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)

    def can_be_fused(self) -> bool:
        """Return whether a faster form may compute this norm, by the batch statistics of this process alone."""
        return self.training and type(self) is CellNorm and self.weight.itemsize >= 4 and has_no_hooks(self)


def guided_aggregation(
    tokens: Tensor,
    cells: Cells,
    voxels: Cells,
    attention: CellAttention,
    view_norm: CellNorm,
    voxel_norm: CellNorm,
    guidance: Guidance,
) -> Tensor:
    """Add to the tokens `(batch, tokens, hidden)` the rows of their cells, each view by its likeness to the voxel."""
    gathered = tokens.unsqueeze(1) + attention(tokens, cells)  # (batch, views, tokens, hidden)
    rows = _pool(gathered, cells, "mean")
    if guidance.pooling == "max_mean":
        rows = rows + _pool(gathered, cells, "amax")
    of_cells = _of_tokens(view_norm(rows, cells), cells)  # (batch, views, tokens, hidden)

    alone = tokens.unsqueeze(1)
    rows = _pool(alone, voxels, "amax") + _pool(alone, voxels, "mean")
    of_voxels = _of_tokens(voxel_norm(rows, voxels), voxels)  # (batch, 1, tokens, hidden)

    likeness = (1 + F.cosine_similarity(of_cells, of_voxels, dim=-1)) / 2  # (batch, views, tokens), Eq. 8
    weights = likeness / likeness.sum(dim=1, keepdim=True)  # Eq. 9
    return tokens + guidance.scale * (weights.unsqueeze(-1) * of_cells).sum(dim=1)


def _rows(cells: Cells) -> Tensor:
    """Return the number of each token's cell, `(batch, views, tokens)`; one list of all clouds is a batch of one."""
    return cells.row.view(-1, *cells.row.shape[-2:])


def _pool(values: Tensor, cells: Cells, how: str) -> Tensor:
    """Reduce `(batch, views, tokens, hidden)` over the tokens of each cell: `(batch, views, rows, hidden)`."""
    index = _rows(cells).unsqueeze(-1).expand_as(values)
    empty = values.new_zeros(*cells.occupied.shape, values.shape[-1])
    return empty.scatter_reduce(2, index, values, how, include_self=False)


def _of_tokens(rows: Tensor, cells: Cells) -> Tensor:
    """Return for each token the row of its cell, `(batch, views, tokens, hidden)`."""
    return rows.gather(2, _rows(cells).unsqueeze(-1).expand(-1, -1, -1, rows.shape[-1]))

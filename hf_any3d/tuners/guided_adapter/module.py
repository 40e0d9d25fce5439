"""Modules and functions of the guided adapter: bottleneck, attention within virtual cells, ensemble over the views.

All views are computed at once without copies of the tokens: linear maps come before gathering, and cosines are
computed between cells and voxels (Any2Point, Sec. 3.3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hf_any3d.modeling import kernels
from hf_any3d.modeling.kernels.cells import FlatCells, Membership, max_in_cells, mean_in_cells
from hf_any3d.modeling.kernels.dispatch import autocast_disabled, recomputed
from hf_any3d.modeling.kernels.guided_table import GuidedTable
from hf_any3d.modeling.kernels.joined_batches import joined_norm, summed_over_processes
from hf_any3d.modeling.kernels.normed_ensemble import BatchNorm, cell_norm, view_ensemble, view_weights
from hf_any3d.modeling.layers.direct_weights import has_no_hooks, is_unmodified
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.point_ops import scatter_max, scatter_mean
from hf_any3d.modeling.point_ops.geometry import Geometry


@dataclass(frozen=True)
class Guidance:
    """Settings of the guided aggregation, as in `GuidedAdapterConfig`."""

    scale: float
    cell_size: float | None
    voxel_size: float
    pooling: str


def add_bottleneck(branch: Tensor, down: nn.Linear, up: nn.Linear, dropout: nn.Module, scale: float) -> Tensor:
    """Add a bottleneck to the output `(..., hidden)` of the feed-forward branch."""
    if isinstance(dropout, nn.Dropout) and is_unmodified(down, up) and kernels.bottleneck.is_chosen_on(branch.device):
        # As a number: the fused form draws and applies the mask by itself.
        rate = dropout.p if dropout.training else 0.0
        weights = down.weight, down.bias, up.weight, up.bias
        return kernels.bottleneck(in_precision_of(down, branch), *weights, rate, scale).to(branch.dtype)
    return branch + bottleneck(branch, down, up, dropout, scale)


def bottleneck(branch: Tensor, down: nn.Linear, up: nn.Linear, dropout: nn.Module, scale: float) -> Tensor:
    """Return what a bottleneck adds to the output `(..., hidden)` of the feed-forward branch."""
    hidden = down(in_precision_of(down, branch))
    hidden = dropout(kernels.quick_gelu(hidden))
    if not is_unmodified(up):
        return (up(hidden) * scale).to(branch.dtype)
    # Scaling the narrow rows and the bias is cheaper than scaling the wide result.
    return nn.functional.linear(hidden * scale, up.weight, up.bias * scale).to(branch.dtype)


class LayerGate(nn.Module):
    """Learned interpolation, for each channel, from the input of a frozen layer (0) to its output (1)."""

    def __init__(self, hidden_size: int, start: float):
        super().__init__()
        self.weight = nn.Parameter(torch.full((hidden_size,), float(start)))

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Interpolate between two `(..., hidden)` tensors."""
        # One tensor is kept for the backward pass; `lerp` would keep both.
        return torch.addcmul(inputs, outputs - inputs, self.weight.to(outputs.dtype))


class CellNorm(nn.Module):
    """Batch norm over the occupied cells of each view.

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

    def forward(self, rows: Tensor, members: Membership | FlatCells, gelu: bool = False) -> Tensor:
        """Normalize `(batch, views, rows, hidden)`, with GELU if requested; rows of empty cells are undefined."""
        dtype = self.weight.dtype
        if not self.training:
            # In evaluation the norm is one multiplication and one addition for each channel.
            scale = (self.weight * (self.running_var + self.eps).rsqrt()).unsqueeze(1)
            shift = self.bias.unsqueeze(1) - self.running_mean.unsqueeze(1) * scale
            normed = torch.addcmul(shift, rows.to(dtype), scale)
            return nn.functional.gelu(normed) if gelu else normed
        # Half precision cannot represent counts and sums of many rows.
        rows = rows.to(torch.promote_types(dtype, torch.float32))
        normed, mean, variance, total = self._normalize(rows, self.of_batch(rows, members), gelu)
        self.update_statistics(mean, variance, total, members)
        return normed.to(dtype)

    def of_batch(self, rows: Tensor, members: Membership | FlatCells) -> BatchNorm:
        """Return the norm of the rows `(batch, views, rows, hidden)` of a batch for `kernels`."""
        occupied = members.occupied.to(rows.dtype)  # (batch, views, rows)
        count = occupied.sum(dim=(0, 2)).unsqueeze(-1)  # (views, 1)
        # A copy: compiled graphs do not support the same tensor as two arguments.
        total = torch.full_like(count, len(rows) * members.cells) if self.count_empty else count.clone()
        return BatchNorm(occupied, self.weight.to(rows.dtype), self.bias.to(rows.dtype), count, total, self.eps)

    def update_statistics(
        self, mean: Tensor, variance: Tensor, total: Tensor, members: Membership | FlatCells
    ) -> None:
        """Update the running statistics by mean and variance `(views, hidden)` of `total` rows, once for a batch."""
        # Checkpointing runs a layer twice for one batch.
        if not members.first_visit(self):
            return
        with torch.no_grad():
            # Running variances are unbiased, as those of `nn.BatchNorm1d`.
            unbiased = variance * (total / (total - 1).clamp_min(1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)

    def can_be_fused(self) -> bool:
        """Return whether another operation may compute this norm, by the batch statistics of this process alone."""
        return self.training and type(self) is CellNorm and self.weight.itemsize >= 4 and has_no_hooks(self)

    def _normalize(self, rows: Tensor, norm: BatchNorm, gelu: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the normalized rows, mean and variance of the batch, and the number of rows that they are of."""
        return (*cell_norm(rows, norm, gelu), norm.total)


class JoinedCellNorm(CellNorm):
    """`CellNorm` whose batch statistics are those of all processes; see `joined_batches`."""

    def _normalize(self, rows: Tensor, norm: BatchNorm, gelu: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # In one message: each one costs the time of a round between the processes.
        count, total = summed_over_processes(torch.stack([norm.count, norm.total]))
        table = rows.transpose(0, 1).flatten(1, 2)  # (views, batch * rows, hidden)
        inside = norm.occupied.transpose(0, 1).flatten(1)
        normed, mean, variance = joined_norm(table, inside, self.weight, self.bias, count, total, self.eps)
        normed = normed.unflatten(1, (len(rows), -1)).transpose(0, 1)
        return nn.functional.gelu(normed) if gelu else normed, mean, variance, total


class FoldedWeights(NamedTuple):
    """Weights of `CellAttention` for all views at once.

    Args:
        weight: `(3 * views * width, hidden)`, projection to queries, keys and values of normalized tokens.
        bias: `(3 * views * width,)`.
        widen: `(views * width, hidden)`, the last product.
        widen_bias: `(views, hidden)`.
    """

    weight: Tensor
    bias: Tensor
    widen: Tensor
    widen_bias: Tensor


class CellAttention(nn.Module):
    """Layer norm and self-attention among the tokens of a cell, with separate weights for each view."""

    def __init__(self, hidden_size: int, views: int, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        # Stacked by view, so that one product serves all of them.
        self.norm_weight = nn.Parameter(torch.ones(views, hidden_size))
        self.norm_bias = nn.Parameter(torch.zeros(views, hidden_size))
        self.qkv_weight = nn.Parameter(torch.empty(views, 3 * width, hidden_size))
        self.qkv_bias = nn.Parameter(torch.zeros(views, 3 * width))
        self.out_weight = nn.Parameter(torch.empty(views, hidden_size, width))
        self.out_bias = nn.Parameter(torch.zeros(views, hidden_size))

    def forward(self, tokens: Tensor, members: Membership) -> Tensor:
        """Attend to the tokens of the same cell: `(batch, tokens, hidden)` to `(batch, views, tokens, width)`."""
        # A twentieth of a step's saved bytes, and a product of few channels.
        qkv = recomputed(self._project, tokens).transpose(1, 2)  # (batch, views, tokens, 3 * width)
        # Four axes, views and clouds in one: for more, torch has no kernel that does not keep the attention weights.
        query, key, value = (
            part.transpose(1, 2) for part in qkv.flatten(0, 1).unflatten(-1, (3, self.heads, -1)).unbind(2)
        )  # each (batch * views, heads, tokens, head width)
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, members.apart.flatten(0, 1).to(qkv.dtype), self._dropped, scale=self._scale
        )
        return attended.transpose(1, 2).reshape(*qkv.shape[:3], -1)

    def attention_weights(self, tokens: Tensor, members: Membership) -> Tensor:
        """Return what each token gives to the tokens of its cell: `(batch, views, heads, tokens, tokens)`.

        A row sums to 1, and is 0 for tokens of other cells. `forward` does not need them; they are for pictures.
        """
        qkv = self._project(tokens).transpose(1, 2)  # (batch, views, tokens, 3 * width)
        query, key, _ = (part.transpose(2, 3) for part in qkv.unflatten(-1, (3, self.heads, -1)).unbind(3))
        scores = query @ key.transpose(-2, -1) * self._scale  # (batch, views, heads, tokens, tokens)
        return (scores + members.apart.to(scores.dtype)).softmax(dim=-1)

    def attend_flat(self, tokens: Tensor, cells: FlatCells) -> Tensor:
        """Attend within cells for tokens of all clouds in one list: `(tokens, hidden)` to `(views, tokens, width)`."""
        qkv = self._project(tokens)  # (tokens, views, 3 * width)
        views = zip(qkv.unbind(dim=1), cells.pairs, strict=True)
        # One view at a time: the rows of all pairs are gathered.
        return torch.stack([kernels.pair_attention(*view, self.heads, self._scale, self._dropped) for view in views])

    def can_be_fused(self) -> bool:
        """Return whether another operation may compute this attention from its weights."""
        return type(self) is CellAttention and has_no_hooks(self)

    def attend(self, sequence: Tensor, table: GuidedTable, folded: FoldedWeights) -> Tensor:
        """Attend within cells along the whole sequence: `(batch, sequence, hidden)` to `(…, views * width)`."""
        normed = nn.functional.layer_norm(sequence, sequence.shape[-1:])
        # Views are heads: (batch, views * heads, sequence, head width) each.
        heads = self.heads * len(self.qkv_weight)
        qkv = nn.functional.linear(normed, folded.weight, folded.bias).unflatten(-1, (3, heads, -1))
        # The gradient of separate views is one kernel of a compiler, that of `unbind` one for each.
        parts = [qkv[:, :, part] for part in range(3)] if torch.compiler.is_compiling() else qkv.unbind(2)
        query, key, value = (part.transpose(1, 2) for part in parts)
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, table.apart, self._dropped, scale=self._scale
        )
        return attended.transpose(1, 2).flatten(2)

    def folded(self) -> FoldedWeights:
        """Fold the gains and shifts of the layer norm into the projection, queries of all views first."""
        weight = self.qkv_weight * self.norm_weight.unsqueeze(1)  # (views, 3 * width, hidden)
        bias = torch.baddbmm(self.qkv_bias.unsqueeze(-1), self.qkv_weight, self.norm_bias.unsqueeze(-1)).squeeze(-1)
        return FoldedWeights(
            weight.unflatten(1, (3, -1)).transpose(0, 1).flatten(0, 2),
            bias.unflatten(1, (3, -1)).transpose(0, 1).flatten(),
            self.out_weight.transpose(1, 2).flatten(0, 1),
            self.out_bias,
        )

    @property
    def _scale(self) -> float:
        return (self.qkv_weight.shape[1] // 3) ** -0.5  # the width of all heads, as in the paper

    @property
    def _dropped(self) -> float:
        return self.dropout if self.training else 0.0

    def _project(self, tokens: Tensor) -> Tensor:
        """Return queries, keys and values of each view, `(..., views, 3 * width)`."""
        normed = nn.functional.layer_norm(tokens, tokens.shape[-1:])
        # The norms of all views share their statistics; gains and shifts are folded into one projection. A sum is
        # faster than such a small product.
        folded = self.qkv_weight * self.norm_weight.unsqueeze(1)  # (views, 3 * width, hidden)
        offset = (self.qkv_weight * self.norm_bias.unsqueeze(1)).sum(dim=-1) + self.qkv_bias
        return nn.functional.linear(normed, folded.flatten(0, 1), offset.flatten()).unflatten(-1, offset.shape)


def guided_aggregation(
    hidden_states: Tensor,
    attention: CellAttention,
    view_norm: CellNorm,
    voxel_norm: CellNorm,
    geometry: Geometry,
    guidance: Guidance,
) -> Tensor:
    """Add to every token the features of its cells, each view weighted by its similarity to the token's voxel.

    Args:
        hidden_states: `(batch, sequence, hidden)`; tokens before the point tokens do not change.
        attention: Attention within cells.
        view_norm: Batch norm of the cells' features, for each view.
        voxel_norm: Batch norm of the voxels' features.
        geometry: Places of the point tokens.
        guidance: Sizes, pooling and scale.

    Returns:
        `(batch, sequence, hidden)` in the dtype of `hidden_states`.
    """
    tokens = hidden_states[:, geometry.special_tokens :].to(view_norm.weight.dtype).contiguous()
    members = geometry.view_cells(guidance.cell_size)
    voxels = geometry.voxels(guidance.voxel_size)
    view_rows = pool_views(tokens, attention, members, guidance.pooling)
    # The sorted rows of a maximum would be a tenth of the saved bytes of a training step.
    voxel_rows = recomputed(_pool, tokens.unsqueeze(1), voxels, with_maximum=True)  # (batch, 1, voxels, hidden)
    cells = members, voxels, guidance.scale, geometry.special_tokens
    if view_norm.can_be_fused() and voxel_norm.can_be_fused():
        view_rows = view_rows.to(tokens.dtype)
        voxel_rows = voxel_rows.to(tokens.dtype)
        norms = view_norm.of_batch(view_rows, members), voxel_norm.of_batch(voxel_rows, voxels)
        added, mean, variance, voxel_mean, voxel_variance = kernels.normed_ensemble(
            view_rows, voxel_rows, *norms, *cells
        )
        view_norm.update_statistics(mean, variance, norms[0].total, members)
        voxel_norm.update_statistics(voxel_mean, voxel_variance, norms[1].total, voxels)
    else:
        view_rows = view_norm(view_rows, members, gelu=True)  # (batch, views, cells, hidden)
        voxel_rows = voxel_norm(voxel_rows, voxels, gelu=True).squeeze(1)  # (batch, voxels, hidden)
        added = view_ensemble(view_rows, voxel_rows, *cells)
    return (hidden_states + added).to(hidden_states.dtype)


class LayerTable(NamedTuple):
    """Inputs of a layer's aggregation beside its hidden states and norms, the same for layers that share them.

    Args:
        attention: Attention within cells.
        table: Places of the tokens.
        folded: Weights of the attention for all views.
        batch_second: Whether hidden states have the shape `(sequence, batch, hidden)`.
    """

    attention: CellAttention
    table: GuidedTable
    folded: FoldedWeights
    batch_second: bool


def takes_table(
    hidden_states: Tensor,
    attention: CellAttention,
    view_norm: CellNorm,
    voxel_norm: CellNorm,
    guidance: Guidance,
    is_compiled: bool = False,
) -> bool:
    """Return whether one table of all cells and voxels can compute an aggregation, and is faster.

    It has one way of pooling and one epsilon; compiled code takes it on every device.
    """
    modules = attention, view_norm, voxel_norm
    if guidance.pooling != "mean" or view_norm.eps != voxel_norm.eps:
        return False
    if not all(module.can_be_fused() for module in modules):
        return False
    return is_compiled or kernels.table_aggregation.is_chosen_on(hidden_states.device)


class TableCode(NamedTuple):
    """Compiled code for what `prepare_table` makes: `table_of_places`, and `CellAttention.folded`."""

    table: Callable[..., GuidedTable] | None = None
    folded: Callable[[CellAttention], FoldedWeights] = CellAttention.folded


def prepare_table(
    attention: CellAttention,
    view_norm: CellNorm,
    voxel_norm: CellNorm,
    geometry: Geometry,
    guidance: Guidance,
    code: TableCode = TableCode(),  # noqa: B008
) -> LayerTable:
    """Make what `aggregate_by_table` needs, once for all layers that share it."""
    # Geometry and weights are shared by the layers of a stage, so the first layer makes the table for all of them.
    sizes = guidance.cell_size, guidance.voxel_size
    with autocast_disabled(geometry.centers.device):
        table = geometry.table(*sizes, attention.heads, view_norm.count_empty, view_norm.weight.dtype, code.table)
        folded = geometry.of_weights(attention, partial(code.folded, attention))
    return LayerTable(attention, table, folded, geometry.batch_second)


def aggregate_by_table(
    hidden_states: Tensor, view_norm: CellNorm, voxel_norm: CellNorm, prepared: LayerTable, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `guided_aggregation` in few operations, for devices on which their number decides.

    Hidden states have the axes of the layer. They are returned with the batch's mean and unbiased variance of each
    view and, as the last row, of the voxels: `(views + 1, hidden)` each, for `update_statistics`.
    """
    attention, table, folded, batch_second = prepared
    tokens = hidden_states.transpose(0, 1) if batch_second else hidden_states
    with autocast_disabled(tokens.device):
        sequence = tokens.to(view_norm.weight.dtype).contiguous()
        attended = attention.attend(sequence, table, folded)
        norms = view_norm.weight, view_norm.bias, voxel_norm.weight, voxel_norm.bias
        out, mean, variance = kernels.table_aggregation(
            sequence, attended, folded.widen, folded.widen_bias, *norms, table, scale, view_norm.eps
        )
        unbiased = variance * table.unbiased
    out = out.to(hidden_states.dtype)
    return (out.transpose(0, 1) if batch_second else out), mean, unbiased


@torch.no_grad()
def update_statistics(
    view_norm: CellNorm, voxel_norm: CellNorm, prepared: LayerTable, mean: Tensor, variance: Tensor
) -> None:
    """Update the running statistics of both norms in one operation, once for a batch."""
    if not prepared.table.first_visit(view_norm):
        return
    # Views and voxels, means and variances, in one call: each is a kernel of its own otherwise.
    running = [view_norm.running_mean, voxel_norm.running_mean, view_norm.running_var, voxel_norm.running_var]
    of_batch = [mean[:-1], mean[-1:], variance[:-1], variance[-1:]]
    torch._foreach_lerp_(running, of_batch, view_norm.momentum)  # pyright: ignore[reportPrivateImportUsage]


def guided_aggregation_flat(
    hidden_states: Tensor,
    attention: CellAttention,
    view_norm: CellNorm,
    voxel_norm: CellNorm,
    members: FlatCells,
    voxels: FlatCells,
    guidance: Guidance,
) -> Tensor:
    """Compute `guided_aggregation` for the tokens `(tokens, hidden)` of all clouds, without matrices of all pairs."""
    tokens = hidden_states.to(view_norm.weight.dtype)
    rows = members.counts.shape[1]
    # One list for all views, not a copy for each
    every = tokens.expand(len(members.row), -1, -1)  # (views, tokens, hidden)
    gathered = attention.attend_flat(tokens, members)  # (views, tokens, width)
    out_weight = attention.out_weight.transpose(1, 2)
    out_bias = attention.out_bias.unsqueeze(1)
    if guidance.pooling == "max_mean":
        view_rows = _max_mean(every + gathered @ out_weight + out_bias, members)
    else:  # mean and linear layer commute, as in `pool_views`
        view_rows = scatter_mean(every, members.row, rows)
        view_rows = view_rows + scatter_mean(gathered, members.row, rows) @ out_weight + out_bias
    voxel_rows = _max_mean(tokens[None], voxels)
    view_rows = view_norm(view_rows[None], members, gelu=True)[0]  # (views, rows, hidden)
    voxel_rows = voxel_norm(voxel_rows[None], voxels, gelu=True)[0, 0]  # (voxels, hidden)

    # Rows of all views in one list, so that each token's row is counted from the first one of its view.
    first = torch.arange(len(members.row), device=tokens.device)[:, None] * rows
    in_views = view_rows.flatten(0, 1)[members.row + first]  # (views, tokens, hidden)
    in_voxels = voxel_rows[voxels.row[0]]  # (tokens, hidden)
    cosine = nn.functional.cosine_similarity(in_views, in_voxels[None], dim=-1)  # (views, tokens)
    weights = view_weights(cosine, guidance.scale)
    return (hidden_states + (weights.unsqueeze(-1) * in_views).sum(dim=0)).to(hidden_states.dtype)


def _max_mean(values: Tensor, cells: FlatCells) -> Tensor:
    """Return maximum plus mean over the tokens of each cell: `(views, tokens, hidden)` to `(views, rows, hidden)`."""
    rows = cells.counts.shape[1]
    return scatter_max(values, cells.row, rows) + scatter_mean(values, cells.row, rows)


def pool_views(tokens: Tensor, attention: CellAttention, members: Membership, pooling: str) -> Tensor:
    """Pool the tokens of every cell after attention: `(batch, views, cells, hidden)`."""
    gathered = attention(tokens, members)  # (batch, views, tokens, width)
    out_weight = attention.out_weight.transpose(1, 2)  # (views, width, hidden)
    out_bias = attention.out_bias.unsqueeze(1)
    if pooling == "max_mean":
        return _pool(tokens.unsqueeze(1) + gathered @ out_weight + out_bias, members, with_maximum=True)
    # Mean and linear layer commute: the narrow rows are averaged first, so that cells are widened, not tokens.
    # View by view: a product over clouds and views would copy the weights for every cloud, and the norm that follows
    # needs the rows of a view together.
    pooled = _pool(gathered, members).transpose(0, 1)  # (views, batch, rows, width)
    added = (pooled.flatten(1, 2) @ out_weight + out_bias).unflatten(1, pooled.shape[1:3]).transpose(0, 1)
    return added + mean_in_cells(tokens, members)


def _pool(values: Tensor, members: Membership, with_maximum: bool = False) -> Tensor:
    """Pool `(batch, views, tokens, hidden)` over the cells of each view: mean, or maximum plus mean."""
    mean = members.pool.to(values.dtype) @ values  # (batch, views, rows, hidden)
    if not with_maximum:
        return mean
    return max_in_cells(values, members) + mean

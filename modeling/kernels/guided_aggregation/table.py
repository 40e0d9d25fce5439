"""Guided aggregation of a layer in few operations: cells of all views and voxels are the rows of one table per cloud.

On an accelerator the time of a layer's aggregation is the number of its operations, since cells and voxels are few.
What depends on the places of the tokens alone (which rows a token belongs to, and how rows are averaged) is made once
for all layers. The backward pass is written out, so that gradients are added in place and nothing is sliced, padded
or summed apart.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hf_any3d.modeling.kernels.cells import Membership, Visited
from hf_any3d.modeling.kernels.dispatch import ACCELERATORS, Kernel, without_autocast

# Lengths of rows are no smaller in a cosine.
_SHORTEST = 1e-8
# In place of a maximum over no tokens: finite, as zero times infinity would be NaN.
_LOWEST = -1e30
# Kernels of masked attention read rows that begin at multiples of this many numbers.
_ALIGNMENT = 8


@dataclass
class GuidedTable(Visited):
    """Table that all layers share. A cloud has `views * cells` rows of cells, view by view, then one for each voxel.

    The views and, as the last one, the voxels are the groups that a norm has statistics of.

    Args:
        pool: `(batch, rows, tokens)`, averages the tokens of a row; zeros for empty rows.
        in_cell: `(batch, tokens, cell rows)`, 1 for the cells of a token, one in each view.
        in_voxel: `(batch, tokens, voxels)`, 1 for the voxel of a token.
        group: `(rows,)`, the number of a row's group.
        occupied: `(groups, batch * rows)`, 1 for the occupied rows of a group.
        share: The same, divided by the number of rows that count: a product with it is a mean over a group.
        per_row: `(groups, 1)`, the inverse of that number.
        unbiased: `(groups, 1)`, factor of a variance for running statistics.
        missing: `(groups, 1)`, share of empty rows that count as rows of zeros; None if they do not count.
        own_view: `(rows, views, 1)`, 1 for the view of a row, zeros for voxels.
        voxel: `(batch, tokens)`, the number of each token's voxel.
        place: `(batch, tokens)`, of each token in the list of its cloud's tokens by voxel.
        order: Tokens of all clouds by voxel, as rows of `(batch * sequence)`.
        lengths: `(batch * voxels,)`, number of tokens of each voxel.
        has_voxel: `(batch, voxels, 1)`, 1 for occupied voxels.
        apart: `(batch, views * heads, sequence, sequence)`, added to scores of attention: -inf for tokens of
            different cells, else 0.
        special: Number of leading tokens of a sequence that have no place.
        cell_rows: Number of rows that are cells.
    """

    pool: Tensor
    in_cell: Tensor
    in_voxel: Tensor
    group: Tensor
    occupied: Tensor
    share: Tensor
    per_row: Tensor
    unbiased: Tensor
    missing: Tensor | None
    own_view: Tensor
    voxel: Tensor
    place: Tensor
    order: Tensor
    lengths: Tensor
    has_voxel: Tensor
    apart: Tensor
    special: int
    cell_rows: int
    _visitors: set[int] = field(default_factory=set, repr=False)


_BATCH_AXES = {
    "pool": 0,
    "in_cell": 0,
    "in_voxel": 0,
    "occupied": 1,
    "share": 1,
    "voxel": 0,
    "place": 0,
    "order": 0,
    "lengths": 0,
    "has_voxel": 0,
    "apart": 0,
}
"""The axis of each tensor of a table whose length follows the number of clouds."""


def mark_batch(table: GuidedTable) -> None:
    """Let torch compile code for tables of any number of clouds, instead of again for every number."""
    for name, axis in _BATCH_AXES.items():
        torch._dynamo.maybe_mark_dynamic(getattr(table, name), axis)


def guided_table(
    members: Membership, voxels: Membership, special: int, heads: int, count_empty: bool, dtype: torch.dtype
) -> GuidedTable:
    """Make the table of the tokens' cells and voxels.

    Args:
        members: Cells of the tokens, in every view.
        voxels: Voxels of the tokens.
        special: Number of leading tokens of a sequence that have no place.
        heads: Heads of the attention within cells.
        count_empty: Whether empty cells count in the statistics, as rows of zeros.
        dtype: Precision of the products.
    """
    batch, views, rows, tokens = members.pool.shape
    cell_rows = views * rows
    device = members.pool.device
    pool = torch.cat([members.pool.flatten(1, 2), voxels.pool[:, 0]], dim=1).to(dtype)  # (batch, rows, tokens)
    # The voxels, behind the cells of all views, are the last group however many there are.
    group = (torch.arange(pool.shape[1], device=device) // rows).clamp_max_(views)
    of_group = (group == torch.arange(views + 1, device=device)[:, None]).to(dtype)  # (groups, rows)
    inside = torch.cat([members.occupied.flatten(1), voxels.occupied[:, 0]], dim=1).to(dtype)  # (batch, rows)
    occupied = (of_group[:, None] * inside).flatten(1)
    count = occupied.sum(dim=1, keepdim=True)
    total = count
    missing = None
    if count_empty:
        # Empty voxels never count: as released, their norm sees the occupied ones alone.
        total = torch.cat([torch.full_like(count[:-1], batch * members.cells), count[-1:]])
        missing = (total - count) / total
    sequence = special + tokens
    # Special tokens attend to each other alone, so that the sequence need not be split.
    padded = -(-sequence // _ALIGNMENT) * _ALIGNMENT
    apart = pool.new_full((batch, views, 1, sequence, padded), -torch.inf)[..., :sequence]
    apart[..., special:, special:] = members.apart
    # A row of -inf alone would be NaN after the softmax.
    apart[..., :special, :special] = 0
    row = voxels.row[:, 0]  # (batch, tokens)
    number = torch.arange(tokens, device=device)
    # A token's place in the list of its cloud's tokens by voxel: how many come before it. Sorting is more kernels.
    rank = row * tokens + number
    place = (rank[:, None] < rank[:, :, None]).sum(dim=-1)  # (batch, tokens)
    order = torch.zeros_like(place).scatter_(1, place, number.expand_as(place))
    per_row = total.reciprocal()
    return GuidedTable(
        pool=pool,
        in_cell=(pool[:, :cell_rows] > 0).transpose(1, 2).to(dtype).contiguous(),
        in_voxel=(pool[:, cell_rows:] > 0).transpose(1, 2).to(dtype).contiguous(),
        group=group,
        occupied=occupied,
        share=occupied * per_row,
        per_row=per_row,
        unbiased=total / (total - 1).clamp_min(1),
        missing=missing,
        own_view=of_group[:views].T.unsqueeze(-1).contiguous(),
        voxel=row,
        place=place,
        # Places in the sequence: each cloud has its special tokens in front.
        order=(order + torch.arange(batch, device=device)[:, None] * sequence + special).flatten(),
        lengths=(voxels.pool[:, 0] > 0).sum(dim=-1).flatten(),
        has_voxel=inside[:, cell_rows:].unsqueeze(-1).contiguous(),
        apart=apart.expand(-1, -1, heads, -1, -1).flatten(1, 2),
        special=special,
        cell_rows=cell_rows,
    )


def table_aggregation_plain(
    hidden: Tensor,
    attended: Tensor,
    widen: Tensor,
    widen_bias: Tensor,
    view_weight: Tensor,
    view_bias: Tensor,
    voxel_weight: Tensor,
    voxel_bias: Tensor,
    table: GuidedTable,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add to every token the features of its cells, each view weighted by its similarity to the token's voxel.

    Args:
        hidden: `(batch, sequence, hidden)`.
        attended: `(batch, sequence, views * width)`, what attention within cells gives each token.
        widen: `(views * width, hidden)`, the last product of that attention, which commutes with the mean of a cell.
        widen_bias: `(views, hidden)`.
        view_weight: `(views, hidden)`, gain of the norm of the cells.
        view_bias: `(views, hidden)`, its shift.
        voxel_weight: `(1, hidden)`, gain of the norm of the voxels.
        voxel_bias: `(1, hidden)`, its shift.
        table: Places of the tokens.
        scale: Factor of what is added.
        eps: Added to the variances.

    Returns:
        `(batch, sequence, hidden)`; mean and variance of each group, `(groups, hidden)`, without gradients.

    Source: Any2Point, Eq. 8 and 9.
    """
    by_voxel = hidden.flatten(0, 1)[table.order]  # (batch * tokens, hidden)
    norms = view_weight, view_bias, voxel_weight, voxel_bias
    rows = table.pool, table.in_cell, table.group, table.share, table.missing, table.own_view
    voxels = table.voxel, table.has_voxel, table.special, table.cell_rows
    out, mean, variance, _ = _aggregate(
        hidden, attended, _largest_of(by_voxel, table), widen, widen_bias, *norms, *rows, *voxels, scale, eps
    )
    return out, mean.detach(), variance.detach()


def _largest_of(by_voxel: Tensor, table: GuidedTable) -> Tensor:
    """Return the maximum over the tokens of each voxel, `(batch * voxels, hidden)`; `_LOWEST` for empty ones."""
    return torch.segment_reduce(by_voxel, "max", lengths=table.lengths, initial=_LOWEST, unsafe=True)


def _aggregate(
    hidden: Tensor,
    attended: Tensor,
    largest: Tensor,
    widen: Tensor,
    widen_bias: Tensor,
    view_weight: Tensor,
    view_bias: Tensor,
    voxel_weight: Tensor,
    voxel_bias: Tensor,
    pool: Tensor,
    in_cell: Tensor,
    group: Tensor,
    share: Tensor,
    missing: Tensor | None,
    own_view: Tensor,
    voxel: Tensor,
    has_voxel: Tensor,
    special: int,
    cells: int,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """Compute `table_aggregation_plain` from the maxima of the voxels; the last result is what a gradient needs.

    Written for a compiler, which merges what is computed of terms, but starts another kernel for each product: small
    products are sums here, and rows of cells and voxels are padded rather than concatenated.
    """
    batch = len(hidden)
    width = hidden.shape[-1]
    views = len(widen_bias)
    behind = pool.shape[1] - cells
    # Rows: the mean of the tokens; for cells also what attention adds, for voxels also the maximum. That attention is
    # averaged before it is widened: there are at most as many cells as tokens, and fewer channels here than there.
    own = own_view.expand(-1, -1, len(widen) // views).flatten(1).unsqueeze(1)  # (rows, 1, views * width)
    narrow = (pool.unsqueeze(-1) * attended[:, None, special:] * own).sum(dim=2)  # (batch, rows, views * width)
    of_voxels = largest.view(batch, -1, width) * has_voxel
    of_cells = (narrow.flatten(0, 1) @ widen).view(batch, -1, width)
    added = nn.functional.pad(widen_bias[group[:cells]], (0, 0, 0, behind))
    rows = pool @ hidden[:, special:] + of_cells + added + nn.functional.pad(of_voxels, (0, 0, cells, 0))
    # Norm of each group by the statistics of the batch. A product with `share` is a mean: it reads each row once,
    # and long sums of few numbers are two kernels.
    mean = share @ rows.flatten(0, 1)  # (groups, hidden)
    centered = rows - mean[group]
    variance = share @ centered.square().flatten(0, 1)
    if missing is not None:
        # Empty rows are zeros, so each lies as far from the mean as the mean is large.
        variance = variance + missing * mean.square()
    deviation = (variance + eps).rsqrt()
    weight = nn.functional.pad(view_weight, (0, 0, 0, 1)) + nn.functional.pad(voxel_weight, (0, 0, views, 0))
    gain = weight * deviation
    bias = nn.functional.pad(view_bias[group[:cells]], (0, 0, 0, behind))
    bias = bias + nn.functional.pad(voxel_bias.expand(behind, -1), (0, 0, cells, 0))
    normed = centered * gain[group] + bias
    active = nn.functional.gelu(normed)
    # Weights of the views of a token, as a matrix between tokens and cells: the sum is a product.
    length = active.square().sum(dim=-1, keepdim=True).sqrt().clamp_min(_SHORTEST)
    unit = active / length
    cosine = unit[:, cells:] @ unit[:, :cells].transpose(1, 2)  # (batch, voxels, cell rows)
    mix = (1 + cosine.gather(1, voxel.unsqueeze(-1).expand(-1, -1, cells))) * in_cell  # (batch, tokens, cell rows)
    sums = mix.sum(dim=-1, keepdim=True)
    mix = mix / sums
    # Nothing is added to tokens without a place.
    out = hidden + scale * nn.functional.pad(mix @ active[:, :cells], (0, 0, special, 0))
    return out, mean, variance, (deviation, gain, normed, active, length, narrow, rows, unit, mix, sums)


def table_aggregation_fused(
    hidden: Tensor,
    attended: Tensor,
    widen: Tensor,
    widen_bias: Tensor,
    view_weight: Tensor,
    view_bias: Tensor,
    voxel_weight: Tensor,
    voxel_bias: Tensor,
    table: GuidedTable,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `table_aggregation_plain` in some thirty operations, and as many in the backward pass."""
    return _TableAggregation.apply(
        hidden, attended, widen, widen_bias, view_weight, view_bias, voxel_weight, voxel_bias, table, scale, eps
    )


class _TableAggregation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        attended: Tensor,
        widen: Tensor,
        widen_bias: Tensor,
        view_weight: Tensor,
        view_bias: Tensor,
        voxel_weight: Tensor,
        voxel_bias: Tensor,
        table: GuidedTable,
        scale: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        hidden = hidden.contiguous()
        batch, _, width = hidden.shape
        views = len(widen_bias)
        cells = table.cell_rows
        special = table.special

        # Rows: the mean of the tokens; for cells also what attention adds, for voxels also the maximum.
        rows = table.pool @ hidden[:, special:]  # (batch, rows, hidden)
        narrow = (table.pool[:, :cells] @ attended[:, special:]).unflatten(-1, (views, -1))
        narrow = narrow.mul_(table.own_view[:cells]).flatten(2)  # (batch, cell rows, views * width)
        rows[:, :cells].baddbmm_(narrow, widen.expand(batch, -1, -1))
        rows[:, :cells].add_(widen_bias.index_select(0, table.group[:cells]))
        largest = _largest_of(hidden.view(-1, width).index_select(0, table.order), table)
        rows[:, cells:].addcmul_(largest.view(batch, -1, width), table.has_voxel)

        # Norm of each group by the statistics of the batch. A product with `share` is a mean.
        mean = table.share @ rows.view(-1, width)  # (groups, hidden)
        centered = rows.sub_(mean.index_select(0, table.group))
        variance = table.share @ centered.square().view(-1, width)
        if table.missing is not None:
            variance.addcmul_(mean * table.missing, mean)
        deviation = (variance + eps).rsqrt_()
        affine = torch.cat([view_weight, voxel_weight, view_bias, voxel_bias]).view(2, -1, width)
        affine[0].mul_(deviation)
        gain_and_shift = affine.index_select(1, table.group)
        normed = torch.addcmul(gain_and_shift[1], centered, gain_and_shift[0])
        active = nn.functional.gelu(normed)

        # Weights of the views of a token, as a matrix between tokens and cells: the sum is a product.
        length = torch.linalg.vector_norm(active, dim=-1, keepdim=True).clamp_min_(_SHORTEST)
        unit = active / length
        cosine = table.in_voxel @ (unit[:, cells:] @ unit[:, :cells].transpose(1, 2))  # (batch, tokens, cell rows)
        mix = torch.addcmul(table.in_cell, cosine, table.in_cell)
        sums = mix.sum(dim=-1, keepdim=True)
        mix.div_(sums)
        out = hidden.clone()
        out[:, special:].baddbmm_(mix, active[:, :cells], alpha=scale)

        ctx.table = table
        ctx.scale = scale
        ctx.save_for_backward(
            hidden,
            narrow,
            widen,
            mean,
            centered,
            deviation,
            affine,
            gain_and_shift[0],
            normed,
            length,
            unit,
            mix,
            sums,
        )
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        return out, mean, variance

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * 11
        saved = ctx.saved_tensors  # checkpointing lets them be read only once
        hidden, narrow, widen, mean, centered, deviation = saved[:6]
        affine, gain, normed, length, unit, mix, sums = saved[6:]
        table = ctx.table
        scale = ctx.scale
        cells = table.cell_rows
        special = table.special
        batch, _, width = hidden.shape
        grad_tokens = gradient[:, special:]

        # Through the weights of the views and their cosines. The gradient of the rows is without `scale` up to the
        # norm, which multiplies the few numbers of the groups by it.
        # Computed again: the forward pass saves what is before the GELU, which its own gradient needs.
        active = nn.functional.gelu(normed)
        grad_mix = grad_tokens @ active[:, :cells].transpose(1, 2)
        common = (grad_mix * mix).sum(dim=-1, keepdim=True)
        grad_cosine = grad_mix.sub_(common).div_(sums).mul_(table.in_cell)
        grad_products = table.in_voxel.transpose(1, 2) @ grad_cosine  # (batch, voxels, cell rows)
        grad = torch.empty_like(unit)
        torch.bmm(grad_products.transpose(1, 2), unit[:, cells:], out=grad[:, :cells])
        torch.bmm(grad_products, unit[:, :cells], out=grad[:, cells:])
        grad.addcmul_(unit, (grad * unit).sum(dim=-1, keepdim=True), value=-1).div_(length)
        grad[:, :cells].baddbmm_(mix.transpose(1, 2), grad_tokens)

        # Through GELU and the norm: gain and shift, then variance and mean as factors of the centered rows and of 1.
        grad = torch.ops.aten.gelu_backward(grad, normed)
        by_group = torch.empty_like(affine)
        torch.mm(table.occupied, (grad * centered).view(-1, width), out=by_group[0])
        torch.mm(table.occupied, grad.view(-1, width), out=by_group[1])
        by_group.mul_(scale)
        by_group[0].mul_(deviation)
        through = by_group * (affine[0] * table.per_row)
        through[0].mul_(deviation)
        through = through.index_select(1, table.group)
        grad_rows = torch.mul(grad, gain).mul_(scale).sub_(through[1]).addcmul_(centered, through[0], value=-1)

        # Through the rows to the tokens: means, maxima of voxels, and what attention adds to cells.
        grad_hidden = gradient.clone(memory_format=torch.contiguous_format)
        grad_hidden[:, special:].baddbmm_(table.pool.transpose(1, 2), grad_rows)
        grad_largest = (grad_rows[:, cells:] * table.has_voxel).reshape(-1, width)
        grad_hidden.view(-1, width).index_add_(0, table.order, _gradient_of_largest(hidden, table, grad_largest))
        grad_cells = grad_rows[:, :cells]
        views = len(mean) - 1
        grad_narrow = (grad_cells @ widen.T).unflatten(-1, (views, -1)).mul_(table.own_view[:cells]).flatten(2)
        grad_attended = hidden.new_zeros(batch, hidden.shape[1], widen.shape[0])
        torch.bmm(table.pool[:, :cells].transpose(1, 2), grad_narrow, out=grad_attended[:, special:])
        grad_widen = torch.einsum("brw,brh->wh", narrow, grad_cells)
        if table.missing is None:
            grad_bias = torch.zeros_like(mean[:-1])  # the norm takes the mean away
        else:
            grad_bias = table.occupied[:-1] @ grad_rows.view(-1, width)
        by_weight, by_bias = by_group
        grad_norms = by_weight[:-1], by_bias[:-1], by_weight[-1:], by_bias[-1:]
        return grad_hidden, grad_attended, grad_widen, grad_bias, *grad_norms, None, None, None


def table_aggregation_traced(
    hidden: Tensor,
    attended: Tensor,
    widen: Tensor,
    widen_bias: Tensor,
    view_weight: Tensor,
    view_bias: Tensor,
    voxel_weight: Tensor,
    voxel_bias: Tensor,
    table: GuidedTable,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `table_aggregation_plain` in operations that a compiler merges into few kernels, and the gradients, too.

    A compiler merges sums with what is computed of their terms, and reads rows by number in any kernel, but starts
    another kernel for each product and to add by number. So small products are sums here, numbers are read and never
    added to, and rows of cells and voxels are padded rather than concatenated.
    """
    norms = view_weight, view_bias, voxel_weight, voxel_bias
    by_voxel = _ByVoxel.apply(hidden, table.order, table.place)  # (batch * tokens, hidden)
    largest = _largest_of(by_voxel, table)
    tensors = hidden, attended, largest, widen, widen_bias, *norms
    places = table.pool, table.in_cell, table.in_voxel, table.group, table.occupied, table.share, table.per_row
    more = table.missing, table.own_view, table.voxel, table.has_voxel
    return _TracedAggregation.apply(*tensors, table.special, table.cell_rows, scale, eps, *places, *more)


class _ByVoxel(torch.autograd.Function):
    """The tokens of all clouds by voxel. Their gradients are read by number, too, since each token is there once."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, order: Tensor, place: Tensor) -> Tensor:
        ctx.special = hidden.shape[1] - place.shape[1]
        ctx.save_for_backward(place)
        return hidden.flatten(0, 1)[order]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (place,) = ctx.saved_tensors
        first = torch.arange(len(place), device=place.device).unsqueeze(-1) * place.shape[1]
        return nn.functional.pad(gradient[place + first], (0, 0, ctx.special, 0)), None, None


class _TracedAggregation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        attended: Tensor,
        largest: Tensor,
        widen: Tensor,
        widen_bias: Tensor,
        view_weight: Tensor,
        view_bias: Tensor,
        voxel_weight: Tensor,
        voxel_bias: Tensor,
        special: int,
        cells: int,
        scale: float,
        eps: float,
        pool: Tensor,
        in_cell: Tensor,
        in_voxel: Tensor,
        group: Tensor,
        occupied: Tensor,
        share: Tensor,
        per_row: Tensor,
        missing: Tensor | None,
        own_view: Tensor,
        voxel: Tensor,
        has_voxel: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tensors = hidden, attended, largest, widen, widen_bias, view_weight, view_bias, voxel_weight, voxel_bias
        places = pool, in_cell, group, share, missing, own_view, voxel, has_voxel, special, cells
        out, mean, variance, computed = _aggregate(*tensors, *places, scale, eps)
        deviation, gain, normed, active, length, narrow, rows, unit, mix, sums = computed
        ctx.special = special
        ctx.cells = cells
        ctx.scale = scale
        ctx.counts_empty = missing is not None
        of_norm = mean, deviation, gain, normed, active, length
        of_tokens = narrow, rows, unit, mix, sums
        of_table = pool, in_cell, in_voxel, group, occupied, per_row, own_view
        kept = (widen, *of_norm, *of_tokens, *of_table)
        ctx.save_for_backward(*kept, *(() if missing is None else (missing,)))
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        widen, mean, deviation, gain, normed, active, length = ctx.saved_tensors[:7]
        narrow, rows, unit, mix, sums = ctx.saved_tensors[7:12]
        pool, in_cell, in_voxel, group, occupied, per_row, own_view = ctx.saved_tensors[12:19]
        cells = ctx.cells
        special = ctx.special
        scale = ctx.scale
        batch = len(gradient)
        width = gradient.shape[-1]
        views = len(mean) - 1
        tokens = gradient[:, special:]

        # Through the weights of the views and their cosines, without `scale` up to the norm.
        grad_mix = tokens @ active[:, :cells].transpose(1, 2)  # (batch, tokens, cell rows)
        common = (grad_mix * mix).sum(dim=-1, keepdim=True)
        grad_products = in_voxel.transpose(1, 2) @ ((grad_mix - common) / sums * in_cell)
        of_cells = grad_products.transpose(1, 2) @ unit[:, cells:]
        of_voxels = grad_products @ unit[:, :cells]
        behind = rows.shape[1] - cells
        grad = nn.functional.pad(of_cells, (0, 0, 0, behind)) + nn.functional.pad(of_voxels, (0, 0, cells, 0))
        grad = (grad - unit * (grad * unit).sum(dim=-1, keepdim=True)) / length
        grad = grad + nn.functional.pad(mix.transpose(1, 2) @ tokens, (0, 0, 0, behind))

        # Through GELU and the norm: gain and shift, then variance and mean as factors of the centered rows and of 1.
        grad = torch.ops.aten.gelu_backward(grad, normed)
        centered = rows - mean[group]
        both = torch.stack([grad * centered, grad], dim=2).flatten(0, 1)  # (batch * rows, 2, hidden)
        summed = occupied @ both.flatten(1)  # (groups, 2 * hidden)
        by_weight = summed[:, :width] * (scale * deviation)
        by_bias = summed[:, width:] * scale
        slope = by_weight * gain * per_row * deviation
        shift = by_bias * gain * per_row
        grad_rows = grad * (gain[group] * scale) - shift[group] - centered * slope[group]
        if ctx.counts_empty:
            # The sum of the gradients of the occupied rows of a group.
            grad_bias = ctx.saved_tensors[19] * (by_bias * gain - slope * mean / per_row)
        else:
            grad_bias = by_bias.clamp(0, 0)  # zeros, as the norm takes the mean away, of the same kernel

        # Through the rows to the tokens: means, maxima of voxels, and what attention adds to cells.
        flat = grad_rows.flatten(0, 1)
        # Empty voxels have no tokens to pass a gradient on to.
        grad_largest = grad_rows[:, cells:].reshape(-1, width)
        grad_tokens = pool.transpose(1, 2) @ grad_rows
        grad_hidden = gradient + nn.functional.pad(grad_tokens, (0, 0, special, 0))
        grad_narrow = (flat @ widen.T).view(batch, -1, views, widen.shape[0] // views) * own_view
        grad_narrow = grad_narrow.flatten(2)[:, :cells]  # (batch, cell rows, views * width)
        in_sequence = nn.functional.pad(pool[:, :cells].transpose(1, 2), (0, 0, special, 0))
        grad_attended = (in_sequence.unsqueeze(-1) * grad_narrow.unsqueeze(1)).sum(dim=2)
        grad_widen = narrow.flatten(0, 1).T @ flat
        grad_norms = by_weight[:-1], by_bias[:-1], by_weight[-1:], by_bias[-1:]
        grads = grad_hidden, grad_attended, grad_largest, grad_widen, grad_bias[:-1]
        return *grads, *grad_norms, *(None,) * 15


def _gradient_of_largest(hidden: Tensor, table: GuidedTable, gradient: Tensor) -> Tensor:
    """Return the gradient of the tokens in the order of the table, `(batch * tokens, hidden)`."""
    rows = hidden.view(-1, hidden.shape[-1]).index_select(0, table.order).requires_grad_()
    with torch.enable_grad():
        largest = _largest_of(rows, table)
    return torch.autograd.grad(largest, rows, gradient)[0]


table_aggregation = Kernel(
    table_aggregation_plain,
    table_aggregation_fused,
    "On accelerators, in training, in place of `normed_ensemble` and what comes before it; not with statistics of "
    "several processes, hooks, half precision weights or maxima over cells. Compilers get a form of few kernels.",
    devices=ACCELERATORS,
    traced=table_aggregation_traced,
)

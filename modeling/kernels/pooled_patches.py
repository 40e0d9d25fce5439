"""Mini-PointNet: shared layers on the points of each patch, with a maximum in the middle and one at the end.

Run layer by layer, each norm and each maximum reads and writes a row for every point and saves it for the backward
pass. The fused implementation, for CPUs,

- computes the statistics after the first layer from the mean and the covariance of the points, so that layer and norm
  become one small matrix product, which is recomputed wherever it is needed;
- applies the third layer to the output of the first through the product of the second and third weight, as no norm
  separates them; the second layer is needed for its maximum only;
- computes the third layer's term that depends on the maximum once per patch;
- saves only the input of the second norm;
- multiplies the sparse gradients of the maxima, one point per patch and channel, as sums of few rows.

In evaluation without gradients, both norms become part of the weights, and all layers run on parts that stay in the
cache. Results and gradients equal those of the modules up to rounding.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hf_any3d.modeling.kernels.dispatch import statistics_dtype, without_autocast
from hf_any3d.modeling.kernels.pooling import (
    PooledGradient,
    folded,
    has_folded_norms,
    is_plain_training,
    largest,
    update_running_statistics,
)
from hf_any3d.modeling.layers.direct_weights import is_unmodified

# Numbers of a part in its widest rows: it stays in the core's cache.
_PART = 1 << 18


class MiniPointNet(Protocol):
    """The layers of a mini-PointNet; see `PatchEncoder`."""

    lift: nn.Linear
    lift_norm: nn.BatchNorm1d
    deepen: nn.Linear | None
    widen: nn.Linear
    join: nn.Linear
    join_norm: nn.BatchNorm1d
    out: nn.Linear

    def point_features(self, patches: Tensor) -> Tensor:
        """Map `(batch, groups, k, channels)` to `(batch, groups, k, joined)`."""


def pooled_patches_plain(patches: Tensor, layers: MiniPointNet) -> Tensor:
    """Encode patches `(batch, groups, k, channels)`, and take the maximum over their points: `(batch, groups, width)`.

    In training, the norms update their running statistics.

    Source: Point-BERT, Sec. 3.1.
    """
    # Quantized layers take at most three axes. Unlike amax, max does not save the rows for the backward pass.
    rows = layers.out(layers.point_features(patches).flatten(0, 1))  # (batch * groups, k, width)
    return rows.max(dim=1).values.unflatten(0, patches.shape[:2])


def layers_are_plain(patches: Tensor, layers: MiniPointNet) -> bool:
    """Return whether layers can be fused: unchanged, in training in full precision or in evaluation without gradients.

    Patches may not need a gradient.
    """
    # The fused form has no layer between the first two.
    if layers.deepen is not None:
        return False
    # A single row has no variance.
    if patches.requires_grad or patches[..., 0].numel() < 2 or not is_unmodified(layers.widen, layers.out):
        return False
    pairs = (layers.lift, layers.lift_norm), (layers.join, layers.join_norm)
    if any(norm.training for _, norm in pairs):
        return all(is_plain_training(*pair) for pair in pairs)
    others = (*layers.widen.parameters(), *layers.out.parameters())
    needs_gradient = torch.is_grad_enabled() and any(weight.requires_grad for weight in others)
    return not needs_gradient and has_folded_norms(*pairs) and layers.lift.weight.dtype == torch.float32


def pooled_patches_fused(patches: Tensor, layers: MiniPointNet) -> Tensor:
    """Compute `pooled_patches_plain`; see the module."""
    points = patches.flatten(0, 1).to(layers.lift.weight.dtype)  # (batch * groups, k, channels)
    if not layers.lift_norm.training:
        return _with_running_statistics(points, layers).unflatten(0, patches.shape[:2])
    # In the order of `_Weights`: autograd sees only tensors that are arguments.
    weights = [layers.lift.weight, layers.lift_norm.weight, layers.lift_norm.bias, layers.widen.weight]
    weights += [layers.join.weight, layers.join_norm.weight, layers.join_norm.bias]
    weights += [layers.out.weight, layers.out.bias]
    # The norms cancel these.
    biases = layers.lift.bias, layers.widen.bias, layers.join.bias
    return _PooledPatches.apply(points, layers, *weights, *biases).unflatten(0, patches.shape[:2])


@torch.no_grad()
def _with_running_statistics(points: Tensor, layers: MiniPointNet) -> Tensor:
    """Encode patches `(patches, k, channels)` in evaluation: norms become part of the weights."""
    k = points.shape[1]
    lift, lift_bias = folded(layers.lift, layers.lift_norm)
    join, join_bias = folded(layers.join, layers.join_norm)
    # The third layer reads [patch maximum ; point], so its columns are of the one or the other.
    join_patch, join_point = join.chunk(2, dim=1)
    through = (join_point @ layers.widen.weight).T.contiguous()  # (lifted, joined): no norm between the two
    join_bias = join_bias + join_point @ layers.widen.bias
    widen = layers.widen.weight.T
    join_patch = join_patch.T
    out = layers.out.weight.T
    tokens = []
    # As many patches as fit into the cache with their widest rows.
    for part in points.split(max(1, _PART // (k * len(join)))):
        rows = torch.addmm(lift_bias, part.flatten(0, 1), lift.T).relu_()  # (patches * k, lifted)
        most = (rows @ widen).view(len(part), k, -1).amax(dim=1).add_(layers.widen.bias)
        # Once for a patch, not for each of its points.
        shared = torch.addmm(join_bias, most, join_patch)  # (patches, joined)
        joined = (rows @ through).view(len(part), k, -1).add_(shared.unsqueeze(1)).relu_()
        # A bias is the same for all points: it is added after the maximum, below.
        tokens.append((joined.flatten(0, 1) @ out).view(len(part), k, -1).amax(dim=1))
    return torch.cat(tokens).add_(layers.out.bias)


class _Weights(NamedTuple):
    """Weights of linear layers and norms, without the biases that norms cancel."""

    lift: Tensor  # (lifted, channels)
    lift_gain: Tensor
    lift_shift: Tensor
    widen: Tensor  # (own, lifted)
    join: Tensor  # (joined, 2 * own), the columns for the patch maximum first
    join_gain: Tensor
    join_shift: Tensor
    out: Tensor  # (width, joined)
    out_bias: Tensor

    @property
    def join_patch(self) -> Tensor:
        """Columns of `join` for the patch maximum, `(joined, own)`."""
        return self.join[:, : len(self.widen)]

    @property
    def join_point(self) -> Tensor:
        """Columns of `join` for a point, `(joined, own)`."""
        return self.join[:, len(self.widen) :]


class _Statistics(NamedTuple):
    """Mean and covariance of the points; mean and variance of the third layer's output, without its bias."""

    mean: Tensor
    covariance: Tensor
    joined_mean: Tensor
    joined_variance: Tensor


class _Patches:
    """Points `(patches, k, channels)` of all patches, split into parts, and the first layer with its norm.

    Attributes:
        matrix: `(channels, lifted)`, the first layer with its norm; `constant` is its shift.
    """

    def __init__(self, points: Tensor, weights: _Weights, mean: Tensor, covariance: Tensor, eps: float):
        self.k = points.shape[1]
        self.rows = points.flatten(0, 1)  # (patches * k, channels)
        step = max(1, _PART // (self.k * len(weights.join)))
        self.parts = [slice(start, min(start + step, len(points))) for start in range(0, len(points), step)]
        wide = weights.lift.to(statistics_dtype(points))
        self.lifted_mean = (wide @ mean.to(wide)).to(points.dtype)
        # Of a linear layer: w C wᵀ for each row w. Rounding may leave a little below 0.
        variance = ((wide @ covariance.to(wide)) * wide).sum(dim=1).clamp_min(0)
        self.lifted_variance = variance.to(points.dtype)
        self.deviation = (self.lifted_variance + eps).rsqrt()
        self.gain = weights.lift_gain * self.deviation
        self.matrix = (weights.lift * self.gain.unsqueeze(1)).T.contiguous()
        self.constant = weights.lift_shift - self.lifted_mean * self.gain

    def rows_of(self, part: slice) -> slice:
        return slice(part.start * self.k, part.stop * self.k)

    def lifted(self, part: slice) -> Tensor:
        """Compute the rows after the first norm and its ReLU, `(rows of the part, lifted)`."""
        return torch.addmm(self.constant, self.rows[self.rows_of(part)], self.matrix).relu_()


class _PooledPatches(torch.autograd.Function):
    """Tokens `(patches, width)` with batch statistics; `weights` are `_Weights`, then biases that norms cancel."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, layers: MiniPointNet, *weights: Tensor | None) -> Tensor:
        own = _Weights(*weights[:9])
        biases = weights[9:]
        count = points.shape[0] * points.shape[1]
        k = points.shape[1]
        wide = points.flatten(0, 1).to(statistics_dtype(points))
        mean = wide.mean(dim=0)
        # Centered first: a mean of squares minus the squared mean would lose digits.
        wide = wide - mean
        mean = mean.to(points.dtype)
        covariance = (wide.T @ wide / count).to(points.dtype)
        patches = _Patches(points, own, mean, covariance, layers.lift_norm.eps)
        # The only rows that are saved: all others follow from them or from the points.
        joined_all = points.new_empty(count, len(own.join))
        patch_max, patch_winners = _empty_maxima(points, len(own.widen))
        tokens, winners = _empty_maxima(points, len(own.out))
        through = (own.join_point @ own.widen).T.contiguous()  # (lifted, joined)
        total = wide.new_zeros(len(own.join))
        squares = torch.zeros_like(total)
        guess = None
        for part in patches.parts:
            lifted = patches.lifted(part)
            most, patch_winners[part] = largest((lifted @ own.widen.T).view(-1, k, len(own.widen)))
            patch_max[part] = most
            joined = torch.mm(lifted, through, out=joined_all[patches.rows_of(part)])
            joined.view(-1, k, len(own.join)).add_((most @ own.join_patch.T).unsqueeze(1))
            if guess is None:
                # Squares are summed around a guess of the mean: otherwise a large mean would swamp a small variance.
                guess = joined.mean(dim=0)
            joined = joined - guess
            total += joined.sum(dim=0)
            squares += joined.square_().sum(dim=0)
        shift = total / count
        joined_mean = (guess + shift).to(points.dtype)
        joined_variance = (squares / count - shift.square()).clamp_min_(0).to(points.dtype)
        gain = own.join_gain * (joined_variance + layers.join_norm.eps).rsqrt()
        shift = own.join_shift - joined_mean * gain
        for part in patches.parts:
            # The second norm needed all rows; with its statistics known, parts are finished one by one.
            hidden = torch.addcmul(shift, joined_all[patches.rows_of(part)], gain).relu_()
            tokens[part], winners[part] = largest((hidden @ own.out.T).view(-1, k, len(own.out)))
        # Contribution of the biases to the output of the third layer.
        offset = own.join @ layers.widen.bias.repeat(2)
        offset = offset if layers.join.bias is None else offset + layers.join.bias
        update_running_statistics(
            layers.lift_norm, layers.lift.bias, patches.lifted_mean, patches.lifted_variance, count
        )
        update_running_statistics(layers.join_norm, offset, joined_mean, joined_variance, count)
        ctx.eps = layers.lift_norm.eps, layers.join_norm.eps
        statistics = mean, covariance, joined_mean, joined_variance
        ctx.save_for_backward(*biases, points, joined_all, patch_max, patch_winners, winners, *own, *statistics)
        return tokens.add_(own.out_bias)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        biases, (points, joined, patch_max, patch_winners, winners) = saved[:3], saved[3:8]
        own = _Weights(*saved[8:17])
        statistics = _Statistics(*saved[17:])
        lift_eps, join_eps = ctx.eps
        patches = _Patches(points, own, statistics.mean, statistics.covariance, lift_eps)
        # Backwards: last layer and maximum, second norm, third and second layer with the first maximum, first layer.
        deviation = (statistics.joined_variance + join_eps).rsqrt()
        pooled = PooledGradient(gradient, winners, patches.k, patches.parts)
        grad_out, grad_hidden, total, moment = _through_out(patches, own, statistics, deviation, joined, pooled)
        gain = own.join_gain * deviation
        # In training, the statistics depend on every row.
        slope = gain * deviation.square() * moment / -len(patches.rows)
        constant = -statistics.joined_mean * slope - gain * total / len(patches.rows)
        for number, part in enumerate(patches.parts):
            rows = torch.addcmul(constant, grad_hidden[number], gain, out=grad_hidden[number])
            rows.addcmul_(joined[patches.rows_of(part)], slope)
        grad_widen, grad_join, *grad_lifted = _through_join(patches, own, grad_hidden, patch_max, patch_winners)
        grad_lift = _through_lift(patches, own, statistics, *grad_lifted)
        grad_biases = (None if bias is None else torch.zeros_like(bias) for bias in biases)
        norm = moment * deviation, total
        return None, None, *grad_lift, grad_widen, grad_join, *norm, grad_out, gradient.sum(dim=0), *grad_biases


def _empty_maxima(points: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return empty tensors for maxima over the points of each patch, and for the points that have them."""
    maxima = points.new_empty(len(points), width)
    return maxima, torch.empty_like(maxima, dtype=torch.long)


def _through_out(
    patches: _Patches,
    own: _Weights,
    statistics: _Statistics,
    deviation: Tensor,
    joined: Tensor,
    pooled: PooledGradient,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Return gradients of the last weight and, in parts, of the second norm's output; the sum of the latter, and that
    of its product with the norm's centered input.
    """
    gain = own.join_gain * deviation
    shift = own.join_shift - statistics.joined_mean * gain
    grad_out = torch.zeros_like(own.out)
    grad_hidden = []
    total = torch.zeros_like(gain)
    moment = torch.zeros_like(gain)
    for number, part in enumerate(patches.parts):
        entered = joined[patches.rows_of(part)]
        hidden = torch.addcmul(shift, entered, gain).relu_()
        grad_out += pooled.transposed_times(hidden, number)
        rows = pooled.times(own.out, number)
        torch.ops.aten.threshold_backward.grad_input(rows, hidden, 0, grad_input=rows)  # the ReLU
        total += rows.sum(dim=0)
        moment += torch.sub(entered, statistics.joined_mean, out=hidden).mul_(rows).sum(dim=0)
        grad_hidden.append(rows)
    return grad_out, grad_hidden, total, moment


def _through_join(
    patches: _Patches, own: _Weights, grad_joined: list[Tensor], patch_max: Tensor, patch_winners: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradients of the second and third weight, and the sum of those of the first norm's output and their
    product with the points, given those of the third layer's output in parts.
    """
    through = own.join_point @ own.widen  # (joined, lifted)
    grad_through = torch.zeros_like(through)
    grad_shared = []
    grad_lifted = []
    for rows, part in zip(grad_joined, patches.parts, strict=True):
        grad_shared.append(rows.view(-1, patches.k, rows.shape[1]).sum(dim=1))
        # `through` is the product of the third and second weight: the gradient of each follows from its own.
        grad_through.addmm_(rows.T, patches.lifted(part))
        grad_lifted.append(rows @ through)
    grad_shared = torch.cat(grad_shared)  # (patches, joined)
    # In the order of the columns: for the patch maximum, then for a point.
    grad_join = torch.cat([grad_shared.T @ patch_max, grad_through @ own.widen.T], dim=1)
    grad_widen = own.join_point.T @ grad_through
    pooled = PooledGradient(grad_shared @ own.join_patch, patch_winners, patches.k, patches.parts)
    total = torch.zeros_like(own.lift_gain)
    product = torch.zeros_like(own.lift)
    for number, part in enumerate(patches.parts):
        lifted = patches.lifted(part)
        grad_widen += pooled.transposed_times(lifted, number)
        rows = grad_lifted[number].add_(pooled.times(own.widen, number))
        torch.ops.aten.threshold_backward.grad_input(rows, lifted, 0, grad_input=rows)  # the ReLU
        total += rows.sum(dim=0)
        product.addmm_(rows.T, patches.rows[patches.rows_of(part)])
    return grad_widen, grad_join, total, product


def _through_lift(
    patches: _Patches, own: _Weights, statistics: _Statistics, total: Tensor, product: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of the first weight and its norm, whose input is linear in the points."""
    # Centered only now: the sums over points were of the points as they are.
    product = product - total.outer(statistics.mean)
    grad_gain = patches.deviation * (own.lift * product).sum(dim=1)
    # What the gradient does through the variance, which is quadratic in the weights.
    spread = (patches.deviation * grad_gain).unsqueeze(1) * (own.lift @ statistics.covariance)
    return patches.gain.unsqueeze(1) * (product - spread), grad_gain, total

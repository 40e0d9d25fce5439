"""Mini-PointNet: shared layers on the points of each patch, with a maximum in the middle and one at the end.

Run layer by layer, each norm and each maximum reads and writes a row for every point and saves it for the backward
pass. The fused implementation, for CPUs,

- computes the statistics after the first layer from the mean and the covariance of the points, so that layer and norm
  become one small matrix product, which is recomputed wherever it is needed;
- applies the third layer to the output of the first through the product of the second and third weight, as no norm
  separates them; the second layer is needed for its maximum only;
- computes the third layer's term that depends on the maximum once per patch;
- computes the statistics of the second norm from means and covariances of the rows after the first;
- saves only the input of the last layer;
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
    widen, join_patch, out = layers.widen.weight.T, join_patch.T, layers.out.weight.T
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


class _Joined:
    """Third layer and its norm, from each patch's mean of rows of the first norm and from their spread around it.

    Attributes:
        matrix: `(lifted, joined)`, the second and third layer with the norm.
        constants: `(patches, joined)`, what is added to the product of all rows of a patch.
        offsets: `(patches, joined)`, each patch's mean of the layer's outputs, less that of all.
    """

    def __init__(self, own: _Weights, lifted_means: Tensor, within: Tensor, patch_max: Tensor, eps: float):
        self.within = within
        self.patch_weight, self.point_weight = own.join.split(len(own.widen), dim=1)  # (joined, own) each
        self.through = (self.point_weight @ own.widen).T.contiguous()  # no norm separates the two
        self.lifted_mean = lifted_means.mean(dim=0)
        self.lifted_offsets = lifted_means - self.lifted_mean
        shared = patch_max @ self.patch_weight.T  # once for a patch, not for each of its points
        self.shared_offsets = shared - shared.mean(dim=0)
        moved = self.lifted_mean @ self.through
        self.mean = moved + shared.mean(dim=0)
        self.offsets = torch.addmm(self.shared_offsets, self.lifted_offsets, self.through)
        # Variance within the patches plus variance between them: no cancellation of large numbers.
        self.variance = ((within @ self.through) * self.through).sum(dim=0).clamp_min_(0)
        self.variance += self.offsets.square().mean(dim=0)
        self.deviation = (self.variance + eps).rsqrt()
        self.gain = own.join_gain * self.deviation
        self.matrix = self.through * self.gain
        self.constants = torch.addcmul(own.join_shift - moved * self.gain, self.shared_offsets, self.gain)


class _PooledPatches(torch.autograd.Function):
    """Tokens `(patches, width)` with batch statistics; `weights` are `_Weights`, then biases that norms cancel."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, layers: MiniPointNet, *weights: Tensor | None) -> Tensor:
        own = _Weights(*weights[:9])
        count, k = points.shape[0] * points.shape[1], points.shape[1]
        wide = points.flatten(0, 1).to(statistics_dtype(points))
        mean = wide.mean(dim=0)
        # Centered first: a mean of squares minus the squared mean would lose digits.
        wide = wide - mean
        covariance = (wide.T @ wide / count).to(points.dtype)
        first = mean.to(points.dtype), covariance
        patches = _Patches(points, own, *first, layers.lift_norm.eps)
        patch_max = points.new_empty(len(points), len(own.widen))
        tokens = points.new_empty(len(points), len(own.out))
        patch_winners, winners = (torch.empty_like(maxima, dtype=torch.long) for maxima in (patch_max, tokens))
        lifted_means = points.new_empty(len(points), len(own.lift))
        within = wide.new_zeros(len(own.lift), len(own.lift))
        for part in patches.parts:
            lifted = patches.lifted(part)
            patch_max[part], patch_winners[part] = largest((lifted @ own.widen.T).view(-1, k, len(own.widen)))
            rows = lifted.view(-1, k, lifted.shape[1])
            lifted_means[part] = rows.mean(dim=1)
            rows.sub_(lifted_means[part].unsqueeze(1))
            within += lifted.T @ lifted
        second = lifted_means, (within / count).to(points.dtype), patch_max
        joined = _Joined(own, *second, layers.join_norm.eps)
        # After the second norm and its ReLU; the only rows that are saved. Others follow from the points.
        hidden = points.new_empty(count, len(own.join))
        for part in patches.parts:
            rows = torch.mm(patches.lifted(part), joined.matrix, out=hidden[patches.rows_of(part)])
            rows.view(-1, k, len(own.join)).add_(joined.constants[part].unsqueeze(1)).relu_()
            tokens[part], winners[part] = largest((rows @ own.out.T).view(-1, k, len(own.out)))
        # Contribution of the biases to the output of the third layer.
        offset = own.join @ layers.widen.bias.repeat(2)
        offset = offset if layers.join.bias is None else offset + layers.join.bias
        update_running_statistics(
            layers.lift_norm, layers.lift.bias, patches.lifted_mean, patches.lifted_variance, count
        )
        update_running_statistics(layers.join_norm, offset, joined.mean, joined.variance, count)
        ctx.eps = layers.lift_norm.eps, layers.join_norm.eps
        ctx.save_for_backward(*weights, points, *first, *second, patch_winners, winners, hidden)
        return tokens.add_(own.out_bias)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        own, biases = _Weights(*saved[:9]), saved[9:12]
        points, *first = saved[12:15]
        patches = _Patches(points, own, *first, ctx.eps[0])
        joined = _Joined(own, *saved[15:18], ctx.eps[1])
        patch_winners, winners, hidden = saved[18:]
        # Backwards: last layer and maximum, second norm, third and second layer with the first maximum, first layer.
        pooled = PooledGradient(gradient, winners, patches.k, patches.parts)
        grad_out, *through_out = _through_out(patches, own, joined, pooled, hidden)
        found = _through_join(patches, own, joined, *first, saved[17], patch_winners, *through_out)
        grad_biases = (None if bias is None else torch.zeros_like(bias) for bias in biases)
        return None, None, *found, grad_out, gradient.sum(dim=0), *grad_biases


def _through_out(
    patches: _Patches, own: _Weights, joined: _Joined, pooled: PooledGradient, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradient of the last weight; of the second norm's output, as if its statistics were constants, the
    sum for each patch, the product with the first norm's output, and what it adds to the gradient of that.
    """
    grad_out = torch.zeros_like(own.out)
    sums = torch.empty_like(joined.constants)
    product = torch.zeros_like(joined.matrix.T)
    grad_lifted = own.out.new_empty(len(patches.rows), len(joined.matrix))
    for number, part in enumerate(patches.parts):
        entered = hidden[patches.rows_of(part)]
        grad_out += pooled.transposed_times(entered, number)
        rows = pooled.times(own.out, number)
        torch.ops.aten.threshold_backward.grad_input(rows, entered, 0, grad_input=rows)  # the ReLU
        sums[part] = rows.view(-1, patches.k, rows.shape[1]).sum(dim=1)
        product.addmm_(rows.T, patches.lifted(part))
        torch.mm(rows, joined.matrix.T, out=grad_lifted[patches.rows_of(part)])
    return grad_out, sums, product, grad_lifted


def _through_join(
    patches: _Patches, own: _Weights, joined: _Joined, mean: Tensor, covariance: Tensor, *rest: Tensor
) -> tuple[Tensor, ...]:
    """Return gradients of the other weights; `rest` is maxima of patches, their points, results of `_through_out`."""
    patch_max, patch_winners, sums, product, grad_lifted = rest
    count = len(patches.rows)
    total = sums.sum(dim=0)
    # Of the gradient with the centered input of the norm, which is a sum of lifted rows and of what a patch shares.
    moment = ((product - total.outer(joined.lifted_mean)) * joined.through.T).sum(dim=1)
    moment += (sums * joined.shared_offsets).sum(dim=0)
    # In training, the statistics depend on every row: from its gradient, a constant and a multiple of its centered
    # input are taken.
    constant = joined.gain * total / count
    slope = joined.gain * joined.deviation.square() * moment / count
    grad_shared = sums * joined.gain - patches.k * torch.addcmul(constant, joined.offsets, slope)
    spread = (joined.within @ joined.through).T * count + patches.k * joined.offsets.T @ joined.lifted_offsets
    grad_through = product * joined.gain.unsqueeze(1) - spread * slope.unsqueeze(1)
    grad_through -= (constant * count).outer(joined.lifted_mean)
    # The matrix is a product of the third and second weight: the gradient of each follows from its own.
    # In the order of the columns: for the patch maximum, then for a point.
    grad_join = torch.cat([grad_shared.T @ patch_max, grad_through @ own.widen.T], dim=1)
    grad_widen = joined.point_weight.T @ grad_through
    pooled = PooledGradient(grad_shared @ joined.patch_weight, patch_winners, patches.k, patches.parts)
    matrix = (joined.through * slope) @ joined.through.T  # (lifted, lifted)
    shared = torch.addcmul(constant, joined.shared_offsets, slope) @ joined.through.T
    shared = joined.lifted_mean @ matrix - shared  # (patches, lifted)
    grad_shift = torch.zeros_like(own.lift_gain)
    product = torch.zeros_like(own.lift)
    for number, part in enumerate(patches.parts):
        lifted = patches.lifted(part)
        grad_widen += pooled.transposed_times(lifted, number)
        rows = grad_lifted[patches.rows_of(part)].addmm_(lifted, matrix, alpha=-1)
        rows.add_(pooled.times(own.widen, number)).view(-1, patches.k, len(matrix)).add_(shared[part].unsqueeze(1))
        torch.ops.aten.threshold_backward.grad_input(rows, lifted, 0, grad_input=rows)  # the ReLU
        grad_shift += rows.sum(dim=0)
        product.addmm_(rows.T, patches.rows[patches.rows_of(part)])
    # The first norm's input is linear in the points. Centered only now: the sums were of the points as they are.
    product -= grad_shift.outer(mean)
    grad_gain = patches.deviation * (own.lift * product).sum(dim=1)
    # What the gradient does through the variance, which is quadratic in the weights.
    product -= (patches.deviation * grad_gain).unsqueeze(1) * (own.lift @ covariance)
    grad_lift = patches.gain.unsqueeze(1) * product
    return grad_lift, grad_gain, grad_shift, grad_widen, grad_join, moment * joined.deviation, total

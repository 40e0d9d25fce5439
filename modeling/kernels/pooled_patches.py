"""Mini-PointNet: shared layers on the points of each patch, with a maximum in the middle and one at the end.

Run layer by layer, each norm and each maximum reads and writes a row for every point and saves it for the backward
pass. The fused implementation

- computes the statistics after the first layer from the mean and the covariance of the points, so that layer and norm
  become one small matrix product, which is recomputed wherever it is needed;
- applies the third layer to the output of the first through the product of the second and third weight, as no norm
  separates them; the second layer is needed for its maximum only;
- computes the third layer's term that depends on the maximum once per patch;
- saves only the input of the second norm;
- multiplies the sparse gradients of the maxima, one point per patch and channel, as sums of few rows.

In evaluation without gradients, both norms become part of the weights, and all layers run on parts that stay in the
cache.

Results and gradients equal those of the modules up to rounding. In training both passes are custom operators, which
`torch.compile` supports.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_any3d.modeling.kernels.dispatch import operator, statistics_dtype, without_autocast
from hf_any3d.modeling.kernels.pooling import PooledGradient, is_plain_training, largest, update_running_statistics
from hf_any3d.modeling.layers.forward_contract import is_unmodified

# Numbers per part in its widest rows: on the CPU, a part stays in the core's cache.
_PART_CPU, _PART = 1 << 18, 1 << 27


class MiniPointNet(Protocol):
    """The layers of a mini-PointNet; see `PatchEncoder`."""

    lift: nn.Linear
    lift_norm: nn.BatchNorm1d
    widen: nn.Linear
    join: nn.Linear
    join_norm: nn.BatchNorm1d
    out: nn.Linear

    def point_features(self, patches: Tensor) -> Tensor:
        """Map `(batch, groups, k, channels)` to `(batch, groups, k, joined)`."""


def pooled_patches_plain(patches: Tensor, layers: MiniPointNet) -> Tensor:
    """Encode patches, and take the maximum over their points.

    In training, the norms update their running statistics.

    Args:
        patches: `(batch, groups, k, channels)`.
        layers: The layers.

    Returns:
        `(batch, groups, width)`.

    Source: Point-BERT, Sec. 3.1.
    """
    # Quantized layers take at most three axes. Unlike amax, max does not save the rows for the backward pass.
    rows = layers.out(layers.point_features(patches).flatten(0, 1))  # (batch * groups, k, width)
    return rows.max(dim=1).values.unflatten(0, patches.shape[:2])


def layers_are_plain(patches: Tensor, layers: MiniPointNet) -> bool:
    """Return whether the layers are unchanged modules in full precision, and patches need no gradient.

    Without batch statistics, nothing may need a gradient, and no compiler unrolls the parts.
    """
    # A single row has no variance.
    if patches.requires_grad or patches[..., 0].numel() < 2 or not is_unmodified(layers.widen, layers.out):
        return False
    if layers.lift_norm.training or layers.join_norm.training:
        return is_plain_training(layers.lift, layers.lift_norm) and is_plain_training(layers.join, layers.join_norm)
    return norms_can_be_folded(patches, layers) and layers.lift.weight.dtype == torch.float32


def norms_can_be_folded(patches: Tensor, layers: MiniPointNet) -> bool:
    """Return whether batch norms can be folded into the layers before them: in evaluation, without gradients."""
    modules = (layers.lift, layers.lift_norm, layers.widen, layers.join, layers.join_norm, layers.out)
    if patches.requires_grad or layers.lift_norm.training or layers.join_norm.training:
        return False
    if torch.compiler.is_compiling() or not is_unmodified(*modules):
        return False
    # Norms without running statistics use those of the batch in evaluation, too.
    has_statistics = layers.lift_norm.track_running_stats and layers.join_norm.track_running_stats
    needs_gradient = any(weight.requires_grad for module in modules for weight in module.parameters())
    return has_statistics and not (torch.is_grad_enabled() and needs_gradient)


@torch.no_grad()
def _with_running_statistics(patches: Tensor, layers: MiniPointNet) -> Tensor:
    """Compute `pooled_patches_plain` in evaluation: norms become part of the weights, and parts stay in the cache."""
    batch, groups, k, channels = patches.shape
    points = patches.reshape(-1, k, channels).to(layers.lift.weight.dtype)
    (lift, lift_bias), (join, join_bias) = (
        folded(*pair) for pair in ((layers.lift, layers.lift_norm), (layers.join, layers.join_norm))
    )
    join_patch, join_point = join.chunk(2, dim=1)
    through = (join_point @ layers.widen.weight).T.contiguous()  # (lifted, joined): no norm between the two
    join_bias = join_bias + join_point @ layers.widen.bias
    widen, join_patch, out = layers.widen.weight.T, join_patch.T, layers.out.weight.T
    numbers = _PART_CPU if points.device.type == "cpu" else _PART
    tokens = []
    for part in points.split(max(1, numbers // (k * len(join)))):
        rows = torch.addmm(lift_bias, part.flatten(0, 1), lift.T).relu_()  # (patches * k, lifted)
        most = (rows @ widen).view(len(part), k, -1).amax(dim=1).add_(layers.widen.bias)
        shared = torch.addmm(join_bias, most, join_patch)  # (patches, joined)
        joined = (rows @ through).view(len(part), k, -1).add_(shared.unsqueeze(1)).relu_()
        tokens.append((joined.flatten(0, 1) @ out).view(len(part), k, -1).amax(dim=1))
    return torch.cat(tokens).add_(layers.out.bias).view(batch, groups, -1)


def folded(linear: nn.Linear, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a linear layer and the norm after it, with running statistics, in full precision."""
    wide = torch.promote_types(linear.weight.dtype, torch.float32)
    mean, variance = norm.running_mean.to(wide), norm.running_var.to(wide)
    gain = norm.weight.to(wide) * (variance + norm.eps).rsqrt()
    bias = -mean if linear.bias is None else linear.bias.to(wide) - mean
    return linear.weight.to(wide) * gain.unsqueeze(1), bias * gain + norm.bias.to(wide)


def pooled_patches_fused(patches: Tensor, layers: MiniPointNet) -> Tensor:
    """Compute `pooled_patches_plain`; see the module."""
    if not layers.lift_norm.training:
        return _with_running_statistics(patches, layers)
    weights = [layers.lift.weight, layers.lift_norm.weight, layers.lift_norm.bias, layers.widen.weight]
    weights += [layers.join.weight, layers.join_norm.weight, layers.join_norm.bias]
    weights += [layers.out.weight, layers.out.bias]
    points = patches.flatten(0, 1).to(layers.lift.weight.dtype)  # (batch * groups, k, channels)
    results = Results(*pooled_patches(points, weights, [layers.lift_norm.eps, layers.join_norm.eps]))
    rows = points.shape[0] * points.shape[1]
    with torch.no_grad():
        # Contribution of the biases to the output of the third layer.
        shift = layers.join.weight @ layers.widen.bias.repeat(2)
        shift = shift if layers.join.bias is None else shift + layers.join.bias
    lifted = results.lifted_statistics(layers.lift.weight)
    update_running_statistics(layers.lift_norm, layers.lift.bias, *lifted, rows)
    update_running_statistics(layers.join_norm, shift, results.joined_mean, results.joined_variance, rows)
    # Biases that a norm cancels get their true gradient, which is zero.
    biases = (layers.lift.bias, layers.widen.bias, layers.join.bias)
    canceled = sum(bias.sum() for bias in biases if bias is not None)
    return results.tokens.add(canceled, alpha=0).unflatten(0, patches.shape[:2])


@dataclass
class Weights:
    """Weights in the order of the operators' arguments.

    Biases before a norm are not included: the norm cancels them.

    Args:
        lift: `(lifted, channels)`.
        lift_gain: `(lifted,)` of the following norm.
        lift_shift: `(lifted,)`.
        widen: `(own, lifted)`.
        join: `(joined, 2 * own)`, the columns for the patch maximum first.
        join_gain: `(joined,)` of the following norm.
        join_shift: `(joined,)`.
        out: `(width, joined)`.
        out_bias: `(width,)`.
    """

    lift: Tensor
    lift_gain: Tensor
    lift_shift: Tensor
    widen: Tensor
    join: Tensor
    join_gain: Tensor
    join_shift: Tensor
    out: Tensor
    out_bias: Tensor

    @property
    def join_patch(self) -> Tensor:
        """Columns of `join` for the patch maximum, `(joined, own)`."""
        return self.join[:, : len(self.widen)]

    @property
    def join_point(self) -> Tensor:
        """Columns of `join` for a point, `(joined, own)`."""
        return self.join[:, len(self.widen) :]


@dataclass
class Results:
    """Results of the forward pass, in the order in which the operator returns them.

    Args:
        tokens: `(patches, width)`.
        winners: `(patches, width)`, the points that have the maximum.
        patch_max: `(patches, own)`, the maximum after the second layer, without its bias.
        patch_max_winners: `(patches, own)`, the points that have it.
        joined: `(patches * k, joined)`, the output of the third layer, without its bias.
        mean: `(channels,)` of the points.
        covariance: `(channels, channels)` of the points.
        joined_mean: `(joined,)` of those rows.
        joined_variance: `(joined,)`.
    """

    tokens: Tensor
    winners: Tensor
    patch_max: Tensor
    patch_max_winners: Tensor
    joined: Tensor
    mean: Tensor
    covariance: Tensor
    joined_mean: Tensor
    joined_variance: Tensor

    def lifted_statistics(self, lift: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and variance `(lifted,)` after the first layer, without its bias."""
        wide = lift.to(statistics_dtype(lift))
        variance = ((wide @ self.covariance.to(wide)) * wide).sum(dim=1).clamp_min(0)
        return (wide @ self.mean.to(wide)).to(lift.dtype), variance.to(lift.dtype)


class _Patches:
    """Points of all patches, split into parts."""

    def __init__(self, points: Tensor, weights: Weights, eps: list[float]):
        self.patches, self.k, channels = points.shape
        self.rows = points.reshape(-1, channels)  # (patches * k, channels)
        self.weights, (self.lift_eps, self.join_eps) = weights, eps
        numbers = _PART_CPU if points.device.type == "cpu" else _PART
        step = max(1, numbers // (self.k * len(weights.join)))
        self.parts = [slice(a, min(a + step, self.patches)) for a in range(0, self.patches, step)]

    def rows_of(self, part: slice) -> slice:
        return slice(part.start * self.k, part.stop * self.k)

    def fold_lift(self, results: Results) -> None:
        """Fold the first norm into its layer."""
        mean, variance = results.lifted_statistics(self.weights.lift)
        self.deviation = (variance + self.lift_eps).rsqrt()
        self.gain = self.weights.lift_gain * self.deviation
        self.matrix = (self.weights.lift * self.gain.unsqueeze(1)).T.contiguous()  # (channels, lifted)
        self.constant = self.weights.lift_shift - mean * self.gain

    def lifted(self, part: slice) -> Tensor:
        """Compute the rows after the first norm and its ReLU, `(rows of the part, lifted)`."""
        return torch.addmm(self.constant, self.rows[self.rows_of(part)], self.matrix).relu_()


@operator("pooled_patches")
def pooled_patches(points: Tensor, weights: list[Tensor], eps: list[float]) -> list[Tensor]:
    """Compute tokens of patches with batch statistics.

    Args:
        points: `(patches, k, channels)`.
        weights: In the order of `Weights`.
        eps: Epsilons of the two norms.

    Returns:
        Tensors in the order of `Results`.
    """
    own = Weights(*weights)
    patches = _Patches(points, own, eps)
    count = len(patches.rows)
    wide = patches.rows.to(statistics_dtype(points))
    mean = wide.mean(dim=0)
    wide = wide - mean
    covariance = wide.T @ wide / count
    new = points.new_empty
    size, width, joined_width = patches.patches, len(own.out), len(own.join)
    indices = points.new_empty(0, dtype=torch.long).new_empty
    results = Results(
        new(size, width),
        indices(size, width),
        new(size, len(own.widen)),
        indices(size, len(own.widen)),
        new(count, joined_width),
        mean.to(points.dtype),
        covariance.to(points.dtype),
        *(new(joined_width) for _ in range(2)),
    )
    patches.fold_lift(results)
    through = (own.join_point @ own.widen).T.contiguous()  # (lifted, joined)
    total = mean.new_zeros(joined_width)
    squares, guess = torch.zeros_like(total), None
    for part in patches.parts:
        lifted = patches.lifted(part)
        most, results.patch_max_winners[part] = largest((lifted @ own.widen.T).view(-1, patches.k, len(own.widen)))
        results.patch_max[part] = most
        joined = torch.mm(lifted, through, out=results.joined[patches.rows_of(part)])
        joined.view(-1, patches.k, joined_width).add_((most @ own.join_patch.T).unsqueeze(1))
        if guess is None:
            # Squares are summed around a guess of the mean: otherwise a large mean would swamp a small variance.
            guess = joined.mean(dim=0)
        joined = joined - guess
        total += joined.sum(dim=0)
        squares += joined.square_().sum(dim=0)
    mean = total / count
    results.joined_mean.copy_(guess + mean)
    results.joined_variance.copy_((squares / count - mean.square()).clamp_min_(0))
    gain = own.join_gain * (results.joined_variance + patches.join_eps).rsqrt()
    shift = own.join_shift - results.joined_mean * gain
    for part in patches.parts:
        hidden = torch.addcmul(shift, results.joined[patches.rows_of(part)], gain).relu_()
        results.tokens[part], results.winners[part] = largest((hidden @ own.out.T).view(-1, patches.k, width))
    results.tokens += own.out_bias
    return list(vars(results).values())


@torch.library.impl("hf_any3d::pooled_patches", "Meta")
def _result_shapes(points: torch.Tensor, weights: list[torch.Tensor], eps: list[float]) -> list[torch.Tensor]:
    patches, k, channels = points.shape
    own, new = Weights(*weights), points.new_empty
    indices = [new(patches, len(one), dtype=torch.long) for one in (own.out, own.widen)]
    tokens, whole, joined = new(patches, len(own.out)), new(patches, len(own.widen)), len(own.join)
    statistics = [new(channels), new(channels, channels), new(joined), new(joined)]
    return [tokens, indices[0], whole, indices[1], new(patches * k, joined), *statistics]


@operator("pooled_patches_backward")
def pooled_patches_backward(
    gradient: Tensor, points: Tensor, weights: list[Tensor], eps: list[float], saved: list[Tensor]
) -> list[Tensor]:
    """Compute the gradients of `weights` from that of the tokens `(patches, width)`."""
    own, results = Weights(*weights), Results(*saved)
    patches = _Patches(points, own, eps)
    patches.fold_lift(results)
    pooled = PooledGradient(gradient, results.winners, patches.k, patches.parts)
    grad_out, grad_hidden, total, moment = _through_out(patches, results, pooled)
    grad_widen, grad_join, grad_lifted = _through_join(patches, results, grad_hidden, total, moment)
    grad_lift = _through_lift(patches, results, *grad_lifted)
    deviation = (results.joined_variance + patches.join_eps).rsqrt()
    return [*grad_lift, grad_widen, grad_join, moment * deviation, total, grad_out, gradient.sum(dim=0)]


def _through_out(
    patches: _Patches, results: Results, pooled: PooledGradient
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Return gradients of the last weight and, in parts, of the second norm's output; the sum of the latter, and that
    of its product with the norm's centered input.
    """
    own = patches.weights
    gain = own.join_gain * (results.joined_variance + patches.join_eps).rsqrt()
    shift = own.join_shift - results.joined_mean * gain
    grad_out, grad_hidden = torch.zeros_like(own.out), []
    total, moment = torch.zeros_like(gain), torch.zeros_like(gain)
    for number, part in enumerate(patches.parts):
        joined = results.joined[patches.rows_of(part)]
        hidden = torch.addcmul(shift, joined, gain).relu_()
        grad_out += pooled.transposed_times(hidden, number)
        rows = pooled.times(own.out, number)
        torch.ops.aten.threshold_backward.grad_input(rows, hidden, 0, grad_input=rows)  # the ReLU
        total += rows.sum(dim=0)
        moment += torch.sub(joined, results.joined_mean, out=hidden).mul_(rows).sum(dim=0)
        grad_hidden.append(rows)
    return grad_out, grad_hidden, total, moment


def _through_join(
    patches: _Patches, results: Results, grad_hidden: list[Tensor], total: Tensor, moment: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return gradients of the second and third weight, and the sum of those of the first norm's output and their
    product with the points.

    Overwrites the parts in `grad_hidden`.
    """
    own, count = patches.weights, len(patches.rows)
    deviation = (results.joined_variance + patches.join_eps).rsqrt()
    gain = own.join_gain * deviation
    # In training, the statistics depend on every row.
    slope = gain * deviation.square() * moment / -count
    constant = -results.joined_mean * slope - gain * total / count
    through = own.join_point @ own.widen  # (joined, lifted)
    grad_through, grad_shared, grad_lifted = torch.zeros_like(through), [], []
    for number, part in enumerate(patches.parts):
        rows = torch.addcmul(constant, grad_hidden[number], gain, out=grad_hidden[number])
        rows.addcmul_(results.joined[patches.rows_of(part)], slope)
        grad_shared.append(rows.view(-1, patches.k, rows.shape[1]).sum(dim=1))
        grad_through.addmm_(rows.T, patches.lifted(part))
        grad_lifted.append(rows @ through)
        # Nobody reads the part again, and the loop below needs memory.
        grad_hidden[number] = None
    grad_shared = torch.cat(grad_shared)  # (patches, joined)
    grad_join = torch.cat([grad_shared.T @ results.patch_max, grad_through @ own.widen.T], dim=1)
    grad_widen = own.join_point.T @ grad_through
    pooled = PooledGradient(grad_shared @ own.join_patch, results.patch_max_winners, patches.k, patches.parts)
    total = torch.zeros_like(own.lift_gain)
    product = torch.zeros_like(own.lift)
    for number, part in enumerate(patches.parts):
        lifted = patches.lifted(part)
        grad_widen += pooled.transposed_times(lifted, number)
        rows = grad_lifted[number].add_(pooled.times(own.widen, number))
        torch.ops.aten.threshold_backward.grad_input(rows, lifted, 0, grad_input=rows)  # the ReLU
        total += rows.sum(dim=0)
        product.addmm_(rows.T, patches.rows[patches.rows_of(part)])
    return grad_widen, grad_join, (total, product)


def _through_lift(
    patches: _Patches, results: Results, total: Tensor, product: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of the first weight and its norm, whose input is linear in the points."""
    lift = patches.weights.lift
    # Centered only now: the sums over points were of the points as they are.
    product = product - total.outer(results.mean)
    grad_gain = patches.deviation * (lift * product).sum(dim=1)
    spread = (patches.deviation * grad_gain).unsqueeze(1) * (lift @ results.covariance)
    return patches.gain.unsqueeze(1) * (product - spread), grad_gain, total


@torch.library.impl("hf_any3d::pooled_patches_backward", "Meta")
def _gradient_shapes(
    gradient: torch.Tensor,
    points: torch.Tensor,
    weights: list[torch.Tensor],
    eps: list[float],
    results: list[torch.Tensor],
) -> list[torch.Tensor]:
    return list(map(torch.empty_like, weights))


def _keep(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    points, weights, ctx.eps = inputs
    ctx.count = len(weights)
    ctx.save_for_backward(points, *weights, *output)
    ctx.mark_non_differentiable(*output[1:])
    # Otherwise torch would allocate zeros for the gradients of all unused outputs.
    ctx.set_materialize_grads(False)


@without_autocast
def _backward(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    points, *saved = ctx.saved_tensors
    if gradients[0] is None:
        return None, [None] * ctx.count, None
    gradients = pooled_patches_backward(gradients[0], points, saved[: ctx.count], ctx.eps, saved[ctx.count :])
    return None, gradients, None


torch.library.register_autograd("hf_any3d::pooled_patches", _backward, setup_context=_keep)

"""The mini-PointNet in training as one operation.

A patch has far more points than tokens. Layer by layer, each norm and each maximum reads and writes one row for every
point and keeps it for the backward pass. Here

- the statistics behind the first layer follow from the mean and the covariance of the points themselves, so that layer
  and norm become one small product, made anew wherever it is needed;
- no norm stands between the second layer and the third, so the third reads the first through the product of both
  weights, and the second is needed for its maximum only;
- the part of the third layer that reads the maximum is computed once a patch;
- only the rows in front of the second norm are kept;
- a maximum passes a gradient to one point for each patch and channel: its products are sums of few rows.

Numbers and gradients are those of the plain modules up to rounding; statistics are summed in double precision. Both
directions are custom operators, which `torch.compile` takes as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hf_any3d.modeling.pooling_rows import PooledGradient, largest

# Numbers in the widest rows that are worked on at a time: they stay in the core's cache.
_PART_CPU, _PART = 1 << 18, 1 << 27


@dataclass
class Weights:
    """Weights in the order in which operators take them.

    Biases in front of a norm are not among them: the norm takes them out again.

    Args:
        lift: `(lifted, channels)`.
        lift_gain: `(lifted,)` of the norm behind it.
        lift_shift: `(lifted,)`.
        widen: `(own, lifted)`.
        join: `(joined, 2 * own)`, the columns for the whole patch first.
        join_gain: `(joined,)` of the norm behind it.
        join_shift: `(joined,)`.
        out: `(width, joined)`.
        out_bias: `(width,)`.
    """

    lift: torch.Tensor
    lift_gain: torch.Tensor
    lift_shift: torch.Tensor
    widen: torch.Tensor
    join: torch.Tensor
    join_gain: torch.Tensor
    join_shift: torch.Tensor
    out: torch.Tensor
    out_bias: torch.Tensor

    @property
    def for_whole(self) -> torch.Tensor:
        """The part of `join` that reads the whole patch, `(joined, own)`."""
        return self.join[:, : len(self.widen)]

    @property
    def for_points(self) -> torch.Tensor:
        """The part of `join` that reads a point, `(joined, own)`."""
        return self.join[:, len(self.widen) :]


@dataclass
class Results:
    """What the forward pass makes, in the order in which operators return it.

    Args:
        tokens: `(patches, width)`.
        winners: `(patches, width)`, the points that they come from.
        whole: `(patches, own)`, the maximum behind the second layer, without its bias.
        whole_winners: `(patches, own)`.
        joined: `(patches * k, joined)`, the rows behind the third layer, without its bias.
        mean: `(channels,)` of the points.
        covariance: `(channels, channels)` of the points.
        joined_mean: `(joined,)` of those rows.
        joined_variance: `(joined,)`.
    """

    tokens: torch.Tensor
    winners: torch.Tensor
    whole: torch.Tensor
    whole_winners: torch.Tensor
    joined: torch.Tensor
    mean: torch.Tensor
    covariance: torch.Tensor
    joined_mean: torch.Tensor
    joined_variance: torch.Tensor

    def lifted_statistics(self, lift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance `(lifted,)` behind the first layer, without its bias."""
        wide, covariance = lift.double(), self.covariance.double()
        variance = ((wide @ covariance) * wide).sum(dim=1).clamp_min(0)
        return (wide @ self.mean.double()).to(lift.dtype), variance.to(lift.dtype)


class _Patches:
    """The points of all patches, in parts."""

    def __init__(self, points: torch.Tensor, weights: Weights, eps: list[float]):
        self.patches, self.k, channels = points.shape
        self.rows = points.reshape(-1, channels)  # (patches * k, channels)
        self.weights, (self.lift_eps, self.join_eps) = weights, eps
        numbers = _PART_CPU if points.device.type == "cpu" else _PART
        step = max(1, numbers // (self.k * len(weights.join)))
        self.parts = [slice(a, min(a + step, self.patches)) for a in range(0, self.patches, step)]

    def rows_of(self, part: slice) -> slice:
        return slice(part.start * self.k, part.stop * self.k)

    def read_lift(self, results: Results) -> None:
        """Make the first layer and its norm one."""
        mean, variance = results.lifted_statistics(self.weights.lift)
        self.deviation = (variance + self.lift_eps).rsqrt()
        self.gain = self.weights.lift_gain * self.deviation
        self.matrix = (self.weights.lift * self.gain.unsqueeze(1)).T.contiguous()  # (channels, lifted)
        self.constant = self.weights.lift_shift - mean * self.gain

    def lifted(self, part: slice) -> torch.Tensor:
        """The rows behind the first norm and its ReLU, `(rows of the part, lifted)`."""
        return torch.addmm(self.constant, self.rows[self.rows_of(part)], self.matrix).relu_()


@torch.library.custom_op("hf_any3d::pooled_patches", mutates_args=())
def pooled_patches(points: torch.Tensor, weights: list[torch.Tensor], eps: list[float]) -> list[torch.Tensor]:
    """Tokens of patches with batch statistics.

    Args:
        points: `(patches, k, channels)`.
        weights: In the order of `Weights`.
        eps: Of the two norms.

    Returns:
        In the order of `Results`.
    """
    own = Weights(*weights)
    patches = _Patches(points, own, eps)
    count = len(patches.rows)
    mean = patches.rows.double().mean(dim=0)
    wide = patches.rows.double() - mean
    covariance = wide.T @ wide / count
    new = points.new_empty
    size, width, joined_width = patches.patches, len(own.out), len(own.join)
    indices = points.new_empty(0, dtype=torch.long).new_empty
    made = Results(
        new(size, width),
        indices(size, width),
        new(size, len(own.widen)),
        indices(size, len(own.widen)),
        new(count, joined_width),
        mean.to(points.dtype),
        covariance.to(points.dtype),
        *(new(joined_width) for _ in range(2)),
    )
    patches.read_lift(made)
    through = (own.for_points @ own.widen).T.contiguous()  # (lifted, joined)
    total = torch.zeros(joined_width, dtype=torch.float64, device=points.device)
    squares, guess = torch.zeros_like(total), None
    for part in patches.parts:
        lifted = patches.lifted(part)
        most, made.whole_winners[part] = largest((lifted @ own.widen.T).view(-1, patches.k, len(own.widen)))
        made.whole[part] = most
        joined = torch.mm(lifted, through, out=made.joined[patches.rows_of(part)])
        joined.view(-1, patches.k, joined_width).add_((most @ own.for_whole.T).unsqueeze(1))
        if guess is None:
            # Squares are summed around a guess of the mean, lest a small spread drown beside a large mean.
            guess = joined.mean(dim=0)
        joined = joined - guess
        total += joined.sum(dim=0)
        squares += joined.square_().sum(dim=0)
    mean = total / count
    made.joined_mean.copy_(guess + mean)
    made.joined_variance.copy_((squares / count - mean.square()).clamp_min_(0))
    gain = own.join_gain * (made.joined_variance + patches.join_eps).rsqrt()
    shift = own.join_shift - made.joined_mean * gain
    for part in patches.parts:
        hidden = torch.addcmul(shift, made.joined[patches.rows_of(part)], gain).relu_()
        made.tokens[part], made.winners[part] = largest((hidden @ own.out.T).view(-1, patches.k, width))
    made.tokens += own.out_bias
    return list(vars(made).values())


@pooled_patches.register_fake
def _result_shapes(points, weights, eps):
    patches, k, channels = points.shape
    own, new = Weights(*weights), points.new_empty
    indices = [new(patches, len(one), dtype=torch.long) for one in (own.out, own.widen)]
    tokens, whole, joined = new(patches, len(own.out)), new(patches, len(own.widen)), len(own.join)
    statistics = [new(channels), new(channels, channels), new(joined), new(joined)]
    return [tokens, indices[0], whole, indices[1], new(patches * k, joined), *statistics]


@torch.library.custom_op("hf_any3d::pooled_patches_backward", mutates_args=())
def pooled_patches_backward(
    gradient: torch.Tensor,
    points: torch.Tensor,
    weights: list[torch.Tensor],
    eps: list[float],
    results: list[torch.Tensor],
) -> list[torch.Tensor]:
    """Gradients of `weights`, from that of the tokens `(patches, width)`."""
    own, made = Weights(*weights), Results(*results)
    patches = _Patches(points, own, eps)
    patches.read_lift(made)
    behind = PooledGradient(gradient, made.winners, patches.k, patches.parts)
    of_out, of_hidden, total, moment = _through_out(patches, made, behind)
    of_widen, of_join, of_lifted = _through_join(patches, made, of_hidden, total, moment)
    of_lift = _through_lift(patches, made, *of_lifted)
    deviation = (made.joined_variance + patches.join_eps).rsqrt()
    return [*of_lift, of_widen, of_join, moment * deviation, total, of_out, gradient.sum(dim=0)]


def _through_out(
    patches: _Patches, made: Results, behind: PooledGradient
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Gradients of the last weight and, in parts, behind the second norm; their sum, and that of their product with
    the rows in front of it, around the mean.
    """
    own = patches.weights
    gain = own.join_gain * (made.joined_variance + patches.join_eps).rsqrt()
    shift = own.join_shift - made.joined_mean * gain
    of_out, of_hidden = torch.zeros_like(own.out), []
    total, moment = torch.zeros_like(gain), torch.zeros_like(gain)
    for number, part in enumerate(patches.parts):
        joined = made.joined[patches.rows_of(part)]
        hidden = torch.addcmul(shift, joined, gain).relu_()
        of_out += behind.transposed_times(hidden, number)
        rows = behind.times(own.out, number)
        torch.ops.aten.threshold_backward.grad_input(rows, hidden, 0, grad_input=rows)  # the ReLU
        total += rows.sum(dim=0)
        moment += torch.sub(joined, made.joined_mean, out=hidden).mul_(rows).sum(dim=0)
        of_hidden.append(rows)
    return of_out, of_hidden, total, moment


def _through_join(
    patches: _Patches, made: Results, of_hidden: list[torch.Tensor], total: torch.Tensor, moment: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Gradients of the second and third weight; of the rows behind the first norm their sum and product with points.

    The parts in `of_hidden` are used up.
    """
    own, count = patches.weights, len(patches.rows)
    deviation = (made.joined_variance + patches.join_eps).rsqrt()
    gain = own.join_gain * deviation
    # In training the statistics move with every row.
    slope = gain * deviation.square() * moment / -count
    constant = -made.joined_mean * slope - gain * total / count
    through = own.for_points @ own.widen  # (joined, lifted)
    of_through, of_shared, of_lifted = torch.zeros_like(through), [], []
    for number, part in enumerate(patches.parts):
        rows = torch.addcmul(constant, of_hidden[number], gain, out=of_hidden[number])
        rows.addcmul_(made.joined[patches.rows_of(part)], slope)
        of_shared.append(rows.view(-1, patches.k, rows.shape[1]).sum(dim=1))
        of_through.addmm_(rows.T, patches.lifted(part))
        of_lifted.append(rows @ through)
        of_hidden[number] = None
    of_shared = torch.cat(of_shared)  # (patches, joined)
    of_join = torch.cat([of_shared.T @ made.whole, of_through @ own.widen.T], dim=1)
    of_widen = own.for_points.T @ of_through
    behind = PooledGradient(of_shared @ own.for_whole, made.whole_winners, patches.k, patches.parts)
    total = torch.zeros_like(own.lift_gain)
    product = torch.zeros_like(own.lift)
    for number, part in enumerate(patches.parts):
        lifted = patches.lifted(part)
        of_widen += behind.transposed_times(lifted, number)
        rows = of_lifted[number].add_(behind.times(own.widen, number))
        torch.ops.aten.threshold_backward.grad_input(rows, lifted, 0, grad_input=rows)  # the ReLU
        total += rows.sum(dim=0)
        product.addmm_(rows.T, patches.rows[patches.rows_of(part)])
    return of_widen, of_join, (total, product)


def _through_lift(
    patches: _Patches, made: Results, total: torch.Tensor, product: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the first weight and its norm: the rows between are linear in the points."""
    lift = patches.weights.lift
    product = product - total.outer(made.mean)
    of_gain = patches.deviation * (lift * product).sum(dim=1)
    spread = (patches.deviation * of_gain).unsqueeze(1) * (lift @ made.covariance)
    return patches.gain.unsqueeze(1) * (product - spread), of_gain, total


@pooled_patches_backward.register_fake
def _gradient_shapes(gradient, points, weights, eps, results):
    return list(map(torch.empty_like, weights))


def _keep(ctx: Any, inputs: tuple, output: list[torch.Tensor]) -> None:
    points, weights, ctx.eps = inputs
    ctx.count = len(weights)
    ctx.save_for_backward(points, *weights, *output)
    ctx.mark_non_differentiable(*output[1:])
    # Otherwise zeros as large as all that is kept would be made for the outputs that no gradient reaches.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradients: list[torch.Tensor]) -> tuple[Any, ...]:
    points, *saved = ctx.saved_tensors
    if gradients[0] is None:
        return None, [None] * ctx.count, None
    found = pooled_patches_backward(gradients[0], points, saved[: ctx.count], ctx.eps, saved[ctx.count :])
    return None, found, None


pooled_patches.register_autograd(_backward, setup_context=_keep)

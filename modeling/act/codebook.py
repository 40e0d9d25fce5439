"""A codebook that tokens choose from: Gumbel softmax in training, plain look-up where nothing is learned."""

from __future__ import annotations

import math

import torch
from torch import nn


class Codebook(nn.Module):
    """Vectors of discrete codes.

    Args:
        num_codes: How many.
        width: Channels of each.
    """

    def __init__(self, num_codes: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_codes, width))
        nn.init.normal_(self.weight)

    def forward(
        self, logits: torch.Tensor, temperature: float = 1.0, hard: bool = False, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of the codes that logits choose.

        Args:
            logits: `(batch, groups, codes)`.
            temperature: What scores are divided by before the softmax.
            hard: Take the likeliest code alone; its gradient is that of the softmax (straight-through).
            noise: Gumbel noise, broadcastable to the logits, or None.

        Returns:
            `(batch, groups, width)`, and the numbers of the likeliest codes `(batch, groups)`.
        """
        # Half precision has too few values for noise and would make different scores equal.
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = scores if noise is None else scores + noise
        token_ids = scores.detach().argmax(dim=-1)
        learns = torch.is_grad_enabled() and (logits.requires_grad or self.weight.requires_grad)
        if hard and not learns:
            return nn.functional.embedding(token_ids, self.weight), token_ids
        shares = (scores / temperature).softmax(dim=-1)
        if hard:
            shares = _StraightThrough.apply(shares, token_ids)
        return shares.to(self.weight.dtype) @ self.weight, token_ids


class _StraightThrough(torch.autograd.Function):
    """One for the chosen code, zero for the others, with the gradient of the shares."""

    @staticmethod
    def forward(ctx, shares: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(shares).scatter_(-1, token_ids.unsqueeze(-1), 1.0)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def gumbel_noise(like: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw standard Gumbel noise in the shape and on the device of a tensor, in float32 or, for float64, in that.

    Half precision would cut the distribution off: uniform numbers just below 1, which make the largest noise, do not
    exist there.

    Args:
        like: The logits.
        generator: Source of randomness; torch's own by default.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    # Not from exponential_, which on a CPU takes ten times as long.
    uniform = torch.empty_like(like, dtype=dtype, requires_grad=False).uniform_(generator=generator)
    return uniform.clamp_min_(torch.finfo(dtype).tiny).log_().neg_().log_().neg_()


def uniform_code_loss(logits: torch.Tensor) -> torch.Tensor:
    """How far the codes of a cloud are from being used evenly: KL(uniform || mean posterior), mean over the batch.

    Args:
        logits: `(batch, groups, codes)`.

    Returns:
        A scalar; 0 where every code is equally likely in every cloud.

    Source: ACT (arXiv 2212.08320); the direction of the divergence is that of its released program.
    """
    posterior = _MeanPosterior.apply(logits)  # (batch, codes)
    return -(posterior.log().mean(dim=-1) + math.log(logits.shape[-1])).mean()


class _MeanPosterior(torch.autograd.Function):
    """`softmax(logits).mean(dim=1)`, with the softmax made anew in the backward pass instead of kept."""

    @staticmethod
    def forward(ctx, logits: torch.Tensor) -> torch.Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            total = logits.float().logsumexp(dim=-1, keepdim=True)  # (batch, groups, 1)
            ctx.save_for_backward(logits, total)
            return (logits - total).exp_().mean(dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        logits, total = ctx.saved_tensors
        posterior = (logits - total).exp_()
        inner = posterior @ gradient.unsqueeze(-1)  # (batch, groups, 1)
        return posterior.mul_((gradient.unsqueeze(1) - inner) / logits.shape[1]).to(logits.dtype)

"""Mean softmax over the tokens of a cloud."""

from typing import Any

import torch
from torch import Tensor

from hf_any3d.modeling.kernels.dispatch import without_autocast


def mean_posterior_plain(logits: Tensor) -> Tensor:
    """Compute `softmax(logits).mean(dim=1)` in float32 or better: `(batch, tokens, codes)` to `(batch, codes)`."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1).mean(dim=1)


class _MeanPosterior(torch.autograd.Function):
    """Compute `mean_posterior_plain`; saves only its input, and recomputes the softmax in the backward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = wide.logsumexp(dim=-1, keepdim=True)  # (batch, tokens, 1)
        ctx.save_for_backward(logits, total)
        return (wide - total).exp_().mean(dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        logits, total = ctx.saved_tensors
        posterior = (logits - total).exp_()
        inner = posterior @ gradient.unsqueeze(-1)  # (batch, tokens, 1)
        return posterior.mul_((gradient.unsqueeze(1) - inner) / logits.shape[1]).to(logits.dtype)


mean_posterior_fused = _MeanPosterior.apply

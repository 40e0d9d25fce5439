"""Codebook of discrete tokens: Gumbel softmax in training, plain look-up without gradients."""

import math

import torch
from torch import nn

from hf_any3d.modeling import kernels


def gumbel_temperature(iteration: int, steps: int = 100_000, start: float = 1.0, end: float = 0.0625) -> float:
    """Return the temperature of the Gumbel softmax: half a cosine from `start` to `end`, then `end`.

    Args:
        iteration: Optimiser steps so far.
        steps: Length of the descent in optimiser steps; 0 for `end` from the start.
        start: First value.
        end: Last value.

    Raises:
        ValueError: If a number is negative, or `end` is 0.

    Source: ACT (arXiv 2212.08320), Sec. 3, with the lengths of its released program.
    """
    _not_negative(iteration=iteration, steps=steps)
    if not (start > 0 and end > 0):
        raise ValueError(f"start={start}, end={end}; expected temperatures above 0")
    return _half_cosine(iteration, steps, start, end)


def kl_weight(iteration: int, delay: int = 10_000, steps: int = 100_000, end: float = 0.1) -> float:
    """Return the weight of the KL term: 0 during `delay`, half a cosine up to `end`, then `end`.

    Args:
        iteration: Optimiser steps so far.
        delay: Optimiser steps at 0.
        steps: Length of the ascent in optimiser steps; 0 for `end` right after the delay.
        end: Last value.

    Raises:
        ValueError: If a number is negative.

    Source: the released program of ACT (arXiv 2212.08320).
    """
    _not_negative(iteration=iteration, delay=delay, steps=steps, end=end)
    return 0.0 if iteration < delay else _half_cosine(iteration - delay, steps, 0.0, end)


def _half_cosine(iteration: int, steps: int, start: float, end: float) -> float:
    if iteration >= steps:
        return end
    return end + (start - end) * (1 + math.cos(math.pi * iteration / steps)) / 2


def _not_negative(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value >= 0:
            raise ValueError(f"{name}={value}; expected at least 0")


class Codebook(nn.Module):
    """Vectors of discrete codes.

    Args:
        num_codes: Number of codes.
        width: Channels of a code.
    """

    def __init__(self, num_codes: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_codes, width))
        nn.init.normal_(self.weight)

    def forward(
        self, logits: torch.Tensor, temperature: float = 1.0, hard: bool = False, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Look up the codes that the logits select.

        Args:
            logits: `(batch, groups, codes)`.
            temperature: Divisor of the scores before the softmax.
            hard: Use only the most likely code, with the gradient of the softmax (straight-through).
            noise: Gumbel noise, broadcastable to the logits, or None.

        Returns:
            Vectors `(batch, groups, width)`, and the indices of the most likely codes `(batch, groups)`.
        """
        # Half precision is too coarse for the noise and would make different scores equal.
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = scores if noise is None else scores + noise
        token_ids = scores.detach().argmax(dim=-1)
        needs_gradient = torch.is_grad_enabled() and (logits.requires_grad or self.weight.requires_grad)
        if hard and not needs_gradient:
            return nn.functional.embedding(token_ids, self.weight), token_ids
        probabilities = (scores / temperature).softmax(dim=-1)
        if hard:
            # The value of the one-hot vector, the gradient of the probabilities.
            one_hot = torch.zeros_like(probabilities).scatter_(-1, token_ids.unsqueeze(-1), 1.0)
            probabilities = one_hot + (probabilities - probabilities.detach())
        return probabilities.to(self.weight.dtype) @ self.weight, token_ids


def gumbel_noise(like: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw standard Gumbel noise with the shape and device of a tensor, in float32, or float64 for a float64 tensor.

    Half precision would truncate the distribution: it cannot represent the uniform numbers just below 1, which give
    the largest noise.

    Args:
        like: The logits.
        generator: Source of randomness; torch's own by default.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    # exponential_ takes ten times as long on a CPU.
    # Contiguous, so that the noise of a seed does not depend on the memory layout of the logits.
    uniform = torch.empty(like.shape, dtype=dtype, device=like.device).uniform_(generator=generator)
    return uniform.clamp_min_(torch.finfo(dtype).tiny).log_().neg_().log_().neg_()


def uniform_code_loss(logits: torch.Tensor) -> torch.Tensor:
    """Measure how unevenly a cloud uses the codes: KL(uniform || mean posterior), averaged over the batch.

    Args:
        logits: `(batch, groups, codes)`.

    Returns:
        A scalar; 0 if all codes are equally likely in every cloud.

    Source: ACT (arXiv 2212.08320); the direction of the divergence is that of its released program.
    """
    posterior = kernels.mean_posterior(logits)  # (batch, codes)
    return -(posterior.log().mean(dim=-1) + math.log(logits.shape[-1])).mean()

"""How far a student's tokens are from its teacher's, each loss for itself.

All take `predictions` and `targets` of shape `(batch, tokens, channels)` and give the mean over clouds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def cosine_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One minus the cosine of each token with its target (ACT, Sec. 3.3): direction counts, length does not."""
    return 1 - nn.functional.cosine_similarity(predictions, targets, dim=-1).mean()


def l2_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean squared difference."""
    return nn.functional.mse_loss(predictions, targets)


def smooth_l1_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean of half the squared difference below 1 and of the difference less a half above."""
    return nn.functional.smooth_l1_loss(predictions, targets)


def contrastive_loss(predictions: torch.Tensor, targets: torch.Tensor, temperature: float = 0.07) -> torch.Tensor:
    """Tell a token's target from all other predictions and targets of its cloud (NT-Xent, SimCLR, Eq. 1).

    Both sides choose: predictions among the rest for their targets, targets among the rest for their predictions.
    Divided by the number of tokens, as the released program has it.

    Args:
        predictions: `(batch, tokens, channels)`.
        targets: `(batch, tokens, channels)`.
        temperature: What cosines are divided by.
    """
    batch, tokens, _ = predictions.shape
    both = nn.functional.normalize(torch.cat([predictions, targets], dim=1), dim=-1)  # (batch, 2 * tokens, channels)
    logits = both @ both.transpose(1, 2) / temperature  # (batch, 2 * tokens, 2 * tokens)
    itself = torch.eye(2 * tokens, dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(itself, -torch.inf)
    partner = torch.arange(2 * tokens, device=logits.device).roll(tokens).repeat(batch)
    return nn.functional.cross_entropy(logits.flatten(0, 1), partner) / tokens


def barlow_loss(predictions: torch.Tensor, targets: torch.Tensor, off_diagonal: float = 5e-3) -> torch.Tensor:
    """Make equal channels of both sides agree over a cloud's tokens and unequal ones not (Barlow Twins, Eq. 1 and 2).

    Divided by the number of tokens, as the released program has it.

    Args:
        predictions: `(batch, tokens, channels)`.
        targets: `(batch, tokens, channels)`.
        off_diagonal: Weight of the correlations between unequal channels.

    Raises:
        ValueError: If there are fewer than two tokens, over which no correlation is defined.
    """
    tokens = predictions.shape[1]
    if tokens < 2:
        raise ValueError(
            f"the Barlow loss correlates channels over the hidden patches; expected at least 2, not {tokens}"
        )
    first, second = _standardized(predictions), _standardized(targets)
    diagonal = (first * second).mean(dim=1)  # (batch, channels)
    # The squares of all correlations add up to a product of two tables of tokens, which are fewer than channels.
    tables = (first @ first.transpose(1, 2)) * (second @ second.transpose(1, 2))  # (batch, tokens, tokens)
    squares = tables.sum(dim=(1, 2)) / tokens**2
    unequal = squares - diagonal.square().sum(dim=1)
    return ((diagonal - 1).square().sum(dim=1) + off_diagonal * unequal).mean() / tokens


def _standardized(tokens: torch.Tensor) -> torch.Tensor:
    """Every channel over a cloud's tokens with mean 0 and variance 1; a constant channel is 0."""
    centered = tokens - tokens.mean(dim=1, keepdim=True)
    variance = centered.square().sum(dim=1, keepdim=True) / (tokens.shape[1] - 1)
    # Far below any variance that says something; without it a constant channel has no gradient.
    return centered * torch.rsqrt(variance + 1e-12)


# A new loss is one function and one line here.
DISTILLATION_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cosine": cosine_loss,
    "l2": l2_loss,
    "smooth_l1": smooth_l1_loss,
    "contrastive": contrastive_loss,
    "barlow": barlow_loss,
}

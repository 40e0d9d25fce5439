"""Distillation losses between a student's and its teacher's tokens.

All take `predictions` and `targets` of shape `(batch, tokens, channels)` and return the mean over clouds.
"""

from collections.abc import Callable

import torch
from torch import nn


def cosine_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One minus the mean cosine similarity of tokens and targets (ACT, Sec. 3.3)."""
    return 1 - nn.functional.cosine_similarity(predictions, targets, dim=-1).mean()


def contrastive_loss(predictions: torch.Tensor, targets: torch.Tensor, temperature: float = 0.07) -> torch.Tensor:
    """Identify a token's target among all other predictions and targets of its cloud (NT-Xent, SimCLR, Eq. 1).

    The loss is symmetric in predictions and targets, and divided by the number of tokens as in the released program.
    """
    batch, tokens, _ = predictions.shape
    both = nn.functional.normalize(torch.cat([predictions, targets], dim=1), dim=-1)  # (batch, 2 * tokens, channels)
    logits = both @ both.transpose(1, 2) / temperature  # (batch, 2 * tokens, 2 * tokens)
    itself = torch.eye(2 * tokens, dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(itself, -torch.inf)
    # A prediction's partner is the target with its number, half the sequence away, and the other way round.
    partner = torch.arange(2 * tokens, device=logits.device).roll(tokens).repeat(batch)
    return nn.functional.cross_entropy(logits.flatten(0, 1), partner) / tokens


def barlow_loss(predictions: torch.Tensor, targets: torch.Tensor, off_diagonal: float = 5e-3) -> torch.Tensor:
    """Correlate equal channels over a cloud's tokens and decorrelate the others (Barlow Twins, Eq. 1 and 2).

    The loss is divided by the number of tokens, as in the released program. `off_diagonal` weighs the correlations
    between different channels.
    """
    tokens = predictions.shape[1]
    first = _standardized(predictions)
    second = _standardized(targets)
    diagonal = (first * second).mean(dim=1)  # (batch, channels)
    # The sum of all squared correlations equals that of a product of two Gram matrices of the tokens, which are fewer
    # than the channels.
    grams = (first @ first.transpose(1, 2)) * (second @ second.transpose(1, 2))  # (batch, tokens, tokens)
    # Each correlation is a mean over tokens, and it is squared.
    squares = grams.sum(dim=(1, 2)) / tokens**2
    different = squares - diagonal.square().sum(dim=1)
    return ((diagonal - 1).square().sum(dim=1) + off_diagonal * different).mean() / tokens


def _standardized(tokens: torch.Tensor) -> torch.Tensor:
    """Normalize every channel over a cloud's tokens to mean 0 and variance 1; a constant channel becomes 0."""
    centered = tokens - tokens.mean(dim=1, keepdim=True)
    variance = centered.square().sum(dim=1, keepdim=True) / (tokens.shape[1] - 1)
    # Far below any relevant variance; without it the gradient of a constant channel is NaN.
    return centered * torch.rsqrt(variance + 1e-12)


# To add a loss, write a function and register it here.
DISTILLATION_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cosine": cosine_loss,
    "l2": nn.functional.mse_loss,
    "smooth_l1": nn.functional.smooth_l1_loss,
    "contrastive": contrastive_loss,
    "barlow": barlow_loss,
}

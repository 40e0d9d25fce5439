"""What every tokenizer of point clouds shares: its output, its checks, the norm behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hf_any3d.modeling.any2point.configuration_any2point import Any2PointConfig


@dataclass
class PointTokens:
    """Tokens of a batch of clouds.

    Args:
        tokens: `(batch, tokens, hidden)`.
        centers: `(batch, tokens, 3)`, in the units of the input.
        index: `(batch, tokens)`, which input point each centre is.
    """

    tokens: torch.Tensor
    centers: torch.Tensor
    index: torch.Tensor


class Tokenizer(nn.Module):
    """Turns points into tokens with centres; a subclass says how, in `tokenize`.

    Args:
        config: The model's configuration.
        hidden_size: Channels of a token.
    """

    def __init__(self, config: Any2PointConfig, hidden_size: int):
        super().__init__()
        self.config = config
        # Max-pooled tokens share a large mean, beside which they hardly differ; an encoder expects them spread around
        # zero like words or patches. A norm over tokens takes that mean out, a norm over channels would not.
        self.token_norm = None if config.token_scale is None else nn.BatchNorm1d(hidden_size)

    def tokenize(self, points: torch.Tensor) -> PointTokens:
        """Tokens of checked points `(batch, points, in_channels)`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it makes tokens")

    def forward(self, points: torch.Tensor) -> PointTokens:
        """Check points `(batch, points, in_channels)` and tokenize them.

        Raises:
            ValueError: If the shape is another or a cloud has fewer points than `config.min_points`.
        """
        check_points(points, self.config)
        made = self.tokenize(points)
        if self.token_norm is None:
            return made
        tokens = self.token_norm(made.tokens.flatten(0, 1)).view_as(made.tokens)
        return PointTokens(tokens, made.centers, made.index)


def check_points(points: torch.Tensor, config: Any2PointConfig) -> None:
    """Refuse points that a tokenizer cannot read.

    Raises:
        ValueError: If the shape is not `(batch, points, in_channels)` or the points are too few.
    """
    if points.ndim != 3 or points.shape[-1] != config.in_channels:
        raise ValueError(
            f"points has shape {tuple(points.shape)}; expected (batch, points, {config.in_channels}): "
            "the last axis is config.in_channels"
        )
    if points.shape[1] < config.min_points:
        raise ValueError(
            f"a cloud has {points.shape[1]} points; this model needs at least {config.min_points} "
            f"(num_tokens={config.num_tokens}, {config.num_stages} stages, k={config.tokenizer_neighbors})"
        )

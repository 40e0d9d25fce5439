"""What every tokenizer of point clouds shares: its output, its checks, the norm behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hf_any3d.modeling.any2point.configuration_any2point import Any2PointConfig


@dataclass
class PointLevel:
    """What a tokenizer makes of points on its way to tokens.

    Args:
        features: `(batch, places, width)`.
        centers: `(batch, places, 3)`, in the units of the input; None where the places are the input points.
    """

    features: torch.Tensor
    centers: torch.Tensor | None = None


@dataclass
class PointTokens:
    """Tokens of a batch of clouds.

    Args:
        tokens: `(batch, tokens, hidden)`.
        centers: `(batch, tokens, 3)`, in the units of the input.
        index: `(batch, tokens)`, which input point each centre is.
        levels: What came before the tokens, fine to coarse; empty unless it was asked for.
    """

    tokens: torch.Tensor
    centers: torch.Tensor
    index: torch.Tensor
    levels: tuple[PointLevel, ...] = ()


class Tokenizer(nn.Module):
    """Turns points into tokens with centres; a subclass says how, in `tokenize`.

    Args:
        config: The model's configuration.
        hidden_size: Channels of a token.

    Attributes:
        level_widths: Channels of each of `PointTokens.levels`.
    """

    level_widths: tuple[int, ...] = ()

    def __init__(self, config: Any2PointConfig, hidden_size: int):
        super().__init__()
        self.config = config
        # Max-pooled tokens share a large mean, beside which they hardly differ; an encoder expects them spread around
        # zero like words or patches. A norm over tokens takes that mean out, a norm over channels would not.
        self.token_norm = None if config.token_scale is None else nn.BatchNorm1d(hidden_size)

    def tokenize(self, points: torch.Tensor, with_levels: bool) -> PointTokens:
        """Tokens of checked points `(batch, points, in_channels)`, with `levels` where they are asked for."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it makes tokens")

    def forward(self, points: torch.Tensor, with_levels: bool = False) -> PointTokens:
        """Check points `(batch, points, in_channels)` and tokenize them.

        Args:
            points: xyz first.
            with_levels: Give what came before the tokens, too.

        Raises:
            ValueError: If the shape is another or a cloud has fewer points than `config.min_points`.
        """
        check_points(points, self.config)
        made = self.tokenize(points, with_levels)
        if self.token_norm is not None:
            made.tokens = self.token_norm(made.tokens.flatten(0, 1)).view_as(made.tokens)
        return made


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

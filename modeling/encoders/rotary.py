"""Rotary positions at continuous coordinates, and rules to combine the views.

A rotary encoder has no table: it rotates each pair of channels by position times frequency, which is defined for any
real position. A token has one coordinate per view; these rules combine them into one rotation:

- "split_frequencies" (default): each frequency belongs to one view, in turn, as 2D rotary encoders treat the two axes
  of an image.
- "split_heads": each head (with the queries that share its keys, in grouped attention) belongs to one view, in turn.
- "mean_angle": the mean coordinate, a projection onto one direction, so that what distinguishes the views is lost.
- "first_view": only the first view, as a lower bound.
"""

from __future__ import annotations

import torch


class HeadRotation:
    """Cosines or sines `(batch, key heads, tokens, channels)`, for layers that broadcast one tensor over the heads."""

    def __init__(self, values: torch.Tensor):
        self.values = values
        self.shape = values.shape

    def unsqueeze(self, dim: int) -> HeadRotation:
        """Return itself: the axis of heads exists already."""
        return self

    def __rmul__(self, states: torch.Tensor) -> torch.Tensor:
        # Grouped attention has several query heads for each key head, which share its rotation.
        groups = states.shape[1] // self.values.shape[1]
        return states * self.values.repeat_interleave(groups, dim=1)


def combine_views(angles: torch.Tensor, rule: str, key_heads: int) -> torch.Tensor:
    """Combine angles `(batch, views, tokens, axes, frequencies)` into `(batch, 1 or key heads, tokens, …)`."""
    views = angles.shape[1]
    frequencies = angles.shape[-1]
    if rule == "mean_angle":
        return angles.mean(dim=1, keepdim=True)
    if rule == "first_view":
        return angles[:, :1]
    shares, what = (key_heads, "key heads") if rule == "split_heads" else (frequencies, "frequencies")
    if shares < views:
        raise ValueError(
            f"rotary_views={rule!r}: the encoder has {shares} {what} for num_views={views}; "
            "use fewer views, or another rule"
        )
    # Deal heads or frequencies out to the views in turn: 0, 1, 2, 0, 1, 2, …
    owner = torch.arange(shares, device=angles.device) % views
    if rule == "split_heads":
        return angles[:, owner]
    # Of each frequency, the angle in the view that owns it.
    return angles.gather(1, owner.expand(angles.shape[0], 1, *angles.shape[2:4], -1))

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

from collections.abc import Iterator
from typing import Any

import torch

from hf_any3d.modeling.encoders.positions import LayerPass
from hf_any3d.modeling.kernels.dispatch import autocast_disabled


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


@torch.no_grad()
def rotation(
    call: LayerPass, coordinates: torch.Tensor, frequencies: torch.Tensor, scaling: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute cosines and sines, `(batch, 1 or key heads, tokens, 2 * axes * frequencies)` each, in the layers' dtype.

    Coordinates are `(batch, views, tokens, axes)`, frequencies `(frequencies,)` in radians per unit of them. Some
    encoders for long texts scale both results.
    """
    config = call.encoder.config
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    # Angles reach hundreds of radians, where bfloat16 has steps of a radian or more.
    with autocast_disabled(coordinates.device):
        # (batch, views, tokens, axes, frequencies)
        angles = coordinates.float().unsqueeze(-1) * frequencies.float()
        angles = combine_views(angles, call.rotary_views, key_heads).flatten(3)
        # transformers rotates channel n with channel n + half, both by the same angle.
        angles = torch.cat([angles, angles], dim=-1)
        dtype = call.hidden_states.dtype
        return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


def rotary_line_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    """Yield the keyword arguments of each layer of a text encoder with rotary positions.

    A sliding window over the order of the tokens, which is arbitrary in a cloud, is refused.
    """
    config = call.encoder.config
    tokens = call.hidden_states.shape[1]
    rotary = call.encoder.rotary_emb
    window = getattr(config, "sliding_window", None)
    if window is not None and window < tokens and "flash" in (config._attn_implementation or ""):
        raise ValueError(f"a sliding window of {window} tokens is less than a cloud; expected 'sdpa' or 'eager'")
    rotations: dict[str, tuple] = {}
    for number in range(len(call.layers)):
        # Encoders with local and global layers have frequencies for each kind of layer.
        kind = config.layer_types[number] if hasattr(rotary, "layer_types") else ""
        if kind not in rotations:
            prefix = f"{kind}_" if kind else ""
            scaling = getattr(rotary, f"{prefix}attention_scaling", 1.0)
            pair = rotation(call, call.places.entry, getattr(rotary, f"{prefix}inv_freq"), scaling)
            # With one rotation for all heads, layers get plain tensors, which they broadcast.
            is_shared = pair[0].shape[1] == 1
            rotations[kind] = tuple(part.squeeze(1) if is_shared else HeadRotation(part) for part in pair)
        yield {"attention_mask": call.mask, "is_causal": False, "position_embeddings": rotations[kind]}

"""Convolutional positions at continuous places: an encoder's own convolution, run along the line of every view.

Speech encoders such as wav2vec 2.0 learned no table: a wide convolution over the neighbouring frames tells where a
frame is. Here a token's neighbours are those beside it on the line. Tokens are spread linearly onto the whole places
of the line, convolved by the encoder's own weights, and read back at their places: continuous, and equal to the
encoder's own positions where tokens stand at whole places one by one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from hf_any3d.modeling.encoders.token_places import TokenPlaces


def convolve_on_line(
    tokens: torch.Tensor, places: TokenPlaces, convolution: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Positions of tokens `(batch, tokens, hidden)`, mean over the views, in the same shape.

    Args:
        tokens: The point tokens, without the class token.
        places: Where they are, the class token first.
        convolution: From `(batch, length, hidden)` to the same shape.
    """
    whole = torch.arange(places.columns, device=tokens.device)
    total = 0
    for place in places.entry[:, :, 1:].unbind(dim=1):  # (batch, tokens, 1)
        # Share of each whole place in a token, (batch, tokens, length): at most two neighbours, summing to one.
        share = (1 - (place.clamp(0, places.columns - 1) - whole).abs()).clamp_min(0).to(tokens.dtype)
        # Several tokens on one place are averaged; a place that a token only touches keeps its share.
        load = share.sum(dim=1).clamp_min(1).unsqueeze(-1)
        line = share.transpose(1, 2) @ tokens / load
        total = total + share @ convolution(line)
    return total / places.entry.shape[1]

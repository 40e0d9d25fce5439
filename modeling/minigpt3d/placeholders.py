"""Places for point clouds in token ids."""

from __future__ import annotations

import torch
from torch import nn


def fill_places(
    input_ids: torch.Tensor, point_features: torch.Tensor | None, embed: nn.Module, point_token_id: int
) -> torch.Tensor:
    """Embed tokens, with point features where clouds have their places.

    Args:
        input_ids: `(batch, tokens)`.
        point_features: `(clouds, num_query_tokens, hidden)`, in the order of the places; None where there are none.
        embed: The language model's embeddings, which need no row for the place holder.
        point_token_id: The place holder.

    Returns:
        `(batch, tokens, hidden)`.

    Raises:
        ValueError: If there are more or fewer features than places.
    """
    places = input_ids == point_token_id
    embedded = embed(input_ids.masked_fill(places, 0))
    if point_features is None and input_ids.shape[1] == 1:  # a step of generation, which need not wait for a count
        return embedded
    wanted, given = int(places.sum()), 0 if point_features is None else point_features.shape[:2].numel()
    if wanted != given:
        raise ValueError(
            f"input_ids has {wanted} places for point tokens (id {point_token_id}); expected {given}, "
            "as many as the clouds have"
        )
    if not given:
        return embedded
    point_features = point_features.to(embedded.device, embedded.dtype)
    return embedded.masked_scatter(places.unsqueeze(-1), point_features)


def clouds_of_samples(input_ids: torch.Tensor, num_query_tokens: int, point_token_id: int) -> list[int]:
    """How many clouds stand in each of `(batch, tokens)`."""
    return ((input_ids == point_token_id).sum(dim=1) // num_query_tokens).tolist()


def repeat_by_sample(
    input_ids: torch.Tensor, point_features: torch.Tensor, times: int, point_token_id: int
) -> torch.Tensor:
    """Repeat the clouds `(clouds, num_query_tokens, hidden)` of each sample as its rows will be repeated."""
    counts = clouds_of_samples(input_ids, point_features.shape[1], point_token_id)
    return torch.cat([clouds.repeat(times, 1, 1) for clouds in point_features.split(counts)])


def clouds_still_to_read(
    input_ids: torch.Tensor, read_now: torch.Tensor, point_features: torch.Tensor, point_token_id: int
) -> torch.Tensor | None:
    """Leave out the clouds that a cache holds already: in a conversation, those of earlier turns.

    Args:
        input_ids: `(batch, tokens)` of the whole conversation.
        read_now: `(batch, last tokens)`, what the cache does not hold.
        point_features: `(clouds, num_query_tokens, hidden)` of the whole conversation, or of `read_now` alone.
        point_token_id: The place holder.

    Returns:
        Those of `read_now`; None where it has no place for any.

    Raises:
        ValueError: If the conversation has more or fewer places than there are clouds.
    """
    count = point_features.shape[1]
    now = clouds_of_samples(read_now, count, point_token_id)
    if sum(now) == len(point_features):
        return point_features
    ever = clouds_of_samples(input_ids, count, point_token_id)
    if sum(ever) != len(point_features):
        raise ValueError(
            f"input_ids has {sum(ever) * count} places for point tokens (id {point_token_id}); expected "
            f"{len(point_features) * count}, as many as the clouds have"
        )
    if sum(now) == 0:
        return None
    samples = point_features.split(ever)
    return torch.cat([clouds[len(clouds) - new :] for clouds, new in zip(samples, now, strict=True)])

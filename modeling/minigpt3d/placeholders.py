"""Tokens of clouds at their placeholders among words: fill them, repeat them for beams, leave out those in a cache."""

import torch
from torch import nn

from hf_any3d.modeling.deferred_errors import refuse_later


def fill_placeholders(
    input_ids: torch.Tensor, point_features: torch.Tensor | None, embed: nn.Module, point_token_id: int
) -> torch.Tensor:
    """Embed tokens, with point features in place of the placeholders.

    Args:
        input_ids: `(batch, tokens)`.
        point_features: `(clouds, num_query_tokens, hidden)`, in the order of the placeholders, or None.
        embed: The language model's embeddings, which need no row for the placeholder.
        point_token_id: Id of the placeholder.

    Returns:
        `(batch, tokens, hidden)`.

    Raises:
        ValueError: If the numbers of features and placeholders differ.
    """
    placeholders = input_ids == point_token_id
    # The table may have no row for the placeholder; what row 0 gives is replaced below.
    embedded = embed(input_ids.masked_fill(placeholders, 0))
    if point_features is None and input_ids.shape[1] == 1:  # a generation step: avoids synchronizing with the device
        return embedded
    given = 0 if point_features is None else point_features.shape[:2].numel()
    expected = placeholders.sum()
    if torch.compiler.is_compiling():
        # An `if` on a tensor's value would break the graph.
        torch._assert_async(expected == given, "input_ids has other than the clouds' number of placeholders")
    # Comparing here would wait for the device in every step.
    elif expected.device.type != "cpu":
        refuse_later(
            expected != given, "input_ids of an earlier batch has other than the clouds' number of placeholders"
        )
    elif expected != given:
        raise ValueError(
            f"input_ids has {expected} placeholders for point tokens (id {point_token_id}); expected {given}, "
            "as many as the clouds have"
        )
    if point_features is None or not given:
        return embedded
    # `masked_scatter` would do the same, but its gradient waits for the number of placeholders.
    rows = point_features.to(embedded.device, embedded.dtype).flatten(0, 1)  # (clouds * query tokens, hidden)
    # The n-th placeholder reads the n-th row. Other tokens read any row, which `where` leaves out.
    numbers = placeholders.flatten().cumsum(0).sub(1).clamp(0, given - 1)
    filled = rows.index_select(0, numbers).view_as(embedded)
    return torch.where(placeholders.unsqueeze(-1), filled, embedded)


def clouds_of_samples(input_ids: torch.Tensor, num_query_tokens: int, point_token_id: int) -> list[int]:
    """Count the clouds in each sample of `(batch, tokens)`."""
    return ((input_ids == point_token_id).sum(dim=1) // num_query_tokens).tolist()


def repeat_by_sample(
    input_ids: torch.Tensor, point_features: torch.Tensor, times: int, point_token_id: int
) -> torch.Tensor:
    """Repeat the clouds `(clouds, num_query_tokens, hidden)` of each sample as `generate` repeats its rows."""
    # Samples may have no cloud or several, so clouds are repeated sample by sample.
    counts = clouds_of_samples(input_ids, point_features.shape[1], point_token_id)
    # `generate` puts the copies of a sample next to each other. Each copy reads all clouds of its sample in order, so
    # the sample's clouds are tiled, not each cloud repeated.
    return torch.cat([clouds.repeat(times, 1, 1) for clouds in point_features.split(counts)])


def unread_clouds(
    input_ids: torch.Tensor, new_ids: torch.Tensor, point_features: torch.Tensor, point_token_id: int
) -> torch.Tensor | None:
    """Remove the clouds that are already in the cache: those of earlier turns of a conversation.

    Args:
        input_ids: `(batch, tokens)` of the full conversation.
        new_ids: `(batch, last tokens)`, the tokens that are not in the cache.
        point_features: `(clouds, num_query_tokens, hidden)` of the full conversation, or of `new_ids` only.
        point_token_id: Id of the placeholder.

    Returns:
        Those of `new_ids`; None if it has no placeholders.

    Raises:
        ValueError: If the numbers of placeholders and clouds in the conversation differ.
    """
    count = point_features.shape[1]
    new_counts = clouds_of_samples(new_ids, count, point_token_id)
    if sum(new_counts) == len(point_features):
        return point_features
    all_counts = clouds_of_samples(input_ids, count, point_token_id)
    if sum(all_counts) != len(point_features):
        raise ValueError(
            f"input_ids has {sum(all_counts) * count} placeholders for point tokens (id {point_token_id}); expected "
            f"{len(point_features) * count}, as many as the clouds have"
        )
    if sum(new_counts) == 0:
        return None
    # The last clouds of a sample are those of its newest turn.
    samples = point_features.split(all_counts)
    return torch.cat([clouds[len(clouds) - new :] for clouds, new in zip(samples, new_counts, strict=True)])

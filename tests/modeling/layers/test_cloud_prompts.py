"""Clouds in the prompt of a language model: their places, and those of new turns."""

import re

import pytest
import torch
from torch import nn

from hf_any3d.modeling.layers.cloud_prompts import fill_placeholders, unread_clouds

# The vocabulary has no row for the placeholder.
WORDS, CLOUD = 6, 9
FEATURES = torch.arange(20.0).view(5, 4) + 100
PROMPTS = torch.tensor([[1, CLOUD, CLOUD, CLOUD], [CLOUD, 5, 2, CLOUD]])


@pytest.fixture
def embed() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(WORDS, 4)


def clouds(*sizes: int) -> list[torch.Tensor]:
    return list(FEATURES[: sum(sizes)].split(sizes))


@pytest.mark.parametrize(("given", "count"), [(FEATURES[None, :4], 4), (clouds(1, 1), 2), (None, 0)])
def test_other_numbers_of_features_than_placeholders_are_refused(embed, given, count):
    message = f"input_ids has 5 placeholders for point tokens (id 9); expected {count}, as many as the clouds have"
    with pytest.raises(ValueError, match=re.escape(message)):
        fill_placeholders(PROMPTS, given, embed, CLOUD)
    with pytest.raises(ValueError, match=re.escape("has 1 placeholders for point tokens (id 9); expected 2")):
        fill_placeholders(torch.tensor([[CLOUD]]), clouds(1, 1), embed, CLOUD)


def test_only_the_clouds_of_new_turns_are_read():
    ids = torch.tensor([[CLOUD, 1, CLOUD, CLOUD], [1, CLOUD, 2, CLOUD]])
    given = clouds(1, 2, 2)
    unread = unread_clouds(ids, ids[:, 3:], given, CLOUD)
    assert [own[:, 0].tolist() for own in unread] == [[108], [116]]
    unread = unread_clouds(ids, ids[:, 2:], given, CLOUD)
    assert [own[:, 0].tolist() for own in unread] == [[104, 108], [116]]
    assert unread_clouds(ids, ids, given, CLOUD) is given
    assert unread_clouds(ids, torch.tensor([[1, 2], [2, 3]]), given, CLOUD) is None
    # Features of the new turn alone are given as they are.
    assert unread_clouds(ids, ids[:, 3:], (new := clouds(1, 1)), CLOUD) is new
    with pytest.raises(RuntimeError):
        unread_clouds(ids, ids[:, 3:], clouds(4), CLOUD)

"""Cosines and the contrastive loss of clouds and texts, also over several processes, and what subclasses define."""

import importlib

import pytest
import torch
from torch.nn.functional import normalize

from hf_any3d.modeling.point_encoders.zero_shot import contrastive_loss, matching_pairs, pair_loss

MODULE = importlib.import_module("hf_any3d.modeling.point_encoders.zero_shot")


def units(count: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("given", [False, True])
def test_processes_compare_the_clouds_and_texts_of_all(given, monkeypatch):
    clouds, texts, scale = units(3, 0), units(3, 1), torch.tensor(9.0)
    others = units(3, 2), units(3, 3), torch.arange(3), torch.arange(3)
    own = torch.tensor([7, 1, 7]) if given else torch.arange(6, 9)
    monkeypatch.setattr(MODULE, "is_joined", lambda: True)
    monkeypatch.setattr(MODULE.distributed, "get_rank", lambda: 2)
    rest = iter(others)
    # As of two processes, of which this one has the rank 2: no label occurs in both unless it is given.
    monkeypatch.setattr(MODULE, "gather_rows", lambda rows: torch.cat([rows, next(rest)]))
    monkeypatch.setattr(MODULE, "rows_of_processes", lambda rows: [4, 2, 3])
    found = pair_loss(scale, clouds, texts, own if given else None)
    labels = torch.cat([own, torch.arange(3)])
    logits = scale * torch.cat([clouds, others[0]]) @ torch.cat([texts, others[1]]).T
    torch.testing.assert_close(found, contrastive_loss(logits, matching_pairs(labels, labels)))
    assert next(rest, None) is None

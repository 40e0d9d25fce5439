"""Cosines and the contrastive loss of clouds and texts, also over several processes, and what subclasses define."""

import importlib

import pytest
import torch
from torch.nn.functional import normalize

from hf_any3d.modeling.point_encoders.zero_shot import contrastive_loss, matching_pairs, pair_loss, unit_texts

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1e-30, 1e-6, 1.0, 6e4, 1e30, 3e38, 1e300])
def test_texts_of_any_length_are_unit_vectors(length, dtype):
    texts = units(4, 0).double()
    given = (texts * length).to(dtype)
    for like in (torch.float32, torch.float16):
        found = unit_texts(given, torch.ones(1, dtype=like))
        if given.isfinite().all() and (given != 0).all():
            torch.testing.assert_close(found.double(), texts, rtol=1e-2, atol=2e-2)
        else:
            # Beyond the range of their own dtype: the scores are NaN, which pipelines refuse, and not equal ones.
            assert not found.isfinite().all() or length < 1


def test_texts_are_scaled_without_rounding():
    texts = torch.randn(100, 8, generator=torch.Generator().manual_seed(0)) * 7
    assert torch.equal(unit_texts(texts, texts), normalize(texts, dim=-1))
    assert torch.equal(unit_texts(torch.zeros(2, 3), texts), torch.zeros(2, 3))
    learned = texts.clone().requires_grad_()
    unit_texts(learned, texts).sum().backward()
    assert learned.grad is not None and learned.grad.isfinite().all()

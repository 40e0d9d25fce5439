"""Soft and hard codes, Gumbel noise, and the loss of uneven use."""

import math

import pytest
import torch

from hf_any3d.modeling.act.codebook import Codebook, gumbel_noise
from tests.closeness import assert_nearly_equal


@pytest.fixture
def setting():
    torch.manual_seed(0)
    return Codebook(12, 5), torch.randn(2, 7, 12, requires_grad=True)


def test_noise_follows_the_gumbel_distribution():
    noise = gumbel_noise(torch.zeros(200_000), torch.Generator().manual_seed(0))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)


@pytest.mark.parametrize("precision", ["bfloat16 model", "autocast"])
def test_half_precision_draws_the_same_codes(setting, precision):
    codebook, _ = setting
    logits = torch.randn(4, 64, 12, generator=torch.Generator().manual_seed(1)).bfloat16()
    noise = gumbel_noise(logits, torch.Generator().manual_seed(2))
    expected, expected_ids = codebook(logits.float(), 0.7, noise=noise)
    if precision == "bfloat16 model":
        codebook.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        codes, token_ids = codebook(logits, 0.7, noise=noise)
    assert torch.equal(token_ids, expected_ids)
    assert_nearly_equal(codes, expected, 0.01)


def test_scores_are_negative_distances_or_cosines():
    tokens = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    book = Codebook(12, 5, scores="distance", scale=3.0)
    expected = -3 * (tokens.unsqueeze(2) - book.weight).square().mean(dim=-1)
    torch.testing.assert_close(book.score(tokens), expected)
    book.scores = "cosine"
    expected = 3 * torch.cosine_similarity(tokens.unsqueeze(2), book.weight, dim=-1)
    torch.testing.assert_close(book.score(tokens), expected)
    torch.testing.assert_close(book.vectors.norm(dim=-1), torch.full((12,), 5**0.5))


def test_moving_averages_are_those_of_vq_vae():
    book = Codebook(3, 2, scores="distance", ema_decay=0.75)
    book.counts.copy_(torch.tensor([4.0, 2.0, 1.0]))
    book.weight.copy_(torch.tensor([[1.0, 1.0], [5.0, 5.0], [9.0, 9.0]]))
    book.sums.copy_(book.weight * book.counts.unsqueeze(1))
    book.update(torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[4.0, 4.0], [6.0, 6.0]]]), torch.tensor([[0, 0], [0, 1]]))
    assert book.counts.tolist() == [0.75 * 4 + 0.25 * 3, 0.75 * 2 + 0.25, 0.75]
    first = (0.75 * 4 + 0.25 * 6) / 3.75
    second = (0.75 * 10 + 0.25 * 6) / 1.75
    torch.testing.assert_close(book.weight, torch.tensor([[first, first], [second, second], [9.0, 9.0]]))
    # After some hundred steps without tokens.
    book.counts[2], book.sums[2] = 0, 0
    book.update(torch.zeros(1, 4, 2), torch.zeros(1, 4, dtype=torch.long))
    assert book.weight.tolist()[2] == [9.0, 9.0]
    with pytest.raises(ValueError, match="counts of codes have dtype torch.bfloat16; expected float32"):
        book.bfloat16().update(torch.zeros(1, 4, 2), torch.zeros(1, 4, dtype=torch.long))

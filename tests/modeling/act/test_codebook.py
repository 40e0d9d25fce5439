"""Soft and hard codes, Gumbel noise, and the loss of uneven use."""

import math

import pytest
import torch

from hf_any3d.modeling.act.codebook import Codebook, gumbel_noise, uniform_code_loss
from tests.closeness import assert_nearly_equal


@pytest.fixture
def setting():
    torch.manual_seed(0)
    return Codebook(12, 5), torch.randn(2, 7, 12, requires_grad=True)


def test_soft_codes_match_torchs_gumbel_softmax(setting):
    codebook, logits = setting
    torch.manual_seed(3)
    noise = -torch.empty_like(logits).exponential_().log()
    torch.manual_seed(3)
    probabilities = torch.nn.functional.gumbel_softmax(logits, tau=0.7)
    codes, token_ids = codebook(logits, 0.7, noise=noise)
    torch.testing.assert_close(codes, probabilities @ codebook.weight)
    assert torch.equal(token_ids, probabilities.argmax(dim=-1))


def test_a_hard_code_is_a_row_with_the_gradient_of_the_mixture(setting):
    codebook, logits = setting
    codes, token_ids = codebook(logits, 0.7, hard=True)
    torch.testing.assert_close(codes, codebook.weight[token_ids])
    weights = torch.randn_like(codes)
    soft, _ = codebook(logits, 0.7)
    hard_gradient, codebook_gradient = torch.autograd.grad((codes * weights).sum(), (logits, codebook.weight))
    (soft_gradient,) = torch.autograd.grad((soft * weights).sum(), logits)
    torch.testing.assert_close(hard_gradient, soft_gradient)
    expected = torch.zeros_like(codebook_gradient).index_add_(0, token_ids.flatten(), weights.flatten(0, 1))
    torch.testing.assert_close(codebook_gradient, expected)
    with torch.no_grad():
        assert torch.equal(codebook(logits, 0.7, hard=True)[0], codebook.weight[token_ids])


def test_noise_follows_the_gumbel_distribution():
    noise = gumbel_noise(torch.zeros(200_000), torch.Generator().manual_seed(0))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_for_half_precision_logits_follows_the_gumbel_distribution(dtype):
    noise = gumbel_noise(torch.zeros(200_000, dtype=dtype), torch.Generator().manual_seed(0))
    assert torch.equal(noise, gumbel_noise(torch.zeros(200_000), torch.Generator().manual_seed(0)))
    assert noise.max() > 10, "the tail is cut off"


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


def test_uniform_codes_have_no_loss_and_a_single_code_a_large_one():
    assert uniform_code_loss(torch.zeros(2, 7, 12)).item() == pytest.approx(0, abs=1e-6)
    one = torch.zeros(2, 7, 12)
    one[..., 3] = 20
    assert uniform_code_loss(one) > 10


def test_the_loss_is_the_divergence_from_the_mean_posterior(setting):
    _, logits = setting
    mean = logits.softmax(dim=-1).mean(dim=1)
    expected = torch.nn.functional.kl_div(mean.log(), torch.full_like(mean, 1 / 12), reduction="batchmean")
    loss = uniform_code_loss(logits)
    torch.testing.assert_close(loss, expected)
    gradients = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(*gradients)


def test_schedules_reject_negative_numbers():
    from hf_any3d.modeling.act import gumbel_temperature, kl_weight

    assert gumbel_temperature(5, steps=10, start=2.0, end=1.0) == pytest.approx(1.5)
    assert gumbel_temperature(0, steps=0) == 0.0625 and kl_weight(3, delay=3, steps=0, end=0.2) == 0.2
    assert kl_weight(2, delay=3) == 0 and kl_weight(8, delay=3, steps=10) == pytest.approx(0.05)
    for call, name in ((lambda: gumbel_temperature(-1), "iteration"), (lambda: kl_weight(1, delay=-2), "delay")):
        with pytest.raises(ValueError, match=name):
            call()
    with pytest.raises(ValueError, match="expected temperatures above 0"):
        gumbel_temperature(1, end=0.0)

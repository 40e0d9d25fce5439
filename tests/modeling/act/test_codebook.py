"""Soft and hard codes, Gumbel noise, and the loss of uneven use."""

import math

import pytest
import torch

from hf_any3d.modeling.act.codebook import Codebook, gumbel_noise, uniform_code_loss
from tests.closeness import assert_nearly_equal
from tests.errors import raises


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


def test_scores_are_negative_distances_or_cosines():
    tokens = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    book = Codebook(12, 5, scores="distance", scale=3.0)
    expected = -3 * (tokens.unsqueeze(2) - book.weight).square().mean(dim=-1)
    torch.testing.assert_close(book.score(tokens), expected)
    book.scores = "cosine"
    expected = 3 * torch.cosine_similarity(tokens.unsqueeze(2), book.weight, dim=-1)
    torch.testing.assert_close(book.score(tokens), expected)
    torch.testing.assert_close(book.vectors.norm(dim=-1), torch.full((12,), 5**0.5))


def test_the_nearest_code_has_the_tokens_gradient():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]], requires_grad=True)
    book = Codebook(3, 2, scores="distance")
    book.weight.data = torch.tensor([[5.0, 5.0], [1.0, 1.0], [0.0, 2.0]])
    codes, token_ids, pulls = book.nearest(tokens, book.score(tokens))
    assert token_ids.tolist() == [[1, 2]] and torch.equal(codes, book.weight[token_ids])
    # Squared differences are 0 1 and 0 1.
    assert [pull.item() for pull in pulls] == [0.5, 0.5]
    (codes * torch.tensor([2.0, 7.0])).sum().backward(retain_graph=True)
    assert tokens.grad.tolist() == [[[2.0, 7.0], [2.0, 7.0]]] and book.weight.grad is None
    pulls[0].backward()
    assert book.weight.grad is None
    tokens.grad = None
    pulls[1].backward()
    assert book.weight.grad.abs().sum() > 0 and tokens.grad is None


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


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_dead_codes_become_tokens_of_the_batch(ema_decay):
    book = Codebook(6, 2, scores="distance", ema_decay=ema_decay, restart_share=0.5)
    tokens = torch.arange(24.0).view(2, 6, 2)
    rows = {tuple(row) for row in tokens.flatten(0, 1).tolist()}
    assert book.restart(tokens).all(), "codes start as tokens"
    assert len({tuple(row) for row in book.weight.tolist()} & rows) == 6
    # Two tokens per code are expected, so codes with less than one restart.
    book.counts.copy_(torch.tensor([2.0, 0.9, 1.1, 0.0, 5.0, 3.0]))
    before = book.weight.detach().clone()
    dead = book.restart(-tokens)
    assert dead.tolist() == [False, True, False, True, False, False]
    assert torch.equal(book.weight[~dead], before[~dead])
    assert {tuple(row) for row in book.weight[dead].tolist()} <= {(-x, -y) for x, y in rows}
    assert book.counts[dead].tolist() == [2.0, 2.0]
    if ema_decay is not None:
        torch.testing.assert_close(book.sums[dead], 2 * book.weight[dead])


def test_noise_has_the_precision_of_the_logits_or_float32_and_any_layout():
    assert gumbel_noise(torch.zeros(3).double()).dtype == torch.float64
    assert gumbel_noise(torch.zeros(3).half()).dtype == torch.float32
    turned = torch.zeros(5, 3).T
    found, plain = (gumbel_noise(like, torch.Generator().manual_seed(4)) for like in (turned, torch.zeros(3, 5)))
    assert torch.equal(found, plain) and found.isfinite().all()
    uniform = torch.empty(3, 5).uniform_(generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(plain, -(-uniform.log()).log())


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_codes_that_are_counted_or_averaged_update_themselves(ema_decay):
    plain = Codebook(4, 2, scores="distance", ema_decay=ema_decay)
    assert plain.updates_itself is (ema_decay is not None) and hasattr(plain, "counts") is plain.updates_itself
    assert hasattr(plain, "sums") is (ema_decay is not None)
    book = Codebook(4, 2, scores="distance", ema_decay=ema_decay, restart_share=0.1)
    assert book.updates_itself is True and isinstance(book.weight, torch.nn.Parameter) is (ema_decay is None)
    book.counts.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    weight = book.weight.detach().clone()
    book.update(torch.ones(1, 3, 2), torch.tensor([[1, 1, 3]]))
    decay = 0.99 if ema_decay is None else ema_decay
    expected = [decay * old + (1 - decay) * new for old, new in zip([1, 2, 3, 4], [0, 2, 0, 1], strict=True)]
    assert book.counts.tolist() == pytest.approx(expected)
    assert torch.equal(book.weight, weight) is (ema_decay is None)
    with pytest.raises(ValueError, match=r"have dtype torch.float16; expected float32 \(train in half precision with"):
        book.half().update(torch.ones(1, 3, 2), torch.tensor([[1, 1, 3]]))


def test_codes_on_a_sphere_average_and_restart_with_tokens_on_it():
    book = Codebook(2, 3, scores="cosine", ema_decay=0.5)
    book.counts.fill_(1.0)
    book.weight.copy_(torch.eye(3)[:2])
    book.sums.copy_(book.weight)
    tokens = torch.tensor([[[5.0, 0, 0], [0, 0.1, 0]]])
    book.update(tokens, torch.tensor([[0, 1]]))
    # Tokens of any length count as vectors of the norm of `sqrt(width)`.
    torch.testing.assert_close(book.weight, torch.eye(3)[:2] * (1 + 3**0.5) / 2)
    fresh = Codebook(2, 3, scores="cosine", restart_share=0.9)
    fresh.restart(tokens)
    torch.testing.assert_close(fresh.weight.detach().norm(dim=1), torch.full((2,), 3**0.5))
    assert fresh.counts.tolist() == [1.0, 1.0]


def test_more_codes_than_tokens_share_them():
    book = Codebook(7, 2, scores="distance", restart_share=0.5)
    torch.manual_seed(0)
    book.restart(torch.tensor([[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]]))
    values = book.weight.detach()[:, 0].tolist()
    assert sorted(values.count(number) for number in (1.0, 2.0, 3.0)) == [2, 2, 3]
    assert values[:3] == values[3:6] and values[6] == values[0]


def test_noise_decides_between_codes_and_scores_need_no_gradient_of_it():
    book = Codebook(5, 3, scores="cosine", scale=2.0)
    tokens = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    noise = 100 * torch.nn.functional.one_hot(torch.tensor([[0, 3, 3, 1]]), 5)
    logits = book.score(tokens)
    codes, token_ids, pulls = book.nearest(tokens, logits, noise)
    assert token_ids.tolist() == [[0, 3, 3, 1]]
    sphere = torch.nn.functional.normalize(tokens, dim=-1) * 3**0.5
    torch.testing.assert_close(codes, book.vectors[token_ids])
    assert pulls[0].item() == pytest.approx((sphere - codes).square().mean().item(), rel=1e-5)
    with torch.no_grad():
        plain = book(logits.detach(), hard=True, noise=noise)
        assert torch.equal(plain[1], token_ids) and torch.equal(plain[0], book.vectors[token_ids])
        mixed = book(logits.detach(), temperature=0.5)[0]
    torch.testing.assert_close(mixed, (logits.detach() / 0.5).softmax(dim=-1) @ book.vectors.detach())
    # Frozen codes and logits without a gradient need only a look-up.
    book.requires_grad_(False)
    assert not book(logits.detach(), hard=True)[0].requires_grad and book(logits, hard=True)[0].requires_grad


def test_moving_averages_may_move_before_the_backward_pass():
    book = Codebook(4, 3, scores="distance", ema_decay=0.5)
    tokens = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    logits = book.score(tokens)
    book.update(tokens, logits.argmax(dim=-1))
    logits.sum().backward()
    assert tokens.grad.isfinite().all() and tokens.grad.any()


@pytest.mark.parametrize(
    ("iteration", "steps", "expected"), [(0, 8, 2.0), (2, 8, 1.25 + 0.75 * math.cos(math.pi / 4)), (8, 8, 0.5)]
)
def test_schedules_follow_half_a_cosine(iteration, steps, expected):
    from hf_any3d.modeling.act import gumbel_temperature, kl_weight

    assert gumbel_temperature(iteration, steps, 2.0, 0.5) == pytest.approx(expected)
    assert gumbel_temperature(iteration + steps, steps, 2.0, 0.5) == 0.5
    weight = 0.3 * (2.0 - expected) / 1.5
    assert kl_weight(iteration + 5, delay=5, steps=steps, end=0.3) == pytest.approx(weight)
    assert kl_weight(4, delay=5, steps=steps, end=0.3) == 0.0
    # With their defaults.
    assert gumbel_temperature(50_000) == pytest.approx((1 + 0.0625) / 2) and gumbel_temperature(100_000) == 0.0625
    assert kl_weight(60_000) == pytest.approx(0.05) and kl_weight(110_000) == 0.1 and kl_weight(9_999) == 0
    for wrong in ({"iteration": -1}, {"iteration": 1, "delay": -1}, {"iteration": 1, "steps": -1}):
        with pytest.raises(ValueError, match="=-1; expected at least 0"):
            kl_weight(**wrong)
    with raises(ValueError, naming="end=-0.1; expected at least 0"):
        kl_weight(1, end=-0.1)
    with raises(ValueError, naming="steps=-1; expected at least 0"):
        gumbel_temperature(1, steps=-1)
    with raises(ValueError, naming="start=0.0, end=1.0; expected temperatures above"):
        gumbel_temperature(1, start=0.0, end=1.0)

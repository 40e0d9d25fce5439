"""Attention in every encoder family uses all tokens and their places, but not their order."""

import pytest
import torch

from hf_any3d.modeling.any2point.point_tokenizer import PointTokens
from hf_any3d.modeling.encoders import encoder_families
from tests.errors import raises
from tests.tiny_encoders import HIDDEN, tiny_model
from tests.turns import by_turns

TOKENS = 8
# The scope orders tests by family, so that a model is built once for all of them.
every_family = pytest.mark.parametrize("family", list(encoder_families()), scope="module")
rotary_families = pytest.mark.parametrize(
    "family", ["llama", "modernbert", "gemma3_text", "gpt_neox", "phi3", "dinov3_vit"]
)
RULES = {"split_frequencies": 6, "split_heads": 2, "mean_angle": 6, "first_view": 6}


class GivenTokens(torch.nn.Module):
    """Replaces the tokenizer by given tokens and centers."""

    def __init__(self, tokens, centers):
        super().__init__()
        self.embed = torch.nn.Linear(3, 1)  # tells the model which precision points have
        self.tokens, self.centers = tokens, centers

    def forward(self, points):
        return PointTokens(self.tokens, self.centers, torch.arange(TOKENS).expand(len(self.tokens), -1))


@torch.no_grad()
def read(core, tokens, centers):
    core.point_tokenizer = GivenTokens(tokens, centers)
    return core(torch.zeros(len(tokens), 48, 3)).last_hidden_state


def content():
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randn(2, TOKENS, HIDDEN, generator=generator)
    return tokens, torch.rand(2, TOKENS, 3, generator=generator) * 2 - 1


@pytest.mark.slow
@pytest.mark.parametrize(("family", "changed"), by_turns(encoder_families(), [0, TOKENS - 1]), scope="module")
def test_every_token_attends_to_every_other(family, changed):
    core = tiny_model(family).any2point
    tokens, centers = content()
    before = read(core, tokens, centers)
    tokens[:, changed] = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(5))
    moved = (read(core, tokens, centers) - before).abs().amax(dim=-1)
    assert moved.min() > 1e-6, "later tokens must be seen as earlier ones are, by the class token too"


@pytest.mark.slow
@every_family
def test_order_of_the_tokens_does_not_matter(family):
    core = tiny_model(family).any2point
    tokens, centers = content()
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(6))
    expected = read(core, tokens, centers)
    found = read(core, tokens[:, order], centers[:, order])
    torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[:, 1:], expected[:, 1:][:, order], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@every_family
def test_places_change_the_features(family):
    core = tiny_model(family).any2point
    tokens, centers = content()
    before = read(core, tokens, centers)
    order = torch.arange(TOKENS).roll(1)
    after = read(core, tokens, centers[:, order])
    assert (after - before).abs().amax(dim=-1).min() > 1e-5


@pytest.mark.slow
@every_family
def test_clouds_of_a_batch_have_separate_places(family):
    core = tiny_model(family).any2point
    tokens, centers = content()
    together = read(core, tokens, centers)
    alone = torch.cat([read(core, tokens[i : i + 1], centers[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@rotary_families
def test_rules_for_rotary_views_differ_and_are_finite(family):
    tokens, centers = content()
    states = {}
    for rule, views in RULES.items():
        core = tiny_model(family, rotary_views=rule, num_views=views).any2point
        states[rule] = read(core, tokens, centers)
        assert states[rule].isfinite().all()
    names = list(states)
    for number, one in enumerate(names):
        for other in names[:number]:
            assert (states[one] - states[other]).abs().max() > 1e-4, (one, other)


@pytest.mark.slow
@rotary_families
def test_all_rules_are_equal_for_a_single_view(family):
    tokens, centers = content()
    states = [read(tiny_model(family, rotary_views=rule, num_views=1).any2point, tokens, centers) for rule in RULES]
    for other in states[1:]:
        torch.testing.assert_close(other, states[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "t5", "beit", "wavlm"])
def test_attention_over_the_batch_is_refused_if_layers_use_places(family):
    with raises(ValueError, naming="attention_axis"):
        tiny_model(family, attention_axis="batch")


def test_line_length_spreads_the_tokens_of_encoders_without_a_table():
    tokens, centers = content()
    near, far = (read(tiny_model("llama", line_length=n).any2point, tokens, centers) for n in (TOKENS, 100))
    assert (near - far).abs().max() > 1e-3
    same = read(tiny_model("llama").any2point, tokens, centers)
    assert torch.equal(same, near)

"""Attention in every encoder family uses all tokens and their places, but not their order."""

import pytest
import torch

from hf_any3d.modeling.any2point.point_tokenizer import PointTokens
from tests.errors import raises
from tests.tiny_encoders import ENCODER_TYPES, HIDDEN, tiny_model
from tests.turns import ALL_PAIRS, by_turns, some

TOKENS = 8


rotary_families = pytest.mark.parametrize(
    "family",
    some(["llama", "modernbert", "gemma3_text", "gpt_neox", "phi3", "dinov3_vit"], left_out=["phi3", "gemma3_text"]),
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
@pytest.mark.parametrize(
    ("family", "changed"),
    by_turns(ENCODER_TYPES if ALL_PAIRS else list(ENCODER_TYPES)[::4], [0, TOKENS - 1]),
    scope="module",
)
def test_every_token_attends_to_every_other(family, changed):
    core = tiny_model(family).any2point
    tokens, centers = content()
    before = read(core, tokens, centers)
    tokens[:, changed] = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(5))
    moved = (read(core, tokens, centers) - before).abs().amax(dim=-1)
    assert moved.min() > 1e-6, "later tokens must be seen as earlier ones are, by the class token too"


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
@pytest.mark.parametrize("family", ["llama", "t5", "beit", "wavlm"])
def test_attention_over_the_batch_is_refused_if_layers_use_places(family):
    with raises(ValueError, naming="attention_axis"):
        tiny_model(family, released={"attention_axis": "batch"})


def test_line_length_spreads_the_tokens_of_encoders_without_a_table():
    tokens, centers = content()
    near, far = (read(tiny_model("llama", line_length=n).any2point, tokens, centers) for n in (TOKENS, 100))
    assert (near - far).abs().max() > 1e-3
    same = read(tiny_model("llama").any2point, tokens, centers)
    assert torch.equal(same, near)

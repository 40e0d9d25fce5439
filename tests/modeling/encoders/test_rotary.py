"""Rotations of layers at continuous coordinates, against loops over tokens, views and frequencies."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_any3d.modeling.encoders import LayerPass, TokenPlaces
from hf_any3d.modeling.encoders.rotary import combine_views, rotary_line_inputs, rotation
from tests.errors import raises

VIEWS, TOKENS = 2, 4
FREQUENCIES = torch.tensor([0.7, 0.05, 0.002])


def layer_pass(
    rule: str, rotary: Any = None, dtype: torch.dtype = torch.float32, layers: int = 3, **config: Any
) -> LayerPass:
    """A pass through layers of which only the settings are read."""
    settings = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "model_type": "made",
        "_attn_implementation": "sdpa",
    }
    encoder = SimpleNamespace(config=SimpleNamespace(**settings | config), rotary_emb=rotary)
    entry = torch.rand(1, VIEWS, TOKENS, 1, generator=torch.Generator().manual_seed(0)) * 300
    tokens = torch.zeros(1, TOKENS, 8, dtype=dtype)
    return LayerPass(encoder, [None] * layers, tokens, None, TokenPlaces(entry, 1, 301), rule)


def angle(coordinates: list[float], number: int, head: int, rule: str) -> float:
    """The angle of one frequency of one token, given its coordinates in the views."""
    place = {
        "mean_angle": sum(coordinates) / VIEWS,
        "first_view": coordinates[0],
        "split_heads": coordinates[head % VIEWS],
        "split_frequencies": coordinates[number % VIEWS],
    }[rule]
    return place * float(FREQUENCIES[number])


@pytest.mark.parametrize("rule", ["mean_angle", "first_view", "split_heads", "split_frequencies"])
@pytest.mark.parametrize(("key_heads", "heads"), [(2, 2), (3, 3), (None, 4)])
@pytest.mark.parametrize("axes", [1, 2])
def test_rotations_are_those_of_loops(rule, key_heads, heads, axes):
    call = layer_pass(rule, num_key_value_heads=key_heads)
    coordinates = torch.rand(1, VIEWS, TOKENS, axes, generator=torch.Generator().manual_seed(1)) * 300
    with torch.autocast("cpu", torch.bfloat16):
        found = rotation(call, coordinates.requires_grad_(), FREQUENCIES, 1.5)
    heads = heads if rule == "split_heads" else 1
    for made, wave in zip(found, (math.cos, math.sin), strict=True):
        assert made.shape == (1, heads, TOKENS, 2 * axes * 3) and made.dtype == torch.float32
        assert not made.requires_grad
        for head in range(heads):
            for token in range(TOKENS):
                half = [
                    1.5 * wave(angle(coordinates[0, :, token, axis].tolist(), number, head, rule))
                    for axis in range(axes)
                    for number in range(3)
                ]
                torch.testing.assert_close(made[0, head, token], torch.tensor(half * 2), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("rule", "key_heads", "frequencies"), [("split_heads", 3, 9), ("split_frequencies", 9, 3)])
def test_as_many_views_as_there_are_shares_are_allowed(rule, key_heads, frequencies):
    angles = torch.randn(2, 3, 5, 1, frequencies)
    assert combine_views(angles, rule, key_heads).shape == (2, 3 if rule == "split_heads" else 1, 5, 1, frequencies)
    with raises(ValueError, naming="num_views=4"):
        combine_views(torch.randn(2, 4, 5, 1, frequencies), rule, key_heads)


@pytest.mark.parametrize(
    ("implementation", "window", "refused"),
    [
        ("flash_attention_2", 3, True),
        ("flash_attention_2", 4, False),
        ("sdpa", 3, False),
        (None, 3, False),
        ("flash_attention_2", None, False),
    ],
)
def test_windows_over_the_order_of_the_tokens_are_refused(implementation, window, refused):
    rotary = SimpleNamespace(inv_freq=FREQUENCIES)
    call = layer_pass("mean_angle", rotary, _attn_implementation=implementation, sliding_window=window)
    if not refused:
        assert len(list(rotary_line_inputs(call))) == 3
        return
    with raises(ValueError, naming="sliding window of 3 tokens"):
        list(rotary_line_inputs(call))

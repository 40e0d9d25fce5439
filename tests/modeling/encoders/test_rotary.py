"""Rotations of layers at continuous coordinates."""

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.errors import raises
from tests.tiny_encoders import clouds, tiny_model


# A tiny LLaMA has two key heads.
@torch.no_grad()
def test_as_many_views_as_there_are_key_heads_are_allowed():
    tiny_model("llama", num_views=2, rotary_views="split_heads")(points=clouds())
    with raises(ValueError, naming="num_views=3"):
        tiny_model("llama", num_views=3, rotary_views="split_heads")(points=clouds())


@pytest.fixture
def flash():
    """Name of an attention that takes no masks of pairs, like flash attention."""

    def attend(module, query, key, value, attention_mask, is_causal=None, **kwargs):
        assert attention_mask is None and False in (is_causal, module.is_causal)
        return sdpa_attention_forward(module, query, key, value, None, is_causal=False, **kwargs)

    AttentionInterface.register("flash_made_here", attend)
    return "flash_made_here"


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "modernbert", "gpt2"])
def test_flash_attention_hides_nothing(model_type, flash):
    model = tiny_model(model_type)
    expected = model(points=clouds()).logits
    model.any2point.encoder.config._attn_implementation = flash
    torch.testing.assert_close(model(points=clouds()).logits, expected, rtol=1e-4, atol=1e-5)


def test_windows_over_the_order_of_the_tokens_are_refused(flash):
    model = tiny_model("llama")
    model.any2point.encoder.config._attn_implementation = flash
    model.any2point.encoder.config.sliding_window = 3
    with raises(ValueError, naming="sliding window of 3 tokens"):
        model(points=clouds())

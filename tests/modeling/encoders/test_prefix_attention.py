"""Attention to a prefix of prompts: the same outputs of the tokens as in one sequence, at half the work."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_any3d.modeling.encoders import (
    compute_prefix,
    find_family,
    hidden_of,
    prefix_attention,
    run_with_prefix,
)
from tests.tiny_encoders import ENCODER_TYPES, HIDDEN, random_encoder, tiny_config

INPUTS = {"attention_mask": None, "is_causal": False}
# DPT's layers take no mask.
PLAIN = [name for name in ENCODER_TYPES if name != "dpt" and find_family(tiny_config(name)).ignores_places]
# Their layers do not use the attention interface, or add keys of their own.
OWN_ATTENTION = {"imagebind_audio", "megatron-bert", "xglm"}


def opened(model_type, **changes):
    encoder = random_encoder(tiny_config(model_type, **changes))
    encoder.config._attn_implementation = "sdpa"
    return encoder, find_family(encoder.config).layers_of(encoder)[0]


def sequence(batch=3, prompts=4, tokens=5):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, count, HIDDEN, generator=generator) for count in (prompts, tokens))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", PLAIN)
def test_outputs_equal_those_of_one_sequence(model_type):
    encoder, layer = opened(model_type)
    prompts, tokens = sequence()
    with torch.no_grad():
        full = hidden_of(layer(torch.cat([prompts, tokens], dim=1), **INPUTS))
        with prefix_attention(encoder) as supported:
            assert supported
            prefix = compute_prefix(layer, prompts, **INPUTS)
            assert (prefix is None) == (model_type in OWN_ATTENTION)
            if prefix is not None:
                found = hidden_of(run_with_prefix(layer, tokens, prefix, **INPUTS))
                torch.testing.assert_close(found, full[:, 4:], rtol=1e-5, atol=1e-5)


def test_prompts_of_batch_size_1_are_shared_by_the_batch():
    encoder, layer = opened("vit")
    prompts, tokens = sequence()
    full = layer(torch.cat([prompts[:1].expand(3, -1, -1), tokens], dim=1), **INPUTS)[:, 4:]
    with prefix_attention(encoder):
        prefix = compute_prefix(layer, prompts[:1], **INPUTS)
        torch.testing.assert_close(run_with_prefix(layer, tokens, prefix, **INPUTS), full, rtol=1e-5, atol=1e-5)


def test_prefix_costs_less_than_a_longer_sequence():
    encoder, layer = opened("vit", hidden_size=192, intermediate_size=768)
    prompts, tokens = torch.randn(1, 16, 192), torch.randn(4, 16, 192)
    with FlopCounterMode(display=False) as full:
        layer(torch.cat([prompts.expand(4, -1, -1), tokens], dim=1), **INPUTS)
    with FlopCounterMode(display=False) as found, prefix_attention(encoder):
        run_with_prefix(layer, tokens, compute_prefix(layer, prompts, **INPUTS), **INPUTS)
    assert found.get_total_flops() < 0.6 * full.get_total_flops()


@pytest.mark.parametrize("ending", [None, RuntimeError])
def test_encoder_has_its_attention_implementation_afterwards(ending):
    encoder, layer = opened("vit")
    try:
        with prefix_attention(encoder):
            if ending:
                raise ending
    except RuntimeError:
        pass
    assert encoder.config._attn_implementation == "sdpa"
    _, tokens = sequence()
    assert layer(tokens, **INPUTS).shape == tokens.shape


def test_unsupported_attention_implementation_is_not_changed():
    encoder, _ = opened("vit")
    encoder.config._attn_implementation = "flash_attention_2"
    with prefix_attention(encoder) as supported:
        assert not supported
        assert encoder.config._attn_implementation == "flash_attention_2"

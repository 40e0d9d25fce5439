"""Rows that are only looked at: the others' outputs are those of the whole sequence, at half the work."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_any3d.modeling.encoders import (
    attended_rows,
    beside_attended_rows,
    bidirectional_inputs,
    encoder_families,
    hidden_of,
    run_beside,
)
from tests.tiny_encoders import HIDDEN, random_encoder, tiny_config

INPUTS = {"attention_mask": None, "is_causal": False}
PLAIN = [name for name, family in encoder_families().items() if family.layer_inputs is bidirectional_inputs]
# Their layers have an attention of their own, or keys that belong to no row.
OWN_ATTENTION = {"imagebind_audio", "megatron-bert", "xglm"}


def opened(model_type, **changes):
    encoder = random_encoder(tiny_config(model_type, **changes))
    encoder.config._attn_implementation = "sdpa"
    return encoder, encoder_families()[model_type].layers_of(encoder)[0]


def sequence(batch=3, rows=4, tokens=5):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, count, HIDDEN, generator=generator) for count in (rows, tokens))


@pytest.mark.parametrize("model_type", PLAIN)
def test_tokens_come_out_as_from_the_whole_sequence(model_type):
    encoder, layer = opened(model_type)
    rows, tokens = sequence()
    with torch.no_grad():
        whole = hidden_of(layer(torch.cat([rows, tokens], dim=1), **INPUTS))
        with beside_attended_rows(encoder) as able:
            assert able
            seen = attended_rows(layer, rows, **INPUTS)
            assert (seen is None) == (model_type in OWN_ATTENTION)
            if seen is not None:
                beside = hidden_of(run_beside(layer, tokens, seen, **INPUTS))
                torch.testing.assert_close(beside, whole[:, 4:], rtol=1e-5, atol=1e-5)


def test_gradients_reach_rows_and_tokens_alike():
    encoder, layer = opened("vit")
    encoder.requires_grad_(False)
    rows, tokens = (tensor.requires_grad_() for tensor in sequence())
    whole = layer(torch.cat([rows, tokens], dim=1), **INPUTS)[:, 4:]
    expected = torch.autograd.grad(whole.square().sum(), (rows, tokens))
    with beside_attended_rows(encoder):
        beside = run_beside(layer, tokens, attended_rows(layer, rows, **INPUTS), **INPUTS)
    for gradient, wanted in zip(torch.autograd.grad(beside.square().sum(), (rows, tokens)), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_rows_of_one_cloud_serve_the_whole_batch():
    encoder, layer = opened("vit")
    rows, tokens = sequence()
    whole = layer(torch.cat([rows[:1].expand(3, -1, -1), tokens], dim=1), **INPUTS)[:, 4:]
    with beside_attended_rows(encoder):
        seen = attended_rows(layer, rows[:1], **INPUTS)
        torch.testing.assert_close(run_beside(layer, tokens, seen, **INPUTS), whole, rtol=1e-5, atol=1e-5)


def test_rows_cost_less_than_half_of_what_tokens_cost():
    encoder, layer = opened("vit", hidden_size=192, intermediate_size=768)
    rows, tokens = torch.randn(1, 16, 192), torch.randn(4, 16, 192)
    with FlopCounterMode(display=False) as whole:
        layer(torch.cat([rows.expand(4, -1, -1), tokens], dim=1), **INPUTS)
    with FlopCounterMode(display=False) as beside, beside_attended_rows(encoder):
        run_beside(layer, tokens, attended_rows(layer, rows, **INPUTS), **INPUTS)
    assert beside.get_total_flops() < 0.6 * whole.get_total_flops()


@pytest.mark.parametrize("ending", [None, RuntimeError])
def test_the_encoder_keeps_its_attention_afterwards(ending):
    encoder, layer = opened("vit")
    try:
        with beside_attended_rows(encoder):
            if ending:
                raise ending
    except RuntimeError:
        pass
    assert encoder.config._attn_implementation == "sdpa"
    _, tokens = sequence()
    assert layer(tokens, **INPUTS).shape == tokens.shape


def test_other_attentions_are_told_apart():
    encoder, _ = opened("vit")
    encoder.config._attn_implementation = "flash_attention_2"
    with beside_attended_rows(encoder) as able:
        assert not able
        assert encoder.config._attn_implementation == "flash_attention_2"

"""Guided adapters behave like PEFT's own methods, on layers with post-norm (BERT) and pre-norm (CLIP)."""

from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from torch import nn

from hf_any3d.tuners import GuidedAdapterConfig
from hf_any3d.tuners.guided_adapter import GuidedAdapterLayer
from tests.tiny_encoders import adapted_model, clouds, tiny_model


@pytest.fixture(params=["bert", "clip_vision_model"])
def encoder(request):
    return request.param


@torch.no_grad()
def logits_of(model):
    return model.eval()(points=clouds()).logits


def wrapped_layers(model):
    return [module for module in model.modules() if isinstance(module, GuidedAdapterLayer)]


@pytest.mark.slow
def test_new_adapter_adds_only_its_aggregation(encoder):
    base = logits_of(tiny_model(encoder))
    model = get_peft_model(tiny_model(encoder), GuidedAdapterConfig(aggregation_scale=0.0))
    torch.testing.assert_close(logits_of(model), base)
    model = get_peft_model(tiny_model(encoder), GuidedAdapterConfig(aggregation_scale=0.0, init_weights=False))
    assert not torch.allclose(logits_of(model), base, atol=1e-4)
    model = get_peft_model(tiny_model(encoder), GuidedAdapterConfig())
    assert not torch.allclose(logits_of(model), base, atol=1e-4)


@pytest.mark.slow
def test_gate_mixes_input_and_output_of_the_layer(encoder):
    passing = adapted_model(encoder, {"gate": 0.0, "aggregation_scale": 0.0})
    core = passing.base_model.model.any2point
    seen = []
    layer = wrapped_layers(passing)[0]
    layer.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    logits_of(passing)
    torch.testing.assert_close(*seen[0])
    open_gate = adapted_model(encoder, {"gate": 1.0})
    torch.testing.assert_close(logits_of(open_gate), logits_of(adapted_model(encoder)), rtol=1e-4, atol=1e-4)
    assert core.family.layers_of(core.encoder)[0] is layer


@torch.no_grad()
def test_encoders_with_the_batch_second_are_adapted_alike():
    layer, seen = wrapped_layers(model := adapted_model("bert"))[0], []
    hook = layer.register_forward_pre_hook(lambda _, given, named: seen.append((given[0], named)), with_kwargs=True)
    logits_of(model)
    hook.remove()
    (hidden, named), layer.base_layer = seen[0], nn.Identity()
    geometry = named["geometry"]
    expected = layer(hidden, geometry=geometry)
    assert not torch.allclose(expected, hidden, atol=1e-4)
    found = layer(hidden.transpose(0, 1), geometry=replace(geometry, batch_second=True))
    torch.testing.assert_close(found, expected.transpose(0, 1))

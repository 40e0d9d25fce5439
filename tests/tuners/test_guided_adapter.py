"""Guided adapters behave like PEFT's own methods, on layers with post-norm (BERT) and pre-norm (CLIP)."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from hf_any3d.tuners import GuidedAdapterConfig
from hf_any3d.tuners.guided_adapter import GuidedAdapterLayer
from hf_any3d.tuners.guided_adapter.module import CellAttention
from tests.tiny_encoders import LAYERS, adapted_model, clouds, tiny_model, train_step


@pytest.fixture(params=["bert", "clip_vision_model"])
def encoder(request):
    return request.param


@torch.no_grad()
def logits_of(model):
    return model.eval()(points=clouds()).logits


def wrapped_layers(model):
    return [module for module in model.modules() if isinstance(module, GuidedAdapterLayer)]


def saved(encoder, directory, adapter=None, **config):
    """Save a trained adapter; return its logits."""
    model = adapted_model(encoder, adapter, **config)
    train_step(model)
    expected = logits_of(model)
    model.save_pretrained(directory)
    return expected


@pytest.mark.slow
def test_new_adapter_adds_only_its_aggregation(encoder):
    base = logits_of(tiny_model(encoder))
    model = get_peft_model(tiny_model(encoder), GuidedAdapterConfig(aggregation_scale=0.0))
    torch.testing.assert_close(logits_of(model), base)
    model = get_peft_model(tiny_model(encoder), GuidedAdapterConfig(aggregation_scale=0.0, init_weights=False))
    assert not torch.allclose(logits_of(model), base, atol=1e-4)
    model = get_peft_model(tiny_model(encoder), GuidedAdapterConfig())
    assert not torch.allclose(logits_of(model), base, atol=1e-4)


def test_attention_is_shared_by_all_layers_by_default(encoder):
    def attentions(**adapter):
        model = adapted_model(encoder, adapter)
        return {id(module) for module in model.modules() if isinstance(module, CellAttention)}

    assert len(attentions()) == 1
    assert len(attentions(share_attention=False)) == LAYERS


@pytest.mark.slow
def test_adapters_of_different_widths_switch(encoder, tmp_path):
    narrow = saved(encoder, tmp_path / "narrow", {"r": 2})
    wide = saved(encoder, tmp_path / "wide", {"r": 8, "share_attention": False, "gate": 0.9})
    model = PeftModel.from_pretrained(tiny_model(encoder), tmp_path / "narrow", adapter_name="narrow")
    model.load_adapter(tmp_path / "wide", adapter_name="wide")
    assert torch.equal(logits_of(model), narrow), "loading another adapter does not switch to it"
    for name, expected in (("wide", wide), ("narrow", narrow), ("wide", wide)):
        model.set_adapter(name)
        assert torch.equal(logits_of(model), expected)
    assert not torch.allclose(narrow, wide, atol=1e-4)


@pytest.mark.slow
def test_only_chosen_layers_are_adapted(encoder, tmp_path):
    expected = saved(encoder, tmp_path, {"layers_to_transform": 1})
    loaded = PeftModel.from_pretrained(tiny_model(encoder), tmp_path)
    assert torch.equal(logits_of(loaded), expected)
    core = loaded.base_model.model.any2point
    wrapped = [isinstance(layer, GuidedAdapterLayer) for layer in core.family.layers_of(core.encoder)]
    assert wrapped == [False, True]
    assert not torch.allclose(logits_of(adapted_model(encoder)), expected, atol=1e-4)


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

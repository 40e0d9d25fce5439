"""Guided adapters behave like PEFT's own methods, on layers with post-norm (BERT) and pre-norm (CLIP)."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from hf_any3d import ActForPointCloudClassification
from hf_any3d.tuners import GuidedAdapterConfig
from hf_any3d.tuners.guided_adapter import GuidedAdapterLayer
from tests.errors import raises
from tests.tiny_act import tiny_act
from tests.tiny_encoders import adapted_model, clouds, tiny_model
from tests.turns import by_turns


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


BASES = {
    "line of words": lambda: tiny_model("bert"),
    "plane of images": lambda: tiny_model("clip_vision_model"),
    "rotary": lambda: tiny_model("llama"),
    "grids in space": lambda: tiny_act(ActForPointCloudClassification),
}


@pytest.mark.parametrize(
    ("base", "settings"),
    by_turns(BASES, [{}, {"pooling": "max_mean"}, {"share_attention": False}, {"gate": 1.0}]),
    ids=str,
)
def test_started_as_the_identity_it_changes_nothing_until_it_has_learned(base, settings):
    expected = logits_of(BASES[base]())
    config = GuidedAdapterConfig(r=4, start="identity", bottleneck_dropout=0.0, **settings)
    model = get_peft_model(BASES[base](), config)
    torch.testing.assert_close(logits_of(model), expected)
    gains = [layer.guided_adapter_view_norm["default"].weight for layer in wrapped_layers(model)]
    optimizer = torch.optim.SGD(gains, 0.1)
    model.train()(points=clouds(), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert all(gain.grad.isfinite().all() and gain.grad.abs().max() > 0 for gain in gains)
    optimizer.step()
    assert not torch.allclose(logits_of(model), expected, atol=1e-6)


@pytest.mark.parametrize("settings", [{"gate": 0.2}, {"init_weights": False}], ids=str)
def test_what_is_no_identity_is_refused(settings):
    with raises(ValueError, naming=next(iter(settings))):
        GuidedAdapterConfig(start="identity", **settings)


def test_an_adapter_that_was_stored_before_there_was_a_start_opens_with_its_weights(tmp_path):
    model = adapted_model("bert")
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    del settings["start"]
    file.write_text(json.dumps(settings), encoding="utf-8")
    again = PeftModel.from_pretrained(tiny_model("bert"), tmp_path)
    torch.testing.assert_close(logits_of(again), logits_of(model))

"""BitFit: which biases are trained, merging, and equality with training the biases themselves."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from hf_any3d import BitFitConfig
from hf_any3d.tuners.bitfit import BitFitLayer
from tests.errors import raises
from tests.tiny_encoders import clouds, tiny_model, train_step
from tests.turns import some

TEXT = ["bert", "gpt2", "opt", "deberta-v2", "phi"]
ENCODERS = [*TEXT, "clip_vision_model", "vit", "dinov2", "beit", "hubert", "whisper"]


@torch.no_grad()
def logits_of(model):
    return model.eval()(points=clouds()).logits


def wrapped(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, BitFitLayer)}


@pytest.mark.slow
# Of encoders whose layers name their biases alike, one.
@pytest.mark.parametrize(
    "encoder", some(ENCODERS, left_out=["opt", "phi", "vit", "dinov2", "hubert", "clip_vision_model"])
)
def test_every_bias_of_the_layers_is_trained(encoder):
    model = tiny_model(encoder)
    layers = model.any2point.family.layers_of(model.any2point.encoder)
    biases = {id(p) for name, p in layers.named_parameters() if name.rpartition(".")[2] == "bias"}
    model = get_peft_model(model, BitFitConfig())
    found = wrapped(model)
    assert {id(layer.base_layer.bias) for layer in found.values()} == biases
    train_step(model)
    for name, layer in found.items():
        assert layer.bitfit_bias["default"].grad is not None, name


def test_layers_without_biases_are_refused():
    with raises(ValueError, naming="target_modules"):
        get_peft_model(tiny_model("t5"), BitFitConfig())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_safe_merge_refuses_non_finite_biases(wrong):
    model = get_peft_model(tiny_model(), BitFitConfig())
    layer = next(iter(wrapped(model).values()))
    before = layer.base_layer.bias.detach().clone()
    with torch.no_grad():
        layer.bitfit_bias["default"][3] = wrong
    for merge in (lambda: model.merge_adapter(safe_merge=True), lambda: layer.merge(safe_merge=True)):
        with raises(ValueError, naming="merged bias: adapter 'default'"):
            merge()
    assert torch.equal(layer.base_layer.bias, before) and not layer.merged
    with raises(ValueError, naming="NaN or infinite"):
        model.merge_and_unload(safe_merge=True)


@torch.no_grad()
def test_merged_changes_stay_merged_while_they_are_used_and_leave_when_they_are_disabled():
    model = get_peft_model(tiny_model(), BitFitConfig())
    with torch.enable_grad():
        train_step(model)
    adapted = logits_of(model)
    with model.disable_adapter():
        plain = logits_of(model)
    assert (adapted - plain).abs().max() > 1e-3
    model.merge_adapter()
    torch.testing.assert_close(logits_of(model), adapted, rtol=0, atol=1e-5)
    assert all(layer.merged for layer in wrapped(model).values())
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model), plain, rtol=0, atol=1e-5)
    assert not any(layer.merged for layer in wrapped(model).values())
    torch.testing.assert_close(logits_of(model), adapted, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Already following adapters")
@torch.no_grad()
def test_of_several_changes_each_is_added_once_merged_or_not():
    layer, inputs = BitFitLayer(nn.Linear(3, 2)), torch.randn(4, 3)
    before, plain = layer.base_layer.bias.clone(), layer(inputs)
    for name, values in (("a", [1.0, 2]), ("b", [4.0, 8])):
        layer.update_layer(name, BitFitConfig())
        assert layer.bitfit_bias[name].tolist() == [0, 0]
        layer.bitfit_bias[name].copy_(torch.tensor(values))
    layer.set_adapter(["a", "b"])
    expected = plain + torch.tensor([5.0, 10])
    torch.testing.assert_close(layer(inputs), expected)
    layer.merge(adapter_names=["b", "elsewhere"])
    assert layer.merged_adapters == ["b"]
    torch.testing.assert_close(layer.base_layer.bias, before + torch.tensor([4.0, 8]))
    torch.testing.assert_close(layer(inputs), expected)
    layer.merge(adapter_names=["a"])
    assert layer.merged_adapters == ["b", "a"]
    torch.testing.assert_close(layer(inputs), expected)
    layer.unmerge()
    torch.testing.assert_close(layer.base_layer.bias, before)
    assert not layer.merged
    torch.testing.assert_close(layer(inputs), expected)

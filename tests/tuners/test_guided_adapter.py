"""Guided adapters behave like PEFT's own methods, on layers with post-norm (BERT) and pre-norm (CLIP)."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from hf_any3d.tuners import GuidedAdapterConfig, trainable_module_names
from hf_any3d.tuners.guided_adapter import GuidedAdapterLayer
from hf_any3d.tuners.guided_adapter.module import CellAttention
from tests.tiny_encoders import LAYERS, adapted_model, clouds, tiny_model, train_step

MODULES_TO_SAVE = ["point_tokenizer", "class_token", "output_norm", "classifier"]


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


def test_new_adapter_adds_only_its_aggregation(encoder):
    base = logits_of(tiny_model(encoder))
    model = get_peft_model(tiny_model(encoder), GuidedAdapterConfig(aggregation_scale=0.0))
    torch.testing.assert_close(logits_of(model), base)
    model = get_peft_model(tiny_model(encoder), GuidedAdapterConfig(aggregation_scale=0.0, init_weights=False))
    assert not torch.allclose(logits_of(model), base, atol=1e-4)
    model = get_peft_model(tiny_model(encoder), GuidedAdapterConfig())
    assert not torch.allclose(logits_of(model), base, atol=1e-4)


def test_every_layer_is_wrapped_once(encoder):
    model = adapted_model(encoder)
    core = model.base_model.model.any2point
    assert list(core.family.layers_of(core.encoder)) == wrapped_layers(model)
    assert len(wrapped_layers(model)) == LAYERS


def test_only_adapters_and_modules_around_the_encoder_are_trained(encoder):
    model = adapted_model(encoder)
    for name, parameter in model.named_parameters():
        is_trained = "guided_adapter_" in name or ".modules_to_save." in name
        assert parameter.requires_grad == is_trained, name
    assert trainable_module_names(tiny_model(encoder)) == MODULES_TO_SAVE


def test_attention_is_shared_by_all_layers_by_default(encoder):
    def attentions(**adapter):
        model = adapted_model(encoder, adapter)
        return {id(module) for module in model.modules() if isinstance(module, CellAttention)}

    assert len(attentions()) == 1
    assert len(attentions(share_attention=False)) == LAYERS


@pytest.mark.parametrize("share", [True, False])
def test_saved_adapter_loads_equal(encoder, share, tmp_path):
    expected = saved(encoder, tmp_path, {"share_attention": share, "gate": 0.5})
    for low_memory in (False, True):
        loaded = PeftModel.from_pretrained(tiny_model(encoder), tmp_path, low_cpu_mem_usage=low_memory)
        assert torch.equal(logits_of(loaded), expected)
        assert not any(tensor.is_meta for tensor in loaded.state_dict().values())


def test_files_contain_all_trained_weights_and_none_of_the_encoder(encoder, tmp_path):
    saved(encoder, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    model = adapted_model(encoder)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    plain = {name.replace(".modules_to_save.default", "").replace(".default", "") for name in trained}
    assert plain <= set(stored)
    extra = set(stored) - plain
    assert extra and all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in extra)


def test_adapter_config_names_the_method_and_what_is_saved(encoder, tmp_path):
    saved(encoder, tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["peft_type"] == "GUIDED_ADAPTER"
    assert stored["modules_to_save"] == MODULES_TO_SAVE
    assert (stored["r"], stored["inference_mode"]) == (4, True)


def test_adapter_loads_under_another_name(encoder, tmp_path):
    expected = saved(encoder, tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(encoder), tmp_path, adapter_name="chairs")
    assert loaded.active_adapter == "chairs"
    assert torch.equal(logits_of(loaded), expected)


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


def test_training_a_second_adapter_leaves_the_first_unchanged(encoder):
    model = adapted_model(encoder)
    before = logits_of(model)
    model.add_adapter("second", GuidedAdapterConfig(r=3, init_weights=False))
    assert torch.equal(logits_of(model), before)
    model.set_adapter("second")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".second" in name for name in trained)
    train_step(model)
    assert not torch.allclose(logits_of(model), before, atol=1e-4)
    model.set_adapter("default")
    assert torch.equal(logits_of(model), before)


def test_adapters_of_different_layers_can_be_combined(encoder):
    model = adapted_model(encoder, {"layers_to_transform": 1})
    before = logits_of(model)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    model.add_adapter("second", GuidedAdapterConfig(r=3, init_weights=False))
    assert len(wrapped_layers(model)) == LAYERS
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    assert torch.equal(logits_of(model), before)
    model.set_adapter("second")
    assert not torch.allclose(logits_of(model), before, atol=1e-4)


def test_disabled_adapter_is_the_base_model(encoder):
    base = logits_of(tiny_model(encoder))
    model = adapted_model(encoder)
    train_step(model)
    adapted = logits_of(model)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), base)
    assert torch.equal(logits_of(model), adapted)


def test_deleted_adapter_leaves_nothing_behind(encoder, tmp_path):
    expected = saved(encoder, tmp_path)
    model = PeftModel.from_pretrained(tiny_model(encoder), tmp_path)
    model.add_adapter("second", GuidedAdapterConfig(r=3))
    model.delete_adapter("second")
    assert list(model.peft_config) == ["default"]
    assert not [name for name in model.state_dict() if "second" in name]
    assert not [layer for layer in wrapped_layers(model) for part in (layer.guidance, layer.attention_owner)
                if "second" in part]  # fmt: skip
    assert torch.equal(logits_of(model), expected)


def test_deleting_the_active_adapter_activates_another(encoder, tmp_path):
    expected = saved(encoder, tmp_path)
    model = adapted_model(encoder)
    model.load_adapter(tmp_path, "second")
    model.delete_adapter("default")
    assert model.active_adapters == ["second"]
    assert torch.equal(logits_of(model), expected)


def test_merging_is_refused_and_unload_is_suggested(encoder):
    model = adapted_model(encoder)
    for merge in (model.merge_adapter, model.merge_and_unload, wrapped_layers(model)[0].merge):
        with pytest.raises(ValueError, match=r"a guided adapter cannot be merged.*use unload\(\) to remove it"):
            merge()


def test_unload_returns_the_base_model(encoder):
    base = tiny_model(encoder)
    expected = logits_of(base)
    layers = [type(layer) for layer in base.any2point.family.layers_of(base.any2point.encoder)]
    hooks = sum(len(module._forward_hooks) for module in base.modules())
    model = get_peft_model(base, GuidedAdapterConfig(init_weights=False))
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks + LAYERS
    bare = model.unload()
    assert bare is base
    assert [type(layer) for layer in bare.any2point.family.layers_of(bare.any2point.encoder)] == layers
    assert sum(len(module._forward_hooks) for module in bare.modules()) == hooks
    assert torch.equal(logits_of(bare), expected)
    assert torch.equal(logits_of(get_peft_model(bare, GuidedAdapterConfig(aggregation_scale=0.0))), expected)


def test_only_chosen_layers_are_adapted(encoder, tmp_path):
    expected = saved(encoder, tmp_path, {"layers_to_transform": 1})
    loaded = PeftModel.from_pretrained(tiny_model(encoder), tmp_path)
    assert torch.equal(logits_of(loaded), expected)
    core = loaded.base_model.model.any2point
    wrapped = [isinstance(layer, GuidedAdapterLayer) for layer in core.family.layers_of(core.encoder)]
    assert wrapped == [False, True]
    assert not torch.allclose(logits_of(adapted_model(encoder)), expected, atol=1e-4)


def test_excluded_layers_are_not_adapted(encoder):
    model = adapted_model(encoder, {"exclude_modules": r".*\.0"})
    core = model.base_model.model.any2point
    wrapped = [isinstance(layer, GuidedAdapterLayer) for layer in core.family.layers_of(core.encoder)]
    assert wrapped == [False, True]


@pytest.mark.parametrize("numbers", [2, [0, 5], [-1]])
def test_layers_that_do_not_exist_are_refused(encoder, numbers):
    listed = numbers if isinstance(numbers, list) else [numbers]
    with pytest.raises(ValueError) as error:
        adapted_model(encoder, {"layers_to_transform": numbers})
    assert f"layers_to_transform={listed}; expected numbers from 0 to 1" in str(error.value)


@pytest.mark.filterwarnings("ignore:this adapter leaves out")
def test_modules_to_save_of_the_user_are_kept(encoder, tmp_path):
    model = adapted_model(encoder, {"modules_to_save": ["classifier"]})
    torch.nn.init.normal_(model.base_model.model.classifier.modules_to_save["default"].out.weight)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert any("classifier" in name for name in stored)
    assert not [name for name in stored if "point_tokenizer" in name or "class_token" in name]
    loaded = PeftModel.from_pretrained(tiny_model(encoder), tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model))


def test_loaded_adapter_is_frozen_unless_is_trainable(encoder, tmp_path):
    saved(encoder, tmp_path)
    frozen = PeftModel.from_pretrained(tiny_model(encoder), tmp_path)
    assert not [name for name, p in frozen.named_parameters() if p.requires_grad]
    trainable = PeftModel.from_pretrained(tiny_model(encoder), tmp_path, is_trainable=True)
    names = {name for name, p in trainable.named_parameters() if p.requires_grad}
    assert names == {name for name, p in adapted_model(encoder).named_parameters() if p.requires_grad}
    assert train_step(trainable).isfinite()


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


def test_two_adapters_can_run_one_after_the_other(encoder):
    model = adapted_model(encoder)
    one = logits_of(model)
    model.add_adapter("second", GuidedAdapterConfig(r=3, init_weights=False, modules_to_save=[]))
    model.base_model.set_adapter(["default", "second"])
    both = logits_of(model)
    assert both.isfinite().all() and not torch.allclose(both, one, atol=1e-4)


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

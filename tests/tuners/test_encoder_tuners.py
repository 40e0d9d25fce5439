"""What our PEFT methods have in common, on layers with the norm behind the sum (BERT) and in front of it (CLIP)."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from hf_any3d import (
    AutoModelForPointCloudClassification,
    BitFitConfig,
    GuidedAdapterConfig,
    PointCloudProcessor,
    PromptTokensConfig,
)
from tests.test_doors import check_doors
from tests.tiny_encoders import LAYERS, clouds, tiny_model, train_step

CONFIGS = {
    "bitfit": BitFitConfig,
    "prompt_tokens": PromptTokensConfig,
    "bottleneck": lambda **settings: GuidedAdapterConfig(guidance=False, init_weights=False, **settings),
}


@pytest.fixture(params=["bert", "clip_vision_model"])
def encoder(request):
    return request.param


@pytest.fixture(params=sorted(CONFIGS))
def config(request):
    return CONFIGS[request.param]


@torch.no_grad()
def logits_of(model):
    return model.eval()(points=clouds()).logits


def trained(encoder, config, directory=None, **settings):
    model = get_peft_model(tiny_model(encoder), config(**settings))
    train_step(model)
    if directory is not None:
        model.save_pretrained(directory)
    return model.eval()


def test_a_step_trains_the_method_and_what_surrounds_the_encoder_alone(encoder, config):
    model = get_peft_model(tiny_model(encoder), config())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_step(model)
    prefix = model.base_model.prefix
    for name, parameter in model.named_parameters():
        ours = prefix in name or ".modules_to_save." in name
        assert parameter.requires_grad == ours and (parameter.grad is not None) == ours, name
        assert ours or torch.equal(parameter, before[name]), name
    own = [name for name, p in model.named_parameters() if prefix in name and not torch.equal(p, before[name])]
    assert len(own) >= LAYERS


def test_saved_adapter_opens_equal_through_each_door(encoder, config, tmp_path):
    model = trained(encoder, config, tmp_path)
    PointCloudProcessor(num_points=48, sampling="first").save_pretrained(tmp_path)
    check_doors(str(tmp_path), model, lambda: tiny_model(encoder))
    low_memory = PeftModel.from_pretrained(tiny_model(encoder), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits_of(low_memory), logits_of(model))


def test_file_holds_the_method_and_what_surrounds_the_encoder_alone(encoder, config, tmp_path):
    model = trained(encoder, config, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    prefix = model.base_model.prefix
    in_encoder = {name for name in stored if ".encoder." in name}
    expected = {name for name, p in model.named_parameters() if p.requires_grad and ".encoder." in name}
    assert in_encoder == {name.replace(".default", "") for name in expected}
    assert in_encoder and all(prefix in name for name in in_encoder)


def test_disabled_adapter_is_the_base_model(encoder, config):
    model = trained(encoder, config)
    adapted = logits_of(model)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(tiny_model(encoder)))
    assert torch.equal(logits_of(model), adapted)
    assert not torch.equal(adapted, logits_of(tiny_model(encoder)))


def test_adapters_live_beside_each_other_and_switch(encoder, config, tmp_path):
    first = logits_of(trained(encoder, config, tmp_path / "first"))
    torch.manual_seed(5)
    second = logits_of(trained(encoder, config, tmp_path / "second"))
    model = PeftModel.from_pretrained(tiny_model(encoder), tmp_path / "first", adapter_name="first")
    model.load_adapter(tmp_path / "second", adapter_name="second")
    for name, expected in (("second", second), ("first", first)):
        model.set_adapter(name)
        assert torch.equal(logits_of(model), expected)
    model.delete_adapter("second")
    assert torch.equal(logits_of(model), first)
    assert not [name for name in model.state_dict() if ".second" in name]


def test_new_adapter_trains_without_touching_the_first(encoder, config):
    model = trained(encoder, config)
    before = logits_of(model)
    model.add_adapter("second", config())
    assert torch.equal(logits_of(model), before)
    model.set_adapter("second")
    assert all(".second" in name for name, p in model.named_parameters() if p.requires_grad)
    train_step(model)
    model.set_adapter("default")
    assert torch.equal(logits_of(model), before)


def test_unload_gives_the_bare_model_back(encoder, config):
    base = tiny_model(encoder)
    expected = logits_of(base)
    bare = get_peft_model(base, config()).unload()
    assert bare is base and torch.equal(logits_of(bare), expected)
    assert not [name for name, _ in bare.named_parameters() if "base_layer" in name]


def test_gradient_checkpointing_gives_the_same_gradients(encoder, config):
    def gradients(checkpointing):
        model = get_peft_model(tiny_model(encoder, head_dropout=0.0), config())
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable()
        torch.manual_seed(3)
        train_step(model)
        return {name: p.grad for name, p in model.named_parameters() if model.base_model.prefix in name}

    plain, recomputed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_half_precision_encoder_keeps_the_adapter_in_full_precision(encoder, config, tmp_path):
    model = get_peft_model(tiny_model(encoder, dtype=torch.bfloat16), config())
    own = {name: p.dtype for name, p in model.named_parameters() if model.base_model.prefix in name}
    assert set(own.values()) == {torch.float32}
    assert train_step(model).isfinite()
    model.save_pretrained(tmp_path)
    half = AutoModelForPointCloudClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(logits_of(half), logits_of(model), rtol=0, atol=0.05)

"""Full fine-tuning: an encoder that trains and is stored with the model."""

import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from hf_any3d import AutoModelForPointCloudClassification, GuidedAdapterConfig, PointCloudProcessor
from tests.errors import raises
from tests.test_entry_points import check_entry_points
from tests.tiny_encoders import adapted_model, clouds, tiny_model, train_step
from tests.turns import some


@torch.no_grad()
def logits_of(model):
    return model.eval()(points=clouds()).logits


def fine_tuned(encoder="bert", **settings):
    model = tiny_model(encoder, **settings)
    model.unfreeze_encoder()
    train_step(model)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder",
    some(
        ["bert", "clip_vision_model", "t5", "beit", "llama", "hubert", "gpt2"],
        left_out=["clip_vision_model", "llama", "gpt2"],
    ),
)
def test_step_changes_only_encoder_parameters_that_process_clouds(encoder):
    model = tiny_model(encoder, head_dropout=0.0)
    before = {name: p.detach().clone() for name, p in model.any2point.encoder.named_parameters()}
    names = model.unfreeze_encoder()
    train_step(model)
    for name, parameter in model.any2point.encoder.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (name in names), name
        assert name in names or torch.equal(parameter, before[name]), name
    layers = [name for name in before if name.startswith(f"{model.any2point.family.layers}.0.")]
    changed = {name for name in names if not torch.equal(model.any2point.encoder.get_parameter(name), before[name])}
    # Attention does not depend on the bias of keys: its gradient is rounding noise.
    assert set(layers) - changed <= {name for name in layers if "bias" in name or "relative" in name}


@pytest.mark.parametrize(
    ("encoder", "trains", "stays"),
    [
        ("bert", "embeddings.position_embeddings.weight", "embeddings.word_embeddings.weight"),
        ("t5", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "shared.weight"),
        ("hubert", "encoder.pos_conv_embed.conv.bias", "masked_spec_embed"),
    ],
)
def test_positions_train_and_input_embeddings_do_not(encoder, trains, stays):
    model = tiny_model(encoder)
    names = model.unfreeze_encoder()
    assert trains in names and stays not in names
    train_step(model)
    assert model.any2point.encoder.get_parameter(trains).grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("encoder", some(["bert", "clip_vision_model"], left_out=["bert"]))
def test_fine_tuned_model_is_equal_through_every_entry_point(encoder, tmp_path):
    model = fine_tuned(encoder)
    assert not torch.allclose(logits_of(model), logits_of(tiny_model(encoder)), atol=1e-3)
    model.save_pretrained(tmp_path)
    PointCloudProcessor(num_points=48, sampling="first").save_pretrained(tmp_path)
    check_entry_points(str(tmp_path), model, None)
    stored = load_file(tmp_path / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(stored[name], parameter), name


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
def test_reloaded_model_is_frozen_until_it_is_unfrozen_again(tmp_path):
    fine_tuned().save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForPointCloudClassification.from_pretrained(tmp_path)
        logits_of(model)
    assert not any(p.requires_grad for p in model.any2point.encoder.parameters())
    assert model.config.encoder_name_or_path is None
    assert model.config.encoder_trained_from == tiny_model().config.encoder_name_or_path
    before = logits_of(model)
    model.unfreeze_encoder()
    assert torch.equal(logits_of(model), before)
    train_step(model)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForPointCloudClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(again), logits_of(model)) and not torch.equal(logits_of(again), before)


def test_encoder_with_adapters_is_refused():
    model = adapted_model()
    with raises(ValueError, naming="GuidedAdapterLayer"):
        model.get_base_model().unfreeze_encoder()


@pytest.mark.slow
def test_adapter_on_a_fine_tuned_encoder_is_stored_with_that_encoder(tmp_path):
    base = fine_tuned()
    base.save_pretrained(tmp_path / "base")
    reference = base.any2point.encoder.encoder.layer[0].output.dense.weight.clone()
    model = get_peft_model(base, GuidedAdapterConfig(init_weights=False))
    train_step(model)
    model.save_pretrained(tmp_path / "adapter")
    whole = AutoModelForPointCloudClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits_of(whole), logits_of(model))
    encoder = whole.any2point.encoder
    assert torch.equal(encoder.encoder.layer[0].base_layer.output.dense.weight, reference)
    beside = PeftModel.from_pretrained(
        AutoModelForPointCloudClassification.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    assert torch.equal(logits_of(beside), logits_of(model))

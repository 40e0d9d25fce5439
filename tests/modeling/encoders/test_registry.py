import dataclasses
import pickle

import pytest
import torch
from transformers import AutoConfig, CLIPModel, GPT2Config

from hf_any3d.modeling.encoders import (
    UnsupportedEncoder,
    encoder_families,
    encoder_settings,
    find_family,
    register_family,
    select_tower,
)
from tests.tiny_encoders import HIDDEN, LAYERS, random_encoder, saved_encoder, tiny_config, tiny_model

ALL = list(encoder_families())


@pytest.mark.parametrize("model_type", ALL)
def test_paths_of_a_family_lead_to_the_parts_of_its_encoders(model_type):
    family = encoder_families()[model_type]
    encoder = random_encoder(tiny_config(model_type))
    layers = family.layers_of(encoder)
    assert isinstance(layers, torch.nn.ModuleList) and len(layers) == LAYERS
    for layer in layers:
        assert isinstance(layer.get_submodule(family.branch), torch.nn.Module)
    for path in (family.input_norm, family.final_norm):
        norm = family.norm_of(encoder, path)
        assert (norm is None) == (path is None)
        assert norm is None or norm.weight.shape == (HIDDEN,)
    table = family.positions(encoder)
    assert table.weight.shape[1] == HIDDEN and table.rows * table.columns > 8
    if family.class_token is not None:
        assert family.class_token(encoder).shape == (HIDDEN,)


@pytest.mark.parametrize("model_type", ALL)
def test_branch_is_what_the_layer_adds_last(model_type):
    # Whatever joins the branch must pass through one residual sum only: for layers with the norm in front, adding a
    # constant to the branch adds it to the layer's output.
    family = encoder_families()[model_type]
    layer = family.layers_of(random_encoder(tiny_config(model_type)))[0]
    tokens = torch.randn(2, 5, HIDDEN)
    with torch.no_grad():
        before = layer(tokens, attention_mask=None, is_causal=False)
        layer.get_submodule(family.branch).register_forward_hook(lambda module, args, out: out + 0.5)
        after = layer(tokens, attention_mask=None, is_causal=False)
    if family.final_norm is not None:
        torch.testing.assert_close(after - before, torch.full_like(before, 0.5))
    else:
        # Norm behind the sum: a shift that is equal in all channels vanishes in it.
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", ALL)
def test_families_pickle_by_name(model_type):
    family = encoder_families()[model_type]
    assert pickle.loads(pickle.dumps(family)) is family


def test_unknown_encoder_is_named_with_what_is_supported():
    with pytest.raises(UnsupportedEncoder, match="model_type 'gpt2' is not supported") as error:
        find_family(GPT2Config())
    assert all(model_type in str(error.value) for model_type in (*ALL, "clip"))


def test_unknown_encoder_is_refused_before_its_weights_are_read(tmp_path):
    GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=10).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(UnsupportedEncoder, match="gpt2"):
        tiny_model(str(tmp_path))


@pytest.mark.parametrize("tower", [None, "audio", "txt"])
def test_composite_checkpoint_asks_for_a_tower(tower):
    with pytest.raises(UnsupportedEncoder, match=f"tower={tower!r}, expected one of 'text', 'vision'"):
        tiny_model("clip", tower=tower)


def test_tower_that_does_not_fit_is_refused():
    with pytest.raises(UnsupportedEncoder, match="tower='vision' does not fit: 'bert' is a text encoder"):
        tiny_model("bert", tower="vision")
    assert tiny_model("bert", tower="text").config.encoder_tower == "text"


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_towers_of_a_composite_checkpoint_carry_its_weights(tower):
    model = tiny_model("clip", tower=tower)
    whole = AutoConfig.from_pretrained(saved_encoder("clip"))
    assert model.config.encoder_config.model_type == f"clip_{tower}_model"
    assert model.config.encoder_config.num_hidden_layers == getattr(whole, f"{tower}_config").num_hidden_layers
    clip = CLIPModel.from_pretrained(saved_encoder("clip"))
    expected = getattr(clip, f"{tower}_model").state_dict()
    found = model.any2point.encoder.state_dict()
    assert found and all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_single_tower_of_a_composite_checkpoint_is_selected_from_its_config():
    whole = AutoConfig.from_pretrained(saved_encoder("clip"))
    assert select_tower(whole, "vision") is whole.vision_config


def test_model_type_belongs_to_one_family():
    bert = encoder_families()["bert"]
    twin = dataclasses.replace(bert, name="twin")
    with pytest.raises(ValueError, match="model_type 'bert' already belongs to family 'BERT'"):
        register_family(twin)
    assert encoder_families()["bert"] is bert


def test_listing_cannot_be_used_to_change_the_registry():
    encoder_families().clear()
    assert list(encoder_families()) == ALL


@pytest.mark.parametrize("count", [0, 3, -1])
def test_impossible_number_of_layers_is_refused(count):
    with pytest.raises(ValueError, match=rf"num_layers={count}; expected 1 to {LAYERS}"):
        encoder_settings(saved_encoder("bert"), None, None, count)

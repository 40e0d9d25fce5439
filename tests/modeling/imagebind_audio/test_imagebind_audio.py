"""ImageBind's audio encoder, compared with torch's layers, and loaded with the auto classes."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from hf_any3d.modeling.imagebind_audio import ImageBindAudioConfig, ImageBindAudioModel
from tests.errors import raises
from tests.tiny_encoders import random_encoder, tiny_config


@pytest.fixture
def model():
    return random_encoder(tiny_config("imagebind_audio"))


def spectrograms(config, batch=2):
    shape = (batch, 1, config.num_mel_bins, config.num_frames)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def reference(model, input_values):
    """Compute the encoder's output with torch's attention and its bias key and value, as the authors do."""
    config, embeddings = model.config, model.embeddings
    patches = nn.functional.unfold(input_values, config.patch_size, stride=config.stride).transpose(1, 2)
    tokens = embeddings.norm(patches @ embeddings.projection.weight.flatten(1).T)
    tokens = torch.cat([embeddings.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
    tokens = tokens + embeddings.position_embeddings
    for layer in model.layers:
        ours = layer.attention
        attention = nn.MultiheadAttention(
            config.hidden_size, config.num_attention_heads, add_bias_kv=config.add_bias_kv, batch_first=True
        )
        projections = (ours.q_proj, ours.k_proj, ours.v_proj)
        attention.in_proj_weight.copy_(torch.cat([linear.weight for linear in projections]))
        attention.in_proj_bias.copy_(torch.cat([linear.bias for linear in projections]))
        attention.out_proj.load_state_dict(ours.o_proj.state_dict())
        if config.add_bias_kv:
            attention.bias_k.copy_(ours.bias_k.reshape(1, 1, -1))
            attention.bias_v.copy_(ours.bias_v.reshape(1, 1, -1))
        normed = layer.norm1(tokens)
        tokens = tokens + attention(normed, normed, normed, need_weights=False)[0]
        normed = layer.norm2(tokens)
        tokens = tokens + layer.mlp.fc2(nn.functional.gelu(layer.mlp.fc1(normed)))
    return model.layernorm(tokens)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("add_bias_kv", [True, False])
def test_encoder_equals_one_of_torchs_layers(add_bias_kv, attention):
    model = random_encoder(tiny_config("imagebind_audio", add_bias_kv=add_bias_kv))
    model.set_attn_implementation(attention)
    values = spectrograms(model.config)
    output = model(values)
    expected = reference(model, values)
    torch.testing.assert_close(output.last_hidden_state, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 0])


@torch.no_grad()
def test_bias_key_and_value_matter(model):
    values = spectrograms(model.config)
    before = model(values).last_hidden_state
    for layer in model.layers:
        layer.attention.bias_v.add_(1.0)
    assert not torch.allclose(model(values).last_hidden_state, before, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_masked_tokens_are_ignored_but_the_bias_key_is_not(model, kind):
    layer = model.layers[0]
    tokens = torch.randn(1, 6, model.config.hidden_size)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    mask[..., 4:] = False
    if kind is not torch.bool:
        mask = torch.zeros_like(mask, dtype=kind).masked_fill(~mask, -torch.inf)
    masked = layer(tokens, attention_mask=mask)
    torch.testing.assert_close(masked[:, :4], layer(tokens[:, :4]), rtol=1e-5, atol=1e-5)


def test_defaults_are_the_published_sizes():
    config = ImageBindAudioConfig()
    assert config.patch_grid == (12, 19)
    with torch.device("meta"):
        model = ImageBindAudioModel(config)
    assert model.embeddings.position_embeddings.shape == (1, 229, 768)
    assert sum(parameter.numel() for parameter in model.layers[0].parameters()) == 7_087_872 + 2 * 768


@torch.no_grad()
def test_saved_encoder_is_loaded_by_the_auto_classes(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is ImageBindAudioConfig
    loaded = AutoModel.from_pretrained(tmp_path)
    values = spectrograms(model.config)
    assert torch.equal(loaded(values).last_hidden_state, model(values).last_hidden_state)


@torch.no_grad()
def test_hidden_states_and_attentions_are_returned_on_request(model):
    model.set_attn_implementation("eager")
    output = model(spectrograms(model.config), output_hidden_states=True, output_attentions=True)
    tokens = output.last_hidden_state.shape[1]
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2
    assert output.attentions[0].shape == (2, 4, tokens, tokens + 1)


@pytest.mark.parametrize("shape", [(2, 36, 56), (2, 1, 56, 36), (2, 2, 36, 56)])
def test_spectrograms_of_another_shape_are_refused(model, shape):
    with raises(ValueError, naming="input_values"):
        model(torch.zeros(shape))


def test_a_spectrogram_may_have_a_single_patch():
    assert ImageBindAudioConfig(num_mel_bins=16, num_frames=16).patch_grid == (1, 1)


def test_every_default_is_that_of_the_published_encoder():
    expected = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "patch_norm_eps": 1e-5,
        "patch_size": 16,
        "stride": 10,
        "num_mel_bins": 128,
        "num_frames": 204,
        "add_bias_kv": True,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
    }
    config = ImageBindAudioConfig()
    assert {name: getattr(config, name) for name in expected} == expected


def test_sizes_of_layers_are_those_of_the_config():
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 20, "num_hidden_layers": 2}
    sizes |= {"patch_size": 8, "stride": 5, "num_mel_bins": 18, "num_frames": 24, "hidden_act": "relu"}
    config = ImageBindAudioConfig(**sizes, attention_dropout=0.25)
    model = ImageBindAudioModel(config)
    assert config.patch_grid == (3, 4) and model.embeddings.position_embeddings.shape == (1, 13, 24)
    projection = model.embeddings.projection
    assert (projection.weight.shape, projection.stride, projection.bias) == ((24, 1, 8, 8), (5, 5), None)
    assert len(model.layers) == 2
    for layer in model.layers:
        own = [layer.mlp.fc1, layer.mlp.fc2, layer.attention.q_proj, layer.attention.o_proj]
        assert [tuple(part.weight.shape) for part in own] == [(20, 24), (24, 20), (24, 24), (24, 24)]
        assert isinstance(layer.mlp.activation, nn.ReLU) and layer.attention.bias_k.shape == (3, 1, 8)
        assert layer.attention.scaling == 8**-0.5 and layer.attention.attention_dropout == 0.25
    assert ImageBindAudioModel(ImageBindAudioConfig(**sizes, add_bias_kv=False)).layers[0].attention.bias_v is None


@torch.no_grad()
def test_states_are_the_embeddings_and_the_outputs_of_layers_before_the_norm(model):
    values = spectrograms(model.config)
    output = model(values, output_hidden_states=True)
    expected = [model.embeddings(values)]
    for layer in model.layers:
        expected.append(layer(expected[-1]))
    assert all(torch.equal(*pair) for pair in zip(output.hidden_states, expected, strict=True))
    assert torch.equal(model.layernorm(expected[-1]), output.last_hidden_state) and output.attentions is None
    assert model(values).hidden_states is None


@torch.no_grad()
def test_attention_weights_drop_out_in_training_alone():
    model = random_encoder(tiny_config("imagebind_audio", attention_dropout=0.5))
    model.set_attn_implementation("eager")
    values = spectrograms(model.config)
    still = model(values).last_hidden_state
    assert torch.equal(model(values).last_hidden_state, still)
    torch.manual_seed(0)
    weights = model.train()(values, output_attentions=True).attentions
    assert all(0.4 < (own == 0).float().mean() < 0.6 for own in weights)
    assert all(not (own == 0).any() for own in model.eval()(values, output_attentions=True).attentions)


def test_learned_vectors_start_with_the_deviation_of_the_config():
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = ImageBindAudioModel(ImageBindAudioConfig(**sizes, initializer_range=0.07))
    vectors = [model.embeddings.position_embeddings, model.embeddings.cls_token]
    for layer in model.layers:
        vectors += [layer.attention.bias_k, layer.attention.bias_v, layer.mlp.fc1.weight]
    for vector in vectors:
        assert vector.std().item() == pytest.approx(0.07, rel=0.3)
        assert vector.mean().item() == pytest.approx(0, abs=0.03)
    plain = ImageBindAudioModel(ImageBindAudioConfig(**sizes, add_bias_kv=False))
    assert plain.layers[0].attention.bias_k is None


@torch.no_grad()
def test_half_precision_encoders_read_full_spectrograms(model):
    values = spectrograms(model.config)
    expected = model(values).last_hidden_state
    found = model.bfloat16()(values).last_hidden_state
    assert found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0) > 0.99
    with raises(ValueError, naming="output_attentions"):
        model(values, output_attentions=True)

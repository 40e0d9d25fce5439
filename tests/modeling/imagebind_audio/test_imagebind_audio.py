"""ImageBind's audio encoder, compared with torch's layers, and loaded with the auto classes."""

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize("shape", [(2, 36, 56), (2, 1, 56, 36), (2, 2, 36, 56)])
def test_spectrograms_of_another_shape_are_refused(model, shape):
    with raises(ValueError, naming="input_values"):
        model(torch.zeros(shape))

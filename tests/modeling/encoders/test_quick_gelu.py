"""CLIP's activation in few passes: values and gradients of the original, less kept for the backward pass."""

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.activations import QuickGELUActivation

from hf_any3d.modeling.encoders import freeze
from hf_any3d.modeling.encoders.loading import FusedQuickGELU


def test_values_and_gradients_are_those_of_transformers():
    rows = torch.linspace(-30, 30, 601, dtype=torch.float64, requires_grad=True)
    expected, ours = QuickGELUActivation()(rows), FusedQuickGELU()(rows)
    torch.testing.assert_close(ours, expected)
    weights = torch.rand_like(rows)
    torch.testing.assert_close(*(torch.autograd.grad(out, rows, weights)[0] for out in (ours, expected)))


def test_other_activations_stay():
    layers = nn.Sequential(nn.GELU(), nn.Sequential(QuickGELUActivation()))
    freeze(layers)
    assert isinstance(layers[0], nn.GELU)
    assert isinstance(layers[1][0], FusedQuickGELU)


def test_a_frozen_clip_has_it_and_the_same_weights():
    config = CLIPTextConfig(
        vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, eos_token_id=2
    )
    encoder = CLIPTextModel(config)
    names = list(encoder.state_dict())
    freeze(encoder)
    assert sum(isinstance(module, FusedQuickGELU) for module in encoder.modules()) == config.num_hidden_layers
    assert list(encoder.state_dict()) == names

"""What `forward` takes and returns, the recorder of attention weights, and layers that may be read without a call."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_any3d.modeling.layers.direct_weights import is_sharded, is_unmodified
from hf_any3d.modeling.layers.forward_contract import AttentionRecorder, PointFeaturesOutput, strict_forward
from hf_any3d.modeling.layers.heads import HeadNorm
from tests.errors import raises

POINTS = torch.arange(6.0).view(1, 2, 3)


def config_of(**settings) -> SimpleNamespace:
    usual = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}
    return SimpleNamespace(**(usual | {"_attn_implementation": "sdpa"} | settings))


class Doubling:
    """Doubles its input, and returns three states on request."""

    def __init__(self, **settings):
        self.config = config_of(**settings)

    @strict_forward
    def forward(self, points, scale=2.0, output_hidden_states=None):
        states = (points, points + 1, points + 2) if output_hidden_states else None
        return PointFeaturesOutput(last_hidden_state=scale * points, hidden_states=states)


@pytest.mark.parametrize("wrong", [3, -4, [0, 3], [-4]])
def test_other_indices_of_hidden_states_are_an_error(wrong):
    with pytest.raises(IndexError):
        Doubling().forward(POINTS, output_hidden_states=wrong)


def test_keywords_that_a_forward_lacks_are_named_with_those_it_has():
    message = "Doubling.forward() got an unexpected keyword argument 'scales'; expected some of "
    with pytest.raises(TypeError, match=re.escape(message + "output_hidden_states, points, scale") + "$"):
        Doubling().forward(POINTS, scales=1)
    assert torch.equal(Doubling().forward(POINTS, scales=None, scale=3.0).last_hidden_state, 3 * POINTS)


class Attention(nn.Module):
    """Returns given values after its input."""

    def __init__(self, *values):
        super().__init__()
        self.values = values

    def forward(self, hidden_states):
        return (hidden_states, *self.values) if self.values else hidden_states


@pytest.mark.parametrize("values", [(), (None,)])
def test_layers_without_weights_are_an_error(values):
    layers = [Attention(torch.ones(1)), Attention(*values), nn.Identity()]
    recorder = AttentionRecorder(layers, {Attention: 1}, "tiny")
    with recorder, raises(ValueError, naming="'tiny' returned no attention weights"):
        for layer in layers:
            layer(POINTS)
        _ = recorder.weights


class Packed(torch.Tensor):
    """A quantized weight, which holds other tensors."""

    def __tensor_flatten__(self):
        return [], None


def modified(how: str) -> nn.Module:
    layer = nn.Linear(2, 3)
    if how == "hook":
        layer.register_forward_hook(lambda *_: None)
    elif how == "hook before":
        layer.register_forward_pre_hook(lambda *_: None)
    elif how == "forward of its own":
        layer.forward = layer.forward
    elif how == "packed":
        layer.weight = nn.Parameter(torch.zeros(3, 2).as_subclass(Packed), requires_grad=False)
    return layer


def test_plain_layers_may_be_read_and_others_must_be_called():
    plain = [nn.Linear(2, 3), nn.BatchNorm1d(3), nn.GroupNorm(1, 3)]
    assert is_unmodified(*plain) and is_unmodified(nn.Linear(2, 3, bias=False))
    for how in ("hook", "hook before", "forward of its own", "packed"):
        assert not is_unmodified(modified(how)), how
        assert not is_unmodified(*plain, modified(how)) and not is_unmodified(modified(how), *plain), how
    # Subclasses and other kinds may compute anything.
    assert not is_unmodified(HeadNorm(3)) and not is_unmodified(nn.Sequential(nn.Linear(2, 3)))
    assert not is_sharded(plain[0].weight)

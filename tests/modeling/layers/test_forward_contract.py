"""What `forward` takes and returns, the recorder of attention weights, and layers that may be read without a call."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_any3d.modeling.layers.forward_contract import (
    AttentionRecorder,
    NoAttentionMixin,
    PointFeaturesOutput,
    batch_dependent_flags,
    is_sharded,
    is_unmodified,
    rejects_unknown_keywords,
    requested_outputs,
    strict_forward,
)
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


class Writing(Doubling):
    """Takes any keyword."""

    @strict_forward
    def forward(self, points, inputs_embeds=None, **kwargs):
        self.given = kwargs
        return PointFeaturesOutput(last_hidden_state=points)


class Head(Doubling):
    """Passes on what to return."""

    @strict_forward
    def forward(self, points, labels=None, **kwargs):
        """Classify."""
        return Doubling.forward(self, points, scale=1.0, **kwargs)


class Stateless(Doubling):
    """Returns a tuple and has no states."""

    @strict_forward
    def forward(self, points):
        return (points,)


@pytest.mark.parametrize(
    ("asked", "kept"),
    [(1, [1]), (-3, [0]), (2, [2]), ([0, -1], [0, 2]), ((1, 1), [1]), ([], [])],
)
def test_hidden_states_of_an_index_or_several_are_kept_by_call_and_by_config(asked, kept):
    by_call = Doubling().forward(POINTS, output_hidden_states=asked).hidden_states
    by_config = Doubling(output_hidden_states=asked).forward(POINTS).hidden_states
    for states in (by_call, by_config):
        assert [number for number, state in enumerate(states) if state is not None] == kept
        assert all(torch.equal(states[number], POINTS + number) for number in kept)
    assert Doubling(output_hidden_states=asked).forward(POINTS, output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("wrong", [3, -4, [0, 3], [-4]])
def test_other_indices_of_hidden_states_are_an_error(wrong):
    with pytest.raises(IndexError):
        Doubling().forward(POINTS, output_hidden_states=wrong)


def test_the_call_and_then_the_config_say_whether_a_tuple_is_returned():
    assert isinstance(Doubling().forward(POINTS), PointFeaturesOutput)
    (only,) = Doubling().forward(POINTS, return_dict=False)
    assert torch.equal(only, 2 * POINTS)
    assert isinstance(Doubling(return_dict=False).forward(POINTS), tuple)
    assert isinstance(Doubling(return_dict=False).forward(POINTS, return_dict=True), PointFeaturesOutput)
    assert Stateless(output_hidden_states=[0]).forward(POINTS) == (POINTS,)


def test_a_head_passes_on_what_to_return_and_nothing_else():
    assert Head().forward(POINTS).hidden_states is None
    assert [state is None for state in Head().forward(POINTS, output_hidden_states=[1]).hidden_states] == [1, 0, 1]
    with raises(TypeError, naming="'scale'; expected some of labels"):
        Head().forward(POINTS, scale=3.0)
    text = Head.forward.__doc__
    assert text.startswith("Classify.") and all(f"    {name}: " in text for name in ("points", "labels"))


def test_a_forward_of_any_keywords_gets_them_and_computes_all_states_for_some():
    model = Writing(output_hidden_states=[0])
    assert model.forward(POINTS, words=3).hidden_states is None
    assert model.given == {"words": 3, "output_hidden_states": True}
    Writing.forward(model, POINTS, output_hidden_states=False, words=None)
    assert model.given == {"words": None, "output_hidden_states": False}


def test_keywords_that_a_forward_lacks_are_named_with_those_it_has():
    message = "Doubling.forward() got an unexpected keyword argument 'scales'; expected some of "
    with pytest.raises(TypeError, match=re.escape(message + "output_hidden_states, points, scale") + "$"):
        Doubling().forward(POINTS, scales=1)
    assert torch.equal(Doubling().forward(POINTS, scales=None, scale=3.0).last_hidden_state, 3 * POINTS)


class Words:
    """Stands for a model of transformers, which ignores what it does not know."""

    def __init__(self, **settings):
        self.config = config_of(**settings)

    @rejects_unknown_keywords
    def forward(self, input_ids=None, labels=None, **kwargs):
        return labels, kwargs

    @rejects_unknown_keywords
    def body(self, input_ids=None, **kwargs):
        return kwargs


def test_an_inherited_forward_takes_its_own_keywords_and_those_of_layers_and_loss():
    labels, shifted = torch.tensor([1]), torch.tensor([2])
    assert Words().forward(input_ids=1, return_dict=True, wrong=None) == (None, {"return_dict": True})
    assert Words().forward(labels=labels, shift_labels=shifted) == (labels, {"shift_labels": shifted})
    # Without labels there would be no loss.
    assert Words().forward(shift_labels=shifted) == (shifted, {"shift_labels": shifted})
    assert Words().body(shift_labels=shifted) == {"shift_labels": shifted}
    for keyword in ("num_items_in_batch", "ignore_index", "cu_seq_lens_q"):
        assert Words().body(**{keyword: 5}) == {keyword: 5}
    with raises(TypeError, naming="'label'; expected"):
        Words().forward(label=labels)
    with raises(TypeError, naming="argument 'kwargs'"):
        Words().forward(kwargs=1)
    for model, given in ((Words(), {"output_attentions": True}), (Words(output_attentions=True), {})):
        with raises(ValueError, naming="output_attentions"):
            model.forward(**given)
    eager = Words(_attn_implementation="eager")
    assert eager.forward(output_attentions=True) == (None, {"output_attentions": True})


@pytest.mark.parametrize("attention", ["eager", "sdpa", None])
@pytest.mark.parametrize("by_config", [True, False])
@pytest.mark.parametrize("by_call", [None, True, False])
def test_requests_of_the_call_override_those_of_the_config(by_call, by_config, attention):
    config = config_of(output_hidden_states=by_config, output_attentions=by_config)
    expected = by_config if by_call is None else by_call
    assert requested_outputs(config, by_call, False, attention) == (expected, False)
    if expected and attention != "eager":
        with pytest.raises(ValueError, match=re.escape(f"with attn_implementation={attention!r}")):
            requested_outputs(config, False, by_call, attention)
    else:
        assert requested_outputs(config, False, by_call, attention) == (False, expected)


class Attention(nn.Module):
    """Returns given values after its input."""

    def __init__(self, *values):
        super().__init__()
        self.values = values

    def forward(self, hidden_states):
        return (hidden_states, *self.values) if self.values else hidden_states


class OtherAttention(Attention):
    """Another kind."""


def test_weights_of_each_layer_are_recorded_in_order_and_only_inside():
    first, second = torch.ones(1), torch.ones(2)
    layers = [nn.Sequential(nn.Identity(), Attention(first)), nn.ModuleList([OtherAttention(None, second)])]
    recorder = AttentionRecorder(layers, {OtherAttention: 2, Attention: 1}, "tiny")
    with recorder:
        layers[1][0](POINTS)
        layers[0][1](POINTS)
        assert [weights is own for weights, own in zip(recorder.weights, (first, second), strict=True)] == [True] * 2
    assert not layers[0][1]._forward_hooks and not layers[1][0]._forward_hooks


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


def test_flags_are_those_of_the_model_and_of_its_adapters():
    flags = SimpleNamespace(config=SimpleNamespace(batch_dependent_flags=["first"]))
    assert batch_dependent_flags(flags) == ["first"]
    flags.peft_config = {"a": SimpleNamespace(batch_dependent_flags=None), "b": SimpleNamespace()}
    flags.peft_config["c"] = SimpleNamespace(batch_dependent_flags=["second", "third"])
    assert batch_dependent_flags(flags) == ["first", "second", "third"]
    assert batch_dependent_flags(SimpleNamespace(config=SimpleNamespace())) == []


@pytest.mark.parametrize(
    ("by_call", "by_config", "expected"), [(None, True, True), (False, True, False), (1, 0, True)]
)
def test_states_without_attention_are_returned_on_request(by_call, by_config, expected):
    model = NoAttentionMixin()
    model.config = config_of(output_hidden_states=by_config, model_type="tiny")
    assert model.returns_states(by_call, None) is expected
    model.config.output_attentions = True
    assert model.returns_states(by_call, False) is expected
    for asked in (None, True):
        with raises(ValueError, naming="output_attentions"):
            model.returns_states(by_call, asked)

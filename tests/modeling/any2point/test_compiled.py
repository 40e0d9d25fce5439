"""A training step under `torch.compile`: one graph, with the results of the plain step."""

import copy

import pytest
import torch

from tests.tiny_encoders import adapted_model, clouds
from tests.turns import some


@pytest.mark.slow
@pytest.mark.parametrize("count_empty_cells", some([False, True], left_out=[True]))
def test_training_step_compiles_into_one_graph(monkeypatch, count_empty_cells):
    # Compilers of torch 2.10 and 2.11 break the graph at this question, as seen on a GPU with 2.11; that of 2.13 knows
    # it.
    question = torch.compiler.disable(torch.amp.is_autocast_available)
    monkeypatch.setattr(torch.amp, "is_autocast_available", question)
    settings = {"count_empty_cells": count_empty_cells}
    model = adapted_model("clip_text_model", settings, num_layers=1, head_dropout=0.0).train()
    other = copy.deepcopy(model)
    labels = torch.arange(3)
    expected = model(points=clouds(), labels=labels).loss
    expected.backward()
    # A break in the graph is an error. Autograd differentiates the graph; a backend that does so itself, in many times
    # the time, is tried in tests/training/test_faster_steps.py.
    step = torch.compile(other, backend="eager", fullgraph=True)
    loss = step(points=clouds(), labels=labels).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    largest = max(parameter.grad.abs().max() for parameter in model.parameters() if parameter.grad is not None)
    pairs = zip(model.named_parameters(), other.parameters(), strict=True)
    for (name, plain), compiled in pairs:
        assert (plain.grad is None) == (compiled.grad is None), name
        if plain.grad is not None:
            torch.testing.assert_close(compiled.grad, plain.grad, rtol=1e-3, atol=1e-5 * largest.item(), msg=name)
    for (name, plain), compiled in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(compiled, plain, msg=name)

"""Section on modes: bare frozen layers and the training step around them, each plain, compiled and captured."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hf_any3d.modeling.kernels.guided_aggregation import table_form
from hf_any3d.training.faster_steps import CapturedSteps, compile_layers
from studies.speed._any2point_transcription import training_loss
from studies.speed.any2point_wrapper import PRESETS, TRANSCRIBED, Built, build
from studies.speed.launches import count_built
from tests.gpu_check.run import Row, Run

Loss = Callable[[], Tensor]
CLOUDS = 32
# The method as written needs ten times the memory.
TRANSCRIBED_CLOUDS = 8
_SMALL = {"points": 64, "tokens": 8, "neighbors": 4}


class Bare(nn.Module):
    """The frozen layers of an encoder alone, without adapters."""

    def __init__(self, layers: list[nn.Module], sequence: Tensor):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        # Neither the sum nor the squares of a layer's output would do: where it ends with a norm, they are constants.
        self.register_buffer("direction", torch.arange(sequence.shape[-1], device=sequence.device).cos())

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Sum the last hidden states along a direction, as a loss."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=None, is_causal=False)
        return (hidden_states @ self.direction).sum()


def modes(run: Run) -> None:
    """Time bare layers and steps in the same modes, with launches as counted without a GPU and as profiled."""
    # The paper's compiled step comes last: its first one takes minutes, and the time is spent in order.
    run.check("the method as written", partial(_transcription, run))
    built = {preset: _built(preset, run) for preset in ("minilm", TRANSCRIBED)}
    tokenizer = built[TRANSCRIBED].model.get_base_model().any2point.point_tokenizer
    made: dict[str, Callable[..., Any]] = {"tokenizer": tokenizer}
    if run.on_gpu:
        made["tokenizer, compiled"] = torch.compile(tokenizer)
    for name, function in made.items():
        for precision, suffix in ((None, ""), (torch.bfloat16, ", bfloat16")):
            measure = partial(_tokenizer, run, built[TRANSCRIBED], function, precision)
            run.check(f"{TRANSCRIBED}, {name}{suffix}", measure)
    for preset, parts in built.items():
        step_launches, bare_launches = count_built(_built(preset, run, "cpu", clouds=2))
        _in_all_modes(run, f"{preset}, bare layers", _bare_losses(parts, run), bare_launches.total())
        _in_all_modes(run, f"{preset}, step", _step_losses(parts, run), step_launches.total())


def _in_all_modes(run: Run, name: str, makers: dict[str, Callable[[], Loss]], counted: int) -> None:
    """Add a row for each mode, of which all must have the same loss."""
    expected = float(makers["plain"]().detach())
    for mode, loss in makers.items():
        # Without a GPU nothing is captured, and a CPU would compile the large model for minutes.
        if run.on_gpu or mode.startswith("plain") or (mode == "compiled" and name.startswith("minilm")):
            row = partial(_measured, run, loss, expected, CLOUDS)
            add = {"counted": counted} if mode == "plain" else {}
            run.check(f"{name}, {mode}", lambda row=row, add=add: row() | add)


def _built(preset: str, run: Run, device: str | None = None, clouds: int | None = None) -> Built:
    """Build a model of a preset without dropout, so that all modes compute the same loss."""
    sizes, fewer = (_SMALL, {"num_hidden_layers": 2}) if run.small else ({}, {})
    with patch.dict(PRESETS[preset][0], fewer):
        built = build(preset, clouds or (2 if run.small else CLOUDS), **sizes)
    for module in built.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    target = device or run.device
    moved = tree_map_only(Tensor, lambda tensor: tensor.detach().to(target), built._asdict())
    moved |= {"model": built.model.to(target), "layers": [layer.to(target) for layer in built.layers]}
    moved["sequence"].requires_grad_()
    return Built(**moved)


def _bare_losses(built: Built, run: Run) -> dict[str, Loss]:
    """Return the loss of the bare layers in each mode."""
    sequence, copied = built.sequence, copy.deepcopy(built.layers)
    plain, compiled, captured = (Bare(layers, sequence) for layers in (built.layers, copied, built.layers))
    for layer in copied:
        layer.compile(backend=_backend(run))

    def run_layers(layers: Callable[[Tensor], Tensor]) -> Tensor:
        sequence.grad = None
        return layers(sequence)

    @functools.cache
    def graph() -> Any:
        sample = sequence.detach().clone().requires_grad_()
        return torch.cuda.make_graphed_callables(captured, (sample,))

    return {
        "plain": lambda: run_layers(plain),
        "captured": lambda: run_layers(graph()),
        "compiled": lambda: run_layers(compiled),
    }


def _step_losses(built: Built, run: Run) -> dict[str, Loss]:
    """Return the loss of a training step in each mode, with points indexed before."""
    inputs = {"points": built.clouds, "labels": built.labels, "point_index": built.point_index}
    plain, captured, apart, compiled = built.model, *(copy.deepcopy(built.model) for _ in range(3))
    compile_layers(compiled.get_base_model(), backend=_backend(run))
    steps = {model: CapturedSteps(model, model.get_base_model()) for model in (captured, apart)}

    def run_model(model: nn.Module) -> Tensor:
        # As a Trainer does before each step.
        model.zero_grad(set_to_none=True)
        return steps[model].loss(inputs) if model in steps else model(**inputs).loss

    def without_table(model: nn.Module) -> Tensor:
        # What the table alone is worth: in a captured step, launches are one.
        with patch.object(table_form, "is_chosen", lambda *_: False):
            return run_model(model)

    return {
        "plain": lambda: run_model(plain),
        "plain, no table": lambda: without_table(plain),
        "captured": lambda: run_model(captured),
        "captured, no table": lambda: without_table(apart),
        "compiled": lambda: run_model(compiled),
    }


def _backend(run: Run) -> str:
    return "eager" if run.small else "inductor"


def _measured(run: Run, loss: Loss, expected: float | None, clouds: int) -> Row:
    """Measure forward and backward pass; the first step captures or compiles."""
    start = time.perf_counter()
    found = loss()
    found.backward()
    run.synchronize()
    row: Row = {"first step s": time.perf_counter() - start}
    if expected is not None:
        row["error"] = abs(float(found) - expected) / max(abs(expected), 1e-6)
        row["ok"] = row["error"] <= 1e-3

    def step() -> None:
        loss().backward()

    row["ms"] = run.milliseconds(step, 5)
    row["clouds/s"] = 1000 * (2 if run.small else clouds) / row["ms"]
    peak = run.peak_bytes(step)
    row["MB"] = None if peak is None else peak / 1e6
    row["kernels"] = run.kernels(step)
    return row


def _transcription(run: Run) -> Row:
    """Measure a transcription of the method, which computes the same step."""
    built = _built(TRANSCRIBED, run, clouds=2 if run.small else TRANSCRIBED_CLOUDS)

    def loss() -> Tensor:
        built.model.zero_grad(set_to_none=True)
        return training_loss(built.model, built.clouds, built.labels)

    return _measured(run, loss, None, TRANSCRIBED_CLOUDS)


def _tokenizer(run: Run, built: Built, tokenizer: Callable[..., Any], precision: torch.dtype | None) -> Row:
    """Measure the tokenizer alone; its rows, which are most of its bytes, are in half precision if one is given."""

    def loss() -> Tensor:
        built.model.zero_grad(set_to_none=True)
        with torch.autocast(run.device.type, precision, enabled=precision is not None):
            return tokenizer(built.clouds, point_index=built.point_index).tokens.sum()

    return _measured(run, loss, None, CLOUDS)

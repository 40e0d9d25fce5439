"""Section on modes: bare frozen layers and the training step around them, each plain, compiled and captured."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hf_any3d.training.faster_steps import CapturedSteps, compile_layers
from studies.speed._any2point_transcription import training_loss
from studies.speed.any2point_wrapper import TRANSCRIBED, Built, build
from studies.speed.launches import count_built
from tests.gpu_check.run import Row, Run

CLOUDS = 32
# The method as written needs ten times the memory.
TRANSCRIBED_CLOUDS = 8
_SMALL = {"points": 64, "tokens": 8, "neighbors": 4}


class Bare(nn.Module):
    """The frozen layers of an encoder alone, without adapters."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Sum the last hidden states, as a loss."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=None, is_causal=False)
        return hidden_states.sum()


def modes(run: Run) -> None:
    """Time bare layers and steps in the same modes, with launches as counted without a GPU and as profiled."""
    backend = "eager" if run.small else "inductor"
    for preset in ("minilm", TRANSCRIBED):
        built = _built(preset, run)
        step_launches, bare_launches = count_built(_built(preset, run, "cpu", clouds=2))
        for what, counted in (("bare layers", bare_launches), ("step", step_launches)):
            losses = _bare_losses(built) if what == "bare layers" else _step_losses(built)
            plain = losses["plain"]()
            expected = float(plain())
            row = partial(_measured, run, plain, expected, CLOUDS)
            run.check(f"{preset}, {what}", lambda row=row, counted=counted: row() | {"counted": counted.total()})
            if run.on_gpu:
                run.check(f"{preset}, {what}, captured", partial(_made, run, losses["captured"], expected))
            # Of the large model only on a GPU: a CPU would compile for minutes.
            if run.on_gpu or preset == "minilm":
                make = partial(losses["compiled"], backend=backend)
                run.check(f"{preset}, {what}, compiled", partial(_made, run, make, expected))
        if preset == TRANSCRIBED:
            run.check("the method as written", partial(_transcription, run))
            tokenizer = built.model.get_base_model().any2point.point_tokenizer
            run.check(f"{preset}, tokenizer", partial(_tokenizer, run, built, tokenizer))
            if run.on_gpu:
                compiled = torch.compile(tokenizer)
                run.check(f"{preset}, tokenizer, compiled", partial(_tokenizer, run, built, compiled))


def _built(preset: str, run: Run, device: str | None = None, clouds: int | None = None) -> Built:
    """Build a model of a preset without dropout, so that all modes compute the same loss."""
    sizes = _SMALL if run.small else {}
    built = build(preset, clouds or (2 if run.small else CLOUDS), **sizes)
    for module in built.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    target = device or run.device
    moved = tree_map_only(Tensor, lambda tensor: tensor.detach().to(target), built._asdict())
    moved |= {"model": built.model.to(target), "layers": [layer.to(target) for layer in built.layers]}
    moved["sequence"].requires_grad_()
    return Built(**moved)


def _bare_losses(built: Built) -> dict[str, Callable[..., Callable[[], Tensor]]]:
    """Return for each mode what makes the loss of the bare layers."""
    sequence = built.sequence

    def captured() -> Callable[[], Tensor]:
        sample = sequence.detach().clone().requires_grad_()
        replay = torch.cuda.make_graphed_callables(Bare(built.layers).train(), (sample,))
        return lambda: replay(sequence)

    def compiled(backend: str) -> Callable[[], Tensor]:
        layers = copy.deepcopy(built.layers)
        for layer in layers:
            layer.compile(backend=backend)
        bare = Bare(layers)
        return lambda: bare(sequence)

    return {
        "plain": lambda: lambda: Bare(built.layers)(sequence),
        "captured": captured,
        "compiled": compiled,
    }


def _step_losses(built: Built) -> dict[str, Callable[..., Callable[[], Tensor]]]:
    """Return for each mode what makes the loss of a training step, with points indexed before."""
    inputs = {"points": built.clouds, "labels": built.labels, "point_index": built.point_index}

    def captured() -> Callable[[], Tensor]:
        model = copy.deepcopy(built.model)
        steps = CapturedSteps(model, model.get_base_model())
        return lambda: steps.loss(inputs)

    def compiled(backend: str) -> Callable[[], Tensor]:
        model = copy.deepcopy(built.model)
        compile_layers(model.get_base_model(), backend=backend)
        return lambda: model(**inputs).loss

    return {"plain": lambda: lambda: built.model(**inputs).loss, "captured": captured, "compiled": compiled}


def _made(run: Run, make: Callable[[], Callable[[], Tensor]], expected: float) -> Row:
    """Measure a mode, with the seconds of its first step."""
    start = time.perf_counter()
    loss = make()
    loss().backward()
    run.synchronize()
    return _measured(run, loss, expected, CLOUDS) | {"first step s": round(time.perf_counter() - start, 1)}


def _measured(run: Run, loss: Callable[[], Tensor], expected: float | None, clouds: int) -> Row:
    def step() -> None:
        loss().backward()

    found = float(loss())
    row: Row = {"ms": run.milliseconds(step, 5)}
    peak = run.peak_bytes(step)
    row |= {"clouds/s": 1000 * (2 if run.small else clouds) / row["ms"], "MB": None if peak is None else peak / 1e6}
    row["kernels"] = run.kernels(step)
    if expected is not None:
        row["error"] = abs(found - expected) / max(abs(expected), 1e-6)
        row["ok"] = row["error"] <= 1e-3
    return row


def _transcription(run: Run) -> Row:
    built = _built(TRANSCRIBED, run, clouds=2 if run.small else TRANSCRIBED_CLOUDS)
    loss: Callable[[], Any] = lambda: training_loss(built.model, built.clouds, built.labels)  # noqa: E731
    return _measured(run, loss, None, TRANSCRIBED_CLOUDS)


def _tokenizer(run: Run, built: Built, tokenizer: nn.Module) -> Row:
    def loss() -> Tensor:
        return tokenizer(built.clouds, point_index=built.point_index).tokens.sum()

    return _measured(run, loss, None, CLOUDS)
